//! Images that the crate writes and reads, against e2fsprogs, QEMU and the kernel.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod common;
mod damage;
mod kernel;
mod overlays;
mod writing;
