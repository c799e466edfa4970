//! QEMU's own user-mode network.

use std::{
    io,
    sync::{Mutex, PoisonError},
};

use futures_util::{
    FutureExt as _,
    future::{self, BoxFuture},
};

use super::{
    Adapter, Backend, GuestNetwork, Kind, NetdevSpec, Wanted, sentences, surroundings::Surroundings,
};
use crate::{
    Host, NatRecord,
    filter::{self, Filter, Policy},
};

/// QEMU's user-mode network: works for everyone and everywhere, at a fifth to a half of a tap's speed.
///
/// Only the VM can open connections; other processes of the host have no route to it.
#[derive(Debug)]
pub(super) struct Slirp {
    record: NatRecord,
    reason: String,
    ipv6: bool,
    host_loopback: bool,
    around: Surroundings,
    filter: Mutex<Option<Filter>>,
}

/// Says why it can always be used.
pub(super) fn probe() -> String {
    "QEMU has it built in".to_owned()
}

/// Prepares it.
pub(super) async fn open(wanted: &Wanted) -> Slirp {
    // It works as well when the host cannot be read.
    let host = tokio::task::spawn_blocking(Host::read).await;
    let host = host.ok().and_then(Result::ok).unwrap_or_default();
    Slirp {
        record: wanted.record.clone(),
        reason: probe(),
        ipv6: wanted.ipv6,
        host_loopback: wanted.host_loopback,
        around: Surroundings::new(wanted.mtu, &host),
        filter: Mutex::new(None),
    }
}

impl Slirp {
    fn connection(&self) -> io::Result<NetdevSpec> {
        let record = &self.record;
        let filter = if self.host_loopback {
            None
        } else {
            let (spec, filter) = filter::start(Policy {
                subnet: record.subnet,
                gateway: record.gateway,
                gateway_is_host: false,
                resolver: record.resolver(),
                ipv6: self.ipv6.then(|| record.ipv6_network()),
            })?;
            // The former one ends.
            *self.filter.lock().unwrap_or_else(PoisonError::into_inner) = Some(filter);
            Some(spec)
        };
        Ok(NetdevSpec::User {
            net: record.subnet.to_string(),
            host: record.gateway,
            dhcpstart: record.address,
            dns: record.resolver(),
            // The host may have no IPv6, and slirp would announce it all the same: every connection would first wait.
            ipv6: self
                .ipv6
                .then(|| (record.ipv6_network(), record.ipv6_gateway())),
            filter,
        })
    }
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
            dns: vec![record.resolver()],
            // It takes an IPv6 neighbour's word for its own address alone, and the VM answers for the rooms.
            hide_rooms: self.ipv6,
            host: if self.host_loopback {
                Some(record.gateway)
            } else {
                self.around.address()
            },
            ..GuestNetwork::of(record, self.around.mtu(), self.ipv6)
        }
    }

    fn follow(&self, host: &Host) {
        self.around.follow(host);
    }

    fn netdev(&self) -> BoxFuture<'_, io::Result<NetdevSpec>> {
        future::ready(self.connection()).boxed()
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
            mtu: self.around.mtu(),
            up: true,
            switch: None,
            place: "inside QEMU".to_owned(),
        }]
    }

    fn reach(&self) -> Vec<String> {
        let mut reach = vec![
            sentences::outward("QEMU's own network"),
            sentences::host(self.around.address()),
        ];
        reach.extend(sentences::inward(self.record.address));
        reach.push(sentences::loopback(
            self.host_loopback.then_some(self.record.gateway),
        ));
        reach
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
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn guest_and_qemu_are_told_the_same() {
        let wanted = crate::backend::tests::wanted();
        let backend = super::open(&wanted).await;
        let guest = backend.guest();
        assert_eq!(
            (guest.address.to_string().as_str(), guest.prefix),
            ("172.19.132.144", 20)
        );
        assert_eq!(
            (backend.name(), backend.reason()),
            ("slirp", "QEMU has it built in")
        );
        let NetdevSpec::User {
            net,
            host,
            dhcpstart,
            dns,
            ipv6,
            filter,
        } = backend.netdev().await.unwrap()
        else {
            panic!("slirp is QEMU's user-mode network");
        };
        assert_eq!(net, "172.19.128.0/20");
        assert_eq!((host, dhcpstart), (guest.gateway, guest.address));
        assert_eq!((ipv6, guest.ipv6), (None, None));
        assert_eq!(guest.dns, [dns]);
        assert_ne!(dns, host, "slirp refuses one address for both");
        assert!(filter.is_some(), "the host's loopback is closed");
        let open = Wanted {
            host_loopback: true,
            ..wanted
        };
        let spec = super::open(&open).await.netdev().await.unwrap();
        assert!(matches!(spec, NetdevSpec::User { filter: None, .. }));
        // NAT-12, and the host's address, which the guest reaches it at.
        backend.follow(&Host {
            mtu: 1420,
            address: Some(Ipv4Addr::new(192, 0, 2, 7)),
            ..Host::default()
        });
        let guest = backend.guest();
        assert_eq!((guest.mtu, backend.adapters()[0].mtu), (1420, 1420));
        assert_eq!(guest.host, Some(Ipv4Addr::new(192, 0, 2, 7)));
    }
}
