//! File trees in and out of tar archives, with nothing lost: owners, modes, nanosecond times, hard links, devices, fifos,
//! extended attributes, ACLs, capabilities, sparse files, names of any length and any bytes.
//!
//! [`read_archive`] pushes an archive into a [`TreeSink`](hostel_model::tree::TreeSink), [`ArchiveWriter`] is a sink that
//! writes one. Both stream: neither needs to seek, and neither holds more than one member's metadata and a few buffers.
//! The tar format itself is read and written here (`header`, `pax`, `sparse`), because what other codecs give is not
//! enough: sparse files of GNU tar's default format come out of them with wrong bytes.
//!
//! Not for: touching a file system, choosing names or places, or knowing what a distribution is beyond the few facts in
//! [`Facts`]. A mechanism: it uses `model` only.

mod acl;
mod decode;
mod errors;
mod facts;
mod format;
mod header;
mod pax;
mod reader;
mod sparse;
mod stream;
mod writer;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use decode::Compression;
pub use errors::ReadError;
pub use facts::{Facts, FactsSink};
pub use format::{Format, UnknownFormat};
pub use reader::{Progress, ReadOptions, Summary, read_archive};
pub use writer::{ArchiveWriter, WriteSummary};
