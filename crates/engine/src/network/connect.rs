//! The way to a listener in the guest: straight to an address where the host reaches it, else through the agent.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hostel_proto::v1;
use hostel_relay::{Connector, GuestDatagrams, GuestListener, Protocol};
use hostel_switch::{Backend, GuestNetwork};

use crate::{
    engine::lock,
    streams::{Broker, GuestStream},
    vm::Running,
};

/// How long a connection to an address of the guest may take before the agent is asked.
const DIRECT: Duration = Duration::from_secs(3);

/// How long the agent may take to connect and to dial back.
const BY_AGENT: Duration = Duration::from_secs(20);

/// Reaches the listeners of one VM.
pub(super) struct Wiring {
    backend: Mutex<Arc<dyn Backend>>,
    running: OnceLock<Weak<Running>>,
    streams: Arc<Broker<GuestStream>>,
}

/// The two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To this address.
    Direct(SocketAddr),
    /// The agent connects inside.
    Agent,
}

impl Wiring {
    pub(super) fn new(backend: Arc<dyn Backend>, streams: Arc<Broker<GuestStream>>) -> Arc<Self> {
        Arc::new(Self {
            backend: Mutex::new(backend),
            running: OnceLock::new(),
            streams,
        })
    }

    pub(super) fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&lock(&self.backend))
    }

    pub(super) fn replace(&self, backend: Arc<dyn Backend>) -> Arc<dyn Backend> {
        std::mem::replace(&mut *lock(&self.backend), backend)
    }

    /// Tells where the agent is; once.
    pub(super) fn set_running(&self, running: &Arc<Running>) {
        let _ = self.running.set(Arc::downgrade(running));
    }

    /// Has the agent connect inside the guest.
    async fn by_agent(&self, to: &GuestListener) -> io::Result<GuestStream> {
        let running = self
            .running
            .get()
            .and_then(Weak::upgrade)
            .ok_or(io::ErrorKind::NotConnected)?;
        let claim = self.streams.expect().map_err(io::Error::other)?;
        let request = v1::ConnectRequest {
            room: match (to.room, to.distro) {
                (Some(_), Some(id)) => id.to_string(),
                _ => String::new(),
            },
            protocol: to.protocol.to_string(),
            address: dialled(to.address).to_string(),
            port: to.port.into(),
            token: claim.token().as_bytes().to_vec().into(),
        };
        let mut agent = running.agent();
        let work = async {
            agent.connect(request).await.map_err(|status| {
                // What the agent says is the guest's: only its kind is used.
                let kind = match status.code() {
                    tonic::Code::Unavailable => io::ErrorKind::NotConnected,
                    _ => io::ErrorKind::ConnectionRefused,
                };
                io::Error::from(kind)
            })?;
            claim
                .claimed(BY_AGENT)
                .await
                .ok_or(io::Error::from(io::ErrorKind::TimedOut))
        };
        tokio::time::timeout(BY_AGENT, work)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Returns the address that a process inside dials for a listener that is bound to this one.
fn dialled(bound: IpAddr) -> IpAddr {
    match bound {
        IpAddr::V4(a) if a.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(a) if a.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

fn way(to: &GuestListener, guest: &GuestNetwork, reaches: bool) -> Way {
    if !reaches {
        return Way::Agent;
    }
    let own = to.room.map_or(guest.address, |room| room.address);
    let everywhere = to.address == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        || (to.address.is_unspecified() && to.dual_stack);
    if everywhere || to.address == IpAddr::V4(own) {
        return Way::Direct(SocketAddr::new(own.into(), to.port));
    }
    // Only TCP is sent on to the guest's loopback, and only in the VM's own network.
    if let Some(relay) = guest.relay_address
        && to.address == IpAddr::V4(Ipv4Addr::LOCALHOST)
        && to.room.is_none()
        && to.protocol == Protocol::Tcp
    {
        return Way::Direct(SocketAddr::new(relay.into(), to.port));
    }
    Way::Agent
}

/// Tries the direct way for a limited time. What refuses is not asked again in another way: nobody listens.
async fn direct<T>(attempt: BoxFuture<'_, io::Result<T>>) -> Option<io::Result<T>> {
    match tokio::time::timeout(DIRECT, attempt).await {
        Ok(Err(error))
            if !matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
            ) =>
        {
            tracing::debug!(%error, "a direct connection to the guest failed");
            None
        }
        Ok(result) => Some(result),
        Err(_) => None,
    }
}

impl Connector for Wiring {
    fn tcp<'a>(
        &'a self,
        to: &'a GuestListener,
    ) -> BoxFuture<'a, io::Result<hostel_relay::GuestStream>> {
        Box::pin(async move {
            let backend = self.backend();
            if let Way::Direct(address) = way(to, &backend.guest(), backend.reaches_guest())
                && let Some(result) = direct(backend.connect(address)).await
            {
                return Ok(result?.into());
            }
            let stream = self.by_agent(to).await?;
            Ok(hostel_relay::GuestStream::Other(Box::new(stream)))
        })
    }

    fn udp<'a>(&'a self, to: &'a GuestListener) -> BoxFuture<'a, io::Result<GuestDatagrams>> {
        Box::pin(async move {
            let backend = self.backend();
            if let Way::Direct(address) = way(to, &backend.guest(), backend.reaches_guest())
                && let Some(result) = direct(backend.connect_udp(address)).await
            {
                return Ok(result?.into());
            }
            let stream = self.by_agent(to).await?;
            Ok(GuestDatagrams::Framed(Box::new(stream)))
        })
    }
}

#[cfg(test)]
mod tests {
    use hostel_relay::Room;

    use super::*;

    const RELAY: Ipv4Addr = Ipv4Addr::new(172, 19, 128, 2);
    const VM: Ipv4Addr = Ipv4Addr::new(172, 19, 132, 144);
    const ROOM: Ipv4Addr = Ipv4Addr::new(172, 19, 133, 7);

    fn guest(relay: Option<Ipv4Addr>) -> GuestNetwork {
        GuestNetwork {
            address: VM,
            prefix: 20,
            gateway: Ipv4Addr::new(172, 19, 128, 1),
            mac: "52:54:00:12:34:56".parse().unwrap(),
            mtu: 1500,
            dns: Vec::new(),
            relay_address: relay,
            ipv6: None,
            hide_rooms: false,
            host: None,
        }
    }

    fn listener(address: &str, in_room: bool) -> GuestListener {
        GuestListener {
            distro: None,
            distro_name: String::new(),
            room: in_room.then_some(Room {
                address: ROOM,
                local: super::super::local_address(ROOM),
            }),
            protocol: Protocol::Tcp,
            address: address.parse().unwrap(),
            port: 3000,
            dual_stack: address == "::",
            pid: 0,
            process: String::new(),
        }
    }

    #[test]
    fn each_listener_is_reached_by_the_shortest_way_that_works() {
        let at = |address: Ipv4Addr| Way::Direct((address, 3000).into());
        for (address, room, want) in [
            ("0.0.0.0", false, at(VM)),
            ("::", false, at(VM)),
            ("172.19.132.144", false, at(VM)),
            ("127.0.0.1", false, at(RELAY)),
            ("127.0.0.2", false, Way::Agent),
            ("::1", false, Way::Agent),
            ("172.17.0.1", false, Way::Agent),
            ("0.0.0.0", true, at(ROOM)),
            ("::", true, at(ROOM)),
            ("172.19.133.7", true, at(ROOM)),
            ("127.0.0.1", true, Way::Agent),
            ("::1", true, Way::Agent),
        ] {
            let to = listener(address, room);
            assert_eq!(
                way(&to, &guest(Some(RELAY)), true),
                want,
                "{address} {room}"
            );
            assert_eq!(way(&to, &guest(Some(RELAY)), false), Way::Agent);
        }
        let loopback = listener("127.0.0.1", false);
        assert_eq!(way(&loopback, &guest(None), true), Way::Agent);
        let only_v6 = GuestListener {
            dual_stack: false,
            ..listener("::", false)
        };
        assert_eq!(way(&only_v6, &guest(Some(RELAY)), true), Way::Agent);
        let udp = GuestListener {
            protocol: Protocol::Udp,
            ..listener("127.0.0.1", false)
        };
        assert_eq!(way(&udp, &guest(Some(RELAY)), true), Way::Agent);
    }

    #[test]
    fn what_is_bound_everywhere_is_dialled_on_the_loopback() {
        for (bound, want) in [
            ("0.0.0.0", "127.0.0.1"),
            ("::", "::1"),
            ("::1", "::1"),
            ("172.17.0.1", "172.17.0.1"),
        ] {
            assert_eq!(dialled(bound.parse().unwrap()).to_string(), want);
        }
    }
}
