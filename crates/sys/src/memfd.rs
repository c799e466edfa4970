//! Anonymous memory files (memfd_create(2)).

use std::{fs::File, io, os::fd::OwnedFd, os::unix::fs::MetadataExt as _};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

/// Makes an anonymous memory file of `size` bytes that is close-on-exec, not executable, and can neither shrink nor grow.
///
/// The size is sealed because others map the file: a mapping of a file that shrank dies with SIGBUS. Holes can still be
/// punched, so a balloon can give memory back. `name` shows in `/proc/self/fd` only. No page is allocated yet.
pub fn create(name: &str, size: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know the flag.
        Err(rustix::io::Errno::INVAL) => memfd_create(name, flags)?,
        other => other?,
    };
    ftruncate(&fd, size)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(fd)
}

/// Returns how many bytes of a memory file are really held in memory, holes not counted.
pub fn allocated_bytes(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks().saturating_mul(512))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek as _, SeekFrom, Write as _};

    #[test]
    fn a_memory_file_has_its_size_and_keeps_it() {
        let mut file = File::from(create("test", 4 << 20).unwrap());
        assert_eq!(file.metadata().unwrap().len(), 4 << 20);
        assert_eq!(allocated_bytes(&file).unwrap(), 0);
        file.set_len(1 << 20).unwrap_err();
        file.set_len(8 << 20).unwrap_err();
        file.seek(SeekFrom::Start(1 << 20)).unwrap();
        file.write_all(&[1; 100]).unwrap();
        assert!(allocated_bytes(&file).unwrap() >= 4096);
        let flags = rustix::io::fcntl_getfd(&file).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}
