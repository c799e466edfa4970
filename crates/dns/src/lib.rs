//! Names for the guest: answers its questions from the names of the house, the host's `/etc/hosts` and the host's resolvers.
//!
//! Whole DNS messages in, whole messages out; how they travel is not its business, except for [`Resolver::serve`], which
//! serves the gateway's sockets. [`host_names`] is the other direction: the host learns the names of the house.
//!
//! Not for: caching (the host's resolver has a cache of its own), deciding which addresses a name has. A mechanism.
//! Everything that comes from the guest is taken as hostile: it is bounded, checked and rate-limited.

mod forward;
mod gateway;
mod host;
pub mod host_names;
mod hosts;
mod house;
mod limit;
mod message;
#[doc(hidden)]
pub mod probe;
mod resolver;
mod watch;

pub use gateway::Gateway;
pub use host::HostDns;
pub use house::{Names, labels};
pub use resolver::{Resolver, Settings};
