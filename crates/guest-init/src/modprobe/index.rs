//! Looking names and aliases up in depmod's text files.

use std::path::{Path, PathBuf};

/// The largest index file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// Why the index cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum IndexError {
    #[error("cannot read the index of modules")]
    Read(#[source] std::io::Error),
    #[error("`{path}` is larger than {MAX_FILE} bytes")]
    TooLarge { path: PathBuf },
}

/// What a name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Modules; for each the files to load, dependencies first.
    Modules(Vec<Vec<PathBuf>>),
    /// Part of the kernel.
    Builtin,
    /// Not known.
    Nothing,
}

/// depmod's files of one kernel, read as text and searched line by line: a look-up happens a few times in a machine's
/// life, building a table would cost more than it saves.
pub(super) struct Index {
    directory: PathBuf,
    dependencies: String,
    aliases: String,
    builtin: String,
}

impl Index {
    /// Reads the index below `/lib/modules/<release>`; only `modules.dep` must exist.
    pub(super) fn open(directory: &Path) -> Result<Self, IndexError> {
        Ok(Self {
            dependencies: read(&directory.join("modules.dep"))?,
            aliases: read(&directory.join("modules.alias")).unwrap_or_default(),
            builtin: read(&directory.join("modules.builtin")).unwrap_or_default(),
            directory: directory.to_owned(),
        })
    }

    /// Returns the directory that was read.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Finds a module by name or by alias; a name wins over aliases, as with every modprobe.
    pub(super) fn resolve(&self, wanted: &str) -> Found {
        let wanted = normal(wanted);
        if let Some(files) = self.files(&wanted) {
            return Found::Modules(vec![files]);
        }
        if self.builtin.lines().any(|line| name_of(line) == wanted) {
            return Found::Builtin;
        }
        let mut chains = Vec::new();
        for line in self.aliases.lines() {
            let Some((pattern, module)) =
                line.strip_prefix("alias ").and_then(|l| l.rsplit_once(' '))
            else {
                continue;
            };
            if matches(pattern.as_bytes(), wanted.as_bytes())
                && let Some(files) = self.files(&normal(module))
                && !chains.contains(&files)
            {
                chains.push(files);
            }
        }
        if chains.is_empty() {
            Found::Nothing
        } else {
            Found::Modules(chains)
        }
    }

    /// Returns the files of a module, dependencies first. `modules.dep` lists them nearest first, so the order turns round.
    fn files(&self, name: &str) -> Option<Vec<PathBuf>> {
        let (own, others) = self
            .dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| name_of(path) == name)?;
        let mut files: Vec<PathBuf> = others
            .split_whitespace()
            .rev()
            .map(|f| self.directory.join(f))
            .collect();
        files.push(self.directory.join(own));
        Some(files)
    }
}

fn read(path: &Path) -> Result<String, IndexError> {
    use std::io::Read;
    let file = fs_err::File::open(path).map_err(IndexError::Read)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(IndexError::Read)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(IndexError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the kernel's name of the module in a file: no directory, no suffix, `-` as `_`.
pub(super) fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normal(file.split_once(".ko").map_or(file, |(stem, _)| stem))
}

/// `-` and `_` are the same in names of modules.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// Matches an alias pattern (`*`, `?`, `[a-z]`) against a name in normal form.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on after the last `*` when what follows it did not match.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
                continue;
            }
            None if n == name.len() => return true,
            None => None,
            Some(_) if n == name.len() => return false,
            Some(b'?') => Some(p + 1),
            Some(b'[') => {
                class(&pattern[p..], name[n]).and_then(|(len, hit)| hit.then_some(p + len))
            }
            Some(b'-') => (name[n] == b'_').then_some(p + 1),
            Some(c) => (*c == name[n]).then_some(p + 1),
        };
        match (step, retry) {
            (Some(next), _) => {
                p = next;
                n += 1;
            }
            (None, Some((after, from))) if from < name.len() => {
                retry = Some((after, from + 1));
                p = after;
                n = from + 1;
            }
            (None, _) => return false,
        }
    }
}

/// Reads the class at the start of `pattern`; returns its length and whether `c` is in it. `None`: it never closes.
fn class(pattern: &[u8], c: u8) -> Option<(usize, bool)> {
    let end = pattern.iter().position(|b| *b == b']')?;
    let (negated, set) = match &pattern[1..end] {
        [b'!' | b'^', rest @ ..] => (true, rest),
        set => (false, set),
    };
    let mut hit = false;
    let mut i = 0;
    while i < set.len() {
        if set.get(i + 1) == Some(&b'-') && i + 2 < set.len() {
            hit |= (set[i]..=set[i + 2]).contains(&c);
            i += 3;
        } else {
            hit |= set[i] == c;
            i += 1;
        }
    }
    Some((end + 1, hit != negated))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> (tempfile::TempDir, Index) {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(
            dir.path().join("modules.dep"),
            "kernel/net/ipv4/netfilter/iptable_nat.ko: kernel/net/nf_nat.ko kernel/net/nf_conntrack.ko kernel/lib/libcrc32c.ko\n\
             kernel/net/br-net.ko:\nkernel/fs/overlayfs/overlay.ko.xz:\n",
        )
        .unwrap();
        fs_err::write(
            dir.path().join("modules.alias"),
            "# Aliases\nalias fs-overlay overlay\nalias ipt_NAT iptable_nat\n\
             alias pci:v00001AF4d*sv*sd*bc*sc*i* br_net\nalias pci:v*d00001000sv*sd*bc*sc*i* overlay\nalias broken\n",
        )
        .unwrap();
        fs_err::write(
            dir.path().join("modules.builtin"),
            "kernel/fs/ext4/ext4.ko\n",
        )
        .unwrap();
        let index = Index::open(dir.path()).unwrap();
        (dir, index)
    }

    #[test]
    fn names_and_aliases_give_files_dependencies_first() {
        let (dir, index) = index();
        let chain = |names: &[&str]| names.iter().map(|n| dir.path().join(n)).collect::<Vec<_>>();
        let nat = chain(&[
            "kernel/lib/libcrc32c.ko",
            "kernel/net/nf_conntrack.ko",
            "kernel/net/nf_nat.ko",
            "kernel/net/ipv4/netfilter/iptable_nat.ko",
        ]);
        let overlay = chain(&["kernel/fs/overlayfs/overlay.ko.xz"]);
        let bridge = chain(&["kernel/net/br-net.ko"]);
        for (name, want) in [
            ("iptable_nat", Found::Modules(vec![nat.clone()])),
            ("iptable-nat", Found::Modules(vec![nat.clone()])),
            ("ipt_NAT", Found::Modules(vec![nat])),
            ("fs-overlay", Found::Modules(vec![overlay.clone()])),
            ("br_net", Found::Modules(vec![bridge.clone()])),
            ("br-net", Found::Modules(vec![bridge.clone()])),
            (
                "pci:v00001AF4d00001000sv1sd2bc3sc4i5",
                Found::Modules(vec![bridge, overlay]),
            ),
            ("ext4", Found::Builtin),
            ("nothing", Found::Nothing),
            ("", Found::Nothing),
        ] {
            assert_eq!(index.resolve(name), want, "{name}");
        }
    }

    #[test]
    fn patterns_match_as_depmod_means_them() {
        for (pattern, name, want) in [
            ("abc", "abc", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbbd", false),
            ("*", "", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("net-pf-16", "net_pf_16", true),
            ("x[0-9]y", "x5y", true),
            ("x[!0-9]y", "x5y", false),
            ("x[0-9", "x5", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("**a", "ba", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                want,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn a_missing_index_names_its_path() {
        let Err(error) = Index::open(Path::new("/nonexistent")) else {
            panic!("there is no such index")
        };
        assert!(crate::console::chain(&error).contains("/nonexistent/modules.dep"));
    }

    proptest::proptest! {
        #[test]
        fn any_pattern_ends(pattern in "[a-c*?\\[\\]!-]{0,24}", name in "[a-c_]{0,24}") {
            matches(pattern.as_bytes(), name.as_bytes());
        }

        #[test]
        fn a_name_matches_itself(name in "[a-z0-9_:]{0,40}") {
            proptest::prop_assert!(matches(name.as_bytes(), name.as_bytes()));
        }
    }
}
