//! Network interfaces.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::Routing;
use crate::message::{Answer, Attributes, Message, flags};
use crate::socket::NetlinkError;

const NEW: u16 = 16;
const DELETE: u16 = 17;
const GET: u16 = 18;

const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const MASTER: u16 = 10;
const INFO: u16 = 18;
const ALIAS: u16 = 20;
const NETNS_FD: u16 = 28;
const CARRIER: u16 = 33;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const BRIDGE_FORWARD_DELAY: u16 = 1;
const BRIDGE_STP: u16 = 5;
const VETH_PEER: u16 = 1;

const IFF_UP: u32 = 1;
const FIXED: usize = 16;

/// What the kernel's name of an interface may have, in bytes.
pub(crate) const MAX_NAME: usize = 15;
/// What the kernel's alias of an interface may have, in bytes.
const MAX_ALIAS: usize = 255;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number, which no other interface of the namespace has had for long.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind as the kernel spells it: `bridge`, `veth`, `tun`; empty for hardware.
    pub kind: String,
    /// Its hardware address; `None` when it has none of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is set up.
    pub up: bool,
    /// Whether there is somebody at the other end.
    pub carrier: bool,
    /// The index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// A text that somebody attached to it.
    pub alias: String,
}

/// A bridge to make: without spanning tree and without a delay before a port forwards.
#[derive(Clone, Debug)]
pub struct Bridge<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its hardware address; without one it changes with its ports.
    pub mac: Option<[u8; 6]>,
    /// Its alias; empty for none.
    pub alias: &'a str,
}

/// A pair of interfaces to make.
#[derive(Clone, Debug)]
pub struct Veth<'a> {
    /// The name of the end that stays.
    pub name: &'a str,
    /// Its hardware address; the kernel chooses one when there is none.
    pub mac: Option<[u8; 6]>,
    /// Its alias; empty for none.
    pub alias: &'a str,
    /// The name of the other end.
    pub peer: &'a str,
    /// The hardware address of the other end.
    pub peer_mac: Option<[u8; 6]>,
    /// The network namespace of the other end; `None` for the same.
    pub peer_netns: Option<BorrowedFd<'a>>,
    /// The MTU of both ends.
    pub mtu: Option<u32>,
}

/// Changes to an interface; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct LinkChange<'a> {
    /// Up or down.
    pub up: Option<bool>,
    /// The MTU.
    pub mtu: Option<u32>,
    /// The name. Old kernels change it only while the interface is down.
    pub name: Option<&'a str>,
    /// The alias.
    pub alias: Option<&'a str>,
    /// The bridge that it becomes a port of; `Some(0)` releases it.
    pub master: Option<u32>,
    /// The hardware address.
    pub mac: Option<[u8; 6]>,
    /// The network namespace it moves to; it is down and without addresses then.
    pub netns: Option<BorrowedFd<'a>>,
}

impl Routing {
    /// Lists the interfaces.
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let mut message = Message::new(GET, flags::REQUEST | flags::DUMP);
        message.bytes(&fixed(0, 0, 0));
        self.socket.list(&message, read)
    }

    /// Finds an interface by its name.
    pub fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        if name.len() > MAX_NAME {
            return Ok(None);
        }
        let mut message = Message::new(GET, flags::REQUEST | flags::ACKNOWLEDGE);
        message.bytes(&fixed(0, 0, 0));
        message.text(NAME, name);
        let mut found = None;
        match self.socket.get(message, |answer| found = read(answer)) {
            Ok(()) => Ok(found),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a bridge, which is down.
    pub fn add_bridge(&self, bridge: &Bridge<'_>) -> Result<(), NetlinkError> {
        let mut message = create(bridge.name, bridge.mac, None);
        message.nest(INFO, |info| {
            info.text(INFO_KIND, "bridge");
            info.nest(INFO_DATA, |data| {
                data.native(BRIDGE_FORWARD_DELAY, 0);
                data.native(BRIDGE_STP, 0);
            });
        });
        self.socket.change(message)?;
        self.mark(bridge.name, bridge.alias)
    }

    /// Makes a pair of interfaces, both down.
    pub fn add_veth(&self, veth: &Veth<'_>) -> Result<(), NetlinkError> {
        let mut message = create(veth.name, veth.mac, veth.mtu);
        message.nest(INFO, |info| {
            info.text(INFO_KIND, "veth");
            info.nest(INFO_DATA, |data| {
                data.nest(VETH_PEER, |peer| {
                    peer.bytes(&fixed(0, 0, 0));
                    describe(peer, veth.peer, veth.peer_mac, "", veth.mtu);
                    if let Some(netns) = veth.peer_netns {
                        peer.native(NETNS_FD, netns.as_raw_fd() as u32);
                    }
                });
            });
        });
        self.socket.change(message)?;
        self.mark(veth.name, veth.alias)
    }

    /// Gives a new interface its alias, which the kernel does not take at birth.
    fn mark(&self, name: &str, alias: &str) -> Result<(), NetlinkError> {
        if alias.is_empty() {
            return Ok(());
        }
        let mut message = Message::new(NEW, flags::REQUEST | flags::ACKNOWLEDGE);
        message.bytes(&fixed(0, 0, 0));
        describe(&mut message, name, None, alias, None);
        self.socket.change(message)
    }

    /// Changes an interface.
    pub fn change_link(&self, index: u32, change: &LinkChange<'_>) -> Result<(), NetlinkError> {
        let mut message = Message::new(NEW, flags::REQUEST | flags::ACKNOWLEDGE);
        let (up, mask) = match change.up {
            Some(up) => (u32::from(up) * IFF_UP, IFF_UP),
            None => (0, 0),
        };
        message.bytes(&fixed(index, up, mask));
        describe(
            &mut message,
            change.name.unwrap_or_default(),
            change.mac,
            change.alias.unwrap_or_default(),
            change.mtu,
        );
        if let Some(master) = change.master {
            message.native(MASTER, master);
        }
        if let Some(netns) = change.netns {
            message.native(NETNS_FD, netns.as_raw_fd() as u32);
        }
        self.socket.change(message)
    }

    /// Takes an interface up or down.
    pub fn set_link(&self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let change = LinkChange {
            up: Some(up),
            ..LinkChange::default()
        };
        self.change_link(index, &change)
    }

    /// Removes an interface; the other end of a pair goes with it.
    pub fn delete_link(&self, index: u32) -> Result<(), NetlinkError> {
        let mut message = Message::new(DELETE, flags::REQUEST | flags::ACKNOWLEDGE);
        message.bytes(&fixed(index, 0, 0));
        self.socket.change(message)
    }
}

fn fixed(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    for word in [index, flags, change] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

fn create(name: &str, mac: Option<[u8; 6]>, mtu: Option<u32>) -> Message {
    let how = flags::REQUEST | flags::ACKNOWLEDGE | flags::CREATE | flags::EXCLUSIVE;
    let mut message = Message::new(NEW, how);
    message.bytes(&fixed(0, 0, 0));
    describe(&mut message, name, mac, "", mtu);
    message
}

/// Appends what is given. A name that is too long is the kernel's to refuse.
fn describe(
    message: &mut Message,
    name: &str,
    mac: Option<[u8; 6]>,
    alias: &str,
    mtu: Option<u32>,
) {
    if !name.is_empty() {
        message.text(NAME, name);
    }
    if let Some(mac) = mac {
        message.attribute(ADDRESS, &mac);
    }
    if let Some(mtu) = mtu {
        message.native(MTU, mtu);
    }
    if !alias.is_empty() {
        // The kernel wants it without a NUL.
        message.attribute(ALIAS, &alias.as_bytes()[..alias.len().min(MAX_ALIAS)]);
    }
}

fn read(answer: Answer<'_>) -> Option<Link> {
    let word = |at: usize| {
        let bytes = answer.body.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    if answer.kind != NEW {
        return None;
    }
    let attributes = Attributes::after(answer.body, FIXED);
    Some(Link {
        index: word(4)?,
        name: attributes.text(NAME)?,
        kind: attributes.nested(INFO).text(INFO_KIND).unwrap_or_default(),
        mac: attributes.find(ADDRESS).and_then(|a| a.try_into().ok()),
        mtu: attributes.native(MTU).unwrap_or_default(),
        up: word(8)? & IFF_UP != 0,
        carrier: attributes.find(CARRIER) == Some(&[1]),
        master: attributes.native(MASTER),
        alias: attributes.text(ALIAS).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_link_is_read_without_a_panic(body in proptest::collection::vec(0u8..=255, 0..100)) {
            let _ = read(Answer { kind: NEW, flags: 0, sequence: 0, body: &body });
        }
    }
}
