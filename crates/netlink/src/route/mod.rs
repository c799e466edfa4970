//! Links, addresses, routes and neighbours by rtnetlink(7).
//!
//! What is asked for and is there already is a success where the kernel lets it be; removing what is gone is told by
//! [`NetlinkError::is_missing`](crate::NetlinkError::is_missing).

mod address;
mod link;
mod neighbour;
mod table;

pub use address::Address;
pub use link::{Bridge, Link, LinkChange, Veth};
pub use table::{Route, Scope};

use crate::socket::{NetlinkError, Socket};

/// A connection to the kernel's routing. All calls block, for microseconds. Changes need CAP_NET_ADMIN.
#[derive(Debug)]
pub struct Routing {
    socket: Socket,
}

impl Routing {
    /// Connects to the routing of the calling thread's network namespace; it stays with that namespace.
    pub fn connect() -> Result<Self, NetlinkError> {
        Ok(Self {
            socket: Socket::open(None)?,
        })
    }
}
