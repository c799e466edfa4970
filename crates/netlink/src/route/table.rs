//! The main routing table.

use std::net::IpAddr;

use super::Routing;
use super::address::family;
use crate::message::{Answer, Attributes, Message, flags};
use crate::prefix::{Prefix, from_octets, octets};
use crate::socket::NetlinkError;

const NEW: u16 = 24;
const DELETE: u16 = 25;
const GET: u16 = 26;

const DESTINATION: u16 = 1;
const INTERFACE: u16 = 4;
const GATEWAY: u16 = 5;
const METRIC: u16 = 6;
const SOURCE: u16 = 7;
const TABLE: u16 = 15;

/// The main table.
const MAIN: u8 = 254;
/// The kernel's own, of what is for this machine.
const LOCAL: u8 = 255;
/// Set by an administrator.
const STATIC: u8 = 4;
/// Set by whoever: matches every one.
const ANY_ORIGIN: u8 = 0;
const UNICAST: u8 = 1;
/// Types of what is for this machine: its addresses, broadcasts, IPv6's anycasts.
const FOR_US: [u8; 3] = [2, 3, 4];
const FIXED: usize = 12;
/// The gateway is reachable though no address says so.
const ON_LINK: u32 = 4;

/// How far away the destination is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Behind a gateway, or anywhere.
    #[default]
    Everywhere,
    /// On the interface's own network.
    Link,
    /// On this machine; to delete, any.
    Host,
}

impl Scope {
    const fn number(self) -> u8 {
        match self {
            Self::Everywhere => 0,
            Self::Link => 253,
            Self::Host => 254,
        }
    }
}

/// A way to a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to; length 0 is everywhere.
    pub destination: Prefix,
    /// The interface; 0 leaves it to the gateway's own route.
    pub index: u32,
    /// The next station; `None` when the destination is on the interface's network.
    pub gateway: Option<IpAddr>,
    /// The address that packets get which have none yet.
    pub source: Option<IpAddr>,
    /// How far it is.
    pub scope: Scope,
    /// The less, the better; 0 leaves it to the kernel.
    pub metric: u32,
    /// The gateway is on the interface, whatever its addresses say.
    pub on_link: bool,
}

impl Route {
    /// A way to a network on an interface.
    pub fn direct(destination: Prefix, index: u32) -> Self {
        Self {
            destination,
            index,
            gateway: None,
            source: None,
            // IPv6 knows no scopes of routes.
            scope: if destination.address.is_ipv4() {
                Scope::Link
            } else {
                Scope::Everywhere
            },
            metric: 0,
            on_link: false,
        }
    }

    /// The way to everything.
    pub fn default_via(gateway: IpAddr, index: u32) -> Self {
        let destination = match gateway {
            IpAddr::V4(_) => Prefix::all_v4(),
            IpAddr::V6(_) => Prefix::all_v6(),
        };
        Self {
            gateway: Some(gateway),
            scope: Scope::Everywhere,
            ..Self::direct(destination, index)
        }
    }

    /// The same way with a source address.
    #[must_use]
    pub fn from(self, source: IpAddr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    /// The same way through a gateway that no address of the interface makes reachable.
    #[must_use]
    pub fn on_link(self) -> Self {
        Self {
            on_link: true,
            ..self
        }
    }
}

impl Routing {
    /// Lists the routes of the main table, both families.
    pub fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let mut message = Message::new(GET, flags::REQUEST | flags::DUMP);
        message.bytes(&[0; FIXED]);
        let main = |answer: Answer<'_>| match read(answer) {
            Some((table, route)) if table == u32::from(MAIN) => Some(route),
            _ => None,
        };
        self.socket.list(&message, main)
    }

    /// Lists the networks that any table has a way to, with the interface: the main one, and those of policy routing, where
    /// many VPNs keep theirs.
    pub fn networks(&self) -> Result<Vec<(Prefix, u32)>, NetlinkError> {
        let mut message = Message::new(GET, flags::REQUEST | flags::DUMP);
        message.bytes(&[0; FIXED]);
        let read = |answer: Answer<'_>| read(answer).map(|(_, r)| (r.destination, r.index));
        self.socket.list(&message, read)
    }

    /// Lists what this machine takes for itself: its addresses and the broadcasts of its networks, the loopback too.
    pub fn local(&self) -> Result<Vec<Prefix>, NetlinkError> {
        let mut message = Message::new(GET, flags::REQUEST | flags::DUMP);
        message.bytes(&[0; FIXED]);
        self.socket.list(&message, read_local)
    }

    /// Sets a way in the place of the one to the same network with the same metric.
    pub fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let how = flags::REQUEST | flags::ACKNOWLEDGE | flags::CREATE | flags::REPLACE;
        self.socket.change(request(NEW, how, route, STATIC))
    }

    /// Takes a way away.
    pub fn delete_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let how = flags::REQUEST | flags::ACKNOWLEDGE;
        self.socket.change(request(DELETE, how, route, ANY_ORIGIN))
    }
}

fn request(kind: u16, how: u16, route: &Route, origin: u8) -> Message {
    let mut message = Message::new(kind, how);
    let destination = route.destination.network();
    message.bytes(&[
        family(destination.address),
        destination.length,
        0,
        0,
        MAIN,
        origin,
        route.scope.number(),
        UNICAST,
    ]);
    let on_link = if route.on_link { ON_LINK } else { 0 };
    message.bytes(&on_link.to_ne_bytes());
    if destination.length > 0 {
        message.attribute(DESTINATION, &octets(destination.address));
    }
    if let Some(gateway) = route.gateway {
        message.attribute(GATEWAY, &octets(gateway));
    }
    if let Some(source) = route.source {
        message.attribute(SOURCE, &octets(source));
    }
    if route.index != 0 {
        message.native(INTERFACE, route.index);
    }
    if route.metric != 0 {
        message.native(METRIC, route.metric);
    }
    message
}

/// Returns the number of the table as well.
fn read(answer: Answer<'_>) -> Option<(u32, Route)> {
    let (head, attributes) = split(&answer)?;
    if head[7] != UNICAST {
        return None;
    }
    let address = |kind| attributes.find(kind).and_then(from_octets);
    let route = Route {
        destination: destination(head, &attributes)?,
        index: attributes.native(INTERFACE).unwrap_or_default(),
        gateway: address(GATEWAY),
        source: address(SOURCE),
        scope: match head[6] {
            253 => Scope::Link,
            254 => Scope::Host,
            _ => Scope::Everywhere,
        },
        metric: attributes.native(METRIC).unwrap_or_default(),
        on_link: u32::from_ne_bytes(head[8..12].try_into().ok()?) & ON_LINK != 0,
    };
    Some((table(head, &attributes), route))
}

fn read_local(answer: Answer<'_>) -> Option<Prefix> {
    let (head, attributes) = split(&answer)?;
    let for_us = table(head, &attributes) == u32::from(LOCAL) && FOR_US.contains(&head[7]);
    for_us.then(|| destination(head, &attributes)).flatten()
}

fn split<'a>(answer: &Answer<'a>) -> Option<(&'a [u8], Attributes<'a>)> {
    let head = answer.body.get(..FIXED)?;
    (answer.kind == NEW).then(|| (head, Attributes::after(answer.body, FIXED)))
}

fn table(head: &[u8], attributes: &Attributes<'_>) -> u32 {
    attributes.native(TABLE).unwrap_or(head[4].into())
}

fn destination(head: &[u8], attributes: &Attributes<'_>) -> Option<Prefix> {
    let anywhere = match head[0] {
        2 => Prefix::all_v4().address,
        10 => Prefix::all_v6().address,
        _ => return None,
    };
    let address = attributes.find(DESTINATION).and_then(from_octets);
    Prefix::new(address.unwrap_or(anywhere), head[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_route_is_read_without_a_panic(body in proptest::collection::vec(0u8..=255, 0..80)) {
            let _ = read(Answer { kind: NEW, flags: 0, sequence: 0, body: &body });
            let _ = read_local(Answer { kind: NEW, flags: 0, sequence: 0, body: &body });
        }
    }
}
