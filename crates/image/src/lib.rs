//! Where distributions come from: named sources, Debian's bootstrap, and what an image says about itself.
//!
//! [`Source::parse`] reads what a user writes after `install`, [`bootstrap`] streams a fresh Debian as a tar, and
//! [`OsRelease`] reads the file by which a distribution tells its name.
//!
//! Not for: unpacking, disks, or the registry of distributions. A mechanism: it uses `model` only.

mod apt;
mod bootstrap;
mod os_release;
mod rights;
mod source;

pub use apt::{AptSource, one_line_sources, sources_in};
pub use bootstrap::{Bootstrap, BootstrapError, BootstrapSpec, bootstrap};
pub use os_release::OsRelease;
pub use source::{Source, SourceError, Suite};
