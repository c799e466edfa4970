//! Who has which name, and who answers for it at the gateway's address.

use std::{net::IpAddr, sync::Arc};

use hostel_dns::{Gateway, Names, Resolver};
use hostel_model::firewall::Source;
use hostel_wslconf::HostNames;
use tokio_util::sync::CancellationToken;

use super::{DnsMode, Live};
use crate::engine::lock;

impl Live {
    /// Serves the gateway's port 53 when the guest or its neighbours are told to ask there.
    pub(super) async fn serve_gateway(&self) {
        let old = lock(&self.gateway).take();
        if let Some(old) = old {
            old.cancel();
        }
        let wanted = !matches!(self.settings.dns, DnsMode::Tunnel(_))
            || self.settings.host_names == HostNames::Resolved;
        if !wanted {
            return;
        }
        match self.backend().gateway_dns().await {
            Ok(Some((udp, tcp))) => {
                let stop = CancellationToken::new();
                let mut sources = vec![Source {
                    address: self.record.subnet.network().into(),
                    bits: self.record.subnet.bits(),
                }];
                if let Some(v6) = self.backend().guest().ipv6 {
                    sources.push(Source {
                        address: v6.gateway.into(),
                        bits: v6.prefix,
                    });
                }
                let gateway = Gateway { udp, tcp, sources };
                if let Some(engine) = self.engine.upgrade() {
                    let (resolver, stop) = (Resolver::clone(&self.resolver), stop.clone());
                    engine
                        .tasks
                        .spawn(async move { resolver.serve(gateway, stop).await });
                }
                *lock(&self.gateway) = Some(stop);
                self.say("gateway-dns", None);
            }
            // The backend brings a resolver of its own.
            Ok(None) => {}
            Err(error) => self.say(
                "gateway-dns",
                Some(format!(
                    "names are not answered at the gateway's address: {error}"
                )),
            ),
        }
    }

    /// Tells the resolver who lives where.
    pub(crate) fn tell_names(&self) {
        let Some(engine) = self.engine.upgrade() else {
            return;
        };
        let guest = self.backend().guest();
        let mut vm: Vec<IpAddr> = vec![guest.address.into()];
        vm.extend(guest.ipv6.map(|v6| IpAddr::V6(v6.address)));
        let distros = engine
            .registry
            .list()
            .into_iter()
            .map(|d| {
                let addresses = match engine.room_of(&d).address {
                    Some(address) => {
                        let mut own: Vec<IpAddr> = vec![address.into()];
                        own.extend(guest.ipv6.map(|_| IpAddr::V6(self.record.ipv6_of(address))));
                        own
                    }
                    None => vm.clone(),
                };
                (d.name, addresses)
            })
            .collect();
        let left_out = self.resolver.set_names(&Names {
            host: guest.host.into_iter().map(IpAddr::V4).collect(),
            vm,
            distros,
        });
        self.say(
            "names",
            (!left_out.is_empty()).then(|| {
                let names: Vec<String> = left_out.iter().map(ToString::to_string).collect();
                format!(
                    "no name under `.hostel` for {}: another one has it",
                    names.join(", ")
                )
            }),
        );
    }

    /// Follows names, rooms and rules of the registry.
    pub(super) async fn follow_registry(self: Arc<Self>) {
        let Some(mut changes) = self.engine.upgrade().map(|e| e.registry.changes()) else {
            return;
        };
        loop {
            self.tell_names();
            self.tell_host_names().await;
            tokio::select! {
                () = self.ending.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }
}
