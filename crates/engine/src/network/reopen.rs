//! Opening the network of a running VM again: what carried it died, or the host has IPv6 now and had none, or the other way.
//!
//! The VM goes on: its card is replaced, and the guest is told. Connections between host and VM go on as well when the new
//! network is there, as after a cable was out for a moment.

use std::{
    future,
    sync::Arc,
    time::{Duration, Instant},
};

use hostel_switch::HostState;
use tokio::sync::watch;

use super::{Live, pause};
use crate::{lifecycle::VmState, vm::Running};

/// How long to wait before a network that could not be opened is tried again; doubled up to the last.
const REOPEN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// How long QEMU may take to be gone after what its card was connected to.
const GOING: Duration = Duration::from_millis(150);

/// How long the host's IPv6 must have been there before the VM's comes; doubled up to the last when it comes and goes often.
const STEADY: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(300));

/// So many times longer it must have been gone before the VM's goes: often it comes back, and nothing is lost by waiting.
const GONE: u32 = 3;

/// Between two changes that are not often.
const SELDOM: Duration = Duration::from_secs(600);

/// Why the network is opened again.
enum Why {
    /// It died of this.
    Broke(String),
    /// The host's IPv6 has come or gone.
    Ipv6,
}

/// How long the host's IPv6 must be steady.
#[derive(Debug)]
struct Patience {
    time: Duration,
    last: Option<Instant>,
}

impl Patience {
    fn new() -> Self {
        Self {
            time: STEADY.0,
            last: None,
        }
    }

    /// Notes a change that was followed.
    fn followed(&mut self, now: Instant) {
        let often = self
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < SELDOM);
        self.time = if often {
            (self.time * 2).min(STEADY.1)
        } else {
            STEADY.0
        };
        self.last = Some(now);
    }
}

/// Waits until the host has had IPv6 for as long as `time`, and the VM has not; or until the VM has it and the host has had
/// none for longer. Cancel safe.
///
/// A host that is not connected at all, such as one between two Wi-Fis, is no reason to change anything.
async fn differs(mut host: watch::Receiver<HostState>, has: bool, time: Duration) {
    let differs = |state: &HostState| match &state.host {
        Some(host) if has => !host.ipv6 && host.online,
        Some(host) => host.ipv6,
        None => false,
    };
    let time = if has { time * GONE } else { time };
    loop {
        if host.wait_for(differs).await.is_err() {
            // Nobody knows any more.
            return future::pending().await;
        }
        tokio::select! {
            () = pause(time) => return,
            _ = host.wait_for(|state| !differs(state)) => {}
        }
    }
}

impl Live {
    /// Opens the network again whenever it dies, or has to be another.
    pub(super) async fn follow_backend(self: Arc<Self>, running: Arc<Running>) {
        let work = async {
            let mut patience = Patience::new();
            // What somebody has set stays.
            let mut follows = self.settings.ipv6.is_none();
            loop {
                let backend = self.backend();
                let has = backend.guest().ipv6.is_some();
                let why = tokio::select! {
                    how = backend.ended() => Why::Broke(how),
                    () = differs(self.host.clone(), has, patience.time), if follows => Why::Ipv6,
                };
                // What stands behind the card of a VM that ends goes with it.
                if self.vm_ends(&running).await {
                    return;
                }
                let wanted = match &why {
                    Why::Broke(how) => {
                        self.say(
                            "backend",
                            Some(format!(
                                "the network of the VM broke and is opened again: {how}"
                            )),
                        );
                        has
                    }
                    Why::Ipv6 => {
                        tracing::info!(ipv6 = !has, "the VM's network follows the host's IPv6");
                        patience.followed(Instant::now());
                        !has
                    }
                };
                // What the guest is told of a network that goes, it would take for the new card's.
                let alone = self.telling.lock().await;
                // Before what is behind it goes, which QEMU would not survive.
                if let Err(failure) = running.machine.unplug_nic().await {
                    tracing::warn!(%failure, "the VM keeps a card that leads nowhere");
                }
                backend.close().await;
                drop(backend);
                self.open_again(&running, wanted, has).await;
                drop(alone);
                self.configure(&running).await;
                tracing::info!(backend = self.backend().name(), "the network is open again");
                self.say("backend", None);
                // One that cannot follow is not broken for it again and again.
                follows &= self.backend().guest().ipv6.is_some() == wanted;
            }
        };
        tokio::select! {
            biased;
            () = self.ending.cancelled() => {}
            () = work => {}
        }
    }

    /// Tells whether the VM is at its end: it was asked to stop, or QEMU goes right now.
    async fn vm_ends(&self, running: &Running) -> bool {
        let stopping = self
            .engine
            .upgrade()
            .is_none_or(|e| e.vm.state() == VmState::Stopping);
        stopping
            || tokio::time::timeout(GOING, running.machine.ended())
                .await
                .is_ok()
    }

    /// Opens it and puts the VM's card on it; tried until it works. IPv6 is as wanted, or as it was when it cannot be had.
    async fn open_again(&self, running: &Running, mut ipv6: bool, before: bool) {
        let mut time = REOPEN.0;
        loop {
            let Some(engine) = self.engine.upgrade() else {
                return;
            };
            let rules = self.settings.firewall_rules(&engine.registry.settings());
            drop(engine);
            let opened = match self.opener.open(rules, ipv6).await {
                Ok(backend) => running
                    .machine
                    .replace_nic(&*backend)
                    .await
                    .map(|()| backend)
                    .map_err(|f| f.message),
                Err(why) => Err(why),
            };
            match opened {
                Ok(backend) => {
                    let old = self.wiring.replace(backend);
                    drop(old);
                    self.heed_host();
                    self.apply_relay();
                    self.serve_gateway().await;
                    self.tell_names();
                    self.tell_host_names().await;
                    return;
                }
                Err(why) if ipv6 != before => {
                    let stays = if before { "with" } else { "without" };
                    self.say(
                        "ipv6",
                        Some(format!(
                            "the VM's network stays {stays} IPv6 until the VM's next start, though the host's has changed: {why}"
                        )),
                    );
                    ipv6 = before;
                }
                Err(why) => {
                    self.say("backend", Some(format!("the VM has no network now: {why}")));
                    pause(time).await;
                    time = (time * 2).min(REOPEN.1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hostel_switch::Host;

    use super::*;

    /// Far longer than anything here takes.
    const LIMIT: Duration = Duration::from_secs(20);

    fn state(online: bool, ipv6: bool) -> HostState {
        HostState {
            host: Some(Host {
                online,
                ipv6,
                ..Host::default()
            }),
            ..HostState::default()
        }
    }

    #[test]
    fn who_changes_often_is_followed_seldom() {
        let begun = Instant::now();
        let mut patience = Patience::new();
        let mut at = begun;
        let mut times = Vec::new();
        for _ in 0..9 {
            at += patience.time;
            patience.followed(at);
            times.push(patience.time.as_secs());
        }
        assert_eq!(times, [3, 6, 12, 24, 48, 96, 192, 300, 300]);
        patience.followed(at + SELDOM);
        assert_eq!(patience.time, STEADY.0);
    }

    #[tokio::test]
    async fn only_what_stays_is_followed() {
        let (sender, host) = watch::channel(HostState::default());
        let follow = |has, time| {
            let waiting = differs(host.clone(), has, time);
            tokio::time::timeout(LIMIT, waiting)
        };
        // Not known, the same, gone again before the time was over, and not connected at all: each time nothing.
        let mut comes = Box::pin(follow(false, LIMIT * 2));
        for ipv6 in [false, true, false, true, false] {
            assert!(futures_util::poll!(&mut comes).is_pending());
            sender.send_replace(state(true, ipv6));
        }
        assert!(futures_util::poll!(&mut comes).is_pending());
        let mut goes = Box::pin(follow(true, LIMIT * 2));
        for online in [true, false, true, false] {
            assert!(futures_util::poll!(&mut goes).is_pending());
            sender.send_replace(state(online, false));
        }
        assert!(futures_util::poll!(&mut goes).is_pending());
        let short = Duration::from_millis(5);
        let apart = tokio::time::timeout(short * 20, differs(host.clone(), true, short));
        assert!(apart.await.is_err(), "a host without any way out");
        sender.send_replace(state(false, true));
        follow(false, short).await.expect("it has come");
        sender.send_replace(state(true, false));
        follow(true, short).await.expect("it has gone");
        drop(sender);
        let gone = differs(host.clone(), false, short);
        assert!(
            tokio::time::timeout(Duration::from_millis(50), gone)
                .await
                .is_err(),
            "nobody knows"
        );
    }
}
