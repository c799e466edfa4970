//! The words that every part of Hostel shares: names, ids, sizes, error codes, and the shape of a file tree.
//!
//! Not for: any input or output, system calls, async, or text on a screen. A foundation: it uses nothing of
//! ours, everything else may use it.

mod bytes;
mod failure;
pub mod firewall;
mod id;
mod name;
mod paths;
pub mod tree;

pub use bytes::{Bytes, ParseBytesError};
pub use failure::{ErrorCode, Failure, FailureKind};
pub use id::{DistroId, SessionId, Token};
pub use name::{DistroName, NameError};
pub use paths::Paths;

/// The version of the contract between client, daemon and guest that this build speaks.
///
/// Both hops greet with it and use the lower of the two; see `docs/design/wire.md`.
pub const GENERATION: u32 = 1;

/// The oldest generation this build still understands.
pub const OLDEST_GENERATION: u32 = 1;
