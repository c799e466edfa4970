//! The few requests of rtnetlink(7) that one interface needs.
//!
//! By hand, because a library that knows all of rtnetlink is a fifth of `/init`, which has to stay small.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// The kernel answers at once; this is for a kernel that does not.
const ANSWER: Duration = Duration::from_secs(5);

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const ERROR: u16 = 2;
const DONE: u16 = 3;

const REQUEST: u16 = 0x001;
const ACKNOWLEDGE: u16 = 0x004;
const DUMP: u16 = 0x300;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;

const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const ADDRESS_ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_BROADCAST: u16 = 4;
const ROUTE_INTERFACE: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;

const INET: u8 = 2;
const IFF_UP: u32 = 1;
const HEADER: usize = 16;

/// An IPv4 address with the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefixed {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
}

/// A connection to the kernel's routing. All calls block, for microseconds. Changes need CAP_NET_ADMIN.
pub(crate) struct Routing(OwnedFd);

impl Routing {
    /// Connects.
    pub(crate) fn connect() -> Result<Self, Errno> {
        // Routing is protocol 0 of its family.
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))?;
        Ok(Self(socket))
    }

    /// Takes an interface up or down, with a new MTU if given.
    pub(crate) fn set_link(&self, index: u32, up: bool, mtu: Option<u32>) -> Result<(), Errno> {
        let mut message = Message::new(NEW_LINK, REQUEST | ACKNOWLEDGE);
        message.link(index, if up { IFF_UP } else { 0 }, IFF_UP);
        if let Some(mtu) = mtu {
            message.attribute(LINK_MTU, &mtu.to_ne_bytes());
        }
        self.ask(message, |_, _| {})
    }

    /// Names an interface, which must be down.
    pub(crate) fn name_link(&self, index: u32, name: &std::ffi::CStr) -> Result<(), Errno> {
        let mut message = Message::new(NEW_LINK, REQUEST | ACKNOWLEDGE);
        message.link(index, 0, 0);
        message.attribute(LINK_NAME, name.to_bytes_with_nul());
        self.ask(message, |_, _| {})
    }

    /// Lists an interface's IPv4 addresses.
    pub(crate) fn addresses(&self, index: u32) -> Result<Vec<Prefixed>, Errno> {
        let mut message = Message::new(GET_ADDRESS, REQUEST | DUMP);
        message.0.extend([INET, 0, 0, 0, 0, 0, 0, 0]);
        let mut found = Vec::new();
        self.ask(message, |kind, body| {
            if kind == NEW_ADDRESS {
                found.extend(address_of(body, index));
            }
        })?;
        Ok(found)
    }

    /// Gives an interface an address; one that it has already is a success.
    pub(crate) fn add_address(&self, index: u32, address: Prefixed) -> Result<(), Errno> {
        let mut message = Message::new(NEW_ADDRESS, REQUEST | ACKNOWLEDGE | CREATE | REPLACE);
        message.address(index, address);
        let host_bits = u32::MAX.checked_shr(address.prefix.into()).unwrap_or(0);
        if address.prefix < 31 {
            message.attribute(
                ADDRESS_BROADCAST,
                &(u32::from(address.address) | host_bits).to_be_bytes(),
            );
        }
        self.ask(message, |_, _| {})
    }

    /// Takes an address away.
    pub(crate) fn delete_address(&self, index: u32, address: Prefixed) -> Result<(), Errno> {
        let mut message = Message::new(DELETE_ADDRESS, REQUEST | ACKNOWLEDGE);
        message.address(index, address);
        self.ask(message, |_, _| {})
    }

    /// Makes a gateway the way to everything, in the place of the one before.
    pub(crate) fn set_default_route(&self, index: u32, gateway: Ipv4Addr) -> Result<(), Errno> {
        let mut message = Message::new(NEW_ROUTE, REQUEST | ACKNOWLEDGE | CREATE | REPLACE);
        // Main table (254), set by an administrator (4), to everywhere (0), unicast (1).
        message.0.extend([INET, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0]);
        message.attribute(ROUTE_GATEWAY, &gateway.octets());
        message.attribute(ROUTE_INTERFACE, &index.to_ne_bytes());
        self.ask(message, |_, _| {})
    }

    /// Sends a request and reads the answer to its end.
    fn ask(&self, message: Message, mut each: impl FnMut(u16, &[u8])) -> Result<(), Errno> {
        rustix::net::send(&self.0, &message.finish(), SendFlags::empty())?;
        let mut buffer = vec![0; 32 << 10];
        loop {
            let (length, _) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..length];
            while let Some((kind, body, after)) = split(rest) {
                rest = after;
                match kind {
                    ERROR => return outcome(body),
                    DONE => return Ok(()),
                    _ => each(kind, body),
                }
            }
        }
    }
}

/// A request being made.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self(bytes)
    }

    fn link(&mut self, index: u32, flags: u32, change: u32) {
        self.0.extend([0; 4]);
        for word in [index, flags, change] {
            self.0.extend(word.to_ne_bytes());
        }
    }

    fn address(&mut self, index: u32, address: Prefixed) {
        self.0.extend([INET, address.prefix, 0, 0]);
        self.0.extend(index.to_ne_bytes());
        self.attribute(ADDRESS_LOCAL, &address.address.octets());
        self.attribute(ADDRESS_ADDRESS, &address.address.octets());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Splits the first message off: its kind, its body, what follows. `None` at the end, and for what is not a message.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    Some((
        kind,
        body,
        bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

/// Reads the result in an error message; 0 is a success.
fn outcome(body: &[u8]) -> Result<(), Errno> {
    let code = body
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, i32::from_ne_bytes);
    if code == 0 {
        Ok(())
    } else {
        Err(Errno::from_raw_os_error(code.saturating_neg()))
    }
}

/// Reads an address of one interface.
fn address_of(body: &[u8], index: u32) -> Option<Prefixed> {
    let (head, mut attributes) = body.split_at_checked(8)?;
    if head[0] != INET || head[4..8] != index.to_ne_bytes() {
        return None;
    }
    while let Some(start) = attributes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([start[0], start[1]]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([start[2], start[3]]) == ADDRESS_LOCAL {
            let octets: [u8; 4] = value.try_into().ok()?;
            return Some(Prefixed {
                address: octets.into(),
                prefix: head[1],
            });
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_lists_the_address_of_loopback() {
        let addresses = Routing::connect().unwrap().addresses(1).unwrap();
        assert!(
            addresses.iter().all(|a| a.address.is_loopback()),
            "{addresses:?}"
        );
    }

    #[test]
    fn the_kernel_refuses_what_cannot_be() {
        let routing = Routing::connect().unwrap();
        assert!(routing.set_link(u32::MAX >> 1, true, None).is_err());
        assert!(
            routing
                .add_address(
                    u32::MAX >> 1,
                    Prefixed {
                        address: Ipv4Addr::LOCALHOST,
                        prefix: 32
                    }
                )
                .is_err()
        );
    }

    #[test]
    fn attributes_are_aligned_and_counted() {
        let mut message = Message::new(NEW_LINK, REQUEST);
        message.link(7, 0, 0);
        message.attribute(LINK_NAME, b"eth0\0");
        let bytes = message.finish();
        assert_eq!(bytes.len(), 16 + 16 + 12);
        let (kind, body, rest) = split(&bytes).unwrap();
        assert_eq!((kind, body.len(), rest.len()), (NEW_LINK, 28, 0));
        assert_eq!(body[16..20], [9, 0, 3, 0]);
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_read_without_a_panic(bytes in proptest::collection::vec(0u8..=255, 0..200)) {
            let mut rest = &bytes[..];
            while let Some((_, body, after)) = split(rest) {
                let _ = (address_of(body, 1), outcome(body));
                if after.len() >= rest.len() { break; }
                rest = after;
            }
        }
    }
}
