//! Directories of modules: walking them, filling them from archives or other directories, giving them away.

use std::{
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use hostel_model::tree::{DataRun, Node, NodeMeta, TreeSink};

use crate::codec::Codec;

/// The most files a modules directory may have; distributions have 1,000 to 7,000.
const MOST_FILES: usize = 50_000;
/// The largest single file.
const LARGEST_FILE: u64 = 256 << 20;
/// The most bytes a modules directory may have in all, decompressed.
const MOST_BYTES: u64 = 8 << 30;

/// Returns every regular file below a directory, as sorted relative paths. Symbolic links are not followed.
pub(crate) fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(below) = todo.pop() {
        for entry in fs_err::read_dir(dir.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                todo.push(path);
            } else if kind.is_file() {
                out.push(path);
            }
            if out.len() > MOST_FILES || todo.len() > MOST_FILES {
                return Err(io::Error::other(format!(
                    "`{}` holds more than {MOST_FILES} files",
                    dir.display()
                )));
            }
        }
    }
    out.sort_unstable();
    Ok(out)
}

/// Fills a modules directory: decompresses modules, and leaves out everything else that is not needed.
pub(crate) struct ModulesWriter {
    dir: PathBuf,
    files: usize,
    bytes: u64,
}

impl ModulesWriter {
    /// Begins to fill a directory, which is made when the first file comes.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            files: 0,
            bytes: 0,
        }
    }

    /// Takes one file; `path` is normalised and relative to the modules directory. Modules (`.ko`, `.ko.xz`, `.ko.zst`,
    /// `.ko.gz`) and the lists of the kernel's own build are kept; depmod's files are made anew later.
    pub(crate) fn take(&mut self, path: &[u8], data: &mut dyn Read) -> io::Result<()> {
        let Ok(path) = std::str::from_utf8(path) else {
            return Ok(());
        };
        // A name with a blank could not be written into modules.dep.
        if path.contains(|c: char| c.is_whitespace() || c.is_control() || c == ':') {
            return Ok(());
        }
        let (target, codec) = match Codec::of_name(path.as_bytes()) {
            Some(codec) => (path.rsplit_once('.').map_or(path, |(p, _)| p), Some(codec)),
            None => (path, None),
        };
        let list = matches!(
            target,
            "modules.order" | "modules.builtin" | "modules.builtin.modinfo"
        );
        let module = Path::new(target).extension().is_some_and(|e| e == "ko");
        if !module && (!list || codec.is_some()) {
            return Ok(());
        }
        self.files += 1;
        if self.files > MOST_FILES {
            return Err(io::Error::other(format!(
                "there are more than {MOST_FILES} modules"
            )));
        }
        let target = self.dir.join(target);
        if let Some(parent) = target.parent() {
            fs_err::create_dir_all(parent)?;
        }
        let mut reader: Box<dyn Read> = match codec {
            Some(codec) => codec.reader(data)?,
            None => Box::new(data),
        };
        let limit = LARGEST_FILE.min(MOST_BYTES - self.bytes);
        let mut file = fs_err::File::create(&target)?;
        let n = io::copy(&mut (&mut reader).take(limit + 1), &mut file)?;
        if n > limit {
            return Err(io::Error::other(format!(
                "`{path}` is larger than a module can be"
            )));
        }
        self.bytes += n;
        Ok(())
    }

    /// Takes every file of another directory.
    pub(crate) fn take_dir(&mut self, dir: &Path) -> io::Result<()> {
        for path in files(dir)? {
            self.take(
                path.as_os_str().as_bytes(),
                &mut fs_err::File::open(dir.join(&path))?,
            )?;
        }
        Ok(())
    }
}

/// Pushes a directory into a sink, sorted, as root's, with zero times: the same files give the same image.
pub(crate) fn push(dir: &Path, sink: &mut dyn TreeSink) -> io::Result<()> {
    let meta = |mode| NodeMeta {
        mode,
        ..NodeMeta::default()
    };
    sink.entry(b"", &meta(0o755), Node::Directory)?;
    let mut made = std::collections::BTreeSet::new();
    for path in files(dir)? {
        let mut parents: Vec<&Path> = path
            .ancestors()
            .skip(1)
            .filter(|p| !p.as_os_str().is_empty())
            .collect();
        parents.reverse();
        for parent in parents {
            if made.insert(parent.to_path_buf()) {
                sink.entry(parent.as_os_str().as_bytes(), &meta(0o755), Node::Directory)?;
            }
        }
        let mut file = fs_err::File::open(dir.join(&path))?;
        let size = file.metadata()?.len();
        let run = DataRun {
            offset: 0,
            len: size,
        };
        let runs = if size == 0 {
            &[][..]
        } else {
            std::slice::from_ref(&run)
        };
        sink.entry(
            path.as_os_str().as_bytes(),
            &meta(0o644),
            Node::File {
                size,
                runs,
                data: &mut file,
            },
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tests::compress;

    #[test]
    fn modules_are_decompressed_and_the_rest_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ModulesWriter::new(dir.path().join("m"));
        let xz = compress(Codec::Xz, b"module a");
        let zst = compress(Codec::Zstd, b"module b");
        let gz = compress(Codec::Gzip, b"module c");
        for (path, data) in [
            ("kernel/a.ko.xz", xz.as_slice()),
            ("kernel/b.ko.zst", &zst),
            ("kernel/c.ko.gz", &gz),
            ("d.ko", b"plain"),
            ("modules.order", b"x"),
            ("modules.dep", b"old"),
            ("modules.dep.bin", b"old"),
            ("vdso/vdso64.so", b"x"),
            ("with space.ko", b"x"),
        ] {
            writer.take(path.as_bytes(), &mut &data[..]).unwrap();
        }
        let found = files(&dir.path().join("m")).unwrap();
        let want = [
            "d.ko",
            "kernel/a.ko",
            "kernel/b.ko",
            "kernel/c.ko",
            "modules.order",
        ]
        .map(PathBuf::from);
        assert_eq!(found, want);
        assert_eq!(
            fs_err::read(dir.path().join("m/kernel/b.ko")).unwrap(),
            b"module b"
        );
        assert!(
            writer
                .take(b"kernel/e.ko.xz", &mut &xz[..xz.len() / 2])
                .is_err()
        );
    }

    #[test]
    fn a_directory_is_pushed_sorted_with_its_parents() {
        #[derive(Default)]
        struct List(Vec<(String, Option<String>)>);
        impl TreeSink for List {
            fn entry(&mut self, path: &[u8], meta: &NodeMeta, node: Node<'_>) -> io::Result<()> {
                assert_eq!((meta.uid, meta.gid, meta.mtime), (0, 0, 0));
                let content = match node {
                    Node::File { data, .. } => Some(io::read_to_string(data)?),
                    _ => None,
                };
                self.0
                    .push((String::from_utf8_lossy(path).into_owned(), content));
                Ok(())
            }
        }
        let dir = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(dir.path().join("kernel/z")).unwrap();
        fs_err::write(dir.path().join("kernel/z/b.ko"), "b").unwrap();
        fs_err::write(dir.path().join("kernel/a.ko"), "").unwrap();
        let mut list = List::default();
        push(dir.path(), &mut list).unwrap();
        let want = [
            ("", None),
            ("kernel", None),
            ("kernel/a.ko", Some("")),
            ("kernel/z", None),
            ("kernel/z/b.ko", Some("b")),
        ];
        assert_eq!(
            list.0,
            want.map(|(p, c)| (p.to_owned(), c.map(str::to_owned)))
        );
    }
}
