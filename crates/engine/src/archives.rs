//! Archives that were read before: a file that has not changed since needs no reading to be known again.

use std::{
    io::{self, Seek as _},
    os::unix::fs::MetadataExt as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    layout::Layout,
    state::{self, StateFile},
};

/// How many archives are remembered; the oldest is forgotten first.
const MAX: usize = 128;

/// A file changed this recently may change again within one tick of its clock, unseen.
const SETTLED: Duration = Duration::from_secs(2);

/// What tells one content of one file from every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    mtime_ns: i128,
    ctime_ns: i128,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct ArchivesFile {
    #[serde(default)]
    known: Vec<(Stamp, String)>,
}

impl StateFile for ArchivesFile {
    const FORMAT: u32 = 1;
    const MIGRATIONS: &'static [fn(&mut serde_json::Map<String, serde_json::Value>)] = &[];
}

/// Returns the stamp of a regular file that will be read from its beginning; `None` for anything else.
pub(crate) fn stamp(file: &fs_err::File) -> Option<Stamp> {
    let meta = file.metadata().ok()?;
    let position = (&*file).stream_position().ok()?;
    let nanoseconds = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
    (meta.is_file() && position == 0).then(|| Stamp {
        dev: meta.dev(),
        ino: meta.ino(),
        size: meta.size(),
        mtime_ns: nanoseconds(meta.mtime(), meta.mtime_nsec()),
        ctime_ns: nanoseconds(meta.ctime(), meta.ctime_nsec()),
    })
}

impl Stamp {
    /// Tells whether the file had been left alone for a while at `now`.
    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos() as i128);
        self.mtime_ns.max(self.ctime_ns) + (SETTLED.as_nanos() as i128) <= now
    }
}

/// Returns the digest of the archive with this stamp, when it is known. A list that cannot be read knows nothing.
pub(crate) fn known(layout: &Layout, stamp: &Stamp) -> Option<String> {
    let file = state::load::<ArchivesFile>(&layout.archives())
        .ok()
        .flatten()?;
    file.known
        .into_iter()
        .find(|(s, _)| s == stamp)
        .map(|(_, digest)| digest)
}

/// Remembers the digest of an archive whose reading began at `begun`.
pub(crate) fn remember(
    layout: &Layout,
    stamp: Stamp,
    begun: SystemTime,
    digest: &str,
) -> io::Result<()> {
    if !stamp.is_settled(begun) {
        return Ok(());
    }
    let mut file = state::load::<ArchivesFile>(&layout.archives())
        .ok()
        .flatten()
        .unwrap_or_default();
    file.known
        .retain(|(s, _)| (s.dev, s.ino) != (stamp.dev, stamp.ino));
    file.known.insert(0, (stamp, digest.to_owned()));
    file.known.truncate(MAX);
    state::store(&layout.archives(), &file).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_known_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let path = dir.path().join("a.tar");
        fs_err::write(&path, "one").unwrap();
        let first = stamp(&fs_err::File::open(&path).unwrap()).unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);

        remember(&layout, first, SystemTime::now(), "young").unwrap();
        assert_eq!(known(&layout, &first), None);
        remember(&layout, first, later, "digest").unwrap();
        assert_eq!(known(&layout, &first).as_deref(), Some("digest"));
        fs_err::write(&path, "four").unwrap();
        let second = stamp(&fs_err::File::open(&path).unwrap()).unwrap();
        assert_eq!(known(&layout, &second), None);
        fs_err::write(layout.archives(), "{").unwrap();
        assert_eq!(known(&layout, &first), None);
        remember(&layout, second, later, "again").unwrap();
        assert_eq!(known(&layout, &second).as_deref(), Some("again"));
    }

    #[test]
    fn a_pipe_or_a_file_read_from_its_middle_has_no_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        fs_err::write(&path, "one").unwrap();
        let mut file = fs_err::File::open(&path).unwrap();
        file.seek(io::SeekFrom::Start(1)).unwrap();
        assert_eq!(stamp(&file), None);
        assert_eq!(stamp(&fs_err::File::open(dir.path()).unwrap()), None);
    }
}
