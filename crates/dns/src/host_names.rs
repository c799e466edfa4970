//! The other direction: the host itself learns the names of the house. Off unless somebody asks for it.
//!
//! [`resolved`] tells systemd-resolved to ask the gateway for one domain and nothing else; it forgets that with the
//! interface, so nothing stays behind. [`hosts`] keeps a block of its own in `/etc/hosts`, known by its marks, so that the
//! next start can remove what a killed daemon left.

pub mod hosts;
pub mod resolved;
