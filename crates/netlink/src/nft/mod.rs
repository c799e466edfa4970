//! One table of nf_tables, written as one transaction; noticing that somebody else changed it; and reading chains of others.
//!
//! ```
//! use hostel_netlink::nft::{Chain, Hook, Kind, Policy, Priority, Rule, States, Table};
//!
//! let table = Table::inet("hostel0")
//!     .comment("hostel 4711 123456")
//!     .chain(
//!         Chain::base("leaving", Kind::Nat, Hook::Postrouting, Priority::SOURCE_NAT, Policy::Accept).rule(
//!             Rule::new()
//!                 .source("172.19.128.0/20".parse()?)
//!                 .output_is_not("hostel0")
//!                 .masquerade(),
//!         ),
//!     )
//!     .chain(
//!         Chain::base("passing", Kind::Filter, Hook::Forward, Priority::FILTER, Policy::Accept)
//!             .rule(Rule::new().input_is("hostel0").accept())
//!             .rule(Rule::new().output_is("hostel0").state(States::ANSWERS).accept())
//!             .rule(Rule::new().output_is("hostel0").drop()),
//!     );
//! # Ok::<(), hostel_netlink::BadPrefix>(())
//! ```
//!
//! [`Nft::replace`] puts it into the kernel in the place of the one with its name, all or nothing.

mod chain;
mod encode;
mod expression;
mod listing;
mod reading;
mod rule;
mod set;
mod state;
mod table;

pub use chain::{Chain, Hook, Kind, Policy, Priority};
pub use listing::{ChainState, Family, Interface, RuleState, Verdict};
pub use rule::{Protocol, Rejection, Rule, States};
pub use set::{Elements, Set};
pub use state::{Changes, Fingerprint, TableState};
pub use table::Table;

use crate::socket::{NetlinkError, Socket};

/// A connection to nf_tables. All calls block, for microseconds to milliseconds. Needs CAP_NET_ADMIN.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
}

impl Nft {
    /// Connects to the tables of the calling thread's network namespace. The kernel may load modules for it.
    pub fn connect() -> Result<Self, NetlinkError> {
        Ok(Self {
            socket: Socket::open(Some(rustix::net::netlink::NETFILTER))?,
        })
    }
}
