//! What is done to the state directory before anything else uses it: leftovers go, the rest is read.

use std::{
    collections::HashSet,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use hostel_model::DistroId;

use super::{BaseFile, DistroFile, StateError, load};
use crate::layout::{Layout, PARTIAL};

/// What was found.
#[derive(Debug, Default)]
pub struct SweepReport {
    /// Every registered distribution, oldest first.
    pub distros: Vec<DistroFile>,
    /// Distributions that cannot be used, each with the reason; nothing of them is touched.
    pub damaged: Vec<String>,
    /// What killed operations had left, now removed.
    pub removed: Vec<String>,
}

/// Makes the directories, removes what killed operations left, and reads every distribution.
///
/// Must run before anything else uses the directory, by the holder of its lock. May be killed anywhere and repeated.
pub fn sweep(layout: &Layout) -> Result<SweepReport, StateError> {
    let mut report = SweepReport::default();
    for directory in [layout.home().to_owned(), layout.distros(), layout.bases()] {
        make_private(&directory).map_err(|source| StateError::Io {
            what: "write",
            path: directory.clone(),
            source,
        })?;
        for path in entries(&directory)? {
            if path
                .as_os_str()
                .as_encoded_bytes()
                .ends_with(PARTIAL.as_bytes())
            {
                remove(&path, &mut report);
            }
        }
    }
    read_distros(layout, &mut report)?;
    drop_bases(layout, &mut report)?;
    Ok(report)
}

fn read_distros(layout: &Layout, report: &mut SweepReport) -> Result<(), StateError> {
    for path in entries(&layout.distros())? {
        let name = path.file_name().and_then(OsStr::to_str);
        let Some(id) = name.and_then(|n| n.parse::<DistroId>().ok()) else {
            continue;
        };
        match load::<DistroFile>(&layout.distro_file(id)) {
            Ok(Some(file)) if file.id == id => report.distros.push(file),
            Ok(Some(file)) => report.damaged.push(format!(
                "`{}` holds the record of another distribution, {}",
                path.display(),
                file.id
            )),
            Ok(None) if layout.disk(id).exists() => {
                report.damaged.push(format!(
                    "`{}` holds a disk and no distro.json",
                    path.display()
                ));
            }
            Ok(None) => remove(&path, report),
            Err(error) => report.damaged.push(chain(&error)),
        }
    }
    report.distros.sort_by_key(|d| (d.created_unix_ns, d.id));
    // Two records of one name can only come from a directory that somebody copied here; the older one keeps it.
    let mut names = HashSet::new();
    let mut twice = Vec::new();
    report.distros.retain(|d| {
        let first = names.insert(d.name.as_str().to_ascii_lowercase());
        if !first {
            twice.push(format!(
                "`{}` has the name `{}`, which is taken",
                layout.distro(d.id).display(),
                d.name
            ));
        }
        first
    });
    report.damaged.append(&mut twice);
    Ok(())
}

/// Removes bases that are unfinished or that no distribution uses.
///
/// When any distribution is damaged, nothing is known about the base it needs, and complete bases stay.
fn drop_bases(layout: &Layout, report: &mut SweepReport) -> Result<(), StateError> {
    let used: HashSet<String> = report.distros.iter().map(|d| d.base.clone()).collect();
    for path in entries(&layout.bases())? {
        let Some(name) = path.file_stem().and_then(OsStr::to_str).map(str::to_owned) else {
            continue;
        };
        let complete = layout.base(&name).exists()
            && matches!(load::<BaseFile>(&layout.base_file(&name)), Ok(Some(_)));
        if used.contains(&name) || (complete && !report.damaged.is_empty()) {
            continue;
        }
        if matches!(
            path.extension().and_then(OsStr::to_str),
            Some("raw" | "json")
        ) {
            remove(&path, report);
        }
    }
    Ok(())
}

/// Makes a directory that only its owner may enter; one that exists keeps its mode.
fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

fn remove(path: &Path, report: &mut SweepReport) {
    let result = if path.is_dir() && !path.is_symlink() {
        fs_err::remove_dir_all(path)
    } else {
        fs_err::remove_file(path)
    };
    match result {
        Ok(()) => report.removed.push(path.display().to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => report
            .damaged
            .push(format!("a leftover cannot be removed: {error}")),
    }
}

/// Lists a directory.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, StateError> {
    let list =
        fs_err::read_dir(directory).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
    list.map_err(|source| StateError::Io {
        what: "read",
        path: directory.to_owned(),
        source,
    })
}

/// Writes an error with its sources.
fn chain(error: &StateError) -> String {
    hostel_model::Failure::from_error(hostel_model::ErrorCode::State, error).message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{registry::test_record, state::store};

    fn home() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("home"));
        sweep(&layout).unwrap();
        (dir, layout)
    }

    fn register(layout: &Layout, name: &str, base: &str, created: u64) -> DistroFile {
        let file = test_record(name, base, created);
        fs_err::create_dir(layout.distro(file.id)).unwrap();
        store(&layout.distro_file(file.id), &file).unwrap();
        fs_err::write(layout.disk(file.id), "disk").unwrap();
        file
    }

    fn make_base(layout: &Layout, name: &str) {
        fs_err::write(layout.base(name), "ext4").unwrap();
        store(&layout.base_file(name), &BaseFile::default()).unwrap();
    }

    #[test]
    fn leftovers_go_and_what_is_in_use_stays() {
        let (_dir, layout) = home();
        let b = register(&layout, "b", "used", 2);
        let a = register(&layout, "a", "used", 1);
        make_base(&layout, "used");
        make_base(&layout, "orphan");
        fs_err::write(layout.base("unfinished"), "ext4").unwrap();
        fs_err::write(layout.bases().join("x.partial"), "").unwrap();
        fs_err::write(layout.home().join(".state-1.partial"), "").unwrap();
        fs_err::create_dir(layout.distro_partial(a.id)).unwrap();
        fs_err::write(layout.distro_partial(a.id).join("disk.qcow2"), "").unwrap();
        fs_err::create_dir(layout.distro(DistroId::new_random())).unwrap();

        let report = sweep(&layout).unwrap();
        assert_eq!(report.distros, [a.clone(), b]);
        assert!(report.damaged.is_empty(), "{:?}", report.damaged);
        assert_eq!(report.removed.len(), 7, "{:?}", report.removed);
        assert!(layout.base("used").exists() && layout.disk(a.id).exists());
        assert!(sweep(&layout).unwrap().removed.is_empty());
    }

    #[test]
    fn a_damaged_record_hides_one_distro_and_protects_every_base() {
        let (_dir, layout) = home();
        let good = register(&layout, "good", "one", 1);
        let bad = register(&layout, "bad", "two", 2);
        let bare = register(&layout, "bare", "three", 3);
        let twin = register(&layout, "GOOD", "one", 4);
        for base in ["one", "two", "three"] {
            make_base(&layout, base);
        }
        fs_err::write(layout.distro_file(bad.id), "{\"format\":1,").unwrap();
        fs_err::remove_file(layout.distro_file(bare.id)).unwrap();

        let report = sweep(&layout).unwrap();
        assert_eq!(report.distros, [good]);
        assert_eq!(report.damaged.len(), 3, "{:?}", report.damaged);
        assert!(report.removed.is_empty(), "{:?}", report.removed);
        assert!(
            layout.base("two").exists()
                && layout.disk(bare.id).exists()
                && layout.disk(twin.id).exists()
        );
    }
}
