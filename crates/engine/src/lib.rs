//! What Hostel does: the registry of distributions, the life of the VM and of each distribution, sessions, imports and
//! exports, and the durable state behind them.
//!
//! Not for: sockets and services of the API (the daemon), or how anything is done (the mechanisms). Uses every mechanism
//! and foundation; only programs use it.

mod archives;
pub mod backend;
mod distro;
mod engine;
mod export;
mod flight;
pub mod hypervisor;
mod idle;
mod import;
mod install;
mod kernels;
pub mod layout;
pub mod lifecycle;
pub mod network;
mod pipe;
pub mod registry;
mod session;
pub mod state;
pub mod streams;
mod task;
mod vm;

pub use engine::{Engine, Timeouts, open_home};
pub use session::SessionEvents;
pub use task::TaskSink;
