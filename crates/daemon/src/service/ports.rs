//! The port ledger as a stream: once, or again after every change.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use hostel_engine::Engine;
use hostel_proto::v1;
use tokio_util::sync::CancellationToken;

use super::BoxStream;

/// The shortest time between two ledgers: what changes together is told together.
const QUIET: Duration = Duration::from_millis(20);

#[expect(
    clippy::disallowed_methods,
    reason = "time itself is what ends a group of changes"
)]
async fn quiet() {
    tokio::time::sleep(QUIET).await;
}

/// Tells the ledger, and with `watch` tells it again after every change until `ended`.
pub(super) fn ledger(
    engine: Arc<Engine>,
    watch: bool,
    ended: CancellationToken,
) -> BoxStream<v1::PortsReply> {
    let now = |engine: &Engine| {
        Ok(v1::PortsReply {
            ports: engine.ports(),
        })
    };
    if !watch {
        return Box::pin(futures_util::stream::iter([now(&engine)]));
    }
    // Subscribed before the first look: a change between the two is told.
    let changed = engine.ports_changed();
    let first = futures_util::stream::iter([now(&engine)]);
    let last = engine.ports();
    let more = futures_util::stream::unfold((changed, last), move |(mut changed, last)| {
        let (engine, ended) = (Arc::clone(&engine), ended.clone());
        async move {
            loop {
                tokio::select! {
                    () = ended.cancelled() => return None,
                    alive = changed.changed() => alive.ok()?,
                }
                quiet().await;
                changed.mark_unchanged();
                let ports = engine.ports();
                if ports != last {
                    let reply = v1::PortsReply {
                        ports: ports.clone(),
                    };
                    return Some((Ok(reply), (changed, ports)));
                }
            }
        }
    });
    Box::pin(first.chain(more))
}
