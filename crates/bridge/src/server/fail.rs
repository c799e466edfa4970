//! From errors of the kernel to refusals that a client understands.

use std::{error::Error, fmt::Display, io};

use hostel_netlink::NetlinkError;
use rustix::io::Errno;

use crate::protocol::{Refusal, RefusalCode};

/// Says what could not be done, and why.
pub(super) trait OrRefuse<T> {
    /// Turns an error into a refusal whose text begins with `what`.
    fn or_refuse(self, what: impl Display) -> Result<T, Refusal>;
}

impl<T, E: HasErrno> OrRefuse<T> for Result<T, E> {
    fn or_refuse(self, what: impl Display) -> Result<T, Refusal> {
        self.map_err(|error| {
            let code = match error.number() {
                Some(Errno::PERM | Errno::ACCESS | Errno::ROFS) => RefusalCode::Denied,
                Some(
                    Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::NOSYS,
                ) => RefusalCode::Unsupported,
                _ => RefusalCode::Failed,
            };
            let Refusal { message, .. } = Refusal::of(code, &error);
            Refusal::new(code, format!("{what}: {message}"))
        })
    }
}

/// Errors that may have a number.
pub(super) trait HasErrno: Error + 'static {
    /// Returns it.
    fn number(&self) -> Option<Errno>;
}

impl HasErrno for io::Error {
    fn number(&self) -> Option<Errno> {
        Errno::from_io_error(self)
    }
}

impl HasErrno for Errno {
    fn number(&self) -> Option<Errno> {
        Some(*self)
    }
}

impl HasErrno for NetlinkError {
    fn number(&self) -> Option<Errno> {
        self.errno()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_number_decides_what_callers_branch_on() {
        let code = |errno: Errno| Err::<(), _>(errno).or_refuse("x").unwrap_err().code;
        assert_eq!(code(Errno::PERM), RefusalCode::Denied);
        assert_eq!(code(Errno::OPNOTSUPP), RefusalCode::Unsupported);
        assert_eq!(code(Errno::BUSY), RefusalCode::Failed);
    }

    #[test]
    fn sources_are_told() {
        let error = NetlinkError::Socket(Errno::NOBUFS);
        let refusal = Err::<(), _>(error).or_refuse("cannot do it").unwrap_err();
        assert!(
            refusal
                .message
                .starts_with("cannot do it: the netlink socket failed: "),
            "{refusal}"
        );
    }
}
