//! Which sockets take connections and datagrams, by sock_diag(7).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;
use rustix::net::netlink::SOCK_DIAG;

use crate::message::{Answer, Attributes, Message, flags};
use crate::socket::{NetlinkError, Socket};

/// `SOCK_DIAG_BY_FAMILY` (sock_diag.h): of requests and of answers.
const BY_FAMILY: u16 = 20;
/// The size of `struct inet_diag_msg`.
const FIXED: usize = 72;
/// `INET_DIAG_SKV6ONLY`
const V6_ONLY: u16 = 11;
/// `INET_DIAG_CGROUP_ID`
const CGROUP: u16 = 21;
/// `TCP_CLOSE`, the state of a UDP socket that is bound and not connected (tcp_states.h).
const CLOSE: u32 = 7;
/// `TCP_LISTEN`
const LISTEN: u32 = 10;

const INET: u8 = 2;
const INET6: u8 = 10;

/// The two protocols that have ports here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Sockets that listen.
    Tcp,
    /// Sockets that are bound to a port and not connected.
    Udp,
}

/// A socket that takes connections or datagrams from anyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The address it is bound to. An IPv4 address that an IPv6 socket is bound to is told as IPv4.
    pub address: IpAddr,
    /// The port, never 0.
    pub port: u16,
    /// Whether it is bound to `::` and takes IPv4, too.
    pub dual_stack: bool,
    /// The number that `/proc/<pid>/fd` shows.
    pub inode: u32,
    /// The cgroup that it was made in; `None` on kernels before 5.10 and without cgroup2.
    pub cgroup: Option<u64>,
}

/// A socket for questions about the sockets of one network namespace: that of the thread which opened it.
#[derive(Debug)]
pub struct SockDiag(Socket);

impl SockDiag {
    /// Opens it. Answers name all sockets of the namespace to everyone.
    pub fn open() -> Result<Self, NetlinkError> {
        Socket::open(Some(SOCK_DIAG)).map(Self)
    }

    /// Lists the sockets of one protocol, all or those of one `port`, that `wanted` lets through, at most `limit`, IPv4 before
    /// IPv6. `true` when there are more. A kernel without IPv6 has none of those.
    ///
    /// The first question may make the kernel load a module (`tcp_diag`, `udp_diag`); without it the answer is `ENOENT`.
    pub fn bound(
        &self,
        transport: Transport,
        port: Option<u16>,
        limit: usize,
        wanted: impl Fn(&Bound) -> bool,
    ) -> Result<(Vec<Bound>, bool), NetlinkError> {
        let mut found = Vec::new();
        for family in [INET, INET6] {
            let room = limit.saturating_sub(found.len());
            let mut more = false;
            let mut taken = 0;
            let listed = self.0.list(&request(transport, family, port), |answer| {
                let bound = read(answer).filter(|b| wanted(b))?;
                more = taken == room;
                if more {
                    return None;
                }
                taken += 1;
                Some(bound)
            });
            match listed {
                Ok(listed) => found.extend(listed),
                Err(error) if family == INET6 && is_absent(&error) => {}
                Err(error) => return Err(error),
            }
            if more {
                return Ok((found, true));
            }
        }
        Ok((found, false))
    }
}

/// Whether the kernel does not have the family at all.
fn is_absent(error: &NetlinkError) -> bool {
    matches!(
        error.errno(),
        Some(Errno::NOENT | Errno::AFNOSUPPORT | Errno::OPNOTSUPP | Errno::INVAL)
    )
}

/// Makes the question: `struct inet_diag_req_v2`.
fn request(transport: Transport, family: u8, port: Option<u16>) -> Message {
    let (protocol, state) = match transport {
        Transport::Tcp => (6, LISTEN),
        Transport::Udp => (17, CLOSE),
    };
    let mut message = Message::new(BY_FAMILY, flags::REQUEST | flags::DUMP);
    message.bytes(&[family, protocol, 0, 0]);
    message.bytes(&(1u32 << state).to_ne_bytes());
    message.bytes(&port.unwrap_or(0).to_be_bytes());
    // Any other port, addresses, interface and cookie.
    message.bytes(&[0; 46]);
    message
}

/// Reads one socket: `struct inet_diag_msg` and its attributes.
fn read(answer: Answer<'_>) -> Option<Bound> {
    let fixed = answer
        .body
        .get(..FIXED)
        .filter(|_| answer.kind == BY_FAMILY)?;
    let attributes = Attributes::after(answer.body, FIXED);
    let port = u16::from_be_bytes([fixed[4], fixed[5]]);
    let (address, is_v6_any) = match fixed[0] {
        INET => (
            IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&fixed[8..12]).ok()?)),
            false,
        ),
        INET6 => {
            let address = Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[8..24]).ok()?);
            (IpAddr::V6(address).to_canonical(), address.is_unspecified())
        }
        _ => return None,
    };
    let v6_only = attributes
        .find(V6_ONLY)
        .is_some_and(|v| v.first() == Some(&1));
    let cgroup = attributes
        .find(CGROUP)
        .and_then(|v| Some(u64::from_ne_bytes(v.try_into().ok()?)));
    (port != 0).then_some(Bound {
        address,
        port,
        dual_stack: is_v6_any && !v6_only,
        inode: u32::from_ne_bytes(fixed[68..72].try_into().ok()?),
        cgroup,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsFd;

    fn inode(socket: impl AsFd) -> u32 {
        rustix::fs::fstat(socket).unwrap().st_ino as u32
    }

    fn find(transport: Transport, port: u16) -> Option<Bound> {
        let diag = SockDiag::open().unwrap();
        let (found, more) = diag.bound(transport, None, 10, |b| b.port == port).unwrap();
        assert!(!more);
        let (asked_for, _) = diag.bound(transport, Some(port), 10, |_| true).unwrap();
        assert_eq!(asked_for, found, "the kernel chooses as we do");
        found.first().copied()
    }

    #[test]
    fn a_listener_is_listed_until_it_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let bound = find(Transport::Tcp, port).unwrap();
        assert_eq!(bound.address, IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!((bound.inode, bound.dual_stack), (inode(&listener), false));
        // What is not a listener is not told: the two ends of a connection.
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(find(Transport::Tcp, client.local_addr().unwrap().port()).is_none());
        drop(listener);
        assert!(find(Transport::Tcp, port).is_none());
    }

    #[test]
    fn one_that_takes_both_families_says_so() {
        // Some machines have no IPv6.
        let Ok(dual) = TcpListener::bind("[::]:0") else {
            return;
        };
        let port = dual.local_addr().unwrap().port();
        let bound = find(Transport::Tcp, port).unwrap();
        assert_eq!(
            (bound.address, bound.dual_stack),
            (IpAddr::V6(Ipv6Addr::UNSPECIFIED), true)
        );
        let loopback = TcpListener::bind("[::1]:0").unwrap();
        let port = loopback.local_addr().unwrap().port();
        assert!(!find(Transport::Tcp, port).unwrap().dual_stack);
        let mapped = TcpListener::bind("[::ffff:127.0.0.1]:0").unwrap();
        let port = mapped.local_addr().unwrap().port();
        let bound = find(Transport::Tcp, port).unwrap();
        assert_eq!(bound.address, IpAddr::V4(Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn datagram_sockets_are_listed_while_they_take_from_anyone() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(find(Transport::Udp, port).unwrap().inode, inode(&socket));
        socket.connect("127.0.0.1:9").unwrap();
        assert!(find(Transport::Udp, port).is_none());
    }

    #[test]
    fn a_limit_is_kept_and_told() {
        let listeners: Vec<_> = (0..4)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let ports: Vec<_> = listeners
            .iter()
            .map(|l| l.local_addr().unwrap().port())
            .collect();
        let diag = SockDiag::open().unwrap();
        let list = |limit| {
            let (found, more) = diag
                .bound(Transport::Tcp, None, limit, |b| ports.contains(&b.port))
                .unwrap();
            (found.len(), more)
        };
        assert_eq!(list(3), (3, true));
        assert_eq!(list(4), (4, false));
        assert_eq!(list(0), (0, true));
    }

    proptest::proptest! {
        #[test]
        fn any_socket_is_read_without_a_panic(
            family in proptest::sample::select(vec![INET, INET6, 1]),
            mut body in proptest::collection::vec(0u8..=255, 0..120),
        ) {
            if let Some(first) = body.first_mut() {
                *first = family;
            }
            let answer = Answer { kind: BY_FAMILY, flags: 0, sequence: 1, body: &body };
            if let Some(bound) = read(answer) {
                proptest::prop_assert!(bound.port != 0 && body.len() >= FIXED);
                proptest::prop_assert!(!bound.dual_stack || bound.address.is_unspecified());
            }
        }
    }
}
