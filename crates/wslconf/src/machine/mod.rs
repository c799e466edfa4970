//! `.wslconfig` and `hostel.conf`: what holds for the whole machine.

mod keys;
mod mac;
mod sections;
#[cfg(test)]
mod tests;

use hostel_model::Bytes;
use serde::Serialize;

pub use self::{
    mac::MacAddress,
    sections::{Accel, AutoMemoryReclaim, Experimental, General, HostelSection, Wsl2},
};

/// What the machine's file says. `None` where the default depends on the host or on another key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MachineConf {
    /// `[wsl2]`, with the keys that moved here from `[experimental]`.
    pub wsl2: Wsl2,
    /// `[general]`.
    pub general: General,
    /// `[experimental]`.
    pub experimental: Experimental,
    /// `[hostel]`: what the reference does not have.
    pub hostel: HostelSection,
}

impl MachineConf {
    /// Returns the machine's memory on a host with `host` bytes: half of it when not set, at least 256 MiB, at most the
    /// host's, in steps of 2 MiB.
    pub fn memory_for(&self, host: Bytes) -> Bytes {
        let wanted = self.wsl2.memory.unwrap_or(Bytes(host.0 / 2));
        let bounded = wanted.0.max(Bytes::mib(256).0).min(host.0);
        Bytes(bounded & !(Bytes::mib(2).0 - 1))
    }

    /// Returns the machine's processors on a host with `host` of them, and whether fewer than asked for.
    pub fn processors_for(&self, host: u32) -> (u32, bool) {
        match self
            .wsl2
            .processors
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| *n > 0)
        {
            Some(wanted) => (wanted.min(host), wanted > host),
            None => (host, false),
        }
    }
}
