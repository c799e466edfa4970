//! The promises of the design, measured in one run: `cargo xtask bench` writes `docs/benchmarks.md` from this.
//!
//! Two things that are compared are measured in turn, in the same run; the figure is the ratio of their medians. Nothing
//! here passes or fails a test: the table says which promise was kept.

use std::{
    ffi::OsString,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hostel_testkit::Need;
use hostel_tests::{
    bench::{
        Row, hand_in, head,
        machine::{CommandLine, Initramfs},
        median, ratio, rounds, seconds, time,
    },
    home::Home,
    run::{DEADLINE, Running, host},
    world,
};

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some(world::internet::ROLE) {
        return world::internet::serve();
    }
    if std::env::args().any(|a| a == "--test" || a == "--list") {
        return Ok(());
    }
    for need in [
        Need::Root,
        Need::Program("qemu-system-x86_64"),
        Need::Program("mmdebstrap"),
    ] {
        if hostel_testkit::require("bench promises", need).is_none() {
            return Ok(());
        }
    }
    // What comes from the real network is fetched before the door closes.
    let debian = hostel_testkit::debian_tar("bookworm")?;
    let small = hostel_testkit::busybox_tar()?;
    world::kernel_store()?;
    world::enter()?;
    let rounds = rounds();
    let size = fs_err::metadata(&debian)?.len() >> 20;
    let head = head(&format!("The archive: {size} MiB."))?;
    let mut rows = Vec::new();

    imports(&debian, rounds, &mut rows)?;
    let home = Home::with_kernel()?;
    for name in ["a", "b"] {
        home.import(name, &debian);
    }
    for n in 0..5 {
        home.import(&format!("idle{n}"), &small);
    }
    cold(&home, rounds, &mut rows)?;
    warm(&home, rounds, &mut rows);
    memory(&home, &mut rows)?;
    throughput(&home, &mut rows)?;
    home.run(&["shutdown"]).ok();
    sizes(&mut rows)?;

    hand_in(&head, &rows)
}

/// Import of a Debian tar, beside the same by tar and mke2fs; import of the same image again.
fn imports(debian: &Path, rounds: usize, rows: &mut Vec<Row>) -> Result<()> {
    let (mut ours, mut theirs, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let home = Home::new()?;
        home.json(&["status"]);
        ours.push(time(|| home.import("d", debian)));
        again.push(time(|| home.import("e", debian)));
        let dir = home.scratch("tree");
        fs_err::create_dir(&dir)?;
        let line = format!(
            "tar -C {0} -xpf {1} && mke2fs -q -t ext4 -d {0} -E lazy_itable_init=1 {2} 4G",
            dir.display(),
            debian.display(),
            home.scratch("x.raw").display()
        );
        theirs.push(time(|| {
            drop(host("sh", &["-c", &line]).map(hostel_tests::run::Output::ok));
        }));
    }
    let size = fs_err::metadata(debian)?.len() >> 20;
    let (ours, theirs, again) = (median(ours), median(theirs), median(again));
    rows.push(Row {
        what: "import of a Debian 12 tar",
        promise: "≤ 2 s",
        seen: format!(
            "{} for {size} MiB ({:.2} x of tar + mke2fs as root)",
            seconds(ours),
            ratio(ours, theirs)
        ),
        kept: ours <= Duration::from_secs(2),
    });
    rows.push(Row {
        what: "import of a known image",
        promise: "≤ 200 ms",
        seen: seconds(again),
        kept: again <= Duration::from_millis(200),
    });
    Ok(())
}

/// The first command with the VM off, beside the bare boot of the same kernel with an empty init.
fn cold(home: &Home, rounds: usize, rows: &mut Vec<Row>) -> Result<()> {
    // One start that counts for nothing makes the boot image and shows QEMU's own command line.
    home.sh("a", "true").ok();
    let bare = BareBoot::like(
        home.qemu_pids().first().copied().context("a VM runs")?,
        home,
    )?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        home.run(&["shutdown"]).ok();
        theirs.push(bare.boot()?);
        ours.push(time(|| drop(home.sh("a", "true").ok())));
    }
    let (ours, theirs) = (median(ours), median(theirs));
    rows.push(Row {
        what: "cold `hostel -d a -- true`, VM off",
        promise: "≤ 1.35 x the bare boot",
        seen: format!(
            "{} = {:.2} x {}",
            seconds(ours),
            ratio(ours, theirs),
            seconds(theirs)
        ),
        kept: ratio(ours, theirs) <= 1.35,
    });
    Ok(())
}

/// A second distribution, and commands in a running one.
fn warm(home: &Home, rounds: usize, rows: &mut Vec<Row>) {
    home.sh("a", "true").ok();
    let mut second = Vec::new();
    for _ in 0..rounds {
        second.push(time(|| drop(home.sh("b", "true").ok())));
        home.run(&["stop", "b"]).ok();
    }
    let second = median(second);
    rows.push(Row {
        what: "second distribution, VM on: first command",
        promise: "≤ 0.6 s under TCG",
        seen: seconds(second),
        kept: second <= Duration::from_millis(600),
    });
    let warm = median(
        (0..rounds * 4)
            .map(|_| time(|| drop(home.sh("a", "true").ok())))
            .collect(),
    );
    let exec = median(
        (0..rounds * 4)
            .map(|_| time(|| drop(home.run(&["exec", "a", "--", "true"]).ok())))
            .collect(),
    );
    rows.push(Row {
        what: "command in a running distribution",
        promise: "≤ 80 ms under TCG",
        seen: format!(
            "{} through the shell, {} by exec",
            seconds(warm),
            seconds(exec)
        ),
        kept: exec <= Duration::from_millis(80),
    });
}

/// What one more idle distribution costs the guest, and what the idle daemon holds.
fn memory(home: &Home, rows: &mut Vec<Row>) -> Result<()> {
    // Only memory that cannot be given back counts: page cache and reclaimable slabs are left out on both sides.
    let held = || -> Result<i64> {
        let text = home
            .sh("a", "sync; echo 3 > /proc/sys/vm/drop_caches; awk '/^(MemTotal|MemAvailable):/{print $2}' /proc/meminfo")
            .ok();
        let mut numbers = text.lines().map(str::parse::<i64>);
        let (total, available) = (
            numbers.next().context("MemTotal")??,
            numbers.next().context("MemAvailable")??,
        );
        Ok(total - available)
    };
    home.run(&["start", "a"]).ok();
    let before = held()?;
    for n in 0..5 {
        home.run(&["start", &format!("idle{n}")]).ok();
    }
    let each = (held()? - before) as f64 / 5.0 / 1024.0;
    rows.push(Row {
        what: "guest memory of one more idle distribution",
        promise: "≤ 3 MiB",
        seen: format!("{each:.1} MiB (mean of 5)"),
        kept: each <= 3.0,
    });
    let pid = home.daemon_pid().context("the daemon runs")?;
    let status = fs_err::read_to_string(format!("/proc/{pid}/status"))?;
    let resident: u64 = status
        .lines()
        .find_map(|l| l.strip_prefix("RssAnon:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").trim().parse().ok())
        .context("RssAnon")?;
    let all: u64 = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").trim().parse().ok())
        .context("VmRSS")?;
    let shmem: u64 = status
        .lines()
        .find_map(|l| l.strip_prefix("RssShmem:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").trim().parse().ok())
        .unwrap_or(0);
    let own = all - shmem;
    rows.push(Row {
        what: "hosteld resident, VM and six distributions running",
        promise: "≤ 30 MB",
        seen: format!(
            "{:.1} MB ({:.1} MB of it anonymous; the guest's RAM that it maps for the channel is not counted)",
            own as f64 / 1024.0,
            resident as f64 / 1024.0
        ),
        kept: own <= 30 * 1024,
    });
    Ok(())
}

/// Bytes through pipes, both ways.
fn throughput(home: &Home, rows: &mut Vec<Row>) -> Result<()> {
    const MIB: u64 = 128;
    let hostel = world::program("hostel");
    let run = |line: String| -> Result<Duration> {
        let mut command = Command::new("bash");
        command.args(["-o", "pipefail", "-c", &line]);
        home.prepare(&mut command);
        let start = Instant::now();
        Running::start(&mut command, None)?.wait(DEADLINE)?.ok();
        Ok(start.elapsed())
    };
    let inward = run(format!(
        "head -c {MIB}M /dev/zero | {} -d a -- 'cat > /dev/null'",
        hostel.display()
    ))?;
    let outward = run(format!(
        "{} -d a -- 'head -c {MIB}M /dev/zero' > /dev/null",
        hostel.display()
    ))?;
    let rate = |d: Duration| MIB as f64 / d.as_secs_f64();
    rows.push(Row {
        what: "bytes through a session's pipes",
        promise: "25–40 MiB/s was measured for the channel alone",
        seen: format!(
            "{:.0} MiB/s in, {:.0} MiB/s out",
            rate(inward),
            rate(outward)
        ),
        kept: rate(inward) >= 25.0 && rate(outward) >= 25.0,
    });
    Ok(())
}

/// Sizes of what is shipped.
fn sizes(rows: &mut Vec<Row>) -> Result<()> {
    let init = fs_err::metadata(world::program("hostel-init"))?.len();
    rows.push(Row {
        what: "static /init",
        promise: "≤ 3 MB",
        seen: format!("{:.2} MB", init as f64 / 1e6),
        kept: init <= 3_000_000,
    });
    Ok(())
}

/// The same kernel on the same QEMU with an init that only says it is there.
struct BareBoot {
    arguments: Vec<OsString>,
    _dir: tempfile::TempDir,
}

impl BareBoot {
    /// Takes machine, processor, memory, firmware, kernel and kernel command line from a running QEMU of ours.
    fn like(pid: u32, home: &Home) -> Result<Self> {
        let dir = tempfile::tempdir_in(home.scratch("").parent().unwrap_or(Path::new("/tmp")))?;
        let init =
            "#!/bin/busybox sh\n/bin/busybox echo BARE-INIT-IS-THERE\n/bin/busybox poweroff -f\n";
        let initrd = dir.path().join("i.cpio");
        fs_err::write(&initrd, Initramfs::new(init)?.finish())?;
        Ok(Self {
            arguments: CommandLine::of(pid)?.bare(&initrd)?,
            _dir: dir,
        })
    }

    /// Boots once; returns the time from the start of QEMU to the word of the init.
    fn boot(&self) -> Result<Duration> {
        use std::io::{BufRead, BufReader};
        let start = Instant::now();
        let mut child = Command::new("qemu-system-x86_64")
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("qemu-system-x86_64")?;
        let mut seen = None;
        for line in BufReader::new(child.stdout.take().context("stdout is piped")?).lines() {
            if line?.contains("BARE-INIT-IS-THERE") {
                seen = Some(start.elapsed());
                break;
            }
        }
        child.kill()?;
        child.wait()?;
        seen.context("the bare boot says nothing")
    }
}
