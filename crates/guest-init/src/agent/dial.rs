//! Connections to the host. The guest always dials.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use hostel_model::Token;
use hostel_proto::limits::STREAM_PORT;

/// One connection, whatever carries it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection, whatever carries it.
pub(crate) type BoxStream = Box<dyn Stream>;

/// How the host is reached.
#[derive(Clone, Debug)]
pub(crate) enum Dialer {
    /// AF_VSOCK, as in the VM.
    Vsock,
    /// Unix sockets named `<path>_<port>`: the agent without a VM, for tests of either end.
    Unix(PathBuf),
}

impl Dialer {
    /// Connects to a port of the host. Cancel safe.
    pub(crate) async fn dial(&self, port: u32) -> io::Result<BoxStream> {
        match self {
            Self::Vsock => {
                // Asking for a socket of a family that is not there yet would make the kernel start its module loader.
                if !Path::new("/dev/vsock").exists() {
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
        let mut stream = self.dial(STREAM_PORT).await?;
        stream.write_all(token.as_bytes()).await?;
        Ok(stream)
    }
}
