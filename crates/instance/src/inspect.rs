//! Which namespaces a process is in.

use std::io;

/// One namespace of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `pid`, `mnt`, `ipc`, `uts`, `cgroup`, `net`, `user` or `time`
    pub kind: &'static str,
    /// The number that identifies it.
    pub inode: u64,
    /// Whether the process it was compared with is in the same one.
    pub shared: bool,
}

/// Lists a process's namespaces and which of them it shares with another process. Needs `/proc` and the right to look at both.
/// Kinds that the kernel does not have are left out.
pub fn namespaces(pid: u32, compared_with: u32) -> io::Result<Vec<Namespace>> {
    let mut list = Vec::new();
    for kind in hostel_sys::namespace::KINDS {
        match hostel_sys::namespace::inode(pid, kind) {
            Ok(inode) => {
                let shared = hostel_sys::namespace::inode(compared_with, kind)? == inode;
                list.push(Namespace {
                    kind,
                    inode,
                    shared,
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !list.is_empty() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_shares_everything_with_itself() {
        let list = namespaces(std::process::id(), std::process::id()).unwrap();
        assert!(list.len() >= 7 && list.iter().all(|n| n.shared), "{list:?}");
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(namespaces(u32::MAX >> 1, std::process::id()).is_err());
    }
}
