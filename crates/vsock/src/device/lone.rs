//! A guest without a machine: packets in and out of the connections, for fuzzing from outside of this crate.

use std::{
    io,
    os::unix::net::UnixStream,
    sync::{Arc, PoisonError},
};

use tokio::sync::mpsc;

use super::{
    mux::{BUF_ALLOC, MAX_CONNECTIONS, MAX_RESETS, Mux},
    packet::{HEADER_LEN, HOST_CID, Header},
};
use crate::{
    GUEST_CID,
    port::{Incoming, Ports},
};

/// The connections of one guest and the listener of one port, driven by hand. Not a part of what this crate offers.
pub struct LoneGuest {
    mux: Mux,
    accepts: mpsc::Receiver<Incoming>,
}

impl LoneGuest {
    /// The address of the guest, which its packets must carry.
    pub const CID: u64 = GUEST_CID as u64;
    /// The port of the host that is listened on.
    pub const PORT: u32 = 1024;

    /// Makes a guest that has no connections.
    pub fn new() -> io::Result<Self> {
        let ports = Arc::new(Ports::default());
        let (_, accepts) = ports.open(Self::PORT).ok_or(io::ErrorKind::AddrInUse)?;
        Ok(Self {
            mux: Mux::new(Self::CID, ports)?,
            accepts,
        })
    }

    /// Takes a packet from the guest, as the queue would hand it on.
    pub fn packet(&mut self, header: &[u8; HEADER_LEN], payload: &[u8]) {
        self.mux.packet(&Header::decode(header), payload);
    }

    /// Makes the next packet for the guest in a buffer with room for that much payload.
    pub fn receive(&mut self, room: &mut [u8]) -> Option<[u8; HEADER_LEN]> {
        self.mux.socket_events();
        let header = self.mux.next(room)?;
        debug_assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, Self::CID));
        Some(header.encode())
    }

    /// Accepts a connection of the guest; `None` when none waits.
    pub fn accept(&mut self) -> Option<UnixStream> {
        let incoming = self.accepts.try_recv().ok()?;
        drop(
            incoming
                .remains
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        Some(incoming.socket)
    }

    /// Ends every connection, as an unplug does.
    pub fn unplug(&mut self) {
        self.mux.remove_all();
    }

    /// Tells whether all that is held for the guest is within the fixed limits.
    pub fn is_within_limits(&self) -> bool {
        let (connections, waiting, resets) = self.mux.load();
        connections <= MAX_CONNECTIONS
            && resets <= MAX_RESETS
            && waiting <= connections * BUF_ALLOC as usize
    }
}
