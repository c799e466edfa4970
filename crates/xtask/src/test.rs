//! Running the tests, and telling which were skipped.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::{
    build,
    run::{cargo, root, step},
};

/// Names of tests that may be skipped: see the file itself.
const ALLOWED: &str = ".ci/allowed-skips.txt";

/// Which tests are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// All.
    All,
    /// All but those that start virtual machines.
    Fast,
}

/// Builds everything and runs the tests; fails when one fails, and when one is skipped that may not be.
pub(crate) fn test(which: Which, arguments: &[&str]) -> Result<()> {
    let programs = build::build(build::Profile::Debug)?;
    let skips = tempfile::NamedTempFile::new()?;
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    let limit = match which {
        Which::All => Duration::from_secs(90 * 60),
        Which::Fast => {
            command.args(["--exclude", "hostel-tests"]);
            Duration::from_secs(45 * 60)
        }
    };
    if !arguments.is_empty() {
        command.arg("--").args(arguments);
    }
    command
        .env("HOSTEL_TEST_BIN_DIR", programs)
        .env("HOSTEL_TEST_SKIP_FILE", skips.path());
    let tested = step("test", &mut command, limit);

    let skipped = fs_err::read_to_string(skips.path())?;
    let allowed = fs_err::read_to_string(root().join(ALLOWED)).unwrap_or_default();
    let root = rustix::process::geteuid().is_root();
    let mut lines: Vec<&str> = skipped.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    if !lines.is_empty() {
        eprintln!("── {} skipped:", lines.len());
        for line in &lines {
            eprintln!("{line}");
        }
    }
    tested?;
    let refused: Vec<&str> = lines
        .into_iter()
        .filter(|line| !is_allowed(line, &allowed, root))
        .collect();
    if !refused.is_empty() {
        bail!(
            "{} skipped that are not in {ALLOWED}:\n{}",
            refused.len(),
            refused.join("\n")
        );
    }
    Ok(())
}

/// Tells whether a line `SKIPPED <test>: <reason>` is in the list.
///
/// There, a line is a test, or a test with the beginning of the reason after `: `; `*` is any test; a line behind
/// `@user ` counts only for those who are not root; `#` begins a comment.
fn is_allowed(line: &str, allowed: &str, root: bool) -> bool {
    let skipped = line.strip_prefix("SKIPPED ").unwrap_or(line);
    let reason = skipped.split_once(": ").map_or("", |(_, reason)| reason);
    allowed
        .lines()
        .map(|l| l.split('#').next().unwrap_or("").trim())
        .filter_map(|entry| match entry.strip_prefix("@user ") {
            Some(entry) => (!root).then_some(entry),
            None => Some(entry).filter(|e| !e.is_empty()),
        })
        .any(|entry| match entry.strip_prefix("*: ") {
            Some(beginning) => reason.starts_with(beginning),
            None => skipped.strip_prefix(entry).is_some_and(|rest| {
                entry.contains(": ") || rest.is_empty() || rest.starts_with(": ")
            }),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_allowed_by_test_or_by_reason() {
        let allowed = "# nothing yet\n\na_test # always\nother: needs kvm\n@user *: needs root\n";
        for (line, want) in [
            ("SKIPPED a_test: whatever", true),
            ("SKIPPED a_test2: whatever", false),
            ("SKIPPED other: needs kvm: no such file", true),
            ("SKIPPED other: needs root: not root", false),
            ("SKIPPED nothing: x", false),
        ] {
            assert_eq!(is_allowed(line, allowed, true), want, "{line}");
        }
        assert!(is_allowed(
            "SKIPPED other: needs root: not root",
            allowed,
            false
        ));
    }
}
