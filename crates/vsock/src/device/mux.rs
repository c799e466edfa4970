//! The connections of one guest: packets in, packets out, within limits. Knows nothing of queues or of guest memory.
//!
//! The guest is hostile by assumption. Whatever it sends, this holds at most [`MAX_CONNECTIONS`] connections with
//! [`BUF_ALLOC`] (the first [`LARGE_CONNECTIONS`]) or [`SMALL_BUF_ALLOC`] bytes each, and [`MAX_RESETS`] answers to packets
//! that belong to none.

use std::{
    collections::{HashMap, VecDeque},
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
};

use rustix::event::{Timespec, epoll};
use tracing::debug;

use super::{
    conn::{Conn, Key},
    packet::{HOST_CID, Header, MAX_PAYLOAD, TYPE_STREAM, op},
};
use crate::{
    port::{Incoming, Ports},
    stream::Shared,
};

/// The most connections open at once.
pub(crate) const MAX_CONNECTIONS: usize = 4096;
/// How many connections get a large buffer.
pub(crate) const LARGE_CONNECTIONS: usize = 256;
/// The credit of a connection.
pub(crate) const BUF_ALLOC: u32 = 256 * 1024;
/// The credit of a connection when there are many.
pub(crate) const SMALL_BUF_ALLOC: u32 = 32 * 1024;
/// The most resets that wait for a buffer of the guest; more are dropped, and the guest's own time-outs serve it.
pub(crate) const MAX_RESETS: usize = 256;

/// How many socket events are taken in one turn.
const MAX_EVENTS: usize = 256;

struct Slot {
    /// Tells this use of the slot from earlier ones, in events that were already on their way.
    generation: u32,
    conn: Option<Conn>,
}

pub(crate) struct Mux {
    guest_cid: u64,
    ports: Arc<Ports>,
    epoll: OwnedFd,
    slots: Vec<Slot>,
    free: Vec<usize>,
    by_key: HashMap<Key, usize>,
    /// Slots with something to send, each once.
    ready: VecDeque<usize>,
    /// Resets that belong to no connection.
    resets: VecDeque<Header>,
}

impl Mux {
    pub(crate) fn new(guest_cid: u64, ports: Arc<Ports>) -> io::Result<Self> {
        Ok(Self {
            guest_cid,
            ports,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
        })
    }

    /// Lends the descriptor that is readable when a socket of a connection wants attention.
    pub(crate) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Takes a packet from the guest. `payload` holds `header.len` bytes, or fewer when the guest lied about them.
    pub(crate) fn packet(&mut self, header: &Header, payload: &[u8]) {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            debug!(?header, "packet with a false address dropped");
            return;
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let slot = self.by_key.get(&key).copied();
        let whole = header.len as usize == payload.len() && payload.len() <= MAX_PAYLOAD;
        if header.type_ != TYPE_STREAM || !whole {
            debug!(?header, "malformed packet refused");
            match slot {
                Some(slot) => self.reset(slot),
                None => self.refuse(header),
            }
            return;
        }
        let Some(slot) = slot else {
            match header.op {
                op::REQUEST => self.request(key, header),
                // An answer to a reset would be answered with a reset, and so on for ever.
                op::RST => {}
                _ => self.refuse(header),
            }
            return;
        };
        let conn = self.slots[slot]
            .conn
            .as_mut()
            .expect("a slot that a key names is in use");
        conn.credit(header);
        match header.op {
            op::RW => {
                if conn.payload(payload).is_err() {
                    debug!(?header, "credit or order violated");
                    self.reset(slot);
                    return;
                }
            }
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => conn.credit_requested(),
            op::SHUTDOWN => {
                if conn.guest_shutdown(header.flags) {
                    self.reset(slot);
                    return;
                }
            }
            op::RST => {
                self.remove(slot);
                return;
            }
            // REQUEST for a connection that exists, RESPONSE to nothing asked, or an unknown op.
            _ => {
                debug!(?header, "operation out of place");
                self.reset(slot);
                return;
            }
        }
        self.queue_if_ready(slot);
    }

    fn request(&mut self, key: Key, header: &Header) {
        if self.by_key.len() >= MAX_CONNECTIONS {
            // Those whose owner has gone only wait for the guest's confirmation: the oldest knowledge to give up.
            let closing = self
                .slots
                .iter()
                .position(|s| s.conn.as_ref().is_some_and(Conn::is_closing));
            let Some(slot) = closing else {
                return self.refuse(header);
            };
            self.remove(slot);
        }
        let Ok((ours, theirs)) = UnixStream::pair() else {
            // Out of descriptors; the guest may try again.
            return self.refuse(header);
        };
        if ours.set_nonblocking(true).is_err() {
            return self.refuse(header);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                conn: None,
            });
            self.slots.len() - 1
        });
        let event =
            epoll::EventData::new_u64(u64::from(self.slots[slot].generation) << 32 | slot as u64);
        let interest = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        let remains = Shared::default();
        let incoming = Incoming {
            socket: theirs,
            remains: Arc::clone(&remains),
            guest_port: key.guest_port,
        };
        if epoll::add(&self.epoll, &ours, event, interest).is_err()
            || !self.ports.offer(key.host_port, incoming)
        {
            let _ = epoll::delete(&self.epoll, &ours);
            self.free.push(slot);
            return self.refuse(header);
        }
        let buf_alloc = if self.by_key.len() < LARGE_CONNECTIONS {
            BUF_ALLOC
        } else {
            SMALL_BUF_ALLOC
        };
        self.slots[slot].conn = Some(Conn::new(key, ours, remains, buf_alloc, header));
        self.by_key.insert(key, slot);
        self.queue_if_ready(slot);
    }

    /// Answers a packet that belongs to no connection with a reset.
    fn refuse(&mut self, header: &Header) {
        self.push_reset(header.dst_port, header.src_port);
    }

    fn push_reset(&mut self, src_port: u32, dst_port: u32) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(Header {
                src_port,
                dst_port,
                op: op::RST,
                ..Header::default()
            });
        } else {
            debug!(
                src_port,
                dst_port, "too many resets wait for the guest; one dropped"
            );
        }
    }

    /// Ends a connection and tells the guest.
    fn reset(&mut self, slot: usize) {
        if let Some(key) = self.remove(slot) {
            self.push_reset(key.host_port, key.guest_port);
        }
    }

    /// Ends a connection without telling the guest.
    fn remove(&mut self, slot: usize) -> Option<Key> {
        let entry = &mut self.slots[slot];
        let conn = entry.conn.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        let key = conn.key;
        if conn.queued {
            self.ready.retain(|s| *s != slot);
        }
        let _ = epoll::delete(&self.epoll, conn.socket());
        conn.finish();
        self.by_key.remove(&key);
        self.free.push(slot);
        Some(key)
    }

    /// Ends every connection: the guest or its driver has forgotten them.
    pub(crate) fn remove_all(&mut self) {
        for slot in 0..self.slots.len() {
            self.remove(slot);
        }
        self.resets.clear();
    }

    fn queue_if_ready(&mut self, slot: usize) {
        if let Some(conn) = self.slots[slot].conn.as_mut()
            && !conn.queued
            && conn.has_output()
        {
            conn.queued = true;
            self.ready.push_back(slot);
        }
    }

    /// Takes note of what happened on the sockets, without waiting. Returns true when something was noted: then there may
    /// be output, and more events.
    pub(crate) fn socket_events(&mut self) -> bool {
        let mut events = [MaybeUninit::uninit(); MAX_EVENTS];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, Some(&now)) else {
            return false;
        };
        let noted = !events.is_empty();
        for event in events.iter() {
            let data = event.data.u64();
            let (slot, generation) = ((data & 0xffff_ffff) as usize, (data >> 32) as u32);
            let Some(entry) = self
                .slots
                .get_mut(slot)
                .filter(|s| s.generation == generation)
            else {
                continue;
            };
            let Some(conn) = entry.conn.as_mut() else {
                continue;
            };
            let flags = event.flags;
            let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            if hung_up || flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP) {
                conn.became_readable(hung_up);
            }
            if hung_up || flags.contains(epoll::EventFlags::OUT) {
                conn.flush();
            }
            self.queue_if_ready(slot);
        }
        noted
    }

    /// Tells whether there may be a packet for the guest.
    pub(crate) fn has_output(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Makes the next packet for the guest; its payload is at the front of `buf`. Connections take turns.
    pub(crate) fn next(&mut self, buf: &mut [u8]) -> Option<Header> {
        if let Some(header) = self.resets.pop_front() {
            return Some(self.addressed(header));
        }
        while let Some(slot) = self.ready.pop_front() {
            let Some(conn) = self.slots[slot].conn.as_mut() else {
                continue;
            };
            conn.queued = false;
            let header = conn.next(buf);
            let blocked = header.is_none();
            // One that has output but found no room in this buffer would come again at once.
            if !blocked {
                self.queue_if_ready(slot);
            } else if self.slots[slot].conn.as_ref().is_some_and(Conn::has_output) {
                self.queue_if_ready(slot);
                return None;
            }
            if let Some(header) = header {
                return Some(self.addressed(header));
            }
        }
        None
    }

    fn addressed(&self, header: Header) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            type_: TYPE_STREAM,
            ..header
        }
    }

    /// Returns how many connections there are, how many bytes wait for their owners, and how many resets for the guest.
    pub(crate) fn load(&self) -> (usize, usize, usize) {
        let conns = || self.slots.iter().filter_map(|s| s.conn.as_ref());
        (
            conns().count(),
            conns().map(Conn::waiting_len).sum(),
            self.resets.len(),
        )
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        self.remove_all();
    }
}
