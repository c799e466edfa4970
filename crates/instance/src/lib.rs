//! Runs one distribution in namespaces: mounts, cgroup, PID 1, sessions, teardown.
//!
//! The same code runs in the guest VM (as root there) and, without a VM, on a host's own kernel (as root). It knows nothing
//! of VMs, channels or RPC, has no threads and no async, and links no C code: the static `/init` of the guest contains it.
//!
//! A caller (any program, threads and async allowed) uses [`launch`] and the [`Instance`] it returns. The work in new
//! namespaces is done by fresh single-threaded processes of the program that [`LaunchSpec::init_binary`] names; that program
//! must call [`run_role`] first thing in `main`.
//!
//! Not for: finding disks, networks, or telling the user. A mechanism: stands on `sys` and `wslconf`.

pub mod session;
pub mod spec;
mod text;

pub use session::job::{
    CommandEnd, ExecJob, Program, SessionReport, SessionRequest, Stdio, WindowSize,
};
pub use spec::{DeviceTree, EnvVar, LaunchSpec, OsRelease, Root, SharedBind};
