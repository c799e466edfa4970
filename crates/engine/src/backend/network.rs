//! The network of the next VM: the recorded addresses, asked for again; opened with the best backend that works; and what is
//! done without it.

use std::{ffi::OsString, net::Ipv4Addr, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use hostel_model::{ErrorCode, Failure, firewall::Rule};
use hostel_qemu::{Netdev, Nic, UserIpv6};
use hostel_switch::{
    Backend, Host, Kind, NatRecord, NetdevSpec, NoFreeSubnet, OpenError, Opened, Prefix, Verdict,
    Wanted,
};
use hostel_wslconf::MachineConf;

use crate::{
    hypervisor::NetworkPlan,
    network::{HostNamesPlaces, Mode, NetworkSettings, NetworkSetup, Opener},
    registry::Registry,
};

/// What people call the network.
const NAME: &str = "hostel";

/// Where the programs are that a network needs.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) hostel_net: PathBuf,
    pub(super) path: OsString,
}

/// A network that was opened, or why there is none.
#[derive(Debug)]
pub(super) struct Network {
    /// `None`: the VM has none.
    pub(super) setup: Option<NetworkSetup>,
    /// Why not.
    pub(super) why_none: String,
    /// What to record once a VM runs with it.
    lasting: Option<NatRecord>,
    /// What the user should know.
    pub(super) warnings: Vec<String>,
}

impl Network {
    /// Returns the card, with the descriptors of what stands behind it. A network that gives none is given up.
    pub(super) async fn nic(
        &mut self,
        warn: &(dyn Fn(String) + Send + Sync),
    ) -> Option<(Nic, Vec<OwnedFd>)> {
        let error = match nic(&*self.setup.as_ref()?.backend).await {
            Ok(nic) => return Some(nic),
            Err(error) => error,
        };
        warn(format!("the VM has no network: it broke at once: {error}"));
        self.close().await;
        *self = none(&error.to_string(), Vec::new());
        None
    }

    /// Ends it: the VM that it was for did not start.
    pub(super) async fn close(&self) {
        if let Some(setup) = &self.setup {
            setup.backend.close().await;
        }
    }
}

/// Reads the record and the configuration, and asks the host for what is free. Changes nothing; blocks for a moment.
pub(super) fn plan(registry: &Registry, conf: &MachineConf) -> NetworkPlan {
    let (settings, mut warnings) = NetworkSettings::of(conf);
    if settings.mode == Mode::None {
        return NetworkPlan {
            record: None,
            settings,
            ipv6: false,
            warnings,
        };
    }
    let host = Host::read().unwrap_or_else(|error| {
        warnings.push(format!(
            "the host's networks cannot be read, so the VM's may collide with one: {}",
            Failure::from_error(ErrorCode::Unsupported, &error).message
        ));
        Host::default()
    });
    let recorded = registry.settings().nat;
    let id = uuid::Uuid::new_v4().to_string();
    let record = match ask_again(recorded, &id, &host) {
        Ok((record, warning)) => {
            // NAT-6, NAT-9: one warning, with old and new.
            warnings.extend(warning);
            Some(record)
        }
        Err(error) => {
            warnings.push(format!("the VM has no network: {error}"));
            None
        }
    };
    NetworkPlan {
        record,
        ipv6: settings.ipv6.unwrap_or(host.ipv6),
        settings,
        warnings,
    }
}

/// Returns the recorded network, or what takes its place and why.
fn ask_again(
    recorded: Option<serde_json::Value>,
    id: &str,
    host: &Host,
) -> Result<(NatRecord, Option<String>), NoFreeSubnet> {
    let taken: Vec<Prefix> = host.taken.iter().map(|t| t.prefix).collect();
    match recorded.map(serde_json::from_value::<NatRecord>) {
        None => Ok((NatRecord::choose(id, NAME, &taken)?, None)),
        Some(Ok(record)) => Ok(match record.renew(host)? {
            None => (record, None),
            Some(renewal) => (renewal.record, Some(renewal.warning)),
        }),
        Some(Err(why)) => {
            let record = NatRecord::choose(id, NAME, &taken)?;
            let warning = format!(
                "the recorded network cannot be understood ({why}): {} is used from now on, with the VM at {}",
                record.subnet, record.address
            );
            Ok((record, Some(warning)))
        }
    }
}

/// Opens the network of a VM. Whatever fails, the answer is a network or the reason why there is none (NET-3, ERR-4).
pub(super) async fn open(
    registry: Arc<Registry>,
    conf: MachineConf,
    programs: Programs,
) -> Network {
    let begun = Instant::now();
    let planning = {
        let (registry, conf) = (Arc::clone(&registry), conf.clone());
        move || plan(&registry, &conf)
    };
    let Ok(plan) = tokio::task::spawn_blocking(planning).await else {
        return none("the network was not planned", Vec::new());
    };
    let NetworkPlan {
        record,
        settings,
        ipv6,
        mut warnings,
    } = plan;
    let Some(lasting) = record else {
        let why = if settings.mode == Mode::None {
            "asked for"
        } else {
            "no subnet is free on this host"
        };
        return none(why, warnings);
    };
    let mut record = lasting.clone();
    record.mac = settings.mac.unwrap_or(record.mac);
    let wanted = Wanted {
        kind: settings.kind,
        ipv6,
        host_loopback: settings.host_loopback,
        mtu: None,
        firewall: settings.firewall_rules(&registry.settings()),
        hostel_net: programs.hostel_net,
        path: programs.path.clone(),
        record: record.clone(),
    };
    let (opened, kind) = match open_some(&wanted, settings.mode, &mut warnings).await {
        Ok(opened) => opened,
        Err(error) => {
            warnings.push(format!(
                "the network cannot be opened, the VM has none: {error}; look at the reasons with `hostel doctor`"
            ));
            return none(&error.to_string(), warnings);
        }
    };
    tracing::debug!(
        backend = opened.backend.name(),
        ms = begun.elapsed().as_millis() as u64,
        "the network is open"
    );
    let opener = Reopen(Wanted {
        kind: Some(kind),
        ..wanted
    });
    Network {
        setup: Some(NetworkSetup {
            backend: opened.backend,
            verdicts: opened.verdicts,
            record,
            dns: hostel_dns::Settings {
                best_effort_parsing: conf.experimental.best_effort_dns_parsing,
                ..hostel_dns::Settings::default()
            },
            settings,
            host: hostel_switch::follow_host(),
            opener: Arc::new(opener),
            host_places: HostNamesPlaces {
                path: programs.path,
                ..HostNamesPlaces::default()
            },
        }),
        why_none: String::new(),
        lasting: Some(lasting),
        warnings,
    }
}

/// Says why the VM has no network.
pub(super) fn none(why: &str, warnings: Vec<String>) -> Network {
    Network {
        setup: None,
        why_none: why.to_owned(),
        lasting: None,
        warnings,
    }
}

/// Opens what is asked for; where that fails the next best, and says so (NET-3).
async fn open_some(
    wanted: &Wanted,
    mode: Mode,
    warnings: &mut Vec<String>,
) -> Result<(Opened, Kind), OpenError> {
    let kinds: &[Option<Kind>] = match (wanted.kind, mode) {
        (Some(_), Mode::Consomme) => &[wanted.kind, Some(Kind::Passt), Some(Kind::Slirp)],
        (None, Mode::Consomme) => &[Some(Kind::Passt), Some(Kind::Slirp)],
        (Some(_), Mode::Nat | Mode::None) => &[wanted.kind, None],
        (None, Mode::Nat | Mode::None) => &[None],
    };
    let mut verdicts: Vec<Verdict> = Vec::new();
    for kind in kinds {
        let one = Wanted {
            kind: *kind,
            ..wanted.clone()
        };
        match hostel_switch::open(&one).await {
            Ok(mut opened) => {
                let chosen = opened.backend.kind();
                if let Some(asked) = wanted.kind.filter(|asked| *asked != chosen) {
                    let why = verdicts
                        .iter()
                        .find(|v| v.kind == asked)
                        .map_or("it cannot be opened", |v| v.reason.as_str());
                    warnings.push(format!(
                        "the network `{asked}` was asked for and does not work here ({why}); `{chosen}` is used"
                    ));
                }
                verdicts.append(&mut opened.verdicts);
                opened.verdicts = verdicts;
                return Ok((opened, chosen));
            }
            Err(error) => {
                for verdict in error.verdicts {
                    if !verdicts.iter().any(|v| v.kind == verdict.kind) {
                        verdicts.push(verdict);
                    }
                }
            }
        }
    }
    Err(OpenError { verdicts })
}

/// Looks which backends could be opened. Changes nothing.
pub(super) async fn verdicts(plan: NetworkPlan, programs: Programs) -> Vec<Verdict> {
    let Some(record) = plan.record else {
        return Vec::new();
    };
    let wanted = Wanted {
        record,
        kind: None,
        ipv6: plan.ipv6,
        host_loopback: plan.settings.host_loopback,
        mtu: None,
        firewall: Vec::new(),
        hostel_net: programs.hostel_net,
        path: programs.path,
    };
    let mut all = hostel_switch::probe(&wanted).await;
    let fits = |kind: Kind| match (plan.settings.kind, plan.settings.mode) {
        (Some(asked), _) => kind == asked,
        (None, Mode::Consomme) => matches!(kind, Kind::Passt | Kind::Slirp),
        (None, Mode::Nat | Mode::None) => true,
    };
    for verdict in all.iter_mut().filter(|v| v.usable && !fits(v.kind)) {
        verdict.usable = false;
        verdict.reason = format!(
            "works, but is not what the configuration asks for ({})",
            verdict.reason
        );
    }
    all
}

/// Opens a network again with the addresses it had.
#[derive(Debug)]
struct Reopen(Wanted);

impl Opener for Reopen {
    fn open(
        &self,
        firewall: Vec<Rule>,
        ipv6: bool,
    ) -> BoxFuture<'_, Result<Arc<dyn Backend>, String>> {
        Box::pin(async move {
            let wanted = Wanted {
                firewall,
                ipv6,
                ..self.0.clone()
            };
            let opened = hostel_switch::open(&wanted)
                .await
                .map_err(|e| e.to_string())?;
            Ok(opened.backend)
        })
    }
}

/// Records a network that worked (NAT-4). Blocks for a moment.
pub(super) fn keep(registry: &Registry, network: &Network) {
    let Some(value) = network
        .lasting
        .as_ref()
        .and_then(|r| serde_json::to_value(r).ok())
    else {
        return;
    };
    if let Err(error) = registry.change_settings(|s| s.nat = Some(value)) {
        tracing::warn!(%error, "the network was not recorded; its addresses may change");
    }
}

/// Works out what the record would be with these addresses in it.
pub(super) fn change(
    plan: NetworkPlan,
    subnet: Option<Prefix>,
    gateway: Option<Ipv4Addr>,
    address: Option<Ipv4Addr>,
) -> Result<NatRecord, Failure> {
    let record = match plan.record {
        Some(record) => record,
        None => NatRecord::choose(&uuid::Uuid::new_v4().to_string(), NAME, &[])
            .map_err(|e| Failure::from_error(ErrorCode::Unsupported, &e))?,
    };
    // A host that cannot be asked is no reason to refuse: what collides is renewed at the start.
    let host = Host::read().unwrap_or_default();
    record
        .with(subnet, gateway, address, &host)
        .map_err(|e| Failure::from_error(ErrorCode::InvalidArgument, &e).hint("hostel net show"))
}

/// Returns the card, with the descriptors of what stands behind it.
pub(super) async fn nic(backend: &dyn Backend) -> std::io::Result<(Nic, Vec<OwnedFd>)> {
    let (netdev, fds) = netdev(backend.netdev().await?);
    let mac = backend.guest().mac.to_string();
    Ok((Nic { mac, netdev }, fds))
}

/// Says in QEMU's words what stands behind the card.
fn netdev(spec: NetdevSpec) -> (Netdev, Vec<OwnedFd>) {
    match spec {
        NetdevSpec::Tap { fd } => (Netdev::Tap, vec![fd]),
        NetdevSpec::Stream { fd, filter } => {
            let filtered = filter.is_some();
            let mut fds = vec![fd];
            fds.extend(filter.into_iter().flat_map(|f| [f.out, f.back]));
            (Netdev::Stream { filtered }, fds)
        }
        NetdevSpec::User {
            net,
            host,
            dhcpstart,
            dns,
            ipv6,
            filter,
        } => {
            let netdev = Netdev::User {
                net,
                host: host.to_string(),
                dhcpstart: dhcpstart.to_string(),
                dns: dns.to_string(),
                ipv6: ipv6.map(|(prefix, host)| UserIpv6 {
                    prefix: prefix.to_string(),
                    host: host.to_string(),
                }),
                filtered: filter.is_some(),
            };
            let fds = filter.map_or_else(Vec::new, |f| vec![f.out, f.back]);
            (netdev, fds)
        }
    }
}

#[cfg(test)]
mod tests {
    use hostel_switch::Taken;

    use super::*;

    fn host(taken: &[&str]) -> Host {
        Host {
            taken: taken
                .iter()
                .map(|t| Taken {
                    prefix: t.parse().unwrap(),
                    interface: "vpn0".to_owned(),
                })
                .collect(),
            ..Host::default()
        }
    }

    /// NAT-4, NAT-6: asked for again as it is; a collision gives one warning with old and new.
    #[test]
    fn a_record_is_asked_for_again_and_renewed_with_one_warning() {
        let (first, warning) = ask_again(None, "7f1c", &host(&[])).unwrap();
        assert_eq!(warning, None);
        let stored = serde_json::to_value(&first).unwrap();
        let (again, warning) = ask_again(Some(stored.clone()), "other", &host(&[])).unwrap();
        assert_eq!((&again, warning), (&first, None));
        let vpn = host(&["172.19.130.0/24"]);
        let (moved, warning) = ask_again(Some(stored), "other", &vpn).unwrap();
        let warning = warning.unwrap();
        assert!(
            warning.contains("172.19.128.0/20") && warning.contains(&moved.subnet.to_string()),
            "{warning}"
        );
        assert_eq!((moved.id, moved.mac), (first.id, first.mac));
    }

    /// NAT-9: the range is kept when only the address is bad.
    #[test]
    fn a_bad_address_keeps_the_range() {
        let (record, _) = ask_again(None, "7f1c", &host(&["172.19.0.0/16"])).unwrap();
        let mut stored = serde_json::to_value(&record).unwrap();
        stored["address"] = "10.1.2.3".into();
        let (renewed, warning) = ask_again(Some(stored), "x", &host(&[])).unwrap();
        assert_eq!(renewed.subnet, record.subnet);
        assert!(warning.unwrap().contains("10.1.2.3"));
    }

    /// A record of the first release, and one that somebody broke.
    #[test]
    fn old_and_broken_records_are_no_end() {
        let old = serde_json::json!({
            "id": "7f1c", "name": "hostel", "subnet": "172.19.128.0/20", "gateway": "172.19.128.1",
            "address": "172.19.132.144", "mac": "52:54:00:12:34:56"
        });
        let (record, warning) = ask_again(Some(old), "x", &host(&[])).unwrap();
        assert_eq!((record.id.as_str(), warning), ("7f1c", None));
        for broken in [
            serde_json::json!(7),
            serde_json::json!({ "subnet": "here" }),
        ] {
            let (record, warning) = ask_again(Some(broken), "x", &host(&[])).unwrap();
            assert!(warning.unwrap().contains(&record.subnet.to_string()));
        }
    }
}
