//! Disks of distributions: ext4 images made and read on the host, overlays over shared bases, and their usage.
//!
//! Nothing here needs root, a virtual machine or a program of the system. File trees move through
//! [`hostel_model::tree::TreeSink`] in both directions; this crate knows nothing of archives, of QEMU's command line or
//! of who owns a disk (locking is the caller's). Everything blocks. It stands on `model` alone.
//!
//! - [`ext4::Writer`] takes a tree and leaves a complete, sparse, journalled ext4 image.
//! - [`ext4::Reader`] reads any ext4 that a Linux kernel left behind, cleanly unmounted or not, and trusts none of it.
//! - [`overlay`] makes qcow2 overlays over raw bases and reads through them.
//! - [`usage`] tells what a disk file occupies.

pub mod blocks;
mod bytes;
pub mod ext4;
pub mod overlay;
mod qcow2;
pub mod usage;

pub use blocks::{BlockSource, FileSource};
