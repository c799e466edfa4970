//! Rules of the house that no compiler knows.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::run::{cargo, metadata, output, root};

/// Who stands where; a crate uses only what stands lower. Equal is not lower: mechanisms do not know each other.
const LAYERS: [(u8, &[&str]); 7] = [
    (0, &["hostel-model"]),
    (1, &["hostel-wslconf", "hostel-proto", "hostel-sys"]),
    (2, &["hostel-netlink"]),
    (3, &["hostel-bridge"]),
    (
        4,
        &[
            "hostel-instance",
            "hostel-rootfs",
            "hostel-disk",
            "hostel-kernel",
            "hostel-qemu",
            "hostel-vsock",
            "hostel-switch",
            "hostel-relay",
            "hostel-dns",
            "hostel-image",
        ],
    ),
    (5, &["hostel-engine"]),
    (6, &["hostel-cli", "hostel-daemon", "hostel-guest-init"]),
];

/// Beside the tree: nothing that ships uses them, except in tests.
const BESIDE: [&str; 3] = ["hostel-testkit", "hostel-xtask", "hostel-tests"];

/// What the guest uses of ours, besides foundations.
const GUEST_USES: [&str; 3] = ["hostel-instance", "hostel-netlink", "hostel-rootfs"];

/// Crates that must not be in the guest: C code, TLS, HTTP clients.
const NOT_IN_GUEST: [&str; 12] = [
    "cc",
    "ring",
    "rustls",
    "openssl",
    "native-tls",
    "reqwest",
    "ureq",
    "hyper-tls",
    "zstd",
    "liblzma",
    "bzip2",
    "aws-lc-rs",
];
/// Crates that are called `-sys` but hold no C code.
const HARMLESS_SYS: [&str; 3] = ["hostel-sys", "linux-raw-sys", "netlink-sys"];

/// The most lines a source file may have.
const LONGEST: usize = 1000;

/// Checks that every crate uses only what stands below it.
pub(crate) fn layers() -> Result<()> {
    let metadata = metadata()?;
    let mut wrong = Vec::new();
    for package in metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?
    {
        let name = package["name"].as_str().unwrap_or_default();
        let uses = package["dependencies"].as_array().into_iter().flatten();
        // Tests may stand on anything.
        let uses = uses
            .filter(|d| d["kind"].as_str() != Some("dev"))
            .filter_map(|d| d["name"].as_str());
        wrong.extend(
            uses.filter(|used| used.starts_with("hostel-"))
                .filter_map(|used| judge(name, used)),
        );
        if layer(name).is_none() && !BESIDE.contains(&name) {
            wrong.push(format!(
                "{name} has no place in the layers (crates/xtask/src/house.rs)"
            ));
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        bail!("{}", wrong.join("; "))
    }
}

fn layer(name: &str) -> Option<u8> {
    LAYERS
        .iter()
        .find(|(_, names)| names.contains(&name))
        .map(|(layer, _)| *layer)
}

/// Says what is wrong with one crate using another; `None` when nothing is.
fn judge(user: &str, used: &str) -> Option<String> {
    let wrong = match (layer(user), layer(used)) {
        (Some(2..), Some(0..=1)) | (Some(1), Some(0)) => false,
        _ if user == "hostel-guest-init" => !GUEST_USES.contains(&used),
        (Some(user), Some(used)) => used >= user,
        // Beside the tree: the tests use the fixtures, and for fuzzing what parses; never the engine or programs.
        (None, Some(used)) => !(user == "hostel-tests" && used <= 4),
        (None, None) => !(user == "hostel-tests" && used == "hostel-testkit"),
        (Some(_), None) => true,
    };
    wrong.then(|| format!("{user} must not use {used}"))
}

/// Checks that nothing in the guest needs C code, TLS or an HTTP client.
pub(crate) fn guest_tree() -> Result<()> {
    let tree = output(&mut cargo(&[
        "tree",
        "--package",
        "hostel-guest-init",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]))?;
    let mut bad: Vec<&str> = tree
        .lines()
        .filter_map(|l| l.split(' ').next())
        .filter(|name| is_barred(name))
        .collect();
    bad.sort_unstable();
    bad.dedup();
    if bad.is_empty() {
        Ok(())
    } else {
        bail!("hostel-guest-init must not depend on {}", bad.join(", "))
    }
}

fn is_barred(name: &str) -> bool {
    NOT_IN_GUEST.contains(&name) || (name.ends_with("-sys") && !HARMLESS_SYS.contains(&name))
}

/// Checks the length of source files, and that no test is switched off.
pub(crate) fn sources() -> Result<()> {
    let root = root();
    let list = output(
        Command::new("git")
            .args([
                "ls-files",
                "--cached",
                "--others",
                "--exclude-standard",
                "-z",
            ])
            .current_dir(&root),
    )?;
    let mut wrong = Vec::new();
    for name in list.split('\0').filter(|n| is_source(n)) {
        // Deleted, but not yet in the index.
        let Ok(text) = fs_err::read_to_string(root.join(name)) else {
            continue;
        };
        wrong.extend(judge_source(name, &text));
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        bail!("{}", wrong.join("; "))
    }
}

fn is_source(name: &str) -> bool {
    let path = Path::new(name);
    path.extension().is_some_and(|e| e == "rs" || e == "proto")
        || name.starts_with("scripts/")
        || name.starts_with(".ci/")
}

fn judge_source(name: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let lines = text.lines().count();
    if lines > LONGEST {
        wrong.push(format!("{name} has {lines} lines, {LONGEST} are allowed"));
    }
    let off = concat!("#[", "ignore");
    if let Some(line) = text.lines().position(|l| l.trim_start().starts_with(off)) {
        wrong.push(format!("{name}:{} switches a test off", line + 1));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_use_whom() {
        for (user, used, good) in [
            ("hostel-engine", "hostel-disk", true),
            ("hostel-disk", "hostel-model", true),
            ("hostel-proto", "hostel-model", true),
            ("hostel-disk", "hostel-rootfs", false),
            ("hostel-proto", "hostel-sys", false),
            ("hostel-disk", "hostel-engine", false),
            ("hostel-model", "hostel-sys", false),
            ("hostel-daemon", "hostel-engine", true),
            ("hostel-guest-init", "hostel-instance", true),
            ("hostel-guest-init", "hostel-sys", true),
            ("hostel-guest-init", "hostel-kernel", false),
            ("hostel-guest-init", "hostel-engine", false),
            ("hostel-disk", "hostel-testkit", false),
            ("hostel-tests", "hostel-testkit", true),
            ("hostel-tests", "hostel-rootfs", true),
            ("hostel-tests", "hostel-engine", false),
            ("hostel-testkit", "hostel-model", false),
            ("hostel-xtask", "hostel-model", false),
        ] {
            assert_eq!(judge(user, used).is_none(), good, "{user} -> {used}");
        }
    }

    #[test]
    fn this_workspace_keeps_the_rules() {
        layers().unwrap();
        guest_tree().unwrap();
        sources().unwrap();
    }

    #[test]
    fn c_code_is_known_by_name() {
        assert!(is_barred("libz-sys") && is_barred("ring"));
        assert!(!is_barred("linux-raw-sys") && !is_barred("hyper"));
    }

    #[test]
    fn long_files_and_switched_off_tests_are_found() {
        assert!(judge_source("a.rs", "fn a() {}\n").is_empty());
        assert_eq!(
            judge_source("a.rs", &"x\n".repeat(1001)),
            ["a.rs has 1001 lines, 1000 are allowed"]
        );
        let off = format!("#[test]\n    {}ignore]\n", "#[");
        assert_eq!(judge_source("a.rs", &off), ["a.rs:2 switches a test off"]);
    }
}
