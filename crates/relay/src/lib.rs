//! The localhost relay and the port ledger: what listens in the guest appears on the host's loopback.
//!
//! Not for: knowing what listens (that comes in), or how to reach the guest (a [`Connector`] does that). A mechanism.

mod connector;
mod ledger;
mod listener;
mod relay;
mod settings;

pub use connector::{Connector, Duplex, GuestDatagrams, GuestStream};
pub use ledger::{Entry, State};
pub use listener::{GuestListener, ListenerKey, Protocol, Room};
pub use relay::Relay;
pub use settings::{Limits, PortRule, RuleAction, Settings};
