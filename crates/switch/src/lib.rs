//! The network between host and VM: which subnet and addresses are used, kept for ever once chosen, and the backends that
//! can carry it. The guest sees the same addresses with every backend.
//!
//! Not for: QEMU's command line, changing anything of the host itself (that is `hostel-net`'s), relaying ports. A mechanism.

mod backend;
mod nat;
mod prefix;

pub use self::{
    backend::{
        Adapter, Backend, FilterSpec, GuestIpv6, GuestNetwork, Kind, NetdevSpec, OpenError, Opened,
        ParseKindError, Slirp, Verdict, Wanted, open, probe,
    },
    nat::{MacAddress, NatError, NatRecord, NoFreeSubnet, ParseMacError},
    prefix::{ParsePrefixError, Prefix, host_prefixes},
};
