//! One room: a network namespace and the pair of interfaces that leads into it.
//!
//! Inside it looks like the machine's own network: `eth0`, an address with the same length of prefix, the same gateway. The
//! outer end answers for all other addresses of the network (proxy ARP), and the machine passes packets on by a route to
//! each room; towards the host the machine's card answers for the rooms. No bridge, and one hardware address for the host.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use hostel_netlink::{LinkChange, NetlinkError, Prefix, Route, Routing, Veth};
use hostel_sys::namespace;

use super::RoomError;
use crate::agent::netns::within;
use crate::agent::network::{NAME, Network, set_interface, use_at_once};

/// What the alias of a room's outer interface begins with; the distribution's id follows.
pub(super) const ALIAS: &str = "hostel room ";

/// The address of the outer end, where IPv6 leaves through.
const GATEWAY_6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

const LOOPBACK: u32 = 1;

/// What a room is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The name of the outer interface.
    pub(crate) link: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) address6: Option<Ipv6Addr>,
    pub(crate) isolated: bool,
}

/// Makes a network namespace with its loopback up.
pub(super) fn namespace() -> io::Result<OwnedFd> {
    let netns = std::thread::Builder::new()
        .name("room".to_owned())
        .stack_size(crate::agent::STACK)
        .spawn(|| {
            namespace::unshare_network()?;
            let loopback = Routing::connect().and_then(|r| r.set_link(LOOPBACK, true));
            loopback.map_err(io::Error::other)?;
            // Container engines inside look at it before they start.
            fs_err::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            namespace::network_of_thread()
        })?;
    let failed = |_| Err(io::Error::other("the thread in the namespace failed"));
    netns.join().unwrap_or_else(failed)
}

impl Plan {
    /// Makes the pair of interfaces, both down: the outer one here, the inner one in the room.
    pub(super) fn connect(
        &self,
        id: &str,
        netns: &OwnedFd,
        mtu: Option<u32>,
    ) -> Result<(), RoomError> {
        let [a, b, c, d] = self.address.octets();
        let alias = format!("{ALIAS}{id}");
        let veth = Veth {
            name: &self.link,
            // The same at every start, for those who note hardware addresses. Locally administered.
            mac: Some([0x06, 0x48, a, b, c, d]),
            alias: &alias,
            peer: NAME,
            peer_mac: Some([0x02, 0x48, a, b, c, d]),
            peer_netns: Some(netns.as_fd()),
            mtu,
        };
        routing()?
            .add_veth(&veth)
            .map_err(at("make the room's interfaces"))
    }

    /// Furnishes the inside. The way out is the machine's own, seen from here as if the gateway were on the wire.
    pub(super) fn furnish(&self, netns: &OwnedFd, network: &Network) -> Result<(), RoomError> {
        let plan = self.clone();
        let (length, gateway) = (network.address.length, network.gateway);
        let inside = move || -> Result<(), NetlinkError> {
            let routing = Routing::connect()?;
            let index = index(&routing, NAME)?;
            use_at_once(NAME);
            routing.set_link(index, true)?;
            let own = Prefix::new(plan.address, length).unwrap_or(Prefix::host(plan.address));
            routing.add_address(index, own)?;
            if let Some(gateway) = gateway {
                routing.replace_route(&Route::default_via(gateway.into(), index))?;
            }
            if let Some(address) = plan.address6 {
                routing.add_address(index, Prefix::host(address))?;
                let out = Route::default_via(GATEWAY_6.into(), index).from(address.into());
                routing.replace_route(&out)?;
            }
            Ok(())
        };
        within(netns, move || Ok(inside()))
            .map_err(RoomError::Namespace)?
            .map_err(at("furnish the room"))
    }

    /// Opens the outside: the interface comes up and the machine knows the way.
    pub(super) fn open(&self, network: &Network) -> Result<(), RoomError> {
        let routing = routing()?;
        let index = index(&routing, &self.link).map_err(at("find the room's interface"))?;
        let set = |family, setting, value| {
            set_interface(family, &self.link, setting, value).map_err(RoomError::Setting)
        };
        // A second guard for the source, should the table ever be missing.
        set(4, "rp_filter", "1")?;
        set(4, "proxy_arp", "1")?;
        answer_at_once(4, &self.link).map_err(RoomError::Setting)?;
        use_at_once(&self.link);
        routing
            .set_link(index, true)
            .map_err(at("bring the room's interface up"))?;
        // The machine speaks to a room as itself, not as one of the addresses on its loopback.
        let way = Route::direct(Prefix::host(self.address), index);
        routing
            .replace_route(&way.from(network.address.address))
            .map_err(at("set the way into the room"))?;
        if let Some(address) = self.address6 {
            let gateway = Prefix::new(GATEWAY_6, 64).expect("64 of 128 bits");
            fs_err::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
                .map_err(RoomError::Setting)?;
            routing
                .add_address(index, gateway)
                .and_then(|()| routing.replace_route(&Route::direct(Prefix::host(address), index)))
                .map_err(at("set the IPv6 way into the room"))?;
        }
        Ok(())
    }

    /// Makes the machine's card answer for the room. May be done again, for another card.
    pub(super) fn announce(&self, card: u32) -> Result<(), RoomError> {
        let routing = routing()?;
        answer_at_once(4, NAME).map_err(RoomError::Setting)?;
        routing
            .add_proxy(card, self.address.into())
            .map_err(at("answer for the room"))?;
        if let Some(address) = self.address6 {
            set_interface(6, NAME, "proxy_ndp", "1").map_err(RoomError::Setting)?;
            answer_at_once(6, NAME).map_err(RoomError::Setting)?;
            routing
                .add_proxy(card, address.into())
                .map_err(at("answer for the room's IPv6 address"))?;
        }
        Ok(())
    }

    /// Gives both ends an MTU.
    pub(super) fn resize(&self, netns: &OwnedFd, mtu: u32) -> Result<(), RoomError> {
        let set = |link: &str| {
            let routing = Routing::connect()?;
            let change = LinkChange {
                mtu: Some(mtu),
                ..LinkChange::default()
            };
            routing.change_link(index(&routing, link)?, &change)
        };
        set(&self.link).map_err(at("set the room's MTU"))?;
        within(netns, move || Ok(set(NAME)))
            .map_err(RoomError::Namespace)?
            .map_err(at("set the MTU in the room"))
    }

    /// Closes the room: the interfaces go, and with them routes and what is inside of them. What is gone already is a success.
    pub(super) fn close(&self, card: Option<u32>) -> Result<(), RoomError> {
        let routing = routing()?;
        let addresses = [Some(self.address.into()), self.address6.map(IpAddr::V6)];
        for address in addresses.into_iter().flatten() {
            if let Some(card) = card {
                gone(routing.delete_proxy(card, address)).map_err(at("no longer answer"))?;
            }
        }
        let link = routing
            .link(&self.link)
            .map_err(at("find the room's interface"))?;
        match link {
            Some(link) => {
                gone(routing.delete_link(link.index)).map_err(at("remove the room's interface"))
            }
            None => Ok(()),
        }
    }
}

/// Answers for others at once: the kernel's usual delay is up to 0.8 s.
fn answer_at_once(family: u8, interface: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/ipv{family}/neigh/{interface}/proxy_delay");
    fs_err::write(path, "0")
}

fn index(routing: &Routing, name: &str) -> Result<u32, NetlinkError> {
    let link = routing.link(name)?;
    link.map(|l| l.index).ok_or(NetlinkError::Refused {
        errno: rustix::io::Errno::NODEV,
        why: format!("no interface `{name}`"),
    })
}

fn routing() -> Result<Routing, RoomError> {
    Routing::connect().map_err(at("talk to the kernel about the network"))
}

fn at(step: &'static str) -> impl FnOnce(NetlinkError) -> RoomError {
    move |source| RoomError::Step { step, source }
}

fn gone(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}
