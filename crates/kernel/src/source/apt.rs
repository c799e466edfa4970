//! Fetching a kernel package with apt, which verifies it against the archive's signature. Works as an ordinary user.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use super::SourceError;
use crate::store::{Progress, Step};

/// Packages that stand for the kernel that is wanted, the best first: Debian's for virtual machines, Ubuntu's, and
/// those for any machine.
const META: [&str; 4] = [
    "linux-image-cloud-amd64",
    "linux-image-virtual",
    "linux-image-amd64",
    "linux-image-generic",
];

/// More packages than these are never needed for one kernel.
const MOST_PACKAGES: usize = 8;

/// Tells whether apt is installed.
pub(super) fn is_there() -> bool {
    ["apt-cache", "apt-get"].into_iter().all(|program| {
        Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    })
}

/// Downloads the packages that make up the kernel into an empty directory; returns their paths and a text that names
/// them.
pub(super) fn fetch(
    dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Vec<PathBuf>, String), SourceError> {
    progress(Progress::start(Step::Find));
    let mut names = BTreeSet::new();
    for meta in META {
        names = packages_of(meta, &mut show)?;
        if !names.is_empty() {
            break;
        }
    }
    if names.is_empty() {
        return Err(SourceError::AptKnowsNone(META.join(", ")));
    }
    progress(Progress::start(Step::Fetch));
    let mut get = Command::new("apt-get");
    get.args([
        "--quiet",
        "--option",
        "APT::Get::AllowUnauthenticated=false",
        "download",
    ])
    .args(&names)
    .current_dir(dir);
    run(&mut get, "apt-get download")?;
    let mut packages = Vec::new();
    for entry in fs_err::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            packages.push(path);
        }
    }
    packages.sort();
    let named = packages
        .iter()
        .filter_map(|p| p.file_stem())
        .map(|n| n.to_string_lossy().replace("%3a", ":"))
        .collect::<Vec<_>>();
    Ok((packages, format!("apt ({})", named.join(", "))))
}

/// Returns the real packages behind one that stands for a kernel: everything it depends on that holds a kernel image
/// or modules. Empty when apt does not know it.
fn packages_of(
    meta: &str,
    show: &mut dyn FnMut(&str) -> Result<Option<String>, SourceError>,
) -> Result<BTreeSet<String>, SourceError> {
    let mut real = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut todo = vec![meta.to_owned()];
    while let Some(name) = todo.pop() {
        if seen.len() >= MOST_PACKAGES || !seen.insert(name.clone()) {
            continue;
        }
        let Some(record) = show(&name)? else { continue };
        let field = |key: &str| {
            record
                .lines()
                .find_map(|l| l.strip_prefix(key))
                .unwrap_or("")
        };
        // A package that only stands for others is a few kilobytes when installed.
        let installed_kib: u64 = field("Installed-Size: ").trim().parse().unwrap_or(0);
        if installed_kib > 1024 {
            real.insert(name);
        }
        // The image package for the size and not the parts that only physical machines need.
        todo.extend(kernel_dependencies(field("Depends: ")));
    }
    Ok(real)
}

/// Returns the kernel packages of a `Depends` field: of alternatives the first, without versions.
fn kernel_dependencies(field: &str) -> impl Iterator<Item = String> {
    field
        .split(',')
        .filter_map(|alternatives| alternatives.split('|').next())
        .filter_map(|dependency| dependency.split(['(', ':']).next())
        .map(str::trim)
        .filter(|name| {
            ["linux-image-", "linux-modules-", "linux-binary-"]
                .iter()
                .any(|p| name.starts_with(p))
        })
        .filter(|name| !name.starts_with("linux-modules-extra-"))
        .filter(|name| {
            name.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'+' | b'~'))
        })
        .map(str::to_owned)
}

/// Returns apt's record of a package's candidate; `None` when there is none.
fn show(name: &str) -> Result<Option<String>, SourceError> {
    let output = start(
        Command::new("apt-cache").args(["show", "--no-all-versions", name]),
        "apt-cache",
    )?;
    Ok((output.status.success() && !output.stdout.is_empty())
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

fn run(command: &mut Command, shown: &str) -> Result<(), SourceError> {
    let output = start(command, "apt-get")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let mut lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .rev()
        .take(4)
        .collect();
    lines.reverse();
    let mut message = if lines.is_empty() {
        output.status.to_string()
    } else {
        lines.join("; ")
    };
    if said.contains("404") {
        message.push_str("; apt's lists are old, run `sudo apt-get update` and try again");
    }
    Err(SourceError::Apt {
        command: shown.to_owned(),
        message,
    })
}

fn start(command: &mut Command, program: &'static str) -> Result<Output, SourceError> {
    command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| SourceError::Run { program, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(records: &[(&str, &str)], meta: &str) -> Vec<String> {
        let mut show = |name: &str| {
            Ok(records
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, r)| (*r).to_owned()))
        };
        packages_of(meta, &mut show).unwrap().into_iter().collect()
    }

    #[test]
    fn the_real_packages_are_found_in_debian_and_ubuntu() {
        let debian = [
            (
                "linux-image-cloud-amd64",
                "Package: x\nInstalled-Size: 13\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n",
            ),
            (
                "linux-image-6.1.0-56-cloud-amd64",
                "Installed-Size: 104000\nDepends: kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool\n",
            ),
        ];
        assert_eq!(
            resolve(&debian, "linux-image-cloud-amd64"),
            ["linux-image-6.1.0-56-cloud-amd64"]
        );
        let ubuntu = [
            (
                "linux-image-virtual",
                "Installed-Size: 20\nDepends: linux-image-6.8.0-40-generic, linux-modules-extra-6.8.0-40-generic\n",
            ),
            (
                "linux-image-6.8.0-40-generic",
                "Installed-Size: 14500\nDepends: kmod, linux-base (>= 4.5), linux-modules-6.8.0-40-generic\n",
            ),
            (
                "linux-modules-6.8.0-40-generic",
                "Installed-Size: 170000\nDepends: linux-image-6.8.0-40-generic | linux-image-unsigned-6.8.0-40-generic\n",
            ),
        ];
        assert_eq!(
            resolve(&ubuntu, "linux-image-virtual"),
            [
                "linux-image-6.8.0-40-generic",
                "linux-modules-6.8.0-40-generic"
            ]
        );
        assert!(resolve(&ubuntu, "linux-image-cloud-amd64").is_empty());
    }
}
