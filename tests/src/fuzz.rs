//! Everything that Hostel reads from outside, as bodies for fuzzing: each takes any bytes, and panics when a promise is
//! broken. The targets of libFuzzer (`fuzz/`) and the stable test over the corpus (`tests/corpus.rs`) share them.

mod archive;
mod dns;
mod ext4;
mod kernel;
pub mod mutate;
mod tree;
mod vsock;
mod wire;
mod wslconf;

pub use archive::archive;
pub use dns::dns;
pub use ext4::{ext4, pack};
pub use kernel::kernel_image;
pub use vsock::vsock_packet;
pub use wire::{failure, instance_wire};
pub use wslconf::wslconf;

/// A body.
pub type Body = fn(&[u8]);

/// Every body by its name, which is also that of its folder in `tests/corpus` and of its target in `fuzz`.
pub const TARGETS: [(&str, Body); 8] = [
    ("archive", archive),
    ("dns", dns),
    ("ext4", ext4),
    ("failure", failure),
    ("instance_wire", instance_wire),
    ("kernel_image", kernel_image),
    ("vsock_packet", vsock_packet),
    ("wslconf", wslconf),
];
