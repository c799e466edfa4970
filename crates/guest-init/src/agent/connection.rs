//! gRPC on one connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hostel_proto::limits::MAX_MESSAGE;
use hostel_proto::v1::agent_server::AgentServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_stream::StreamExt;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::dial::BoxStream;
use super::service::Service;

/// How long the last answer may take to leave when the machine is being switched off.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The most calls at one time; sessions and watches stay open.
const MAX_CALLS: u32 = 4096;

/// Serves a connection until it ends, or the machine is to be switched off.
pub(crate) async fn serve(
    stream: BoxStream,
    service: Service,
    power_off: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let closed = CancellationToken::new();
    let connection = Connection {
        stream,
        _closed: closed.clone().drop_guard(),
    };
    // One connection, and then none, but no end either: the end of the list would be the end of the server.
    let incoming =
        tokio_stream::once(Ok::<_, io::Error>(connection)).chain(tokio_stream::pending());
    let end = {
        let (closed, power_off) = (closed.clone(), power_off.clone());
        async move {
            tokio::select! {
                () = closed.cancelled() => {}
                () = power_off.cancelled() => {}
            }
        }
    };
    let agent = AgentServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let serving = Server::builder()
        .max_concurrent_streams(MAX_CALLS)
        .add_service(agent)
        .serve_with_incoming_shutdown(incoming, end);
    tokio::select! {
        result = serving => result,
        // A watch that is still open would keep the connection for ever.
        () = async { power_off.cancelled().await; tokio::time::sleep_until(tokio::time::Instant::now() + LAST_WORDS).await } => Ok(()),
    }
}

/// The one connection; tells when the server let go of it.
struct Connection {
    stream: BoxStream,
    _closed: DropGuard,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
