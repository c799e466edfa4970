//! Addresses of interfaces.

use std::net::IpAddr;

use super::Routing;
use crate::message::{Answer, Attributes, Message, flags};
use crate::prefix::{Prefix, from_octets, octets};
use crate::socket::NetlinkError;

const NEW: u16 = 20;
const DELETE: u16 = 21;
const GET: u16 = 22;

const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const BROADCAST: u16 = 4;

/// No duplicate address detection: the address can be used at once.
const NO_DAD: u8 = 0x02;
const FIXED: usize = 8;

/// An address that an interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address and the network that it makes reachable.
    pub prefix: Prefix,
}

impl Routing {
    /// Lists the addresses of all interfaces, both families.
    pub fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        let mut message = Message::new(GET, flags::REQUEST | flags::DUMP);
        message.bytes(&[0; FIXED]);
        self.socket.list(&message, read)
    }

    /// Gives an interface an address; one that it has already is a success. IPv6 addresses can be used at once.
    pub fn add_address(&self, index: u32, prefix: Prefix) -> Result<(), NetlinkError> {
        let how = flags::REQUEST | flags::ACKNOWLEDGE | flags::CREATE | flags::REPLACE;
        let mut message = request(NEW, how, index, prefix);
        if let IpAddr::V4(address) = prefix.address
            && prefix.length < 31
        {
            let host_bits = u32::MAX.checked_shr(prefix.length.into()).unwrap_or(0);
            let broadcast = u32::from(address) | host_bits;
            message.attribute(BROADCAST, &broadcast.to_be_bytes());
        }
        self.socket.change(message)
    }

    /// Takes an address away.
    pub fn delete_address(&self, index: u32, prefix: Prefix) -> Result<(), NetlinkError> {
        let how = flags::REQUEST | flags::ACKNOWLEDGE;
        self.socket.change(request(DELETE, how, index, prefix))
    }
}

pub(super) const fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

fn request(kind: u16, how: u16, index: u32, prefix: Prefix) -> Message {
    let mut message = Message::new(kind, how);
    let no_dad = if prefix.address.is_ipv6() { NO_DAD } else { 0 };
    message.bytes(&[family(prefix.address), prefix.length, no_dad, 0]);
    message.bytes(&index.to_ne_bytes());
    let address = octets(prefix.address);
    message.attribute(LOCAL, &address);
    message.attribute(ADDRESS, &address);
    message
}

fn read(answer: Answer<'_>) -> Option<Address> {
    let head = answer.body.get(..FIXED)?;
    let attributes = Attributes::after(answer.body, FIXED);
    // IPv4 has both, and the address is the peer's where there is one; IPv6 has the address alone.
    let address = attributes
        .find(LOCAL)
        .or_else(|| attributes.find(ADDRESS))?;
    Some(Address {
        index: u32::from_ne_bytes(head[4..].try_into().ok()?),
        prefix: Prefix::new(from_octets(address)?, head[1])?,
    })
    .filter(|_| answer.kind == NEW)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_address_is_read_without_a_panic(body in proptest::collection::vec(0u8..=255, 0..60)) {
            let _ = read(Answer { kind: NEW, flags: 0, sequence: 0, body: &body });
        }
    }
}
