//! QEMU's own user-mode network.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use futures_util::{
    FutureExt as _,
    future::{self, BoxFuture},
};
use hostel_model::firewall::Rule;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::{Adapter, Backend, GuestIpv6, GuestNetwork, Kind, NetdevSpec, Wanted};
use crate::NatRecord;

/// The largest packet of an ordinary network.
const MTU: u32 = 1500;

/// QEMU's user-mode network: works for everyone and everywhere, at a fifth to a half of a tap's speed.
///
/// Only the VM can open connections; other processes of the host have no route to it.
#[derive(Debug)]
pub struct Slirp {
    record: NatRecord,
    reason: String,
    ipv6: bool,
    mtu: u32,
}

impl Slirp {
    /// Prepares it.
    pub fn new(wanted: &Wanted, reason: impl Into<String>) -> Self {
        Self {
            record: wanted.record.clone(),
            reason: reason.into(),
            ipv6: wanted.ipv6,
            mtu: wanted.mtu.unwrap_or(MTU),
        }
    }
}

fn unreached<T>() -> io::Result<T> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "the user-mode network has no way into the guest",
    ))
}

impl Backend for Slirp {
    fn kind(&self) -> Kind {
        Kind::Slirp
    }

    fn reason(&self) -> &str {
        &self.reason
    }

    fn guest(&self) -> GuestNetwork {
        let record = &self.record;
        GuestNetwork {
            address: record.address,
            prefix: record.subnet.bits(),
            gateway: record.gateway,
            mac: record.mac,
            mtu: self.mtu,
            dns: vec![record.resolver()],
            relay_address: None,
            ipv6: self.ipv6.then(|| GuestIpv6 {
                address: record.ipv6_address(),
                prefix: 64,
                gateway: record.ipv6_gateway(),
            }),
            hide_rooms: false,
            host: None::<Ipv4Addr>,
        }
    }

    fn netdev(&self) -> BoxFuture<'_, io::Result<NetdevSpec>> {
        let record = &self.record;
        let spec = NetdevSpec::User {
            net: record.subnet.to_string(),
            host: record.gateway,
            dhcpstart: record.address,
            dns: record.resolver(),
            // The host may have no IPv6, and slirp would announce it all the same: every connection would first wait.
            ipv6: self.ipv6.then(|| {
                (
                    format!("{}/64", record.ipv6_network()),
                    record.ipv6_gateway(),
                )
            }),
            filter: None,
        };
        future::ready(Ok(spec)).boxed()
    }

    fn reaches_guest(&self) -> bool {
        false
    }

    fn connect(&self, _to: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        future::ready(unreached()).boxed()
    }

    fn connect_udp(&self, _to: SocketAddr) -> BoxFuture<'_, io::Result<UdpSocket>> {
        future::ready(unreached()).boxed()
    }

    fn gateway_dns(&self) -> BoxFuture<'_, io::Result<Option<(UdpSocket, TcpListener)>>> {
        future::ready(Ok(None)).boxed()
    }

    fn set_firewall(&self, _rules: Vec<Rule>) -> BoxFuture<'_, io::Result<()>> {
        future::ready(Ok(())).boxed()
    }

    fn adapters(&self) -> Vec<Adapter> {
        vec![Adapter {
            name: "slirp".to_owned(),
            kind: "slirp".to_owned(),
            mac: None,
            addresses: vec![format!(
                "{}/{}",
                self.record.gateway,
                self.record.subnet.bits()
            )],
            mtu: self.mtu,
            up: true,
            switch: None,
            place: "inside QEMU".to_owned(),
        }]
    }

    fn reach(&self) -> Vec<String> {
        Vec::new()
    }

    fn advice(&self) -> Vec<String> {
        Vec::new()
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        future::pending().boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        future::ready(()).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn guest_and_qemu_are_told_the_same() {
        let wanted = crate::backend::tests::wanted();
        let backend: Box<dyn Backend> = Box::new(Slirp::new(&wanted, "why not"));
        let guest = backend.guest();
        assert_eq!(
            (guest.address.to_string().as_str(), guest.prefix),
            ("172.19.132.144", 20)
        );
        assert_eq!((backend.name(), backend.reason()), ("slirp", "why not"));
        let NetdevSpec::User {
            net,
            host,
            dhcpstart,
            dns,
            ipv6,
            ..
        } = backend.netdev().await.unwrap()
        else {
            panic!("slirp is QEMU's user-mode network");
        };
        assert_eq!(net, "172.19.128.0/20");
        assert_eq!((host, dhcpstart), (guest.gateway, guest.address));
        assert_eq!((ipv6, guest.ipv6), (None, None));
        assert_eq!(guest.dns, [dns]);
        assert_ne!(dns, host, "slirp refuses one address for both");
    }
}
