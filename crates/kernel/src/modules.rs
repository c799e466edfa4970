//! A kernel's modules: read once at installation, written down in depmod's files, resolved from those afterwards.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
};

use crate::{
    index::Index,
    modinfo::{ModInfo, builtin_aliases, normal_alias, normal_name},
};

/// How many soft dependencies may lie behind one another; further ones are left out, as ones that are not there.
const DEEPEST_SOFT: usize = 64;

/// Why a kernel's modules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A module that the machine needs is neither there nor built in.
    #[error("kernel {release} has no module `{module}`, and it is not built in")]
    Missing {
        /// The module.
        module: String,
        /// The kernel.
        release: String,
    },
    /// A module of the directory depends on one that is not there.
    #[error("module `{module}` of kernel {release} depends on `{depends}`, which is not there")]
    MissingDependency {
        /// The module that depends.
        module: String,
        /// What it depends on.
        depends: String,
        /// The kernel.
        release: String,
    },
    /// Modules depend on each other in a circle.
    #[error("module `{0}` depends on itself through others")]
    Circle(String),
    /// The modules belong to another kernel.
    #[error("module `{module}` was built for kernel {built_for}, the kernel is {release}")]
    OtherRelease {
        /// The first such module.
        module: String,
        /// What it was built for.
        built_for: String,
        /// The kernel.
        release: String,
    },
    /// A file is not a module.
    #[error("`{0}` is not a kernel module")]
    NotAModule(PathBuf),
    /// A file of depmod's cannot be understood.
    #[error("`{0}` is damaged; install the kernel again")]
    Damaged(PathBuf),
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One module as found at installation.
struct Found {
    /// Path below the modules directory, `kernel/fs/fuse/fuse.ko`.
    path: String,
    name: String,
    info: ModInfo,
}

/// Reads every module below `dir` and writes depmod's files into it: `modules.dep`, `.alias`, `.softdep` and
/// `.devname`, and the binary ones that kmod reads. Refuses modules that were built for another kernel.
pub(crate) fn write_indexes(dir: &Path, release: &str) -> Result<(), ModuleError> {
    let found = scan(dir, release)?;
    let by_name: HashMap<&str, usize> = found
        .iter()
        .enumerate()
        .map(|(i, m)| (m.name.as_str(), i))
        .collect();
    let builtin_info = builtin_aliases(&read_optional(&dir.join("modules.builtin.modinfo"))?);
    let builtin = builtin_names(dir)?;

    let (mut dep, mut alias, mut softdep, mut devname) = (
        String::new(),
        String::new(),
        String::new(),
        String::from("# Device nodes to trigger on-demand module loading.\n"),
    );
    let (mut dep_bin, mut alias_bin) = (Index::default(), Index::default());
    for (priority, module) in found.iter().enumerate() {
        let line = dependency_line(&found, &by_name, &builtin, priority, release)?;
        dep_bin.add(&module.name, &line, priority as u32);
        dep.push_str(&line);
        dep.push('\n');
        for pattern in &module.info.aliases {
            let _ = writeln!(alias, "alias {pattern} {}", module.name);
            alias_bin.add(&normal_alias(pattern), &module.name, priority as u32);
        }
        for text in &module.info.softdeps {
            let _ = writeln!(softdep, "softdep {} {text}", module.name);
        }
        if let Some(line) = device_line(module) {
            devname.push_str(&line);
        }
    }
    let (mut builtin_bin, mut builtin_alias_bin) = (Index::default(), Index::default());
    for name in &builtin {
        builtin_bin.add(name, "", 0);
    }
    for (pattern, name) in &builtin_info {
        builtin_alias_bin.add(&normal_alias(pattern), name, 0);
    }

    for (name, bytes) in [
        ("modules.dep", dep.into_bytes()),
        ("modules.alias", alias.into_bytes()),
        ("modules.softdep", softdep.into_bytes()),
        ("modules.devname", devname.into_bytes()),
        ("modules.dep.bin", dep_bin.to_bytes()),
        ("modules.alias.bin", alias_bin.to_bytes()),
        ("modules.builtin.bin", builtin_bin.to_bytes()),
        ("modules.builtin.alias.bin", builtin_alias_bin.to_bytes()),
        // Nobody asks by symbol, but kmod gives up on all of its indexes when one is not there.
        ("modules.symbols.bin", Index::default().to_bytes()),
    ] {
        fs_err::write(dir.join(name), bytes)?;
    }
    Ok(())
}

/// Reads every module, in the order of `modules.order`, which decides between two that answer to one alias.
fn scan(dir: &Path, release: &str) -> Result<Vec<Found>, ModuleError> {
    let order = text(read_optional(&dir.join("modules.order"))?);
    let order: HashMap<&str, usize> = order.lines().enumerate().map(|(i, l)| (l, i)).collect();
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    for path in crate::tree::files(dir)? {
        let Some((stem, path)) = path
            .to_str()
            .and_then(|p| Some((Path::new(p).file_name()?.to_str()?.strip_suffix(".ko")?, p)))
        else {
            continue;
        };
        let name = normal_name(stem);
        let full = dir.join(path);
        let info =
            ModInfo::of_module(&fs_err::read(&full)?).ok_or(ModuleError::NotAModule(full))?;
        if let Some(built_for) = info.release.as_ref().filter(|r| *r != release) {
            return Err(ModuleError::OtherRelease {
                module: name,
                built_for: built_for.clone(),
                release: release.to_owned(),
            });
        }
        let module = Found {
            path: path.to_owned(),
            name: name.clone(),
            info,
        };
        match found.entry(name) {
            std::collections::btree_map::Entry::Vacant(e) => {
                e.insert(module);
            }
            // What an administrator added beside the kernel's own replaces it, as with depmod's `updates`.
            std::collections::btree_map::Entry::Occupied(mut e)
                if e.get().path.starts_with("kernel/") =>
            {
                e.insert(module);
            }
            std::collections::btree_map::Entry::Occupied(_) => {}
        }
    }
    let mut found: Vec<Found> = found.into_values().collect();
    found.sort_by(|a, b| {
        let rank = |m: &Found| order.get(m.path.as_str()).copied().unwrap_or(usize::MAX);
        rank(a).cmp(&rank(b)).then_with(|| a.path.cmp(&b.path))
    });
    Ok(found)
}

/// Returns a line of `modules.dep`: the module, then everything it needs, to be loaded from right to left.
fn dependency_line(
    found: &[Found],
    by_name: &HashMap<&str, usize>,
    builtin: &BTreeSet<String>,
    of: usize,
    release: &str,
) -> Result<String, ModuleError> {
    // Depth first without recursion: a step is either to enter a module or to leave it.
    let mut load_order = Vec::new();
    let (mut entered, mut left) = (BTreeSet::new(), BTreeSet::new());
    let mut steps = vec![(of, false)];
    while let Some((module, leaving)) = steps.pop() {
        if leaving {
            left.insert(module);
            load_order.push(module);
            continue;
        }
        if left.contains(&module) {
            continue;
        }
        if !entered.insert(module) {
            return Err(ModuleError::Circle(found[module].name.clone()));
        }
        steps.push((module, true));
        for depends in found[module].info.depends.iter().rev() {
            match by_name.get(depends.as_str()) {
                Some(next) if !left.contains(next) => steps.push((*next, false)),
                Some(_) => {}
                None if builtin.contains(depends) => {}
                None => {
                    return Err(ModuleError::MissingDependency {
                        module: found[module].name.clone(),
                        depends: depends.clone(),
                        release: release.to_owned(),
                    });
                }
            }
        }
    }
    let mut line = format!("{}:", found[of].path);
    for module in load_order.into_iter().rev().skip(1) {
        line.push(' ');
        line.push_str(&found[module].path);
    }
    Ok(line)
}

/// Returns the line of `modules.devname` for a module that says which device node it serves.
fn device_line(module: &Found) -> Option<String> {
    let aliases = || module.info.aliases.iter();
    let node = aliases().find_map(|a| a.strip_prefix("devname:"))?;
    let (kind, numbers) = aliases().find_map(|a| {
        let (kind, rest) = a
            .strip_prefix("char-major-")
            .map(|r| ('c', r))
            .or_else(|| a.strip_prefix("block-major-").map(|r| ('b', r)))?;
        let (major, minor) = rest.split_once('-')?;
        Some((
            kind,
            (major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?),
        ))
    })?;
    Some(format!(
        "{} {node} {kind}{}:{}\n",
        module.name, numbers.0, numbers.1
    ))
}

/// What depmod's text files say; enough to put modules in order.
pub(crate) struct Resolver {
    release: String,
    /// Name to path and dependencies, the latter in load order.
    modules: HashMap<String, (String, Vec<String>)>,
    soft: HashMap<String, Vec<String>>,
    aliases: HashMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
}

impl Resolver {
    /// Reads the files that [`write_indexes`] wrote.
    pub(crate) fn load(dir: &Path, release: &str) -> Result<Self, ModuleError> {
        let dep_path = dir.join("modules.dep");
        let damaged = || ModuleError::Damaged(dep_path.clone());
        let mut modules = HashMap::new();
        for line in text(read_optional(&dep_path)?).lines() {
            let (path, depends) = line.split_once(':').ok_or_else(damaged)?;
            let depends = depends
                .split_whitespace()
                .rev()
                .map(str::to_owned)
                .collect();
            modules.insert(
                name_of(path).ok_or_else(damaged)?,
                (path.to_owned(), depends),
            );
        }
        let mut soft: HashMap<String, Vec<String>> = HashMap::new();
        for line in text(read_optional(&dir.join("modules.softdep"))?).lines() {
            let mut words = line.split_whitespace().skip(1);
            let Some(name) = words.next() else { continue };
            let pre = words
                .take_while(|w| *w != "post:")
                .filter(|w| *w != "pre:")
                .map(str::to_owned);
            soft.entry(name.to_owned()).or_default().extend(pre);
        }
        let mut aliases: HashMap<String, Vec<String>> = HashMap::new();
        for line in text(read_optional(&dir.join("modules.alias"))?).lines() {
            if let ["alias", pattern, name] = line.split_whitespace().collect::<Vec<_>>()[..] {
                aliases
                    .entry(normal_name(pattern))
                    .or_default()
                    .push(name.to_owned());
            }
        }
        Ok(Self {
            release: release.to_owned(),
            modules,
            soft,
            aliases,
            builtin: builtin_names(dir)?,
        })
    }

    /// Returns the paths of the wanted modules and all they need, in load order, without those already in `order`.
    ///
    /// A wanted module that is built in needs nothing; one that is not there is an error.
    pub(crate) fn resolve(
        &self,
        wanted: &[&str],
        order: &mut Vec<String>,
    ) -> Result<(), ModuleError> {
        for name in wanted {
            if !self.builtin.contains(*name) && !self.modules.contains_key(*name) {
                return Err(ModuleError::Missing {
                    module: (*name).to_owned(),
                    release: self.release.clone(),
                });
            }
        }
        let mut seen: BTreeSet<String> = order.iter().cloned().collect();
        for name in wanted {
            self.push(name, order, &mut seen, 0);
        }
        Ok(())
    }

    /// Tells whether there is such a module, as a file.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.modules.contains_key(name)
    }

    fn push(&self, name: &str, order: &mut Vec<String>, seen: &mut BTreeSet<String>, depth: usize) {
        let Some((path, depends)) = self.modules.get(name).filter(|_| depth <= DEEPEST_SOFT) else {
            return;
        };
        for path in depends.iter().chain([path]) {
            if !seen.insert(path.clone()) {
                continue;
            }
            // A soft dependency is a module, or an alias that several may answer to; none is no error.
            for soft in name_of(path)
                .and_then(|n| self.soft.get(&n))
                .into_iter()
                .flatten()
            {
                let soft = normal_name(soft);
                if self.modules.contains_key(&soft) {
                    self.push(&soft, order, seen, depth + 1);
                } else {
                    self.aliases
                        .get(&soft)
                        .into_iter()
                        .flatten()
                        .for_each(|m| self.push(m, order, seen, depth + 1));
                }
            }
            order.push(path.clone());
        }
    }
}

/// Returns the name of a module from its path.
pub(crate) fn name_of(path: &str) -> Option<String> {
    Path::new(path)
        .file_name()?
        .to_str()?
        .strip_suffix(".ko")
        .map(normal_name)
}

fn builtin_names(dir: &Path) -> Result<BTreeSet<String>, ModuleError> {
    Ok(text(read_optional(&dir.join("modules.builtin"))?)
        .lines()
        .filter_map(name_of)
        .collect())
}

fn read_optional(path: &Path) -> io::Result<Vec<u8>> {
    match fs_err::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::elf::tests as elf_file;

    /// Writes a module below a directory.
    pub(crate) fn write_module(dir: &Path, path: &str, modinfo: &str) {
        let file = elf_file::build(
            &[(".modinfo", 1, modinfo.replace(';', "\0").as_bytes())],
            None,
        );
        fs_err::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
        fs_err::write(dir.join(path), file).unwrap();
    }

    fn resolve(dir: &Path, wanted: &[&str]) -> Result<Vec<String>, ModuleError> {
        let mut order = Vec::new();
        Resolver::load(dir, "6.1")?.resolve(wanted, &mut order)?;
        Ok(order)
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dir = tempfile::tempdir().unwrap();
        write_module(dir.path(), "kernel/a/virtio.ko", "name=virtio;depends=");
        write_module(
            dir.path(),
            "kernel/a/virtio-ring.ko",
            "depends=virtio;vermagic=6.1 SMP",
        );
        write_module(
            dir.path(),
            "kernel/b/virtio_pci.ko",
            "depends=virtio-ring,virtio,pci_core",
        );
        write_module(
            dir.path(),
            "kernel/c/ext4.ko",
            "depends=virtio;softdep=pre: crc32c nothing post: virtio_pci",
        );
        write_module(
            dir.path(),
            "kernel/c/crc32c-generic.ko",
            "alias=crc32c;alias=devname:crc;alias=char-major-10-5",
        );
        fs_err::write(dir.path().join("modules.builtin"), "kernel/p/pci-core.ko\n").unwrap();
        fs_err::write(
            dir.path().join("modules.builtin.modinfo"),
            b"pci_core.alias=pci*\0",
        )
        .unwrap();
        write_indexes(dir.path(), "6.1").unwrap();

        let read = |name: &str| fs_err::read_to_string(dir.path().join(name)).unwrap();
        assert!(
            read("modules.dep")
                .contains("kernel/b/virtio_pci.ko: kernel/a/virtio-ring.ko kernel/a/virtio.ko\n")
        );
        assert!(read("modules.alias").contains("alias crc32c crc32c_generic\n"));
        assert!(
            read("modules.softdep").contains("softdep ext4 pre: crc32c nothing post: virtio_pci\n")
        );
        assert!(read("modules.devname").ends_with("crc32c_generic crc c10:5\n"));

        let order = resolve(dir.path(), &["ext4", "pci_core", "virtio_pci"]).unwrap();
        let want = [
            "kernel/a/virtio.ko",
            "kernel/c/crc32c-generic.ko",
            "kernel/c/ext4.ko",
            "kernel/a/virtio-ring.ko",
            "kernel/b/virtio_pci.ko",
        ];
        assert_eq!(order, want);
        let error = resolve(dir.path(), &["vsock"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "kernel 6.1 has no module `vsock`, and it is not built in"
        );
    }

    #[test]
    fn modules_that_do_not_fit_are_refused() {
        let check = |modules: &[(&str, &str)]| {
            let dir = tempfile::tempdir().unwrap();
            for (path, info) in modules {
                write_module(dir.path(), path, info);
            }
            write_indexes(dir.path(), "6.1").unwrap_err()
        };
        assert!(
            matches!(check(&[("a.ko", "vermagic=6.2 SMP")]), ModuleError::OtherRelease { built_for, .. } if built_for == "6.2")
        );
        assert!(
            matches!(check(&[("a.ko", "depends=b")]), ModuleError::MissingDependency { depends, .. } if depends == "b")
        );
        assert!(matches!(
            check(&[
                ("a.ko", "depends=b"),
                ("b.ko", "depends=c"),
                ("c.ko", "depends=a")
            ]),
            ModuleError::Circle(_)
        ));
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("x.ko"), "text").unwrap();
        assert!(matches!(
            write_indexes(dir.path(), "6.1"),
            Err(ModuleError::NotAModule(_))
        ));
    }

    #[test]
    fn a_diamond_is_not_a_circle() {
        let dir = tempfile::tempdir().unwrap();
        for (path, info) in [
            ("a.ko", "depends=b,c"),
            ("b.ko", "depends=d"),
            ("c.ko", "depends=b,d"),
            ("d.ko", ""),
        ] {
            write_module(dir.path(), path, info);
        }
        write_indexes(dir.path(), "6.1").unwrap();
        assert_eq!(
            resolve(dir.path(), &["a"]).unwrap(),
            ["d.ko", "b.ko", "c.ko", "a.ko"]
        );
    }

    #[test]
    fn a_long_chain_of_soft_dependencies_is_cut() {
        const LEN: usize = 20_000;
        let dir = tempfile::tempdir().unwrap();
        let (mut dep, mut soft) = (String::new(), String::new());
        for i in 0..LEN {
            let _ = writeln!(dep, "kernel/m{i}.ko:");
            let _ = writeln!(soft, "softdep m{i} pre: m{}", i + 1);
        }
        fs_err::write(dir.path().join("modules.dep"), dep).unwrap();
        fs_err::write(dir.path().join("modules.softdep"), soft).unwrap();
        let order = resolve(dir.path(), &["m0"]).unwrap();
        assert_eq!(order.len(), DEEPEST_SOFT + 1);
        assert_eq!(order[DEEPEST_SOFT], "kernel/m0.ko");
    }

    #[test]
    fn an_added_module_replaces_the_kernels_own() {
        let dir = tempfile::tempdir().unwrap();
        write_module(dir.path(), "kernel/a.ko", "");
        write_module(dir.path(), "updates/a.ko", "");
        write_module(dir.path(), "extra/b.ko", "");
        write_module(dir.path(), "kernel/b.ko", "");
        write_indexes(dir.path(), "6.1").unwrap();
        assert_eq!(
            resolve(dir.path(), &["a", "b"]).unwrap(),
            ["updates/a.ko", "extra/b.ko"]
        );
    }

    /// The distribution's own modprobe must find modules by the files written here.
    #[test]
    fn modprobe_reads_the_indexes() {
        let kmod = std::process::Command::new("modprobe")
            .arg("--version")
            .output()
            .is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("kmod"));
        if !kmod {
            return hostel_testkit::skip("modprobe_reads_the_indexes", "no modprobe of kmod");
        }
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("lib/modules/6.1");
        write_module(&dir, "kernel/a/virtio.ko", "name=virtio");
        write_module(
            &dir,
            "kernel/a/virtio-net.ko",
            "depends=virtio;alias=virtio:d00000001v*",
        );
        fs_err::write(dir.join("modules.builtin"), "kernel/p/pci-core.ko\n").unwrap();
        write_indexes(&dir, "6.1").unwrap();
        let ask = |what: &str| {
            let out = std::process::Command::new("modprobe")
                .args(["-C", "/dev/null", "-S", "6.1", "--show-depends", what, "-d"])
                .arg(root.path())
                .output()
                .unwrap();
            let text = String::from_utf8(out.stdout).unwrap();
            (
                out.status.success(),
                text.lines()
                    .map(|l| l.trim().rsplit('/').next().unwrap().to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(
            ask("virtio-net"),
            (true, vec!["virtio.ko".into(), "virtio-net.ko".into()])
        );
        assert_eq!(
            ask("virtio:d00000001v00001AF4"),
            (true, vec!["virtio.ko".into(), "virtio-net.ko".into()])
        );
        assert_eq!(ask("pci_core"), (true, vec!["builtin pci_core".into()]));
        assert!(!ask("nothing").0);
    }
}
