//! WSL's configuration files: text to typed values, with warnings that name the place, and editing that keeps the text.
//!
//! [`WslConf`] is `/etc/wsl.conf` of a distribution, [`DistributionConf`] its `/etc/wsl-distribution.conf`,
//! [`MachineConf`] the machine's `.wslconfig` or `hostel.conf`. Beside them stand the small texts that a distribution
//! gets: host name, `/etc/hosts`, `resolv.conf`.
//!
//! Not for: reading or writing files, choosing which file counts, acting on a value. Pure: the guest links it. A
//! foundation: it uses `model` only.

mod distribution;
mod edit;
mod host;
mod ini;
mod machine;
mod network;
mod value;
mod warning;
mod wsl;

pub use distribution::{DistributionConf, Oobe, Shortcut, WindowsTerminal};
pub use edit::{EditError, remove, set};
pub use host::{HostEntriesTooLarge, clean_hostname, host_entries, hosts_text, resolv_conf_text};
pub use ini::FileKind;
pub use machine::{
    Accel, AutoMemoryReclaim, Experimental, General, HostelSection, MacAddress, MachineConf, Wsl2,
};
pub use network::{HostNames, Ipv6, NetworkBackend, NetworkingMode};
pub use warning::{Level, Problem, Warning};
pub use wsl::{
    Automount, Boot, Cgroups, FileServer, Filesystem, Gpu, Interop, Network, Time, User, WslConf,
    WslGeneral,
};
