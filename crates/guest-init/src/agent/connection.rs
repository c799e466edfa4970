//! gRPC on one connection.

use std::io;
use std::time::Duration;

use hostel_proto::Connection;
use hostel_proto::limits::MAX_MESSAGE;
use hostel_proto::v1::agent_server::AgentServer;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

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
    // Dropped with the connection, it tells when the server let go of it.
    let connection = Connection::new(stream, closed.clone().drop_guard());
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
