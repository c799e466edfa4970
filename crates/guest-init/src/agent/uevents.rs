//! Waiting for devices: the kernel's uevents wake the look, the look decides.

use std::time::Duration;

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::time::{Instant, timeout_at};

use super::ready::{self, ReadyFd};

/// How long a look may be late when an event is lost (the socket's buffer is small) or has no uevent.
const SAFETY: Duration = Duration::from_millis(100);

/// A subscription to the kernel's uevents.
pub(crate) struct Uevents(ReadyFd);

impl Uevents {
    /// Subscribes.
    pub(crate) fn subscribe() -> std::io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags,
            Some(KOBJECT_UEVENT),
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 1))?;
        Ok(Self(ready::both(socket)?))
    }

    /// Looks now and after every event until the look finds something; `None` when the time is over. Cancel safe.
    pub(crate) async fn wait_for<T>(
        &self,
        timeout: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(found) = look() {
                return Some(found);
            }
            let now = Instant::now();
            if now >= end {
                return None;
            }
            self.changed(end.min(now + SAFETY)).await;
        }
    }

    /// Returns after the next event, or when the time comes.
    pub(crate) async fn changed(&self, until: Instant) {
        if let Ok(Ok(mut guard)) = timeout_at(until, self.0.readable()).await {
            let mut scratch = [0; 4096];
            // What the events say does not matter: all of them lead to the same look.
            while rustix::net::recv(self.0.get_ref(), &mut scratch[..], RecvFlags::DONTWAIT).is_ok()
            {
            }
            guard.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_look_is_repeated_until_it_finds_or_time_is_over() {
        let events = Uevents::subscribe().unwrap();
        let mut looks = 0;
        let found = events.wait_for(Duration::from_secs(20), || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(found.await, Some(3));
        assert_eq!(events.wait_for(Duration::ZERO, || None::<()>).await, None);
    }
}
