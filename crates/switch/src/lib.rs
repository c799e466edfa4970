//! The network between host and VM: which subnet and addresses are used, kept for ever once chosen, and the backends that
//! can carry it. The guest sees the same addresses with every backend.
//!
//! Not for: QEMU's command line, changing anything of the host itself (that is `hostel-net`'s), relaying ports. A mechanism.

mod addresses;
mod advice;
mod backend;
mod filter;
mod follow;
mod host;
mod nat;
mod prefix;
mod programs;
mod rooms;

pub use self::{
    backend::{
        Adapter, Backend, FilterSpec, GuestIpv6, GuestNetwork, Kind, NetdevSpec, OpenError, Opened,
        ParseKindError, Verdict, Wanted, open, probe,
    },
    follow::{HostState, follow_host},
    host::{Host, Taken},
    nat::{MacAddress, NatError, NatRecord, NetworkType, NoFreeSubnet, ParseMacError, Renewal},
    prefix::{ParsePrefixError, Prefix},
    rooms::RoomError,
};

/// Writes an error and its sources in one line.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
