//! One connection inside the device: credit both ways, the half-closes, and what is owed to the guest.
//!
//! The host's owner holds the other end of a socket pair. Bytes from the guest that the socket does not take at once wait in
//! `waiting`, which never holds more than the credit that was advertised. Bytes to the guest are read from the socket only
//! when there is a buffer of the guest to put them in, so nothing waits in that direction.

use std::{net::Shutdown, os::unix::net::UnixStream, sync::PoisonError};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND, op};
use crate::stream::Shared;

/// The two ports that name a connection; the addresses are always the guest's and the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) host_port: u32,
    pub(crate) guest_port: u32,
}

/// The guest broke a rule; the connection is to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation;

pub(crate) struct Conn {
    pub(crate) key: Key,
    socket: UnixStream,
    remains: Shared,

    /// Bytes from the guest that the socket has not taken yet, from `waiting_at` on.
    waiting: Vec<u8>,
    waiting_at: usize,
    /// How many bytes from the guest may wait here: its credit.
    buf_alloc: u32,
    /// Bytes handed to the owner (or thrown away for one that left), wrapping; and the last value the guest was told.
    forwarded: u32,
    forwarded_told: u32,
    /// The guest's SHUTDOWN flags so far.
    guest_shut: u32,
    /// The owner reads no more.
    host_deaf: bool,

    /// Bytes sent to the guest, wrapping, and what the guest last said of its own buffer.
    sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// The socket may have bytes for the guest; cleared when a read says there are none.
    readable: bool,
    /// The owner closed both halves.
    hung_up: bool,
    /// The owner's half has been read to its end.
    host_eof: bool,
    credit_asked: bool,

    response_owed: bool,
    credit_owed: bool,
    /// SHUTDOWN flags already sent.
    shut_told: u32,
    /// The connection stands in the device's queue of those with something to send.
    pub(crate) queued: bool,
}

impl Conn {
    /// Makes a connection that owes the guest a RESPONSE. `socket` must be non-blocking.
    pub(crate) fn new(
        key: Key,
        socket: UnixStream,
        remains: Shared,
        buf_alloc: u32,
        request: &Header,
    ) -> Self {
        Self {
            key,
            socket,
            remains,
            waiting: Vec::new(),
            waiting_at: 0,
            buf_alloc,
            forwarded: 0,
            forwarded_told: 0,
            guest_shut: 0,
            host_deaf: false,
            sent: 0,
            peer_buf_alloc: request.buf_alloc,
            peer_fwd_cnt: request.fwd_cnt,
            readable: false,
            hung_up: false,
            host_eof: false,
            credit_asked: false,
            response_owed: true,
            credit_owed: false,
            shut_told: 0,
            queued: false,
        }
    }

    pub(crate) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Tells how many bytes wait for the owner.
    pub(crate) fn waiting_len(&self) -> usize {
        self.waiting.len() - self.waiting_at
    }

    /// Tells whether the owner has gone and the guest knows: the guest only has to confirm.
    pub(crate) fn is_closing(&self) -> bool {
        self.shut_told == SHUTDOWN_BOTH
    }

    /// Takes the guest's credit, which is in every packet.
    pub(crate) fn credit(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        if self.room_at_guest() > 0 {
            self.credit_asked = false;
        }
    }

    /// Returns how many bytes the guest can take; 0 when its numbers make no sense.
    fn room_at_guest(&self) -> usize {
        let in_flight = self.sent.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight) as usize
    }

    /// Takes payload of the guest.
    pub(crate) fn payload(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let room = (self.buf_alloc as usize).saturating_sub(self.waiting_len());
        if bytes.len() > room || self.guest_shut & SHUTDOWN_SEND != 0 || self.response_owed {
            return Err(Violation);
        }
        let mut rest = bytes;
        if self.waiting_len() == 0 {
            rest = &bytes[self.give(bytes)..];
        }
        if !rest.is_empty() {
            if self.waiting_at > 0 {
                self.waiting.drain(..self.waiting_at);
                self.waiting_at = 0;
            }
            self.waiting.extend_from_slice(rest);
        }
        Ok(())
    }

    /// Hands waiting bytes on, as far as the socket takes them; to be called when the socket became writable.
    pub(crate) fn flush(&mut self) {
        while self.waiting_len() > 0 {
            let waiting = std::mem::take(&mut self.waiting);
            let given = self.give(&waiting[self.waiting_at..]);
            self.waiting = waiting;
            self.waiting_at += given;
            if given == 0 {
                return;
            }
        }
        if self.waiting.capacity() > 0 {
            self.waiting = Vec::new();
            self.waiting_at = 0;
        }
        if self.guest_shut & SHUTDOWN_SEND != 0 {
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    /// Gives bytes to the owner and returns how many are done with.
    fn give(&mut self, bytes: &[u8]) -> usize {
        let mut given = 0;
        while given < bytes.len() {
            if self.host_deaf {
                given = bytes.len();
                break;
            }
            match send(
                &self.socket,
                &bytes[given..],
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(n) => given += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // The owner closed. What it did not read is lost, as with any socket, and the guest is told to stop.
                Err(_) => self.host_deaf = true,
            }
        }
        self.forwarded = self.forwarded.wrapping_add(given as u32);
        if self.forwarded.wrapping_sub(self.forwarded_told) >= self.buf_alloc / 4 {
            self.credit_owed = true;
        }
        given
    }

    /// Takes a SHUTDOWN of the guest. Returns true when the guest closed both halves: the connection is over.
    pub(crate) fn guest_shutdown(&mut self, flags: u32) -> bool {
        self.guest_shut |= flags & SHUTDOWN_BOTH;
        if self.guest_shut == SHUTDOWN_BOTH {
            return true;
        }
        if self.guest_shut & SHUTDOWN_RCV != 0 {
            let _ = self.socket.shutdown(Shutdown::Read);
        }
        self.flush();
        false
    }

    /// The guest asked how much it may send.
    pub(crate) fn credit_requested(&mut self) {
        self.credit_owed = true;
    }

    /// The socket has bytes for the guest, or has come to its end.
    pub(crate) fn became_readable(&mut self, hung_up: bool) {
        self.readable = true;
        self.hung_up |= hung_up;
        // A guest that receives no more keeps us from reading up to the end, so the end is taken as read.
        self.host_eof |= hung_up && self.guest_shut & SHUTDOWN_RCV != 0;
    }

    fn wants_to_read(&self) -> bool {
        self.readable && !self.host_eof && self.guest_shut & SHUTDOWN_RCV == 0
    }

    /// Returns the SHUTDOWN flags the guest has yet to hear.
    fn shut_owed(&self) -> u32 {
        let send = if self.host_eof { SHUTDOWN_SEND } else { 0 };
        let receive = if self.host_deaf || (self.host_eof && self.hung_up) {
            SHUTDOWN_RCV
        } else {
            0
        };
        (send | receive) & !self.shut_told
    }

    /// Tells whether [`Self::next`] may have something.
    pub(crate) fn has_output(&self) -> bool {
        self.response_owed
            || self.credit_owed
            || self.shut_owed() != 0
            || (self.wants_to_read() && (self.room_at_guest() > 0 || !self.credit_asked))
    }

    /// Makes the next packet for the guest: its payload is put at the front of `buf` and counted in `len`.
    ///
    /// Fills only the fields a connection knows: op, flags, len, ports and credit.
    pub(crate) fn next(&mut self, buf: &mut [u8]) -> Option<Header> {
        if self.response_owed {
            self.response_owed = false;
            return Some(self.header(op::RESPONSE, 0, 0));
        }
        if self.wants_to_read() {
            let room = self.room_at_guest().min(buf.len());
            if room > 0 {
                let read = loop {
                    match recv(&self.socket, &mut buf[..room], RecvFlags::DONTWAIT) {
                        Err(Errno::INTR) => {}
                        other => break other.map(|(n, _)| n),
                    }
                };
                match read {
                    Ok(n) if n > 0 => {
                        self.sent = self.sent.wrapping_add(n as u32);
                        return Some(self.header(op::RW, 0, n as u32));
                    }
                    Err(Errno::AGAIN) => self.readable = false,
                    Ok(_) => self.host_eof = true,
                    // The owner closed with bytes unread: both halves are gone.
                    Err(_) => {
                        self.host_eof = true;
                        self.hung_up = true;
                    }
                }
            } else if self.room_at_guest() == 0 && !self.credit_asked {
                self.credit_asked = true;
                return Some(self.header(op::CREDIT_REQUEST, 0, 0));
            }
        }
        let owed = self.shut_owed();
        if owed != 0 {
            self.shut_told |= owed;
            return Some(self.header(op::SHUTDOWN, self.shut_told, 0));
        }
        if self.credit_owed {
            return Some(self.header(op::CREDIT_UPDATE, 0, 0));
        }
        None
    }

    fn header(&mut self, op: u16, flags: u32, len: u32) -> Header {
        // Every packet carries the credit, so none is owed after it.
        self.credit_owed = false;
        self.forwarded_told = self.forwarded;
        Header {
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            op,
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.forwarded,
            ..Header::default()
        }
    }

    /// Ends the connection for its owner: what still waits can be read, then comes the end, or a reset when the guest had
    /// not finished sending.
    pub(crate) fn finish(mut self) {
        self.flush();
        let mut remains = self.remains.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.drain(..self.waiting_at);
        remains.tail = std::mem::take(&mut self.waiting);
        remains.cut_off = self.guest_shut & SHUTDOWN_SEND == 0;
        // The owner looks at the remains after the end of the socket, so they must be in place before it closes.
        drop(remains);
        drop(self.socket);
    }
}
