//! The machine's one network interface, by rtnetlink(7). Addresses come from the host over the channel; there is no DHCP.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use super::rtnetlink::{Prefixed, Routing};
use super::uevents::Uevents;

/// How long the interface may take to appear: its driver loads while the agent is up already.
const APPEAR: Duration = Duration::from_secs(10);

/// The name that the interface gets.
const NAME: &str = "eth0";

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("`{0}` is not a hardware address")]
    BadMac(String),
    #[error("`{0}` is not an IPv4 address")]
    BadAddress(String),
    #[error("{0} is not the length of an IPv4 prefix")]
    BadPrefix(u32),
    #[error("no network interface with hardware address {mac} appeared within {} seconds", APPEAR.as_secs())]
    NoInterface { mac: String },
    #[error("cannot listen for devices")]
    Listen(#[source] std::io::Error),
    #[error("cannot talk to the kernel about the network")]
    Connect(#[source] Errno),
    #[error("cannot {step}")]
    Step { step: &'static str, source: Errno },
}

/// What the interface gets, checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Network {
    mac: String,
    address: Ipv4Addr,
    prefix: u8,
    gateway: Option<Ipv4Addr>,
    mtu: Option<u32>,
}

impl Network {
    /// Checks what the host asks for.
    pub(crate) fn parse(wanted: &hostel_proto::v1::GuestNetwork) -> Result<Self, NetworkError> {
        let mac = wanted.mac.to_ascii_lowercase();
        let mut parts = mac.split(':');
        let well_formed = parts
            .by_ref()
            .take(6)
            .filter(|p| p.len() == 2 && u8::from_str_radix(p, 16).is_ok())
            .count()
            == 6;
        if !well_formed || parts.next().is_some() {
            return Err(NetworkError::BadMac(mac.chars().take(32).collect()));
        }
        let address = |text: &str| {
            text.parse::<Ipv4Addr>()
                .map_err(|_| NetworkError::BadAddress(text.chars().take(64).collect()))
        };
        let prefix = u8::try_from(wanted.prefix)
            .ok()
            .filter(|p| (1..=32).contains(p));
        Ok(Self {
            address: address(&wanted.address)?,
            prefix: prefix.ok_or(NetworkError::BadPrefix(wanted.prefix))?,
            gateway: if wanted.gateway.is_empty() {
                None
            } else {
                Some(address(&wanted.gateway)?)
            },
            mtu: (wanted.mtu != 0).then_some(wanted.mtu),
            mac,
        })
    }

    /// Sets the interface up; what is right already stays. Needs CAP_NET_ADMIN.
    pub(crate) async fn apply(&self) -> Result<(), NetworkError> {
        let events = Uevents::subscribe().map_err(NetworkError::Listen)?;
        let (name, index) = events
            .wait_for(APPEAR, || interface(Path::new("/sys/class/net"), &self.mac))
            .await
            .ok_or_else(|| NetworkError::NoInterface {
                mac: self.mac.clone(),
            })?;
        let routing = Routing::connect().map_err(NetworkError::Connect)?;
        let at = |step| move |source| NetworkError::Step { step, source };
        if name != NAME {
            // A name can only be changed while the interface is down.
            routing
                .set_link(index, false, None)
                .map_err(at("take the interface down"))?;
            routing
                .name_link(index, c"eth0")
                .map_err(at("name the interface"))?;
        }
        routing
            .set_link(index, true, self.mtu)
            .map_err(at("bring the interface up"))?;
        let wanted = Prefixed {
            address: self.address,
            prefix: self.prefix,
        };
        for old in routing.addresses(index).map_err(at("list addresses"))? {
            if old != wanted {
                routing
                    .delete_address(index, old)
                    .map_err(at("remove an old address"))?;
            }
        }
        routing
            .add_address(index, wanted)
            .map_err(at("set the address"))?;
        match self.gateway {
            Some(gateway) => routing
                .set_default_route(index, gateway)
                .map_err(at("set the default route")),
            None => Ok(()),
        }
    }
}

/// Brings the loopback interface up (BOOT-6).
pub(crate) fn loopback_up() -> Result<(), NetworkError> {
    let routing = Routing::connect().map_err(NetworkError::Connect)?;
    routing
        .set_link(1, true, None)
        .map_err(|source| NetworkError::Step {
            step: "bring `lo` up",
            source,
        })
}

fn interface(class: &Path, mac: &str) -> Option<(String, u32)> {
    fs_err::read_dir(class)
        .ok()?
        .filter_map(Result::ok)
        .find_map(|entry| {
            let address = fs_err::read_to_string(entry.path().join("address")).ok()?;
            if !address.trim().eq_ignore_ascii_case(mac) {
                return None;
            }
            let index = fs_err::read_to_string(entry.path().join("ifindex"))
                .ok()?
                .trim()
                .parse()
                .ok()?;
            Some((entry.file_name().into_string().ok()?, index))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hostel_proto::v1::GuestNetwork;

    fn wanted() -> GuestNetwork {
        GuestNetwork {
            address: "172.19.132.144".into(),
            prefix: 20,
            gateway: "172.19.128.1".into(),
            mac: "52:54:00:AB:cd:01".into(),
            mtu: 0,
            dns: vec![],
            search: vec![],
            ..GuestNetwork::default()
        }
    }

    #[test]
    fn what_the_host_asks_for_is_checked() {
        assert_eq!(Network::parse(&wanted()).unwrap().mac, "52:54:00:ab:cd:01");
        let bad = |change: fn(&mut GuestNetwork)| {
            let mut network = wanted();
            change(&mut network);
            Network::parse(&network).is_err()
        };
        assert!(bad(|n| n.mac = "52:54:00:ab:cd".into()));
        assert!(bad(|n| n.mac = "52:54:00:ab:cd:01:02".into()));
        assert!(bad(|n| n.mac = "../../etc/passwd::".into()));
        assert!(bad(|n| n.address = "::1".into()));
        assert!(bad(|n| n.gateway = "gateway".into()));
        assert!(bad(|n| n.prefix = 33));
        assert!(bad(|n| n.prefix = 0));
    }

    #[test]
    fn the_interface_is_found_by_its_hardware_address() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mac, index) in [
            ("lo", "00:00:00:00:00:00", "1"),
            ("ens3", "52:54:00:ab:cd:01", "7"),
        ] {
            fs_err::create_dir(dir.path().join(name)).unwrap();
            fs_err::write(dir.path().join(name).join("address"), format!("{mac}\n")).unwrap();
            fs_err::write(dir.path().join(name).join("ifindex"), format!("{index}\n")).unwrap();
        }
        assert_eq!(
            interface(dir.path(), "52:54:00:ab:cd:01"),
            Some(("ens3".into(), 7))
        );
        assert_eq!(interface(dir.path(), "52:54:00:ab:cd:02"), None);
    }
}
