//! A marked block in the host's `/etc/hosts`.

use std::{
    io::{self, Read as _, Write as _},
    net::IpAddr,
    os::fd::AsFd as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Gid, Uid, XattrFlags},
    io::Errno,
};

use crate::message::is_name;

/// The largest file that is edited, in bytes.
const MAX_FILE: u64 = 32 << 20;
/// How long to wait for another daemon that edits the file.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// What is kept of a file beyond mode and owner; the label decides who may read it.
const LABEL: &str = "security.selinux";

/// Why the block could not be written or removed. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The tag would break the marks.
    #[error("`{0}` cannot mark a block: use up to 64 letters, digits, `-`, `_` and `.`")]
    Tag(String),
    /// A name that is none.
    #[error("`{0}` is not a host name")]
    Name(String),
    /// Larger than anything that is edited.
    #[error("`{path}` takes {size} bytes, more than the {MAX_FILE} that are edited")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// Somebody else edits it all the time.
    #[error("`{0}` is locked by another program")]
    Locked(PathBuf),
    /// Cannot be replaced: a mount stands there, as in containers.
    #[error("`{0}` is a mount of its own and cannot be replaced in one step")]
    Mount(PathBuf),
    /// Cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// One line of the block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the names lead.
    pub address: IpAddr,
    /// Whole names, such as `debian.hostel`.
    pub names: Vec<String>,
}

/// Puts the entries into the block of `tag`, in place of what stands there; without entries the block is removed.
///
/// `tag` tells one daemon's block from another's, such as the user's number. Everything else in the file stays byte for
/// byte, with its mode, owner and label. Returns whether the file changed. Blocks for a moment.
pub fn write(path: &Path, tag: &str, entries: &[Entry]) -> Result<bool, HostsError> {
    let marks = Marks::new(tag)?;
    let block = marks.block(entries)?;
    // The directory that is locked and written is that of the file itself, not of a link to it.
    let path = match fs_err::canonicalize(path) {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound && block.is_empty() => {
            return Ok(false);
        }
        Err(source) => return Err(read_error(path)(source)),
    };
    let dir = path.parent().unwrap_or(Path::new("/"));
    let lock = lock(dir, &path)?;
    let file = fs_err::File::open(&path).map_err(read_error(&path))?;
    let size = file.metadata().map_err(read_error(&path))?.len();
    if size > MAX_FILE {
        return Err(HostsError::TooLarge { path, size });
    }
    let mut old = Vec::new();
    (&file)
        .take(MAX_FILE)
        .read_to_end(&mut old)
        .map_err(read_error(&path))?;

    let mut new = marks.without_block(&old);
    if !block.is_empty() {
        if !new.is_empty() && !new.ends_with(b"\n") {
            new.push(b'\n');
        }
        new.extend(block);
    }
    if new == old {
        return Ok(false);
    }
    replace(&path, dir, &file, &new).map_err(|source| {
        if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) {
            HostsError::Mount(path.clone())
        } else {
            HostsError::Write {
                path: path.clone(),
                source,
            }
        }
    })?;
    drop(lock);
    Ok(true)
}

/// Removes the block of `tag`, one that a killed daemon left too. Returns whether there was one. Blocks for a moment.
pub fn remove(path: &Path, tag: &str) -> Result<bool, HostsError> {
    write(path, tag, &[])
}

fn read_error(path: &Path) -> impl Fn(io::Error) -> HostsError {
    move |source| HostsError::Read {
        path: path.to_owned(),
        source,
    }
}

/// The lines around the block.
struct Marks {
    begin: String,
    end: String,
}

impl Marks {
    fn new(tag: &str) -> Result<Self, HostsError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if tag.is_empty() || tag.len() > 64 || !tag.chars().all(fits) {
            return Err(HostsError::Tag(tag.escape_debug().take(64).collect()));
        }
        Ok(Self {
            begin: format!("# hostel {tag} begin: kept by Hostel, removed when it ends"),
            end: format!("# hostel {tag} end"),
        })
    }

    /// Returns the text of the block; nothing for no entries.
    fn block(&self, entries: &[Entry]) -> Result<Vec<u8>, HostsError> {
        let mut text = String::new();
        for entry in entries.iter().filter(|entry| !entry.names.is_empty()) {
            let is_plain = |name: &String| is_name(name) && !name.contains('#');
            if let Some(bad) = entry.names.iter().find(|name| !is_plain(name)) {
                return Err(HostsError::Name(bad.escape_debug().take(253).collect()));
            }
            text.extend([
                &entry.address.to_string(),
                "\t",
                &entry.names.join(" "),
                "\n",
            ]);
        }
        if !text.is_empty() {
            text = format!("{}\n{text}{}\n", self.begin, self.end);
        }
        Ok(text.into_bytes())
    }

    /// Returns the file without the block. Lines that somebody put between the marks stay; without the second mark only
    /// the first one goes, since nobody knows what behind it is ours.
    fn without_block(&self, file: &[u8]) -> Vec<u8> {
        let lines: Vec<&[u8]> = file.split_inclusive(|b| *b == b'\n').collect();
        let is = |line: &[u8], mark: &str| line.trim_ascii_end() == mark.as_bytes();
        let mut out = Vec::with_capacity(file.len());
        let mut inside = false;
        for (number, line) in lines.iter().enumerate() {
            if is(line, &self.begin) {
                let next = lines[number + 1..]
                    .iter()
                    .find(|line| is(line, &self.begin) || is(line, &self.end));
                inside = next.is_some_and(|line| is(line, &self.end));
            } else if is(line, &self.end) {
                inside = false;
            } else if !(inside && is_entry(line.trim_ascii_end())) {
                out.extend_from_slice(line);
            }
        }
        out
    }
}

/// Tells a line that [`Marks::block`] could have made.
fn is_entry(line: &[u8]) -> bool {
    str::from_utf8(line).is_ok_and(|line| {
        line.split_once('\t').is_some_and(|(address, names)| {
            address.parse::<IpAddr>().is_ok() && names.split(' ').all(is_name)
        })
    })
}

/// Locks the directory, so that two daemons do not undo each other's work.
fn lock(dir: &Path, path: &Path) -> Result<fs_err::File, HostsError> {
    let lock = fs_err::File::open(dir).map_err(read_error(dir))?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => pause(),
            Err(Errno::WOULDBLOCK) => return Err(HostsError::Locked(path.to_owned())),
            Err(error) => return Err(read_error(dir)(error.into())),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a lock of this kind can be waited for without a limit only, or asked for again"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// Puts a new file in the place of the old one, in one step.
fn replace(path: &Path, dir: &Path, old: &fs_err::File, bytes: &[u8]) -> io::Result<()> {
    let metadata = old.metadata()?;
    let name = format!(".{}.hostel-{}", file_name(path), std::process::id());
    let temporary = dir.join(name);
    let mut options = fs_err::OpenOptions::new();
    options.write(true).create_new(true);
    // Of a process that had our number and was killed.
    let _ = fs_err::remove_file(&temporary);
    let file = options.open(&temporary)?;
    let fill = || -> io::Result<()> {
        let owner = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
        rustix::fs::fchown(&file, Some(owner.0), Some(owner.1))?;
        rustix::fs::fchmod(&file, (metadata.mode() & 0o7777).into())?;
        copy_label(old, &file)?;
        (&file).write_all(bytes)?;
        file.sync_all()?;
        fs_err::rename(&temporary, path)?;
        fs_err::File::open(dir)?.sync_all()
    };
    fill().inspect_err(|_| {
        let _ = fs_err::remove_file(&temporary);
    })
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Gives a file the security label of another one, where there is such a thing.
fn copy_label(from: &fs_err::File, to: &fs_err::File) -> io::Result<()> {
    let mut label = [0; 4096];
    match rustix::fs::fgetxattr(from, LABEL, &mut label[..]) {
        Ok(length) => {
            rustix::fs::fsetxattr(to, LABEL, &label[..length], XattrFlags::empty())?;
            Ok(())
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: &str, names: &str) -> Entry {
        Entry {
            address: address.parse().unwrap(),
            names: names.split(' ').map(str::to_owned).collect(),
        }
    }

    fn file(text: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        fs_err::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn the_block_comes_changes_and_goes_and_nothing_else_does() {
        // Not UTF-8, no new line at the end.
        let before = b"127.0.0.1 localhost\n# h\xe9\n10.0.0.1\tmine.example";
        let (dir, path) = file(before);
        rustix::fs::chmod(&path, 0o640.into()).unwrap();
        let one = [
            entry("172.19.133.7", "debian.hostel"),
            entry("fd00::7", "debian.hostel d.hostel"),
        ];
        assert!(write(&path, "1000", &one).unwrap());
        let text = fs_err::read(&path).unwrap();
        let block = "\n# hostel 1000 begin: kept by Hostel, removed when it ends\n172.19.133.7\tdebian.hostel\n\
             fd00::7\tdebian.hostel d.hostel\n# hostel 1000 end\n";
        assert_eq!(text, [before, block.as_bytes()].concat());
        assert_eq!(fs_err::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert!(!write(&path, "1000", &one).unwrap(), "no change, no write");

        // Another user's block, and ours again, in any order.
        let other = [entry("127.0.0.1", "alpine.hostel")];
        assert!(write(&path, "1001", &other).unwrap());
        assert!(write(&path, "1000", &other).unwrap());
        let text = String::from_utf8_lossy(&fs_err::read(&path).unwrap()).into_owned();
        assert_eq!(text.matches("alpine.hostel").count(), 2);
        assert_eq!(text.matches("debian.hostel").count(), 0);

        assert!(remove(&path, "1000").unwrap());
        assert!(remove(&path, "1001").unwrap());
        assert!(!remove(&path, "1001").unwrap());
        // The one byte that a block needed in front of it.
        assert_eq!(fs_err::read(&path).unwrap(), [&before[..], b"\n"].concat());
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_people_did_to_the_block_is_respected() {
        let begin = "# hostel x begin: kept by Hostel, removed when it ends\n";
        let end = "# hostel x end\n";
        let ours = "127.0.0.1\ta.hostel\n";
        for (text, want) in [
            (
                format!("{begin}{ours}# note\n10.0.0.1 b\n{end}c\n"),
                "# note\n10.0.0.1 b\nc\n",
            ),
            // No end: what follows may be somebody's.
            (format!("{begin}{ours}c\n"), "127.0.0.1\ta.hostel\nc\n"),
            (format!("c\n{end}{ours}"), "c\n127.0.0.1\ta.hostel\n"),
            (format!("{begin}{begin}{ours}{end}"), ""),
            (
                format!("{begin}{ours}{end}{begin}{ours}{}", end.trim_end()),
                "",
            ),
            (
                begin.replace('x', "y") + ours,
                &(begin.replace('x', "y") + ours),
            ),
        ] {
            let (_dir, path) = file(text.as_bytes());
            let changed = remove(&path, "x").unwrap();
            assert_eq!(fs_err::read_to_string(&path).unwrap(), want, "{text}");
            assert_eq!(changed, text != want);
        }
    }

    #[test]
    fn a_link_stays_a_link() {
        let (dir, path) = file(b"x\n");
        let link = dir.path().join("link");
        fs_err::os::unix::fs::symlink("hosts", &link).unwrap();
        assert!(write(&link, "t", &[entry("10.0.0.1", "a.hostel")]).unwrap());
        assert!(link.is_symlink());
        assert!(fs_err::read_to_string(&path).unwrap().contains("a.hostel"));
    }

    #[test]
    fn bad_input_changes_nothing() {
        let (_dir, path) = file(b"x\n");
        let good = [entry("10.0.0.1", "a.hostel")];
        for tag in ["", "a b", "a\nb", &"x".repeat(65)] {
            assert!(matches!(write(&path, tag, &good), Err(HostsError::Tag(_))));
        }
        for name in ["a\n6.6.6.6", "", "a\tb", "#", "a#b", "a..b"] {
            let bad = [Entry {
                address: "10.0.0.1".parse().unwrap(),
                names: vec![name.to_owned()],
            }];
            assert!(
                matches!(write(&path, "t", &bad), Err(HostsError::Name(_))),
                "{name:?}"
            );
        }
        assert_eq!(fs_err::read(&path).unwrap(), b"x\n");
        let missing = path.with_file_name("missing");
        assert!(!remove(&missing, "t").unwrap());
        let error = write(&missing, "t", &good).unwrap_err();
        assert!(matches!(error, HostsError::Read { .. }), "{error}");
    }

    #[test]
    fn a_file_that_is_too_large_is_left_alone() {
        let (_dir, path) = file(b"");
        fs_err::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(MAX_FILE + 1)
            .unwrap();
        let error = write(&path, "t", &[entry("10.0.0.1", "a.hostel")]).unwrap_err();
        assert!(matches!(error, HostsError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn many_writers_at_once_lose_nothing() {
        let (_dir, path) = file(b"x\n");
        std::thread::scope(|scope| {
            for tag in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    let name = format!("d{tag}.hostel");
                    write(path, &tag.to_string(), &[entry("10.0.0.1", &name)]).unwrap();
                });
            }
        });
        let text = fs_err::read_to_string(&path).unwrap();
        assert_eq!(text.matches(".hostel\n").count(), 8, "{text}");
        for tag in 0..8 {
            assert!(remove(&path, &tag.to_string()).unwrap());
        }
        assert_eq!(fs_err::read(&path).unwrap(), b"x\n");
    }

    proptest::proptest! {
        #[test]
        fn any_file_keeps_what_is_not_ours(
            lines in proptest::collection::vec(proptest::sample::select(vec![
                "# hostel t begin: kept by Hostel, removed when it ends\n", "# hostel t end\n", "10.0.0.1\ta.hostel\n",
                "10.0.0.2 b\n", "\n", "# c\n", "\u{e9}", "\t\r\n",
            ]), 0..12),
        ) {
            let text = lines.concat();
            let marks = Marks::new("t").unwrap();
            let once = marks.without_block(text.as_bytes());
            proptest::prop_assert_eq!(marks.without_block(&once), once.clone());
            let kept = |bytes: &[u8]| bytes.split(|b| *b == b'\n').filter(|l| l.starts_with(b"10.0.0.2") || *l == b"# c").count();
            proptest::prop_assert_eq!(kept(&once), kept(text.as_bytes()));
        }
    }
}
