//! The end of the network that needs rights: bridge, tap and nf_tables, held by the program `hostel-net` for as long as its
//! socket is open.
//!
//! The library is the protocol and its client, the program the server. As root it works on the host's own network, else
//! inside a user and network namespace that it makes. Not for: choosing addresses or backends, anything but the network.
//! Stands between the foundations and the mechanisms.

mod client;
pub mod helper;

mod protocol;
pub mod server;

pub use client::{
    CallError, Client, Done, Mode, Outcome, Raised, SpawnError, descriptors, raised, surveyed,
};
pub use protocol::{
    Event, Ipv6, MAX_MESSAGE, MAX_NAME, MAX_OBSTACLES, Message, Network, Numbered, Obstacle,
    Refusal, RefusalCode, Reply, Request, Status, Survey, Up, Uplink, VERSION,
};
