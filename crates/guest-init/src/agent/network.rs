//! The machine's one network interface, by rtnetlink(7). Addresses come from the host over the channel; there is no DHCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hostel_netlink::{Link, LinkChange, NetlinkError, Prefix, Route, Routing};
use rustix::io::Errno;

use super::uevents::Uevents;

/// How long the interface may take to appear: its driver loads while the agent is up already.
const APPEAR: Duration = Duration::from_secs(10);

/// The name that the interface gets.
pub(crate) const NAME: &str = "eth0";

/// The index of the loopback interface.
const LOOPBACK: u32 = 1;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("`{0}` is not a hardware address")]
    BadMac(String),
    #[error("`{0}` is not an IPv4 address")]
    BadAddress(String),
    #[error("`{0}` is not an IPv6 address, the machine's own with the length of its prefix")]
    BadAddress6(String),
    #[error("`{0}` is not an address of the host, or a prefix of some")]
    BadHost(String),
    #[error("{0} is not the length of an IPv4 prefix")]
    BadPrefix(u32),
    #[error("no network interface with hardware address {mac} appeared within {} seconds", APPEAR.as_secs())]
    NoInterface { mac: String },
    #[error("cannot listen for devices")]
    Listen(#[source] std::io::Error),
    #[error("cannot talk to the kernel about the network")]
    Connect(#[source] NetlinkError),
    #[error("cannot {step}")]
    Step {
        step: &'static str,
        source: NetlinkError,
    },
    #[error("cannot {step}")]
    Setting {
        step: &'static str,
        source: std::io::Error,
    },
}

/// What the interface gets, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    mac: [u8; 6],
    /// The machine's own address and how large its network is.
    pub(crate) address: Prefix,
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) mtu: Option<u32>,
    /// TCP from the gateway to it is meant for the machine's loopback.
    pub(crate) relay: Option<Ipv4Addr>,
    pub(crate) address6: Option<Prefix>,
    gateway6: Option<Ipv6Addr>,
    /// Who answers for names.
    pub(crate) dns: Vec<IpAddr>,
    /// Rooms leave with the machine's address.
    pub(crate) hide_rooms: bool,
    /// What is the host itself.
    pub(crate) host: Vec<Prefix>,
}

impl Network {
    /// Checks what the host asks for.
    pub(crate) fn parse(wanted: &hostel_proto::v1::GuestNetwork) -> Result<Self, NetworkError> {
        let address = four(&wanted.address)?;
        let length = u8::try_from(wanted.prefix)
            .ok()
            .filter(|p| (1..=32).contains(p));
        let prefix = length.and_then(|length| Prefix::new(address, length));
        let mut dns: Vec<IpAddr> = wanted.dns.iter().filter_map(|d| d.parse().ok()).collect();
        dns.extend(wanted.dns_tunnel.parse::<IpAddr>());
        Ok(Self {
            mac: mac(&wanted.mac)?,
            address: prefix.ok_or(NetworkError::BadPrefix(wanted.prefix))?,
            gateway: given(&wanted.gateway).map(four).transpose()?,
            mtu: (wanted.mtu != 0).then_some(wanted.mtu),
            relay: given(&wanted.relay_address).map(four).transpose()?,
            address6: given(&wanted.ipv6_address).map(six).transpose()?,
            gateway6: match given(&wanted.ipv6_gateway) {
                None => None,
                Some(text) => Some(
                    text.parse()
                        .map_err(|_| NetworkError::BadAddress6(shown(text)))?,
                ),
            },
            dns,
            hide_rooms: wanted.hide_rooms,
            host: wanted
                .host_addresses
                .iter()
                .map(|text| text.parse().map_err(|_| NetworkError::BadHost(shown(text))))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Sets the interface up and returns its index; what is right already stays. Needs CAP_NET_ADMIN.
    ///
    /// May be done again at any time, also when the card was taken out and a new one put in.
    pub(crate) async fn apply(&self) -> Result<u32, NetworkError> {
        let events = Uevents::subscribe().map_err(NetworkError::Listen)?;
        let routing = Routing::connect().map_err(NetworkError::Connect)?;
        let found = events.wait_for(APPEAR, || self.find(&routing)).await;
        let link = found.ok_or_else(|| NetworkError::NoInterface {
            mac: self.mac.map(|b| format!("{b:02x}")).join(":"),
        })?;
        name(&routing, &link)?;
        // The host says what its addresses are, nobody else.
        let _ = set_interface(6, NAME, "accept_ra", "0");
        use_at_once(NAME);
        let change = LinkChange {
            up: Some(true),
            mtu: self.mtu.filter(|mtu| *mtu != link.mtu),
            ..LinkChange::default()
        };
        routing
            .change_link(link.index, &change)
            .map_err(at("bring the interface up"))?;
        set_addresses(&routing, link.index, self.address)?;
        if let Some(gateway) = self.gateway {
            routing
                .replace_route(&Route::default_via(gateway.into(), link.index))
                .map_err(at("set the default route"))?;
        }
        self.set_relay(&routing)?;
        Ok(link.index)
    }

    /// Sets up IPv6 beyond the link-local address, which the kernel makes itself; or takes away what there was.
    pub(crate) fn apply6(&self, index: u32) -> Result<(), NetworkError> {
        let routing = Routing::connect().map_err(NetworkError::Connect)?;
        if let Some(address) = self.address6 {
            routing
                .add_address(index, address)
                .map_err(at("set the IPv6 address"))?;
        }
        for old in routing.addresses().map_err(at("list addresses"))? {
            let ours = old.index == index && Some(old.prefix) != self.address6;
            if let IpAddr::V6(old_address) = old.prefix.address
                && ours
                && !old_address.is_unicast_link_local()
            {
                remove(&routing, index, old.prefix)?;
            }
        }
        if let Some(gateway) = self.gateway6 {
            return routing
                .replace_route(&Route::default_via(gateway.into(), index))
                .map_err(at("set the IPv6 default route"));
        }
        for old in routing.routes().map_err(at("list routes"))? {
            if old.index == index && old.destination == Prefix::all_v6() {
                let removed = routing.delete_route(&old);
                removed.map_err(at("remove the IPv6 default route"))?;
            }
        }
        Ok(())
    }

    /// Returns the card: of two with the address the younger one, for the other is on its way out.
    fn find(&self, routing: &Routing) -> Option<Link> {
        let links = routing.links().ok()?;
        links
            .into_iter()
            .filter(|link| link.mac == Some(self.mac))
            .max_by_key(|link| link.index)
    }

    /// Gives the loopback interface the relay's address, and takes away one from before.
    fn set_relay(&self, routing: &Routing) -> Result<(), NetworkError> {
        let wanted = self.relay.map(Prefix::host);
        for old in routing.addresses().map_err(at("list addresses"))? {
            let relays = old.index == LOOPBACK && self.address.contains(old.prefix.address);
            if relays && Some(old.prefix) != wanted {
                remove(routing, LOOPBACK, old.prefix)?;
            }
        }
        match wanted {
            Some(relay) => routing
                .add_address(LOOPBACK, relay)
                .map_err(at("set the relay's address")),
            None => Ok(()),
        }
    }
}

/// Lets packets for 127.0.0.1 in through the card, or keeps them out. A filter has to be there before they are let in.
pub(crate) fn let_loopback_in(on: bool) -> Result<(), NetworkError> {
    set_interface(4, NAME, "route_localnet", if on { "1" } else { "0" }).map_err(|source| {
        NetworkError::Setting {
            step: "open the way to the loopback",
            source,
        }
    })
}

/// Writes a setting of an interface, in the calling thread's network namespace.
pub(crate) fn set_interface(
    family: u8,
    interface: &str,
    setting: &str,
    value: &str,
) -> std::io::Result<()> {
    let path = format!("/proc/sys/net/ipv{family}/conf/{interface}/{setting}");
    fs_err::write(path, value)
}

/// Lets an interface use its IPv6 addresses at once: on these wires nobody else can have them. Without IPv6 there is nothing
/// to set.
pub(crate) fn use_at_once(interface: &str) {
    let _ = set_interface(6, interface, "dad_transmits", "0");
}

/// Brings the loopback interface up (BOOT-6).
pub(crate) fn loopback_up() -> Result<(), NetworkError> {
    let routing = Routing::connect().map_err(NetworkError::Connect)?;
    routing
        .set_link(LOOPBACK, true)
        .map_err(at("bring `lo` up"))
}

fn at(step: &'static str) -> impl FnOnce(NetlinkError) -> NetworkError {
    move |source| NetworkError::Step { step, source }
}

/// Gives the card its name. One that has it and is on its way out loses it.
fn name(routing: &Routing, link: &Link) -> Result<(), NetworkError> {
    if link.name == NAME {
        return Ok(());
    }
    let rename = |index, name: &str| {
        // A name can only be changed while the interface is down.
        routing.set_link(index, false)?;
        let change = LinkChange {
            name: Some(name),
            ..LinkChange::default()
        };
        routing.change_link(index, &change)
    };
    if let Some(old) = routing.link(NAME).map_err(at("look for another card"))? {
        match rename(old.index, &format!("old{}", old.index)) {
            Err(error) if error.errno() != Some(Errno::NODEV) => {
                return Err(at("rename another card")(error));
            }
            _ => {}
        }
    }
    rename(link.index, NAME).map_err(at("name the interface"))
}

fn set_addresses(routing: &Routing, index: u32, wanted: Prefix) -> Result<(), NetworkError> {
    for old in routing.addresses().map_err(at("list addresses"))? {
        if old.index == index && old.prefix.address.is_ipv4() && old.prefix != wanted {
            remove(routing, index, old.prefix)?;
        }
    }
    routing
        .add_address(index, wanted)
        .map_err(at("set the address"))
}

fn remove(routing: &Routing, index: u32, prefix: Prefix) -> Result<(), NetworkError> {
    match routing.delete_address(index, prefix) {
        // The kernel may have taken it with another one.
        Err(error) if !error.is_missing() => Err(at("remove an old address")(error)),
        _ => Ok(()),
    }
}

fn given(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

fn four(text: &str) -> Result<Ipv4Addr, NetworkError> {
    text.parse()
        .map_err(|_| NetworkError::BadAddress(shown(text)))
}

fn six(text: &str) -> Result<Prefix, NetworkError> {
    let prefix = text.parse::<Prefix>().ok();
    prefix
        .filter(|p| p.address.is_ipv6() && text.contains('/'))
        .ok_or_else(|| NetworkError::BadAddress6(shown(text)))
}

fn mac(text: &str) -> Result<[u8; 6], NetworkError> {
    let bytes: Vec<u8> = text
        .split(':')
        .take(7)
        .filter(|part| part.len() == 2)
        .filter_map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    let well_formed = text.len() == 17;
    bytes
        .try_into()
        .ok()
        .filter(|_| well_formed)
        .ok_or_else(|| NetworkError::BadMac(text.chars().take(32).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hostel_netlink::Veth;
    use hostel_proto::v1::GuestNetwork;
    use hostel_testkit::Space;

    fn wanted() -> GuestNetwork {
        GuestNetwork {
            address: "172.19.132.144".into(),
            prefix: 20,
            gateway: "172.19.128.1".into(),
            mac: "52:54:00:AB:cd:01".into(),
            relay_address: "172.19.128.2".into(),
            ipv6_address: "fd00:5::144/64".into(),
            ipv6_gateway: "fd00:5::1".into(),
            dns: vec!["172.19.128.53".into()],
            dns_tunnel: "10.255.255.254".into(),
            ..GuestNetwork::default()
        }
    }

    #[test]
    fn what_the_host_asks_for_is_checked() {
        let good = Network::parse(&wanted()).unwrap();
        assert_eq!(good.mac, [0x52, 0x54, 0, 0xab, 0xcd, 1]);
        assert_eq!(good.dns.len(), 2);
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
        assert!(bad(|n| n.relay_address = "::2".into()));
        assert!(bad(|n| n.ipv6_address = "fd00::1".into()));
        assert!(bad(|n| n.ipv6_address = "1.2.3.4/8".into()));
        assert!(bad(|n| n.ipv6_gateway = "1.2.3.4".into()));
        assert!(bad(|n| n.host_addresses = vec!["192.0.2.300".into()]));
        assert!(bad(|n| n.prefix = 33));
        assert!(bad(|n| n.prefix = 0));
    }

    /// Makes a card as far as the machine can tell: one end of a pair.
    fn plug(name: &str, peer: &str) {
        let veth = Veth {
            name,
            mac: Some([0x52, 0x54, 0, 0xab, 0xcd, 1]),
            alias: "",
            peer,
            peer_mac: None,
            peer_netns: None,
            mtu: None,
        };
        Routing::connect().unwrap().add_veth(&veth).unwrap();
    }

    fn apply(network: &Network) -> u32 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let index = runtime.block_on(network.apply()).unwrap();
        network.apply6(index).unwrap();
        index
    }

    #[test]
    fn a_card_gets_everything_and_so_does_the_one_in_its_place() {
        let name = "agent::network::tests::a_card_gets_everything_and_so_does_the_one_in_its_place";
        let Some(space) = Space::new(name) else {
            return;
        };
        let (first, second) = space.run(|| {
            loopback_up().unwrap();
            plug("ens3", "far3");
            let network = Network::parse(&wanted()).unwrap();
            let first = apply(&network);
            assert_eq!(apply(&network), first);
            let mut other = wanted();
            other.address = "172.19.132.9".into();
            other.relay_address = "172.19.128.3".into();
            other.ipv6_address = "fd00:5::9/64".into();
            other.mtu = 1400;
            apply(&Network::parse(&other).unwrap());
            // The new card comes while the old one is still there.
            plug("ens4", "far4");
            let second = apply(&network);
            // The host has no IPv6 any more, and has it again.
            let mut without = wanted();
            without.ipv6_address.clear();
            without.ipv6_gateway.clear();
            let without = Network::parse(&without).unwrap();
            apply(&without);
            assert_eq!(apply(&without), second);
            let listed = Routing::connect().unwrap();
            let left: Vec<Prefix> = listed
                .addresses()
                .unwrap()
                .iter()
                .map(|a| a.prefix)
                .collect();
            let ours: Prefix = "fd00:5::144/64".parse().unwrap();
            assert!(!left.contains(&ours), "{left:?}");
            let ways = listed.routes().unwrap();
            assert!(
                !ways.iter().any(|r| r.destination == Prefix::all_v6()),
                "{ways:?}"
            );
            (first, apply(&network))
        });
        assert_ne!(first, second);
        let shown = space
            .sh("ip addr show eth0; ip addr show lo; ip route; ip -6 route")
            .unwrap();
        for there in [
            "172.19.132.144/20",
            "fd00:5::144/64",
            "172.19.128.2/32",
            "default via fd00:5::1",
        ] {
            assert!(shown.contains(there), "{there}: {shown}");
        }
        for gone in ["172.19.132.9", "172.19.128.3", "fd00:5::9", "mtu 1400"] {
            assert!(!shown.contains(gone), "{gone}: {shown}");
        }
        assert_eq!(
            shown.matches("default via 172.19.128.1 dev eth0").count(),
            1,
            "{shown}"
        );
    }
}
