//! Runs one distribution in namespaces: mounts, cgroup, PID 1, sessions, teardown.
//!
//! The same code runs in the guest VM (as root there) and, without a VM, on a host's own kernel (as root). It knows nothing
//! of VMs, channels or RPC, has no threads and no async, and links no C code: the static `/init` of the guest contains it.
//!
//! A caller (any program, threads and async allowed) uses [`launch`] and the [`Instance`] it returns. The work in new
//! namespaces is done by fresh single-threaded processes of the program that [`LaunchSpec::init_binary`] names; that program
//! must call [`run_role`] first thing in `main`.
//!
//! ```text
//! caller ── launch ──► helper `hostel-init launch`          enters the cgroup, clones, ends
//!    │                    └─► PID 1 of the distribution      mounts, pivots, says ready, forks sessions
//!    └─ exec ───────────────────► session process            pty, pipes, user; supervises
//!                                     └─► command            the caller holds the pty's master and the pipes
//! ```
//!
//! Not for: finding disks, networks, or telling the user. A mechanism: stands on `sys` and `wslconf`.

mod beneath;
mod cgroup;
mod init;
mod inspect;
mod instance;
mod launch;
mod role;
mod session;
mod spec;
mod text;
mod wire;

pub use inspect::{Namespace, namespaces};
pub use instance::{InitEnd, Instance, StillMounted, StopOutcome, Usage, wait_unmounted};
pub use launch::{LaunchError, Launched, launch};
pub use role::run_role;
pub use session::handle::{ExecError, SessionHandle, read_report, send_request};
pub use session::job::{
    CommandEnd, Directory, ExecJob, MAX_JOB_BYTES, MAX_PACKET, Program, SessionReport,
    SessionRequest, Stdio, WindowSize,
};
pub use session::local::{LocalContext, spawn_local_session};
pub use spec::{DeviceTree, EnvVar, LaunchSpec, OsRelease, Root, SharedBind};
pub use wire::WireError;
