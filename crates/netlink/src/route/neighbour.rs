//! Addresses that an interface answers for in another's place (proxy ARP, proxy NDP).

use std::net::IpAddr;

use super::Routing;
use super::address::family;
use crate::message::{Answer, Attributes, Message, flags};
use crate::prefix::{from_octets, octets};
use crate::socket::NetlinkError;

const NEW: u16 = 28;
const DELETE: u16 = 29;
const GET: u16 = 30;
const DESTINATION: u16 = 1;
const PROXY: u8 = 0x08;
const PERMANENT: u16 = 0x80;
const FIXED: usize = 12;

impl Routing {
    /// Makes an interface answer for an address; one that it answers for already is a success.
    pub fn add_proxy(&self, index: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let how = flags::REQUEST | flags::ACKNOWLEDGE | flags::CREATE | flags::REPLACE;
        self.socket.change(request(NEW, how, index, address))
    }

    /// Makes an interface no longer answer for an address.
    pub fn delete_proxy(&self, index: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let how = flags::REQUEST | flags::ACKNOWLEDGE;
        self.socket.change(request(DELETE, how, index, address))
    }

    /// Lists the addresses that an interface answers for.
    pub fn proxies(&self, index: u32) -> Result<Vec<IpAddr>, NetlinkError> {
        let mut message = Message::new(GET, flags::REQUEST | flags::DUMP);
        let mut fixed = [0; FIXED];
        fixed[10] = PROXY;
        message.bytes(&fixed);
        let all = self.socket.list(&message, read)?;
        let mine = all.into_iter().filter(|(i, _)| *i == index);
        Ok(mine.map(|(_, address)| address).collect())
    }
}

fn request(kind: u16, how: u16, index: u32, address: IpAddr) -> Message {
    let mut message = Message::new(kind, how);
    message.bytes(&[family(address), 0, 0, 0]);
    message.bytes(&index.to_ne_bytes());
    message.bytes(&PERMANENT.to_ne_bytes());
    message.bytes(&[PROXY, 0]);
    message.attribute(DESTINATION, &octets(address));
    message
}

fn read(answer: Answer<'_>) -> Option<(u32, IpAddr)> {
    let head = answer.body.get(..FIXED)?;
    if answer.kind != NEW || head[10] & PROXY == 0 {
        return None;
    }
    let address = Attributes::after(answer.body, FIXED).find(DESTINATION)?;
    let index = u32::from_ne_bytes(head[4..8].try_into().ok()?);
    Some((index, from_octets(address)?))
}
