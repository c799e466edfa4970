//! Linux calls: the only crate where `unsafe` is at home. What `rustix` gives safely is used from there; this crate holds
//! what it lacks, each wrapped once.
//!
//! Not for: any decision. Functions here do one thing, name the call in their error, and know nothing of distributions.
//! A foundation.

pub mod adopt;
pub mod cgroup;
pub mod confine;
pub mod entropy;
pub mod fdpass;
pub mod lock;
pub mod memfd;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod process;
pub mod pty;
pub mod signal;
pub mod spawn;
pub mod tap;
