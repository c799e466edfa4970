//! The files that a VM boots from and their digests, and the disk with the kernel's modules.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use hostel_disk::ext4;
use hostel_kernel::{BootImage, BootImageError, Kernel};
use hostel_model::{
    Bytes, ErrorCode, Failure,
    tree::{DataRun, Node, NodeMeta, TreeSink},
};
use hostel_qemu::BootFile;
use sha2::{Digest as _, Sha256};

use crate::{
    hypervisor::{DiskKind, DiskPlan},
    import::disk_failure,
    layout::{Layout, PARTIAL},
};

/// The serial of the disk with modules.
const MODULES_SERIAL: &str = "hostel-modules";

/// How much larger the disk with modules is than its files: tables and journal.
const MODULES_MARGIN: Bytes = Bytes::mib(64);

/// Where a static busybox is looked for on the host; it becomes the debug shell's.
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

/// The largest busybox that is taken, in bytes.
const LARGEST_BUSYBOX: u64 = 8 << 20;

/// What a machine is booted from.
#[derive(Clone, Debug)]
pub(super) struct BootFiles {
    pub(super) kernel: BootFile,
    pub(super) initramfs: BootFile,
    pub(super) modules: DiskPlan,
}

/// Makes what is missing of the files. Blocks: some milliseconds, half a second the first time for a kernel.
pub(super) fn prepare(kernel: &Kernel, init: &Path, layout: &Layout) -> Result<BootFiles, Failure> {
    let image =
        BootImage::assemble(kernel, init, &layout.home().join("boot")).map_err(|e| match &e {
            BootImageError::Module(_) => Failure::from_error(ErrorCode::ModuleMissing, &e)
                .hint("hostel kernel install, for Debian's cloud kernel, which has what is needed"),
            BootImageError::InitTooLarge(_) => Failure::from_error(ErrorCode::VmStart, &e),
            BootImageError::Io(_) => disk_failure(&e, "the VM cannot be started"),
        })?;
    let sha256 = digest(&image).map_err(|e| disk_failure(&e, "the boot image cannot be read"))?;
    let modules = modules_disk(kernel)
        .map_err(|e| disk_failure(&e, "the disk with kernel modules cannot be made"))?;
    Ok(BootFiles {
        kernel: BootFile {
            path: kernel.vmlinux(),
            sha256: kernel.record().vmlinux_sha256.clone(),
        },
        initramfs: BootFile {
            path: image,
            sha256,
        },
        modules: DiskPlan {
            path: modules,
            serial: MODULES_SERIAL.to_owned(),
            kind: DiskKind::RawReadOnly,
        },
    })
}

/// Returns the disk with a kernel's modules, which lies beside the kernel; made when it is not there.
fn modules_disk(kernel: &Kernel) -> io::Result<PathBuf> {
    let vmlinux = kernel.vmlinux();
    let directory = vmlinux.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let disk = directory.join("modules.ext4");
    if disk.is_file() {
        return Ok(disk);
    }
    let partial = directory.join(format!("modules.ext4{PARTIAL}"));
    let mut options = ext4::Options::new(uuid::Uuid::new_v4());
    let size = kernel.record().modules_bytes * 5 / 4 + MODULES_MARGIN.0 + LARGEST_BUSYBOX;
    options.size = Bytes::mib(Bytes(size).whole_mib() + 1);
    "hostel-modules".clone_into(&mut options.label);
    let mut writer = ext4::Writer::create(&partial, options)?;
    kernel.modules_tree(&mut writer)?;
    add_busybox(&mut writer)?;
    writer.finish()?;
    fs_err::File::open(&partial)?.sync_all()?;
    fs_err::rename(&partial, &disk)?;
    Ok(disk)
}

/// Adds the host's static busybox, if there is one, for the debug shell.
fn add_busybox(sink: &mut dyn TreeSink) -> io::Result<()> {
    let Some(mut file) = BUSYBOX.iter().find_map(|p| fs_err::File::open(p).ok()) else {
        return Ok(());
    };
    let mut bytes = Vec::new();
    file.by_ref()
        .take(LARGEST_BUSYBOX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_BUSYBOX || !is_static_elf(&bytes) {
        return Ok(());
    }
    let size = bytes.len() as u64;
    let meta = NodeMeta {
        mode: 0o755,
        ..NodeMeta::default()
    };
    sink.entry(b"hostel", &meta, Node::Directory)?;
    let runs = [DataRun {
        offset: 0,
        len: size,
    }];
    sink.entry(
        b"hostel/busybox",
        &meta,
        Node::File {
            size,
            runs: &runs,
            data: &mut &bytes[..],
        },
    )
}

/// Tells whether a program is a 64-bit ELF file that asks for no interpreter.
fn is_static_elf(bytes: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, len: usize| -> Option<usize> {
        let field = bytes.get(at..at.checked_add(len)?)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |n, b| (n << 8) | usize::from(*b)),
        )
    };
    let check = || {
        let (offset, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
        for i in 0..count {
            if number(offset.checked_add(i * size)?, 4)? == PT_INTERP as usize {
                return Some(false);
            }
        }
        Some(true)
    };
    // 64 bits, little endian.
    bytes.starts_with(b"\x7fELF\x02\x01") && check() == Some(true)
}

fn digest(path: &Path) -> io::Result<String> {
    use std::fmt::Write as _;
    let bytes = fs_err::read(path)?;
    Ok(Sha256::digest(&bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_program_without_an_interpreter_is_static() {
        let mut elf = vec![0; 0x40 + 0x38];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x20] = 0x40;
        elf[0x36] = 0x38;
        elf[0x38] = 1;
        elf[0x40] = 1;
        assert!(is_static_elf(&elf));
        elf[0x40] = 3;
        assert!(!is_static_elf(&elf));
        elf[0x38] = 200;
        elf[0x40] = 1;
        assert!(!is_static_elf(&elf));
        assert!(!is_static_elf(b"#!/bin/sh"));
    }
}
