//! The network of the next VM: the recorded addresses, or new ones that collide with nothing of the host.

use std::{ffi::OsString, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1;
use hostel_qemu::{Netdev, Nic, UserIpv6};
use hostel_switch::{
    Backend as _, Kind, NatRecord, NetdevSpec, Prefix, Slirp, Wanted, host_prefixes,
};
use hostel_wslconf::{MachineConf, NetworkingMode};

use crate::registry::Registry;

/// What people call the network.
const NAME: &str = "hostel";

/// How a VM is connected, in the three forms in which it is needed.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) status: v1::NetworkStatus,
    pub(super) guest: Option<v1::GuestNetwork>,
    backend: Option<Arc<Slirp>>,
    /// What to record once a VM runs with it.
    record: Option<NatRecord>,
    /// What the user should know.
    pub(super) warnings: Vec<String>,
}

impl Network {
    /// Returns the card, with the descriptors of what stands behind it.
    pub(super) async fn nic(&self) -> Result<(Option<Nic>, Vec<OwnedFd>), Failure> {
        let Some(backend) = &self.backend else {
            return Ok((None, Vec::new()));
        };
        let spec = backend
            .netdev()
            .await
            .map_err(|e| Failure::from_error(ErrorCode::VmStart, &e))?;
        let (netdev, fds) = netdev(spec);
        let mac = backend.guest().mac.to_string();
        Ok((Some(Nic { mac, netdev }), fds))
    }
}

/// Says in QEMU's words what stands behind the card.
fn netdev(spec: NetdevSpec) -> (Netdev, Vec<OwnedFd>) {
    match spec {
        NetdevSpec::Tap { fd } => (Netdev::Tap, vec![fd]),
        NetdevSpec::Stream { fd } => (Netdev::Stream, vec![fd]),
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
                ipv6: ipv6.map(|(net, host)| UserIpv6 {
                    net,
                    host: host.to_string(),
                }),
                filtered: filter.is_some(),
            };
            let fds = filter.map_or_else(Vec::new, |f| vec![f.out, f.back]);
            (netdev, fds)
        }
    }
}

/// Plans the network: the recorded one, so that addresses stay (NAT-4), else the first that is free. Blocks for a moment.
pub(super) fn plan(registry: &Registry, conf: &MachineConf) -> Result<Network, Failure> {
    if conf.wsl2.networking_mode == NetworkingMode::None {
        let status = v1::NetworkStatus {
            backend: "none".to_owned(),
            backend_reason: "asked for".to_owned(),
            ..v1::NetworkStatus::default()
        };
        return Ok(Network {
            status,
            guest: None,
            backend: None,
            record: None,
            warnings: Vec::new(),
        });
    }
    let mut warnings = Vec::new();
    let host = host_networks();
    let mut record = match recorded(registry) {
        Some(Ok(record)) => record,
        Some(Err(why)) => {
            let record = choose(&host)?;
            // NAT-6.
            warnings.push(format!(
                "the recorded network cannot be used ({why}); {} is used instead",
                record.subnet
            ));
            record
        }
        None => choose(&host)?,
    };
    let lasting = record.clone();
    if let Some(mac) = conf.wsl2.mac_address {
        record.mac = mac
            .to_string()
            .parse()
            .map_err(|e: hostel_switch::ParseMacError| {
                Failure::from_error(ErrorCode::Config, &e)
                    .hint("change wsl2.macAddress in the configuration")
            })?;
    }
    let wanted = Wanted {
        record: record.clone(),
        kind: Some(Kind::Slirp),
        ipv6: false,
        host_loopback: false,
        mtu: None,
        firewall: Vec::new(),
        hostel_net: PathBuf::new(),
        path: OsString::new(),
    };
    let backend = Slirp::new(&wanted, "the only backend of this release");
    let guest = backend.guest();
    let servers: Vec<String> = guest.dns.iter().map(ToString::to_string).collect();
    Ok(Network {
        status: v1::NetworkStatus {
            backend: backend.name().to_owned(),
            backend_reason: backend.reason().to_owned(),
            subnet: record.subnet.to_string(),
            gateway: guest.gateway.to_string(),
            address: guest.address.to_string(),
            mac: guest.mac.to_string(),
            dns: servers.clone(),
            mode: "nat".to_owned(),
            mtu: guest.mtu,
            ..v1::NetworkStatus::default()
        },
        guest: Some(v1::GuestNetwork {
            address: guest.address.to_string(),
            prefix: u32::from(guest.prefix),
            gateway: guest.gateway.to_string(),
            mac: guest.mac.to_string(),
            mtu: guest.mtu,
            dns: servers,
            generate_resolv_conf: true,
            ..v1::GuestNetwork::default()
        }),
        backend: Some(Arc::new(backend)),
        record: Some(lasting),
        warnings,
    })
}

/// Records a network that worked. Blocks for a moment.
pub(super) fn record(registry: &Registry, network: &Network) {
    let Some(value) = network
        .record
        .as_ref()
        .and_then(|r| serde_json::to_value(r).ok())
    else {
        return;
    };
    if let Err(error) = registry.change_settings(|s| s.nat = Some(value)) {
        tracing::warn!(%error, "the network was not recorded; its addresses may change");
    }
}

/// Returns the recorded network, or why it cannot be used.
fn recorded(registry: &Registry) -> Option<Result<NatRecord, String>> {
    let value = registry.settings().nat?;
    let record = serde_json::from_value::<NatRecord>(value).map_err(|e| e.to_string());
    Some(record.and_then(|r| r.validate().map(|()| r).map_err(|e| e.to_string())))
}

fn choose(host: &[Prefix]) -> Result<NatRecord, Failure> {
    let id = uuid::Uuid::new_v4().to_string();
    NatRecord::choose(&id, NAME, host).map_err(|e| {
        Failure::from_error(ErrorCode::Unsupported, &e)
            .hint("set `networkingMode=none` in section [wsl2] of hostel.conf")
    })
}

/// Returns the networks that this host knows.
fn host_networks() -> Vec<Prefix> {
    let read = |path| fs_err::read_to_string(path).ok();
    host_prefixes(
        &read("/proc/net/route").unwrap_or_default(),
        read("/proc/net/fib_trie").as_deref(),
    )
}
