//! The benchmarks of the promises, and the page that tells their result.

use std::{io, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::{
    build,
    run::{cargo, root, step},
};

/// The page, in the repository.
const PAGE: &str = "docs/benchmarks.md";
/// Where the part begins that people write, and that stays when the rest is made anew.
const BY_HAND: &str = "## What is left and why";
/// The benchmarks, each of which adds rows to one table; the first writes what stands above it.
const BENCHES: [(&str, &str); 3] = [
    ("hostel-tests", "promises"),
    ("hostel-tests", "network"),
    ("hostel-relay", "relay"),
];
/// How long all rounds of one may take.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// Builds everything for release, measures, and writes the page; `rounds` of each measurement, 5 unless given.
pub(crate) fn bench(rounds: Option<&str>) -> Result<()> {
    if let Some(text) = rounds
        && !text.parse::<u32>().is_ok_and(|n| (1..=100).contains(&n))
    {
        bail!("`{text}` is not a number of rounds from 1 to 100");
    }
    let programs = build::build(build::Profile::Release)?;
    let report = tempfile::NamedTempFile::new()?;
    for (package, bench) in BENCHES {
        let words = ["bench", "--package", package, "--bench", bench];
        // Compiled before anything is measured.
        step(
            "build the benchmark",
            cargo(&words).arg("--no-run"),
            build::BUILD_LIMIT,
        )?;
        let mut command = cargo(&words);
        command
            .env("HOSTEL_TEST_BIN_DIR", &programs)
            .env("HOSTEL_BENCH_REPORT", report.path());
        if let Some(rounds) = rounds {
            command.env("HOSTEL_BENCH_ROUNDS", rounds);
        }
        step(bench, &mut command, LIMIT)?;
    }
    let made = fs_err::read_to_string(report.path())?;
    if made.is_empty() {
        bail!("the benchmark wrote no report");
    }
    let page = root().join(PAGE);
    write(&page, &made).with_context(|| format!("cannot write {}", page.display()))
}

/// Replaces the generated part of the page.
fn write(page: &Path, made: &str) -> io::Result<()> {
    let old = match fs_err::read_to_string(page) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    fs_err::write(page, merge(made, &old))
}

/// Returns the generated part followed by the part of the old page that people wrote.
fn merge(made: &str, old: &str) -> String {
    let by_hand = old.find(BY_HAND).map_or(BY_HAND, |at| &old[at..]);
    format!("{}\n\n{}\n", made.trim_end(), by_hand.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_stays_when_the_rest_is_made_anew() {
        let first = merge("# Benchmarks\n\n| 1 |\n", "");
        assert_eq!(first, "# Benchmarks\n\n| 1 |\n\n## What is left and why\n");
        let edited = format!("{first}\nBecause.\n");
        assert_eq!(
            merge("# Benchmarks\n\n| 2 |\n", &edited),
            "# Benchmarks\n\n| 2 |\n\n## What is left and why\n\nBecause.\n"
        );
    }
}
