//! What the network is, for people and programs; and the addresses that people set.

use std::{net::Ipv4Addr, sync::Arc};

use hostel_model::{DistroId, ErrorCode, Failure};
use hostel_proto::v1;
use hostel_switch::{Backend, NatRecord, Verdict};

use super::{DnsMode, Live, Mode, NetworkSettings, ledger, local_address};
use crate::{engine::Engine, hypervisor::NetworkPlan, lifecycle::DistroState, state::NetworkKind};

/// The domain of the names of distributions.
const DOMAIN: &str = "hostel";

/// Returns how a distribution is on the network.
pub(super) fn kind_of(kinds: &[(DistroId, NetworkKind)], id: DistroId) -> &'static str {
    kinds
        .iter()
        .find(|(i, _)| *i == id)
        .map_or(NetworkKind::Shared, |(_, k)| *k)
        .as_str()
}

impl Live {
    /// Describes it as it is.
    pub(crate) fn status(&self) -> v1::NetworkStatus {
        let backend = self.backend();
        let guest = backend.guest();
        let told = self.guest_network();
        v1::NetworkStatus {
            backend: backend.name().to_owned(),
            backend_reason: backend.reason().to_owned(),
            dns: told.dns,
            mtu: guest.mtu,
            mac: guest.mac.to_string(),
            ipv6: guest
                .ipv6
                .map(|_| format!("{}/64", self.record.ipv6_network()))
                .unwrap_or_default(),
            bridge: bridge(&*backend),
            reach: backend.reach(),
            ..planned(&self.record, &self.settings)
        }
    }
}

/// Returns the host's interface that holds the gateway.
pub(super) fn bridge(backend: &dyn Backend) -> String {
    let gateway = format!("{}/", backend.guest().gateway);
    backend
        .adapters()
        .into_iter()
        .find(|a| a.addresses.iter().any(|text| text.starts_with(&gateway)))
        .map(|a| a.name)
        .unwrap_or_default()
}

/// Describes what a record and settings alone tell.
fn planned(record: &NatRecord, settings: &NetworkSettings) -> v1::NetworkStatus {
    v1::NetworkStatus {
        subnet: record.subnet.to_string(),
        gateway: record.gateway.to_string(),
        address: record.address.to_string(),
        mac: settings.mac.unwrap_or(record.mac).to_string(),
        mode: settings.mode.as_str().to_owned(),
        dns: match settings.dns {
            DnsMode::Tunnel(address) => vec![address.to_string()],
            DnsMode::Proxy => vec![record.gateway.to_string()],
            DnsMode::Host => Vec::new(),
        },
        ..v1::NetworkStatus::default()
    }
}

fn verdicts(verdicts: &[Verdict], chosen: Option<&str>) -> Vec<v1::BackendVerdict> {
    verdicts
        .iter()
        .map(|v| v1::BackendVerdict {
            name: v.kind.to_string(),
            chosen: Some(v.kind.as_str()) == chosen,
            reason: v.reason.clone(),
        })
        .collect()
}

fn none(why: &str) -> v1::NetworkStatus {
    v1::NetworkStatus {
        backend: Mode::None.as_str().to_owned(),
        mode: Mode::None.as_str().to_owned(),
        backend_reason: why.to_owned(),
        ..v1::NetworkStatus::default()
    }
}

impl Engine {
    /// Returns what the next VM's network will be.
    pub(crate) async fn network_plan(self: &Arc<Self>) -> Result<NetworkPlan, Failure> {
        let hypervisor = Arc::clone(&self.hypervisor);
        tokio::task::spawn_blocking(move || hypervisor.network_plan())
            .await
            .map_err(|e| Failure::from_error(ErrorCode::Internal, &e))
    }

    /// Returns the addresses: those in use, else those of the next VM.
    pub(crate) async fn nat_record(self: &Arc<Self>) -> Result<NatRecord, Failure> {
        if let Some(live) = self.vm.network() {
            return Ok(live.record.clone());
        }
        self.network_plan().await?.record.ok_or_else(|| {
            Failure::new(
                ErrorCode::Unsupported,
                "no subnet of 172.16.0.0/12 is free on this host",
            )
            .hint("hostel net set --subnet, with one of your own")
        })
    }

    /// Describes the network in few words, whether the VM runs or not.
    pub async fn network_status(self: &Arc<Self>) -> v1::NetworkStatus {
        if let Some(running) = self.vm.running() {
            return running
                .network()
                .map_or_else(|| none(&running.info.no_network), |live| live.status());
        }
        let Ok(plan) = self.network_plan().await else {
            return none("unknown");
        };
        match plan.record {
            _ if plan.settings.mode == Mode::None => none("asked for"),
            Some(record) => {
                let mut status = v1::NetworkStatus {
                    backend: plan.settings.kind.map_or("auto", |k| k.as_str()).to_owned(),
                    backend_reason: "chosen when the VM starts".to_owned(),
                    ..planned(&record, &plan.settings)
                };
                if !self.is_recorded() && plan.settings.mac.is_none() {
                    status.mac.clear();
                }
                status
            }
            None => none("no subnet is free on this host"),
        }
    }

    /// Tells whether the record has been stored. Before, its id and what follows from it are not known yet.
    fn is_recorded(&self) -> bool {
        self.registry.settings().nat.is_some()
    }

    /// Describes the network in full.
    pub async fn network(self: &Arc<Self>) -> Result<v1::NetworkReply, Failure> {
        let plan = self.network_plan().await?;
        let live = self.vm.network();
        let record = live
            .as_ref()
            .map(|l| l.record.clone())
            .or_else(|| plan.record.clone());
        let mut reply = v1::NetworkReply {
            status: Some(self.network_status().await),
            guests: self.network_guests(record.as_ref()),
            ..v1::NetworkReply::default()
        };
        if self.is_recorded() {
            reply.stored_in = self.registry.layout().registry().display().to_string();
        }
        if let Some(record) = &record {
            if self.is_recorded() {
                reply.id.clone_from(&record.id);
            }
            reply.name.clone_from(&record.name);
            reply.r#type = record.kind.to_string();
            reply.first_host = record.first_host().to_string();
            reply.last_host = record.last_host().to_string();
            reply.hosts = record.hosts();
        }
        match &live {
            Some(live) => {
                let backend = live.backend();
                reply.backends = verdicts(&live.verdicts, Some(backend.name()));
                reply.adapters = backend.adapters().into_iter().map(adapter).collect();
                reply.warnings = live.warnings();
                reply.warnings.extend(backend.advice().await);
                reply.warnings.extend(pending(&plan, live));
            }
            None if plan.settings.mode == Mode::None => {}
            None => {
                let seen = self.hypervisor.network_verdicts().await;
                let first = seen.iter().find(|v| v.usable).map(|v| v.kind.as_str());
                reply.backends = verdicts(&seen, first.filter(|_| self.vm.running().is_none()));
                reply.warnings = plan.warnings;
            }
        }
        reply.warnings.extend(self.registry.settings().problems());
        Ok(reply)
    }

    fn network_guests(&self, record: Option<&NatRecord>) -> Vec<v1::NetworkGuest> {
        let all = self.registry.list();
        let mut labels = hostel_dns::labels(all.iter().map(|d| &d.name));
        all.into_iter()
            .map(|d| {
                let room = self.room_of(&d);
                let label = labels.remove(&d.name);
                let text = |a: Ipv4Addr| a.to_string();
                v1::NetworkGuest {
                    distro: d.name.to_string(),
                    network: room.kind.to_string(),
                    address: room
                        .address
                        .or(record
                            .filter(|_| room.kind == NetworkKind::Shared)
                            .map(|r| r.address))
                        .map(text)
                        .unwrap_or_default(),
                    local_address: room
                        .address
                        .map(local_address)
                        .map(text)
                        .unwrap_or_default(),
                    host_name: label
                        .map(|label| format!("{label}.{DOMAIN}"))
                        .unwrap_or_default(),
                    running: self.distro_state(d.id) == DistroState::Running,
                }
            })
            .collect()
    }

    /// Changes the recorded addresses; they hold from the next start of the VM on.
    pub async fn network_set(
        self: &Arc<Self>,
        request: v1::NetworkSetRequest,
    ) -> Result<v1::NetworkReply, Failure> {
        let bad = |text: &str, what: &str| {
            Failure::new(
                ErrorCode::InvalidArgument,
                format!("`{}` is no {what}", text.escape_debug()),
            )
        };
        let address = |text: &str| -> Result<Option<Ipv4Addr>, Failure> {
            if text.is_empty() {
                return Ok(None);
            }
            text.parse()
                .map(Some)
                .map_err(|_| bad(text, "IPv4 address"))
        };
        let (gateway, vm) = (address(&request.gateway)?, address(&request.address)?);
        let subnet = match request.subnet.as_str() {
            "" => None,
            text => Some(
                text.parse()
                    .map_err(|e| Failure::from_error(ErrorCode::InvalidArgument, &e))?,
            ),
        };
        if request.reset && (subnet.is_some() || gateway.is_some() || vm.is_some()) {
            return Err(Failure::new(
                ErrorCode::InvalidArgument,
                "addresses cannot be set and chosen anew at once",
            ));
        }
        let _turn = self.rules_turn.lock().await;
        let hypervisor = Arc::clone(&self.hypervisor);
        let registry = Arc::clone(&self.registry);
        tokio::task::spawn_blocking(move || {
            let value = if request.reset {
                None
            } else {
                let record = hypervisor.network_change(subnet, gateway, vm)?;
                let value = serde_json::to_value(record)
                    .map_err(|e| Failure::from_error(ErrorCode::Internal, &e))?;
                Some(value)
            };
            registry
                .change_settings(|s| s.nat = value)
                .map_err(|e| e.failure())
        })
        .await
        .unwrap_or_else(|e| Err(Failure::from_error(ErrorCode::Internal, &e)))?;
        self.network().await
    }

    /// Checks the network for `doctor`.
    pub async fn network_checks(self: &Arc<Self>) -> Vec<v1::Check> {
        let mut checks = Vec::new();
        let mut say = |name: &str, verdict: &str, found: String, next_step: &str| {
            checks.push(v1::Check {
                name: name.to_owned(),
                verdict: verdict.to_owned(),
                found,
                next_step: next_step.to_owned(),
            });
        };
        let reply = match self.network().await {
            Ok(reply) => reply,
            Err(failure) => {
                say(
                    "network",
                    "error",
                    failure.message,
                    "hostel net set --reset",
                );
                return checks;
            }
        };
        let status = reply.status.unwrap_or_default();
        let chosen = reply.backends.iter().find(|b| b.chosen);
        match chosen {
            Some(backend) => say(
                "network",
                "ok",
                format!("{}, {}: {}", status.address, backend.name, backend.reason),
                "",
            ),
            None if status.mode == "none" => say(
                "network",
                if status.backend_reason == "asked for" {
                    "ok"
                } else {
                    "warning"
                },
                format!("none: {}", status.backend_reason),
                "",
            ),
            None => say(
                "network",
                "error",
                "no backend works".to_owned(),
                "sudo apt-get install passt",
            ),
        }
        let better: Vec<String> = reply
            .backends
            .iter()
            .take_while(|b| !b.chosen)
            .map(|b| format!("{}: {}", b.name, b.reason))
            .collect();
        if !better.is_empty() {
            say(
                "network backends",
                "ok",
                better.join("; "),
                "for the fastest one without being root: sudo hostel net helper install",
            );
        }
        for warning in reply.warnings {
            say("network", "warning", warning, "hostel net show");
        }
        let listen = match self.vm.network() {
            Some(live) => live.settings.clone(),
            None => match self.network_plan().await {
                Ok(plan) => plan.settings,
                Err(_) => return checks,
            },
        };
        let exposed: Vec<String> = listen.exposed().iter().map(ToString::to_string).collect();
        if !exposed.is_empty() {
            say(
                "relay",
                "warning",
                format!(
                    "ports of the guest are open to other machines, at {}",
                    exposed.join(", ")
                ),
                "remove `relayListen` from section [hostel] of hostel.conf, or keep it and set rules: hostel net firewall",
            );
        }
        checks.extend(ledger::checks(&self.ports()));
        checks
    }
}

/// Says what of the configuration holds only from the next start on.
fn pending(plan: &NetworkPlan, live: &Live) -> Vec<String> {
    // Such as a VPN that came up with the same addresses.
    let mut pending: Vec<String> = plan
        .warnings
        .iter()
        .map(|w| format!("at the next start of the VM: {w}"))
        .collect();
    if plan.settings != live.settings {
        pending.push(
            "the configuration of the network was changed; it holds from the next start of the VM on: hostel shutdown"
                .to_owned(),
        );
    }
    pending
}

fn adapter(adapter: hostel_switch::Adapter) -> v1::Adapter {
    v1::Adapter {
        name: adapter.name,
        kind: adapter.kind,
        mac: adapter.mac.map(|m| m.to_string()).unwrap_or_default(),
        addresses: adapter.addresses,
        mtu: adapter.mtu,
        state: if adapter.up { "up" } else { "down" }.to_owned(),
        switch: adapter.switch.unwrap_or_default(),
        r#where: adapter.place,
    }
}
