//! The few facts about a tree that its receiver needs at once: is it Linux, and what do its own small files say.

use std::{
    collections::BTreeMap,
    io::{self, Cursor, Read},
};

use hostel_model::tree::{Node, NodeMeta, TreeSink};

/// The largest file that is kept, in bytes.
const MAX_FILE: u64 = 64 << 10;
/// The most paths that are remembered: a hostile archive may hold any number of `os-release` files.
const MAX_PATHS: usize = 256;
/// The most symbolic links followed, as in the kernel.
const MAX_LINKS: usize = 40;

/// What a tree says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether there is an `etc` directory or a `bin/sh` (IMG-2).
    pub looks_like_linux: bool,
    /// `etc/os-release`, or `usr/lib/os-release` where the first is missing.
    pub os_release: Option<Vec<u8>>,
    /// `etc/wsl.conf`.
    pub wsl_conf: Option<Vec<u8>>,
    /// `etc/wsl-distribution.conf`.
    pub wsl_distribution_conf: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
enum Kept {
    Directory,
    Symlink(Vec<u8>),
    File(Vec<u8>),
    Other,
}

/// Passes a tree on and collects its [`Facts`] on the way. Files beyond 64 KiB and sparse files are not kept.
pub struct FactsSink<'a> {
    inner: &'a mut dyn TreeSink,
    kept: BTreeMap<Vec<u8>, Kept>,
}

impl<'a> FactsSink<'a> {
    /// Watches what goes into `inner`.
    pub fn new(inner: &'a mut dyn TreeSink) -> Self {
        Self {
            inner,
            kept: BTreeMap::new(),
        }
    }

    /// Returns what was learned, symbolic links followed inside the tree.
    pub fn facts(&self) -> Facts {
        let file = |path: &[u8]| match self.resolve(path)? {
            Kept::File(bytes) => Some(bytes.clone()),
            _ => None,
        };
        let etc = matches!(self.resolve(b"etc"), Some(Kept::Directory));
        Facts {
            looks_like_linux: etc || self.shell_exists(),
            os_release: file(b"etc/os-release").or_else(|| file(b"usr/lib/os-release")),
            wsl_conf: file(b"etc/wsl.conf"),
            wsl_distribution_conf: file(b"etc/wsl-distribution.conf"),
        }
    }

    /// `bin/sh` counts as soon as the name is there: where it points may lie anywhere.
    fn shell_exists(&self) -> bool {
        self.kept.contains_key(&b"bin/sh"[..])
            || self
                .real_path(b"bin")
                .is_some_and(|bin| self.kept.contains_key(&[&bin[..], b"/sh"].concat()))
    }

    fn resolve(&self, path: &[u8]) -> Option<&Kept> {
        self.kept.get(&self.real_path(path)?)
    }

    /// Follows symbolic links in all components, as far as they were remembered.
    fn real_path(&self, path: &[u8]) -> Option<Vec<u8>> {
        let mut todo: Vec<Vec<u8>> = path.rsplit(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(part),
            }
            if let Some(Kept::Symlink(target)) = self.kept.get(&done.join(&b'/')) {
                links += 1;
                if links > MAX_LINKS || todo.len() > 4096 {
                    return None;
                }
                done.pop();
                if target.starts_with(b"/") {
                    done.clear();
                }
                todo.extend(target.rsplit(|b| *b == b'/').map(<[u8]>::to_vec));
            }
        }
        Some(done.join(&b'/'))
    }

    fn keep(&mut self, path: &[u8], kept: Kept) {
        if self.kept.len() < MAX_PATHS || self.kept.contains_key(path) {
            self.kept.insert(path.to_vec(), kept);
        }
    }
}

/// Tells whether a path may matter: the places themselves, and the directories that links on the way to them replace.
fn matters(path: &[u8]) -> bool {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
    match name {
        b"wsl.conf" | b"wsl-distribution.conf" => path.len() < 256,
        b"sh" | b"etc" | b"bin" | b"lib" | b"usr" => path.splitn(4, |b| *b == b'/').count() < 4,
        _ => name.starts_with(b"os-release") && path.len() < 256,
    }
}

impl TreeSink for FactsSink<'_> {
    fn entry(&mut self, path: &[u8], meta: &NodeMeta, node: Node<'_>) -> io::Result<()> {
        // Parents need no entry of their own.
        if path.starts_with(b"etc/") && !self.kept.contains_key(&b"etc"[..]) {
            self.keep(b"etc", Kept::Directory);
        }
        if !matters(path) {
            return self.inner.entry(path, meta, node);
        }
        let kept = match node {
            Node::Directory => Kept::Directory,
            Node::Symlink(target) if target.len() < 4096 => Kept::Symlink(target.to_vec()),
            Node::HardLink(target) => self.kept.get(target).cloned().unwrap_or(Kept::Other),
            Node::File { size, runs, data }
                if size <= MAX_FILE && runs.iter().map(|run| run.len).sum::<u64>() == size =>
            {
                let mut bytes = Vec::with_capacity(size as usize);
                data.take(size).read_to_end(&mut bytes)?;
                self.inner.entry(
                    path,
                    meta,
                    Node::File {
                        size,
                        runs,
                        data: &mut Cursor::new(&bytes),
                    },
                )?;
                self.keep(path, Kept::File(bytes));
                return Ok(());
            }
            _ => Kept::Other,
        };
        self.inner.entry(path, meta, node)?;
        self.keep(path, kept);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemTree, dir, file, link};

    fn facts(entries: &[(&str, crate::testing::Item)]) -> Facts {
        let mut tree = MemTree::default();
        let mut sink = FactsSink::new(&mut tree);
        for (path, item) in entries {
            item.push(path.as_bytes(), &mut sink)
                .expect("a tree in memory");
        }
        sink.facts()
    }

    /// IMG-2.
    #[test]
    fn linux_is_recognised_through_links() {
        assert!(facts(&[("etc", dir())]).looks_like_linux);
        assert!(facts(&[("etc/passwd", file(b"root"))]).looks_like_linux);
        assert!(facts(&[("bin/sh", link("dash"))]).looks_like_linux);
        assert!(facts(&[("bin", link("usr/bin")), ("usr/bin/sh", link("dash"))]).looks_like_linux);
        assert!(facts(&[("usr/bin/sh", file(b"x")), ("bin", link("/usr/bin/"))]).looks_like_linux);
        assert!(!facts(&[("usr/bin/sh", file(b"x"))]).looks_like_linux);
        assert!(!facts(&[("etc", file(b"x"))]).looks_like_linux);
        assert!(!facts(&[("rootfs/etc", dir()), ("rootfs/bin/sh", file(b"x"))]).looks_like_linux);
        assert!(!facts(&[("bin", link("bin"))]).looks_like_linux);
    }

    #[test]
    fn small_files_are_found_through_links() {
        let got = facts(&[
            ("etc/os-release", link("../usr/lib/os-release")),
            ("etc/wsl.conf", file(b"[boot]\nsystemd=true\n")),
            (
                "usr/lib/os-release",
                link("./os.release.d/os-release-container"),
            ),
            ("usr/lib/os.release.d/os-release-container", file(b"ID=x\n")),
            (
                "etc/wsl-distribution.conf",
                file(&vec![b'#'; 64 * 1024 + 1]),
            ),
        ]);
        assert_eq!(got.os_release.as_deref(), Some(&b"ID=x\n"[..]));
        assert_eq!(
            got.wsl_conf.as_deref(),
            Some(&b"[boot]\nsystemd=true\n"[..])
        );
        assert_eq!(got.wsl_distribution_conf, None);
        let got = facts(&[("usr/lib/os-release", file(b"ID=y\n"))]);
        assert_eq!(got.os_release.as_deref(), Some(&b"ID=y\n"[..]));
    }

    #[test]
    fn a_later_member_wins() {
        let got = facts(&[("etc/wsl.conf", file(b"1")), ("etc/wsl.conf", file(b"2"))]);
        assert_eq!(got.wsl_conf.as_deref(), Some(&b"2"[..]));
        assert!(!facts(&[("etc", dir()), ("etc", file(b"x"))]).looks_like_linux);
    }
}
