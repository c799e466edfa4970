//! Talking to the kernel's network: links, addresses and routes by rtnetlink(7), nf_tables, listening sockets by sock_diag(7).
//!
//! By hand, because the guest's `/init` must stay small and has no `nft` program to call; the host uses the same code, so
//! that there is one. Everything works in the network namespace of the thread that opens the socket; going to another is the
//! caller's business. Not for: deciding what the network looks like. A foundation: blocking calls of microseconds, no async.

mod message;
pub mod nft;
mod prefix;
mod route;
mod sock_diag;
mod socket;

pub use message::{Answer, Attributes, Message, flags};
pub use prefix::{BadPrefix, Prefix};
pub use route::{Address, Bridge, Link, LinkChange, Route, Routing, Scope, Veth};
pub use sock_diag::{Bound, SockDiag, Transport};
pub use socket::{Events, NetlinkError, Socket};
