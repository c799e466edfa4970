//! What a module says about itself in its `.modinfo` section: NUL-separated `key=value` texts.

use crate::elf::Elf;

/// The facts that dependency order and automatic loading need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ModInfo {
    /// The kernel release it was built for: the first word of `vermagic`.
    pub(crate) release: Option<String>,
    /// Names of the modules whose symbols it uses.
    pub(crate) depends: Vec<String>,
    /// Names by which the kernel or a device asks for it; may hold wildcards.
    pub(crate) aliases: Vec<String>,
    /// Modules or aliases that should be loaded before it, when they are there.
    pub(crate) soft_pre: Vec<String>,
    /// The soft dependencies as they stand, for `modules.softdep`.
    pub(crate) softdeps: Vec<String>,
}

impl ModInfo {
    /// Reads a module; `None` when it is not an ELF file with a `.modinfo` section.
    pub(crate) fn of_module(file: &[u8]) -> Option<Self> {
        Elf::parse(file)?.section(b".modinfo").map(Self::parse)
    }

    fn parse(section: &[u8]) -> Self {
        let mut info = Self::default();
        for entry in section.split(|b| *b == 0) {
            let Some((key, value)) = std::str::from_utf8(entry)
                .ok()
                .and_then(|e| e.split_once('='))
            else {
                continue;
            };
            if value.contains(['\n', '\r']) {
                continue;
            }
            match key {
                "vermagic" => info.release = value.split(' ').next().map(str::to_owned),
                "depends" => info
                    .depends
                    .extend(value.split(',').filter(|d| !d.is_empty()).map(normal_name)),
                "alias" if !value.is_empty() && !value.contains(' ') => {
                    info.aliases.push(value.to_owned());
                }
                "softdep" => {
                    let mut pre = true;
                    for word in value.split_whitespace() {
                        match word {
                            "pre:" => pre = true,
                            "post:" => pre = false,
                            _ if pre => info.soft_pre.push(word.to_owned()),
                            _ => {}
                        }
                    }
                    info.softdeps.push(value.to_owned());
                }
                _ => {}
            }
        }
        info
    }
}

/// Returns the name of a module with `_` for `-`: file names use either, the kernel only `_`.
pub(crate) fn normal_name(name: &str) -> String {
    name.replace('-', "_")
}

/// Returns an alias with `_` for `-` outside of bracket expressions, as modprobe compares them.
pub(crate) fn normal_alias(alias: &str) -> String {
    let mut inside = false;
    alias
        .chars()
        .map(|c| {
            match c {
                '[' => inside = true,
                ']' => inside = false,
                '-' if !inside => return '_',
                _ => {}
            }
            c
        })
        .collect()
}

/// Reads `modules.builtin.modinfo` (`name.key=value`, NUL-separated): returns pairs of alias and name.
pub(crate) fn builtin_aliases(file: &[u8]) -> Vec<(String, String)> {
    file.split(|b| *b == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok())
        .filter_map(|entry| {
            let (name, rest) = entry.split_once('.')?;
            let alias = rest.strip_prefix("alias=")?;
            let plain = !alias.is_empty() && !alias.contains([' ', '\n', '\r']);
            plain.then(|| (alias.to_owned(), normal_name(name)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests as elf_file;

    #[test]
    fn the_facts_of_a_module_are_read() {
        let section = b"license=GPL\0\0depends=virtio-ring,virtio\0alias=fs-x\0alias=virtio:d00000008v*\0softdep=pre: crc32c post: late\0softdep=gcm\0vermagic=6.1.0-5 SMP preempt\0alias=bad\nline\0name=x\0";
        let info = ModInfo::of_module(&elf_file::build(&[(".modinfo", 1, section)], None)).unwrap();
        assert_eq!(info.release.as_deref(), Some("6.1.0-5"));
        assert_eq!(info.depends, ["virtio_ring", "virtio"]);
        assert_eq!(info.aliases, ["fs-x", "virtio:d00000008v*"]);
        assert_eq!(info.soft_pre, ["crc32c", "gcm"]);
        assert_eq!(info.softdeps, ["pre: crc32c post: late", "gcm"]);
        assert_eq!(ModInfo::of_module(b"text"), None);
    }

    #[test]
    fn names_and_aliases_are_normalised() {
        assert_eq!(normal_name("virtio-rng"), "virtio_rng");
        assert_eq!(normal_alias("a-b[0-9]c-d"), "a_b[0-9]c_d");
        let file = b"unix.license=GPL\0unix.alias=net-pf-1\0virtio-x.alias=v*\0odd\0";
        assert_eq!(
            builtin_aliases(file),
            [
                ("net-pf-1".to_owned(), "unix".to_owned()),
                ("v*".to_owned(), "virtio_x".to_owned())
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn any_section_is_read_without_a_panic(bytes in proptest::collection::vec(0u8.., 0..300)) {
            ModInfo::parse(&bytes);
            builtin_aliases(&bytes);
        }
    }
}
