//! Sockets of netlink(7): ask and read the answer to its end, or listen for events.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::message::{Answer, Attributes, Message, split};

/// The kernel answers at once; this is for a kernel that does not.
const ANSWER: Duration = Duration::from_secs(5);
/// The kernel's own limit for one packet of a dump.
const LARGEST_PACKET: usize = 64 << 10;
/// The most packets of one answer.
const MOST_PACKETS: usize = 100_000;
/// How often a listing is repeated when things changed under it.
const REPEAT: usize = 8;

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The listing is not consistent.
const INTERRUPTED: u16 = 0x10;
/// An error's request is not repeated in it.
const CAPPED: u16 = 0x100;
/// An error has attributes.
const EXPLAINED: u16 = 0x200;
const EXPLANATION: u16 = 1;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// There is no such socket: the kernel lacks that part, or the caller may not have it.
    #[error("cannot open a netlink socket")]
    Open(#[source] Errno),
    /// The socket failed; `AGAIN` when the kernel did not answer in time.
    #[error("the netlink socket failed")]
    Socket(#[source] Errno),
    /// The kernel refused.
    #[error("the kernel refused{}", Because(.why))]
    Refused {
        /// Its reason.
        #[source]
        errno: Errno,
        /// Its reason in words; empty when it gave none.
        why: String,
    },
    /// The answer is not what the protocol says.
    #[error("the kernel's answer makes no sense")]
    Malformed,
}

struct Because<'a>(&'a str);

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", self.0)
        }
    }
}

impl NetlinkError {
    /// Returns the kernel's number for the reason.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Open(errno) | Self::Socket(errno) | Self::Refused { errno, .. } => Some(*errno),
            Self::Malformed => None,
        }
    }

    /// Whether the kernel said that a thing is not there.
    pub fn is_missing(&self) -> bool {
        matches!(
            self.errno(),
            Some(Errno::NOENT | Errno::NODEV | Errno::SRCH | Errno::ADDRNOTAVAIL)
        )
    }

    /// Whether the kernel said that a thing is there already.
    pub fn is_present(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }
}

/// A socket for requests, in the network namespace of the thread that opened it. Calls block, for microseconds.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: AtomicU32,
}

impl Socket {
    /// Opens a socket for a protocol of `rustix::net::netlink`; `None` is rtnetlink, whose number is 0.
    pub fn open(protocol: Option<Protocol>) -> Result<Self, NetlinkError> {
        let fd = open(protocol, 0, SocketFlags::CLOEXEC)?;
        sockopt::set_socket_timeout(&fd, Timeout::Recv, Some(ANSWER))
            .map_err(NetlinkError::Open)?;
        // Without it there is a number in place of words.
        let _ = hostel_sys::netlink::explain_refusals(&fd);
        Ok(Self {
            fd,
            sequence: AtomicU32::new(1),
        })
    }

    /// Sends a request that changes something and waits for its acknowledgement, which it must ask for.
    pub fn change(&self, message: Message) -> Result<(), NetlinkError> {
        self.ask(message, &mut |_| {}).map(|_| ())
    }

    /// Sends a request for one thing and shows the answer; the request must ask for an acknowledgement.
    pub fn get(
        &self,
        message: Message,
        mut each: impl FnMut(Answer<'_>),
    ) -> Result<(), NetlinkError> {
        self.ask(message, &mut each).map(|_| ())
    }

    /// Lists: sends a dump request and makes a `T` of each message of the answer that is one. A listing that changed while
    /// it was read is read again.
    pub fn list<T>(
        &self,
        message: &Message,
        mut read: impl FnMut(Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut found = Vec::new();
        for _ in 0..REPEAT {
            found.clear();
            let consistent = self.ask(message.clone(), &mut |answer| found.extend(read(answer)))?;
            if consistent {
                break;
            }
        }
        // After that many changes the last listing is as good as any.
        Ok(found)
    }

    /// Sends several messages as one packet and waits until the last, which must ask for an acknowledgement, is
    /// acknowledged or any has failed. `last` counts from 0.
    pub(crate) fn batch(&self, messages: Vec<Message>, last: u32) -> Result<(), NetlinkError> {
        let count = messages.len() as u32;
        let first = self.sequence.fetch_add(count, Ordering::Relaxed);
        let mut packet = Vec::new();
        for (message, number) in messages.into_iter().zip(0..) {
            packet.extend(message.finish(first.wrapping_add(number)));
        }
        // A table of thousands of rules is one packet.
        if packet.len() > 64 << 10 {
            let wanted = packet.len() + (64 << 10);
            let _ = sockopt::set_socket_send_buffer_size_force(&self.fd, wanted)
                .or_else(|_| sockopt::set_socket_send_buffer_size(&self.fd, wanted));
        }
        self.send(&packet)?;
        let mine = |sequence: u32| sequence.wrapping_sub(first) < count;
        let end = first.wrapping_add(last);
        self.receive(&mut |answer| {
            if answer.kind != ERROR || !mine(answer.sequence) {
                return Ok(false);
            }
            outcome(answer)?;
            Ok(answer.sequence == end)
        })
    }

    /// Sends a request and reads the answer to its end; whether nothing changed under it.
    fn ask(
        &self,
        message: Message,
        each: &mut dyn FnMut(Answer<'_>),
    ) -> Result<bool, NetlinkError> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        self.send(&message.finish(sequence))?;
        let mut consistent = true;
        self.receive(&mut |answer| {
            // What is left of a request that was given up is not ours.
            if answer.sequence != sequence {
                return Ok(false);
            }
            consistent &= answer.flags & INTERRUPTED == 0;
            match answer.kind {
                ERROR => outcome(answer).map(|()| true),
                // A listing that fails half-way says so here.
                DONE => code(answer.body).map(|()| true),
                _ => {
                    each(answer);
                    Ok(false)
                }
            }
        })?;
        Ok(consistent)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        match rustix::net::send(&self.fd, bytes, SendFlags::empty()) {
            Ok(_) => Ok(()),
            Err(errno) => Err(NetlinkError::Socket(errno)),
        }
    }

    fn receive(
        &self,
        each: &mut dyn FnMut(Answer<'_>) -> Result<bool, NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let mut buffer = vec![0; LARGEST_PACKET];
        for _ in 0..MOST_PACKETS {
            let length = match rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::TRUNC) {
                Ok((_, length)) if length <= buffer.len() => length,
                Ok(_) => return Err(NetlinkError::Malformed),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(NetlinkError::Socket(errno)),
            };
            let mut rest = &buffer[..length];
            while let Some((answer, after)) = split(rest) {
                if each(answer)? {
                    return Ok(());
                }
                rest = after;
            }
        }
        Err(NetlinkError::Malformed)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A socket that the kernel sends events to. Readable when there are some; never blocks.
#[derive(Debug)]
pub struct Events(OwnedFd);

impl Events {
    /// Subscribes to groups of a protocol: bit `n - 1` is group `n`.
    pub fn subscribe(protocol: Option<Protocol>, groups: u32) -> Result<Self, NetlinkError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        open(protocol, groups, flags).map(Self)
    }

    /// Shows the events that wait. `false` when events were lost: what is known has to be read anew.
    pub fn drain(&self, mut each: impl FnMut(Answer<'_>)) -> Result<bool, NetlinkError> {
        let mut buffer = vec![0; LARGEST_PACKET];
        let mut complete = true;
        for _ in 0..MOST_PACKETS {
            match rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::TRUNC) {
                Ok((_, length)) => {
                    complete &= length <= buffer.len();
                    let mut rest = &buffer[..length.min(buffer.len())];
                    while let Some((answer, after)) = split(rest) {
                        each(answer);
                        rest = after;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => complete = false,
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(NetlinkError::Socket(errno)),
            }
        }
        Ok(complete)
    }

    /// Gives the descriptor away, for an event loop.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl From<OwnedFd> for Events {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn open(
    protocol: Option<Protocol>,
    groups: u32,
    flags: SocketFlags,
) -> Result<OwnedFd, NetlinkError> {
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)
        .map_err(NetlinkError::Open)?;
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups)).map_err(NetlinkError::Open)?;
    Ok(fd)
}

/// Reads the result in an error message; 0 is a success.
fn outcome(answer: Answer<'_>) -> Result<(), NetlinkError> {
    let Err(NetlinkError::Refused { errno, .. }) = code(answer.body) else {
        return code(answer.body);
    };
    let mut why = String::new();
    if answer.flags & EXPLAINED != 0 {
        // Behind the code comes the request: its header, and the rest of it unless that was left out.
        let length = answer.body.get(4..8).and_then(|b| b.try_into().ok());
        let repeated = if answer.flags & CAPPED == 0 {
            length.map_or(0, u32::from_ne_bytes) as usize
        } else {
            crate::message::HEADER
        };
        let at = 4usize.saturating_add(repeated.next_multiple_of(4));
        why = Attributes::after(answer.body, at)
            .text(EXPLANATION)
            .unwrap_or_default();
    }
    Err(NetlinkError::Refused { errno, why })
}

fn code(body: &[u8]) -> Result<(), NetlinkError> {
    let code = body.get(..4).and_then(|b| b.try_into().ok());
    match code.map_or(0, i32::from_ne_bytes) {
        0 => Ok(()),
        code @ -4095..0 => Err(NetlinkError::Refused {
            errno: Errno::from_raw_os_error(-code),
            why: String::new(),
        }),
        _ => Err(NetlinkError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::flags;

    fn answer(flags: u16, body: &[u8]) -> Answer<'_> {
        Answer {
            kind: ERROR,
            flags,
            sequence: 1,
            body,
        }
    }

    #[test]
    fn refusals_carry_the_kernels_words() {
        // A bridge's attribute on an interface that cannot be: the kernel names what it does not find.
        let socket = Socket::open(None).unwrap();
        let mut message = Message::new(24, flags::REQUEST | flags::ACKNOWLEDGE | flags::CREATE);
        message.bytes(&[2, 200, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0]);
        let error = socket.change(message).unwrap_err();
        match error.errno().unwrap() {
            Errno::PERM => {}
            _ => assert!(error.to_string().contains('('), "{error}"),
        }
    }

    #[test]
    fn successes_are_no_errors_and_rubbish_is_told() {
        assert!(outcome(answer(0, &[0; 4])).is_ok());
        assert!(matches!(
            outcome(answer(0, &7i32.to_ne_bytes())),
            Err(NetlinkError::Malformed)
        ));
        let missing = outcome(answer(EXPLAINED, &(-2i32).to_ne_bytes())).unwrap_err();
        assert!(missing.is_missing());
        assert_eq!(missing.to_string(), "the kernel refused");
    }

    #[test]
    fn a_listing_is_read_to_its_end() {
        let socket = Socket::open(None).unwrap();
        let mut message = Message::new(18, flags::REQUEST | flags::DUMP);
        message.bytes(&[0; 16]);
        let names = socket
            .list(&message, |a| Attributes::after(a.body, 16).text(3))
            .unwrap();
        assert!(names.contains(&"lo".to_owned()), "{names:?}");
    }

    proptest::proptest! {
        #[test]
        fn any_error_is_read_without_a_panic(
            flags in proptest::num::u16::ANY,
            body in proptest::collection::vec(0u8..=255, 0..100),
        ) {
            let _ = outcome(answer(flags, &body));
        }
    }
}
