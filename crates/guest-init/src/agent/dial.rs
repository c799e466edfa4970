//! Connections to the host. The guest always dials.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use hostel_model::Token;
use hostel_proto::limits::{CONTROL_PORT, STREAM_PORT};

/// One connection, whatever carries it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection, whatever carries it.
pub(crate) type BoxStream = Box<dyn Stream>;

/// The host's ports: those of the contract, unless the kernel's command line says others (`hostel.control_port=`,
/// `hostel.stream_port=`), because on a kernel's vhost-vsock all virtual machines of a host share one space of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    control: u32,
    stream: u32,
}

impl Ports {
    /// Reads the kernel's command line.
    pub(crate) fn of_command_line(line: &str) -> Self {
        let value = |name: &str| {
            line.split_ascii_whitespace()
                .rev()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        };
        Self {
            control: value("hostel.control_port").unwrap_or(CONTROL_PORT),
            stream: value("hostel.stream_port").unwrap_or(STREAM_PORT),
        }
    }
}

/// How the host is reached.
#[derive(Clone, Debug)]
pub(crate) enum Dialer {
    /// AF_VSOCK, as in the VM.
    Vsock(Ports),
    /// Unix sockets named `<path>_<port>`: the agent without a VM, for tests of either end.
    Unix(PathBuf),
}

impl Dialer {
    /// Connects for calls. Cancel safe.
    pub(crate) async fn control(&self) -> io::Result<BoxStream> {
        self.dial(match self {
            Self::Vsock(ports) => ports.control,
            Self::Unix(_) => CONTROL_PORT,
        })
        .await
    }

    async fn dial(&self, port: u32) -> io::Result<BoxStream> {
        match self {
            Self::Vsock(_) => {
                if !has_vsock(Path::new("/dev/vsock"), Path::new("/sys/module/vsock")) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                Ok(Box::new(
                    VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await?,
                ))
            }
            Self::Unix(path) => {
                let mut name = path.as_os_str().to_owned();
                name.push(format!("_{port}"));
                Ok(Box::new(UnixStream::connect(name).await?))
            }
        }
    }

    /// Connects a raw stream and claims it.
    pub(crate) async fn claim(&self, token: &Token) -> io::Result<BoxStream> {
        let port = match self {
            Self::Vsock(ports) => ports.stream,
            Self::Unix(_) => STREAM_PORT,
        };
        let mut stream = self.dial(port).await?;
        stream.write_all(token.as_bytes()).await?;
        Ok(stream)
    }
}

/// Tells whether the kernel has AF_VSOCK by now.
///
/// Asking for a socket of a family that is not there yet would make the kernel start its module loader, and that one waits
/// for modules which only this connection brings. The module makes its device a moment before its family.
fn has_vsock(device: &Path, module: &Path) -> bool {
    // What is built into the kernel has no state.
    device.exists()
        && fs_err::read_to_string(module.join("initstate"))
            .map_or(true, |state| state.trim_end() == "live")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_still_starts_is_not_asked() {
        let dir = tempfile::tempdir().unwrap();
        let (device, state) = (dir.path().join("vsock"), dir.path().join("initstate"));
        assert!(!has_vsock(&device, dir.path()));
        fs_err::write(&device, "").unwrap();
        assert!(has_vsock(&device, dir.path()), "built in");
        for (text, there) in [("coming\n", false), ("live\n", true), ("going\n", false)] {
            fs_err::write(&state, text).unwrap();
            assert_eq!(has_vsock(&device, dir.path()), there, "{text}");
        }
    }

    #[test]
    fn ports_of_the_command_line_win() {
        let ports = |line| {
            let ports = Ports::of_command_line(line);
            (ports.control, ports.stream)
        };
        assert_eq!(ports("quiet console=ttyS0"), (CONTROL_PORT, STREAM_PORT));
        assert_eq!(
            ports("hostel.control_port=7 hostel.stream_port=8\n"),
            (7, 8)
        );
        assert_eq!(
            ports("hostel.control_port=x hostel.stream_port"),
            (CONTROL_PORT, STREAM_PORT)
        );
    }
}
