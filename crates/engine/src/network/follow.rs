//! What the guest is told when the host changes: its interfaces, addresses and resolvers.

use std::{sync::Arc, time::Duration};

use super::{Live, pause};
use crate::{engine::lock, vm::Running};

/// Between two changes that the guest is told of: a host that is never at rest does not keep the guest busy.
const BETWEEN: Duration = Duration::from_millis(500);

impl Live {
    /// Takes in what the host's network is like now.
    pub(super) fn heed_host(&self) {
        let state = self.host.borrow().clone();
        if let Some(host) = &state.host {
            self.backend().follow(host);
        }
        self.say("host", state.trouble);
    }

    /// Follows the host's resolvers and search domains (DNS-2, DNS-4), its addresses, and the largest packet of its
    /// interfaces (NAT-12).
    pub(super) async fn follow_host(self: Arc<Self>, running: Arc<Running>) {
        let mut resolvers = self.resolver.host();
        let mut host = self.host.clone();
        loop {
            // Whatever changes from here on is seen in the next turn.
            resolvers.borrow_and_update();
            host.borrow_and_update();
            self.heed_host();
            if self.is_news() {
                // Where the host is may be another place.
                self.tell_names();
                self.configure(&running).await;
                tokio::select! {
                    () = self.ending.cancelled() => return,
                    () = pause(BETWEEN) => {}
                }
            }
            tokio::select! {
                () = self.ending.cancelled() => return,
                changed = resolvers.changed() => if changed.is_err() { return },
                changed = host.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Tells whether the guest was told something else than what holds now. One that was told nothing yet will be.
    fn is_news(&self) -> bool {
        let now = self.guest_network();
        lock(&self.told).as_ref().is_some_and(|told| *told != now)
    }

    /// Tells the guest about its network again.
    pub(super) async fn configure(&self, running: &Running) {
        let _alone = self.telling.lock().await;
        match running.configure_again().await {
            Ok(warnings) => self.say("guest", (!warnings.is_empty()).then(|| warnings.join("; "))),
            Err(failure) => {
                self.say(
                    "guest",
                    Some(format!(
                        "the guest was not told of a change of its network: {failure}"
                    )),
                );
            }
        }
    }
}
