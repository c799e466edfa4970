//! Finds, unpacks and checks kernels and their modules, and assembles the boot image.
//!
//! A kernel comes from Debian's archive (through apt's own verification, or by a pinned digest), from `.deb` files, from
//! a `vmlinuz` and a modules directory, or from the host. It is kept in a [`Store`] as an uncompressed `vmlinux` that
//! boots by PVH and a directory of uncompressed modules with the index files that modprobe reads. A [`BootImage`] holds
//! `/init` and the few modules the machine needs to find the host and its disks; the whole tree of modules travels on a
//! disk of its own ([`Kernel::modules_tree`]).
//!
//! Everything here blocks; nothing here needs privileges. Not for: running a machine, loading modules in the guest
//! (that is `/init`), or choosing which kernel to boot (the engine does). A mechanism: it uses only `model`.

mod ar;
mod boot;
mod bzimage;
mod codec;
mod deb;
mod elf;
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod modinfo;
mod modules;
mod newc;
mod source;
mod store;
mod tree;

pub use boot::{BootImage, BootImageError, BootModule, Stage};
pub use bzimage::ImageError;
pub use codec::CodecError;
pub use deb::DebError;
pub use modules::ModuleError;
pub use source::{AptUse, InstallOptions, Source, SourceError};
pub use store::{InstallError, Installed, Kernel, Progress, Record, Step, Store, StoreError};
