//! The localhost relay and the port ledger: what listens in the guest appears on the host's loopback.
//!
//! Not for: knowing what listens (that comes in), or how to reach the guest (a [`Connector`] does that). A mechanism.

mod book;
mod connector;
mod copy;
mod door;
mod holder;
mod ledger;
mod listener;
mod policy;
mod relay;
mod settings;
mod shared;
mod socket;
mod udp;

pub use connector::{Connector, Duplex, GuestDatagrams, GuestStream};
pub use ledger::{Entry, State};
pub use listener::{GuestListener, ListenerKey, Protocol, Room};
pub use relay::Relay;
pub use settings::{Limits, PortRule, RuleAction, Settings};
