//! Figures, and the table they are told in.

use std::{
    fmt::Write as _,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::run::host;

/// One line of the table.
pub struct Row {
    /// What was measured.
    pub what: &'static str,
    /// What the design promises.
    pub promise: &'static str,
    /// What was seen.
    pub seen: String,
    /// Whether that is as promised.
    pub kept: bool,
}

/// Returns how often each thing is measured.
pub fn rounds() -> usize {
    std::env::var("HOSTEL_BENCH_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(5)
}

/// Returns what stands above the table: the machine and the date.
pub fn head(note: &str) -> Result<String> {
    let cpu = fs_err::read_to_string("/proc/cpuinfo")?;
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map_or("", |l| l.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism()?;
    let kernel = host("uname", &["-r"])?.text();
    let qemu = host("qemu-system-x86_64", &["--version"])?.text();
    let date = host("date", &["-u", "+%Y-%m-%d"])?.text();
    let load = fs_err::read_to_string("/proc/loadavg")?;
    let rounds = rounds();
    let mut text = String::new();
    writeln!(text, "# Benchmarks\n")?;
    writeln!(
        text,
        "Made by `cargo xtask bench`; median of {rounds} rounds, things that are compared measured in turn.\n"
    )?;
    writeln!(
        text,
        "{date}; {cores} x {model}; host kernel {kernel}; {}; TCG unless KVM works on the host; load {} at the start.\n{note}\n",
        qemu.lines().next().unwrap_or_default(),
        load.split(' ').next().unwrap_or_default(),
    )?;
    writeln!(text, "| what | promise | seen | kept |\n|---|---|---|---|")?;
    Ok(text)
}

/// Prints rows, below `head` if there is one, and adds both to the report that `HOSTEL_BENCH_REPORT` names.
#[expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
pub fn hand_in(head: &str, rows: &[Row]) -> Result<()> {
    let mut text = head.to_owned();
    for row in rows {
        let kept = if row.kept { "yes" } else { "**no**" };
        writeln!(
            text,
            "| {} | {} | {} | {kept} |",
            row.what, row.promise, row.seen
        )?;
    }
    print!("{text}");
    if let Some(path) = std::env::var_os("HOSTEL_BENCH_REPORT") {
        let mut options = fs_err::OpenOptions::new();
        let mut file = options.create(true).append(true).open(path)?;
        file.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// Returns how long it takes.
pub fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Returns the one in the middle.
///
/// # Panics
///
/// When there is none.
pub fn median<T: PartialOrd + Copy>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).expect("a measured value is a number"));
    values[values.len() / 2]
}

/// Returns how many times `b` makes `a`.
pub fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}

/// Writes a duration for people.
pub fn seconds(time: Duration) -> String {
    if time < Duration::from_millis(20) {
        format!("{:.1} ms", time.as_secs_f64() * 1e3)
    } else if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}

/// Writes bytes per second for people.
pub fn rate(bytes_per_second: f64) -> String {
    format!("{:.0} Mbit/s", bytes_per_second * 8e-6)
}
