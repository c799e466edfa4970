//! From the kernel image that distributions ship to the vmlinux that QEMU starts by PVH.
//!
//! An x86 `vmlinuz` is a boot sector, a set-up part, and a protected-mode part that holds the compressed vmlinux. The
//! boot protocol's header says where (Documentation/arch/x86/boot.rst): `setup_sects` at 0x1f1, `HdrS` at 0x202, the
//! version of the protocol at 0x206, `kernel_version` at 0x20e, `payload_offset` at 0x248, `payload_length` at 0x24c.

use crate::{
    codec::{Codec, CodecError},
    elf::{self, Elf, u16_at, u32_at},
};

/// The largest vmlinux; distributions' are 50 to 90 MB.
pub(crate) const LARGEST_VMLINUX: u64 = 512 << 20;

/// The note that holds the entry point for direct boot, `XEN_ELFNOTE_PHYS32_ENTRY`.
const PHYS32_ENTRY: u32 = 18;

/// Why a file is not a kernel that can be booted.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Neither a bzImage nor an ELF file.
    #[error("the file is neither a bzImage nor an uncompressed vmlinux for x86-64")]
    NotAKernel,
    /// A bzImage of before 2008, without a payload.
    #[error("the bzImage speaks boot protocol {major}.{minor}; 2.8 or later is needed")]
    TooOld {
        /// Major version of the protocol.
        major: u8,
        /// Minor version of the protocol.
        minor: u8,
    },
    /// The header points outside the file.
    #[error("the bzImage is damaged: its {0} lies outside the file")]
    OutOfBounds(&'static str),
    /// The payload is compressed in a way that is not supported.
    #[error("the payload is compressed in a way that is not supported (first bytes {0:02x?})")]
    UnknownCompression(Vec<u8>),
    /// The payload cannot be decompressed.
    #[error("cannot decompress the payload")]
    Payload(#[source] CodecError),
    /// What was decompressed is not an x86-64 kernel.
    #[error("the payload is not a vmlinux for x86-64")]
    PayloadNotAKernel,
    /// The kernel cannot be started directly.
    #[error("the kernel has no PVH entry point (it was built without CONFIG_PVH)")]
    NoPvh,
    /// The image does not say its release.
    #[error("the image does not say which release it is")]
    NoRelease,
}

/// A kernel, ready to be booted.
pub(crate) struct Image {
    /// What `uname -r` will say.
    pub(crate) release: String,
    /// The ELF file.
    pub(crate) vmlinux: Vec<u8>,
}

/// Takes a bzImage or a vmlinux apart and checks it.
pub(crate) fn open(file: Vec<u8>) -> Result<Image, ImageError> {
    let (release, vmlinux) = if file.get(0x202..0x206) == Some(b"HdrS") {
        (release_of_bzimage(&file)?, payload(&file)?)
    } else if file.starts_with(b"\x7fELF") {
        (
            release_of_vmlinux(&file).ok_or(ImageError::NoRelease)?,
            file,
        )
    } else {
        return Err(ImageError::NotAKernel);
    };
    let elf = Elf::parse(&vmlinux)
        .filter(|e| e.machine() == elf::EM_X86_64)
        .ok_or(ImageError::PayloadNotAKernel)?;
    if !elf.has_note(b"Xen", PHYS32_ENTRY) {
        return Err(ImageError::NoPvh);
    }
    Ok(Image { release, vmlinux })
}

fn payload(file: &[u8]) -> Result<Vec<u8>, ImageError> {
    let header = ImageError::OutOfBounds("header");
    let Some((version, offset, length)) = u16_at(file, 0x206)
        .zip(u32_at(file, 0x248))
        .zip(u32_at(file, 0x24c))
        .map(|((v, o), l)| (v, o as usize, l as usize))
    else {
        return Err(header);
    };
    if version < 0x0208 {
        return Err(ImageError::TooOld {
            major: (version >> 8) as u8,
            minor: version as u8,
        });
    }
    // Zero stands for four: the boot sector of 1991.
    let sectors = match file[0x1f1] {
        0 => 4,
        n => n as usize,
    };
    let start = (sectors + 1) * 512 + offset;
    let bytes = file
        .get(start..start + length)
        .ok_or(ImageError::OutOfBounds("payload"))?;
    let codec = Codec::detect(bytes)
        .ok_or_else(|| ImageError::UnknownCompression(bytes.iter().copied().take(6).collect()))?;
    codec
        .decompress(bytes, LARGEST_VMLINUX)
        .map_err(ImageError::Payload)
}

fn release_of_bzimage(file: &[u8]) -> Result<String, ImageError> {
    let at = u16_at(file, 0x20e)
        .filter(|n| *n != 0)
        .ok_or(ImageError::NoRelease)? as usize
        + 0x200;
    let text = file
        .get(at..)
        .ok_or(ImageError::OutOfBounds("version text"))?;
    release(text).ok_or(ImageError::NoRelease)
}

fn release_of_vmlinux(file: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    // The banner is in .rodata; the same words followed by a format directive stand in other places.
    let mut from = 0;
    while let Some(i) = file[from..].windows(BANNER.len()).position(|w| w == BANNER) {
        from += i + BANNER.len();
        if let Some(release) =
            release(&file[from..]).filter(|r| r.starts_with(|c: char| c.is_ascii_digit()))
        {
            return Some(release);
        }
    }
    None
}

/// Takes the first word and checks that it can be a release, and so the name of a directory.
fn release(text: &[u8]) -> Option<String> {
    let word: Vec<u8> = text
        .iter()
        .copied()
        .take(65)
        .take_while(|b| !matches!(b, b' ' | 0 | b'\n'))
        .collect();
    let word = String::from_utf8(word).ok()?;
    is_release(&word).then_some(word)
}

/// Tells whether a text can be a kernel release: what `uname -r` may say, and safe as the name of a directory.
pub(crate) fn is_release(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+' | b'~'))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{codec, elf::tests as elf_file};

    /// The least that passes for a vmlinux.
    pub(crate) fn vmlinux(release: &str) -> Vec<u8> {
        let banner = format!("Linux version %s\0Linux version {release} (someone@somewhere) #1\0");
        elf_file::build(
            &[(".rodata", 1, banner.as_bytes())],
            Some(&elf_file::note("Xen", PHYS32_ENTRY, &[0; 8])),
        )
    }

    /// Wraps a payload into a bzImage.
    pub(crate) fn bzimage(codec: Codec, release: &str, vmlinux: &[u8]) -> Vec<u8> {
        let mut out = vec![0u8; 3 * 512];
        out[0x1f1] = 2;
        out[0x202..0x206].copy_from_slice(b"HdrS");
        out[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        out[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        let text = format!("{release} (someone@somewhere) #1 SMP\0");
        out[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
        let mut payload = codec::tests::compress(codec, vmlinux);
        payload.extend_from_slice(&(vmlinux.len() as u32).to_le_bytes());
        out[0x248..0x24c].copy_from_slice(&100u32.to_le_bytes());
        out[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        out.resize(out.len() + 100, 0x90);
        out.extend_from_slice(&payload);
        out.extend_from_slice(&[0x90; 40]);
        out
    }

    #[test]
    fn a_bzimage_of_each_compression_gives_its_vmlinux_and_release() {
        let kernel = vmlinux("6.1.0-56-cloud-amd64");
        for codec in codec::tests::ALL {
            let image = open(bzimage(codec, "6.1.0-56-cloud-amd64", &kernel))
                .unwrap_or_else(|e| panic!("{codec:?}: {e:?}"));
            assert_eq!(image.release, "6.1.0-56-cloud-amd64");
            assert!(image.vmlinux == kernel, "{codec:?}");
        }
    }

    #[test]
    fn an_uncompressed_vmlinux_is_taken_as_it_is() {
        let image = open(vmlinux("6.12.1+deb13-amd64")).unwrap();
        assert_eq!(image.release, "6.12.1+deb13-amd64");
    }

    #[test]
    fn what_cannot_boot_is_told_apart() {
        let kernel = vmlinux("6.1.0");
        let no_note = elf_file::build(&[(".rodata", 1, b"Linux version 6.1.0 (x)\0")], None);
        let good = bzimage(Codec::Gzip, "6.1.0", &kernel);
        let patch = |at: usize, bytes: &[u8]| {
            let mut file = good.clone();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            open(file).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(matches!(
            open(b"MZ hello".to_vec()),
            Err(ImageError::NotAKernel)
        ));
        assert!(matches!(open(no_note.clone()), Err(ImageError::NoPvh)));
        assert!(matches!(
            open(bzimage(Codec::Xz, "6.1.0", &no_note)),
            Err(ImageError::NoPvh)
        ));
        assert!(matches!(
            open(bzimage(Codec::Xz, "6.1.0", b"just text")),
            Err(ImageError::PayloadNotAKernel)
        ));
        assert!(matches!(
            open(bzimage(Codec::Xz, "../../etc", &kernel)),
            Err(ImageError::NoRelease)
        ));
        assert!(patch(0x206, &[7, 2]).contains("2.7"));
        assert!(patch(0x24c, &[0xff; 4]).contains("outside the file"));
        assert!(patch(0x20e, &[0xff; 2]).contains("outside the file"));
        assert!(patch(3 * 512 + 100, b"BZh9").contains("not supported"));
    }

    proptest::proptest! {
        #[test]
        fn damaged_images_are_judged_without_a_panic(changes in proptest::collection::vec((0x1e0usize..0x260, 0u8..), 1..8), cut in 0usize..4000) {
            let mut file = bzimage(Codec::Lz4Legacy, "6.1.0", &vmlinux("6.1.0"));
            for (at, value) in changes {
                file[at] = value;
            }
            file.truncate(cut);
            let _ = open(file);
        }
    }
}
