//! The network between host and VM: which subnet and addresses are used, kept for ever once chosen, and the backends that
//! can carry it. The guest sees the same addresses with every backend.
//!
//! Not for: QEMU's command line, reading or changing anything of the host (texts of `/proc` come from outside), relaying
//! ports. A mechanism. This first form has one backend, QEMU's user-mode network; it is pure.

mod backend;
mod nat;
mod prefix;

pub use self::{
    backend::{Backend, GuestNetwork, NetdevSpec, Slirp},
    nat::{MacAddress, NatError, NatRecord, NoFreeSubnet, ParseMacError},
    prefix::{ParsePrefixError, Prefix, host_prefixes},
};
