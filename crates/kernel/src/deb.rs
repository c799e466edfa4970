//! Takes the kernel and its modules out of a `.deb`, without dpkg.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use hostel_model::tree::normalise;
use tar::EntryType;

use crate::{
    ar::{self, ArError},
    bzimage::is_release,
    codec::Codec,
    tree::ModulesWriter,
};

/// The largest vmlinuz; distributions' are 8 to 20 MB.
pub(crate) const LARGEST_VMLINUZ: u64 = 512 << 20;
/// The most bytes of file data a package may hold.
const LARGEST_DATA: u64 = 16 << 30;
/// The longest extended header or long name, in bytes.
const LONGEST_EXTENSION: u64 = 64 << 10;

/// Progress is told after this many bytes.
pub(crate) const WORTH_TELLING: u64 = 256 << 10;

/// Why a package could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// It cannot be opened.
    #[error("cannot open the package")]
    Open(#[source] io::Error),
    /// It is not a `.deb`: the error says what is wrong with its container.
    #[error("`{0}` is not a Debian package")]
    NotAPackage(PathBuf, #[source] io::Error),
    /// It has no part with files.
    #[error("package `{0}` holds no files")]
    NoData(PathBuf),
    /// The part with files is compressed in a way that is not supported.
    #[error("`{member}` of package `{package}` is compressed in a way that is not supported")]
    Compression {
        /// The package.
        package: PathBuf,
        /// The part.
        member: String,
    },
    /// The part with files is damaged, or its files cannot be written.
    #[error("cannot unpack package `{0}`")]
    Unpack(PathBuf, #[source] io::Error),
    /// A member of the archive climbs out.
    #[error("package `{package}` holds the path `{path}`, which climbs out of it")]
    BadPath {
        /// The package.
        package: PathBuf,
        /// The path, as far as it can be shown.
        path: String,
    },
}

/// What packages gave: a kernel image, and modules in a directory named for each release.
#[derive(Default)]
pub(crate) struct Taken {
    /// The first `vmlinuz`.
    pub(crate) vmlinuz: Option<Vec<u8>>,
}

/// Unpacks one package: its kernel image into memory, its modules below `modules/<release>`.
pub(crate) fn unpack(
    package: &Path,
    modules: &Path,
    taken: &mut Taken,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<(), DebError> {
    let file = fs_err::File::open(package).map_err(DebError::Open)?;
    let file = io::BufReader::with_capacity(1 << 16, file);
    unpack_from(file, package, modules, taken, on_bytes)
}

/// The same, from the package's bytes; `package` is its name in errors.
pub(crate) fn unpack_from(
    reader: impl Read,
    package: &Path,
    modules: &Path,
    taken: &mut Taken,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<(), DebError> {
    let not_a_package = |error: ArError| match error {
        ArError::Read(error) => DebError::Unpack(package.to_owned(), error),
        other => DebError::NotAPackage(
            package.to_owned(),
            io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
        ),
    };
    let mut archive = ar::Archive::open(reader).map_err(not_a_package)?;
    while let Some(member) = archive.next().map_err(not_a_package)? {
        let Some(end) = member.name.strip_prefix("data.tar") else {
            continue;
        };
        let counted = Counted {
            inner: member.data,
            untold: 0,
            on_bytes,
        };
        let reader: Box<dyn Read> = match (end, Codec::of_name(end.as_bytes())) {
            ("", _) => Box::new(counted),
            (_, Some(codec)) => codec
                .reader(counted)
                .map_err(|e| DebError::Unpack(package.to_owned(), e))?,
            (_, None) => {
                return Err(DebError::Compression {
                    package: package.to_owned(),
                    member: member.name,
                });
            }
        };
        return files(package, reader, modules, taken);
    }
    Err(DebError::NoData(package.to_owned()))
}

fn files(
    package: &Path,
    reader: Box<dyn Read + '_>,
    modules: &Path,
    taken: &mut Taken,
) -> Result<(), DebError> {
    let failed = |error| DebError::Unpack(package.to_owned(), error);
    let mut archive = tar::Archive::new(reader.take(LARGEST_DATA));
    let mut writers = std::collections::BTreeMap::<String, ModulesWriter>::new();
    let mut long_name = None;
    // Raw, because the codec would read names of any length into memory.
    for entry in archive.entries().map_err(failed)?.raw(true) {
        let mut entry = entry.map_err(failed)?;
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let mut name = extension(&mut entry).map_err(failed)?;
                name.truncate(name.iter().position(|b| *b == 0).unwrap_or(name.len()));
                long_name = Some(name);
                continue;
            }
            EntryType::XHeader => {
                let records = extension(&mut entry).map_err(failed)?;
                for record in tar::PaxExtensions::new(&records) {
                    let record = record.map_err(failed)?;
                    match record.key_bytes() {
                        b"path" => long_name = Some(record.value_bytes().to_vec()),
                        b"size" => return Err(failed(invalid("a file of it is too large"))),
                        _ => {}
                    }
                }
                continue;
            }
            EntryType::GNULongLink | EntryType::XGlobalHeader => continue,
            _ => {}
        }
        let raw = long_name
            .take()
            .unwrap_or_else(|| entry.path_bytes().into_owned());
        let path = normalise(&raw).ok_or_else(|| DebError::BadPath {
            package: package.to_owned(),
            path: String::from_utf8_lossy(&raw).chars().take(200).collect(),
        })?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let below = path.strip_prefix(b"usr/").unwrap_or(&path);
        if below
            .strip_prefix(b"boot/")
            .is_some_and(|name| name.starts_with(b"vmlinuz"))
        {
            keep_vmlinuz(&mut entry, taken).map_err(failed)?;
            continue;
        }
        let Some((release, rest)) = below.strip_prefix(b"lib/modules/").and_then(split_release)
        else {
            continue;
        };
        if rest == b"vmlinuz" {
            keep_vmlinuz(&mut entry, taken).map_err(failed)?;
            continue;
        }
        let writer = writers
            .entry(release.to_owned())
            .or_insert_with(|| ModulesWriter::new(modules.join(release)));
        writer.take(rest, &mut entry).map_err(failed)?;
    }
    // Read on to the end, so that a damaged tail is noticed.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(failed)?;
    Ok(())
}

/// Reads the data of a header that stands before a file's own.
fn extension(entry: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    entry.take(LONGEST_EXTENSION + 1).read_to_end(&mut out)?;
    if out.len() as u64 > LONGEST_EXTENSION {
        return Err(invalid("a name in it is too long"));
    }
    Ok(out)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn keep_vmlinuz(entry: &mut impl Read, taken: &mut Taken) -> io::Result<()> {
    if taken.vmlinuz.is_none() {
        taken.vmlinuz = Some(read_bounded(entry, LARGEST_VMLINUZ)?);
    }
    Ok(())
}

/// Reads everything, but no more than `limit` bytes.
pub(crate) fn read_bounded(reader: &mut impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    reader.take(limit + 1).read_to_end(&mut out)?;
    if out.len() as u64 > limit {
        return Err(io::Error::other(format!(
            "the kernel image is larger than {limit} bytes"
        )));
    }
    Ok(out)
}

fn split_release(path: &[u8]) -> Option<(&str, &[u8])> {
    let slash = path.iter().position(|b| *b == b'/')?;
    let release = std::str::from_utf8(&path[..slash])
        .ok()
        .filter(|r| is_release(r))?;
    Some((release, &path[slash + 1..]))
}

/// Tells how many bytes went by, not more often than is worth telling.
struct Counted<'a, R> {
    inner: R,
    untold: u64,
    on_bytes: &'a mut dyn FnMut(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.untold += n as u64;
        if self.untold >= WORTH_TELLING || (n == 0 && self.untold > 0) {
            (self.on_bytes)(std::mem::take(&mut self.untold));
        }
        Ok(n)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{ar::tests::pack, codec::tests::compress, tree};

    /// Packs files into a tar.
    pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = tar::Builder::new(Vec::new());
        for (path, data) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            // Not through `set_path`, which refuses the paths that a hostile archive has.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            out.append(&header, *data).unwrap();
        }
        out.into_inner().unwrap()
    }

    fn unpack_bytes(bytes: &[u8], dir: &Path) -> Result<Taken, DebError> {
        let package = dir.join("p.deb");
        fs_err::write(&package, bytes).unwrap();
        let mut taken = Taken::default();
        unpack(&package, &dir.join("m"), &mut taken, &mut |_| {}).map(|()| taken)
    }

    #[test]
    fn kernel_and_modules_are_taken_from_each_compression() {
        let data = tar_of(&[
            ("./boot/vmlinuz-6.1", b"the kernel"),
            ("./boot/config-6.1", b"no"),
            ("./usr/lib/modules/6.1/kernel/a.ko", b"a"),
            ("./lib/modules/6.1/modules.order", b"o"),
            ("./lib/modules/.hidden/x.ko", b"no"),
            ("./usr/share/doc/x", b"no"),
        ]);
        for (name, codec) in [
            ("data.tar", None),
            ("data.tar.gz", Some(Codec::Gzip)),
            ("data.tar.xz/", Some(Codec::Xz)),
            ("data.tar.zst", Some(Codec::Zstd)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let data = codec.map_or_else(|| data.clone(), |c| compress(c, &data));
            let taken = unpack_bytes(
                &pack(&[
                    ("debian-binary", b"2.0\n"),
                    ("control.tar.xz", b"junk"),
                    (name, &data),
                ]),
                dir.path(),
            )
            .unwrap();
            assert_eq!(taken.vmlinuz.as_deref(), Some(&b"the kernel"[..]), "{name}");
            let want = ["6.1/kernel/a.ko", "6.1/modules.order"].map(PathBuf::from);
            assert_eq!(tree::files(&dir.path().join("m")).unwrap(), want, "{name}");
        }
    }

    #[test]
    fn long_names_are_read_and_endless_ones_refused() {
        let name = format!("./lib/modules/6.1/kernel/{}/a.ko", "d".repeat(150));
        let record = format!("{} path={name}\n", name.len() + 10);
        assert_eq!(record.len(), name.len() + 10);
        let packed = |kind, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(data.len() as u64);
            header.set_cksum();
            let mut out = tar::Builder::new(Vec::new());
            out.append(&header, data).unwrap();
            let mut out = out.into_inner().unwrap();
            out.truncate(out.len() - 1024);
            out.extend(tar_of(&[("cut", b"a"), ("lib/modules/6.1/b.ko", b"b")]));
            pack(&[("data.tar", &out)])
        };
        for bytes in [
            packed(EntryType::GNULongName, name.as_bytes()),
            packed(EntryType::XHeader, record.as_bytes()),
        ] {
            let dir = tempfile::tempdir().unwrap();
            unpack_bytes(&bytes, dir.path()).unwrap();
            let found = tree::files(&dir.path().join("m")).unwrap();
            let long = PathBuf::from(name.strip_prefix("./lib/modules/").unwrap());
            assert_eq!(found, [PathBuf::from("6.1/b.ko"), long]);
        }
        let dir = tempfile::tempdir().unwrap();
        let endless = packed(EntryType::GNULongName, &vec![b'a'; 1 << 20]);
        let error = unpack_bytes(&endless, dir.path()).err().unwrap();
        assert!(matches!(error, DebError::Unpack(..)), "{error}");
        let climbing = packed(EntryType::GNULongName, b"../x");
        let error = unpack_bytes(&climbing, dir.path()).err().unwrap();
        assert!(matches!(error, DebError::BadPath { .. }), "{error}");
    }

    #[test]
    fn bad_packages_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let check = |bytes: &[u8]| unpack_bytes(bytes, dir.path()).err().unwrap();
        let xz = compress(Codec::Xz, &tar_of(&[("boot/vmlinuz", b"x")]));
        assert!(matches!(check(b"no"), DebError::NotAPackage(..)));
        assert!(matches!(
            check(&pack(&[("debian-binary", b"2.0\n")])),
            DebError::NoData(_)
        ));
        assert!(matches!(
            check(&pack(&[("data.tar.lzma", b"x")])),
            DebError::Compression { .. }
        ));
        assert!(matches!(
            check(&pack(&[("data.tar.xz", &xz[..xz.len() - 20])])),
            DebError::Unpack(..)
        ));
        let out = tar_of(&[("lib/modules/../../../x.ko", b"x")]);
        assert!(matches!(
            check(&pack(&[("data.tar", &out)])),
            DebError::BadPath { .. }
        ));
        let cut = pack(&[("data.tar.xz", &xz)]);
        assert!(matches!(
            check(&cut[..cut.len() - 30]),
            DebError::Unpack(..)
        ));
        assert!(matches!(
            unpack(
                Path::new("/nonexistent.deb"),
                dir.path(),
                &mut Taken::default(),
                &mut |_| {}
            ),
            Err(DebError::Open(_))
        ));
    }
}
