//! Names, lists, start and stop.

use hostel_tests::{
    home::Home,
    run::{DEADLINE, host, until},
};

use crate::shared::small;

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "names_are_checked_at_the_door",
        names_are_checked_at_the_door,
    ),
    (
        "the_default_follows_the_rules",
        the_default_follows_the_rules,
    ),
    (
        "start_stop_restart_and_shutdown",
        start_stop_restart_and_shutdown,
    ),
    (
        "an_idle_distribution_stops_and_a_busy_one_stays",
        an_idle_distribution_stops_and_a_busy_one_stays,
    ),
    (
        "an_ordinary_user_needs_no_rights",
        an_ordinary_user_needs_no_rights,
    ),
    (
        "help_manual_and_completions_are_complete",
        help_manual_and_completions_are_complete,
    ),
];

/// REG-1, REG-2, LIST-8.
fn names_are_checked_at_the_door() {
    let home = Home::new().unwrap();
    let archive = small();
    let archive = archive.to_str().unwrap();
    // LIST-2 on purpose otherwise: an empty list is no failure.
    assert_eq!(home.run(&["list"]).ok(), "");
    assert_eq!(home.run(&["list", "-q"]).ok(), "");
    home.import("One", small().as_path());
    for bad in ["", "a b", "a/b", ".x", "legacy", "é"] {
        let code = home.run(&["import", bad, archive]).code();
        assert!(code == 125 || code == 2, "`{bad}` gives {code}");
    }
    use std::os::unix::ffi::OsStrExt;
    let odd = std::ffi::OsStr::from_bytes(b"x\xff");
    let output = home.run(&[
        std::ffi::OsStr::new("import"),
        odd,
        std::ffi::OsStr::new(archive),
    ]);
    assert!(matches!(output.code(), 2 | 125), "{}", output.code());
    home.run(&["import", "oNE", archive]).fails(125, &["One"]);
    home.run(&["-d", "two", "--", "true"])
        .fails(125, &["two", "hostel list"]);
    home.run(&["rename", "one", "Two"]).ok();
    assert_eq!(home.run(&["list", "-q"]).ok(), "Two");
    home.run(&["rename", "two", "TWO"]).ok();
    assert_eq!(home.run(&["list", "-q"]).ok(), "TWO");
    home.run(&["rm", "one"]).fails(125, &["one"]);
    home.run(&["rm", "two"]).ok();
    assert_eq!(home.run(&["list", "-q"]).ok(), "");
    // Nothing of it is left on disk.
    assert_eq!(
        fs_err::read_dir(home.path().join("distros"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(
        fs_err::read_dir(home.path().join("bases")).unwrap().count(),
        0
    );
}

/// LIST-1 and what follows LIST-8.
fn the_default_follows_the_rules() {
    let home = Home::new().unwrap();
    for name in ["a", "b", "c"] {
        home.import(name, &small());
    }
    let default = || {
        home.json(&["status"])["default_distro"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(default(), "a");
    home.run(&["set-default", "B"]).ok();
    assert_eq!(default(), "b");
    assert_eq!(home.run(&["list", "-q"]).ok(), "b\na\nc");
    let table = home.run(&["list", "-v"]).ok();
    assert!(
        table
            .lines()
            .any(|l| l.starts_with("* b") && l.contains("Stopped")),
        "{table}"
    );
    home.run(&["rm", "b"]).ok();
    assert_eq!(default(), "a");
    // The three share one base, and removing one of them keeps it.
    let bases = fs_err::read_dir(home.path().join("bases")).unwrap();
    let images = bases
        .flatten()
        .filter(|e| e.path().extension() == Some("raw".as_ref()));
    assert_eq!(images.count(), 1);
}

fn start_stop_restart_and_shutdown() {
    let home = Home::with_kernel().unwrap();
    home.import("a", &small());
    home.import("b", &small());
    home.run(&["start", "a"]).ok();
    home.run(&["start", "a"]).ok();
    let running = || home.run(&["list", "--running", "-q"]).text();
    assert_eq!(running(), "a");
    home.sh("a", "echo kept > /kept").ok();
    home.run(&["restart", "a"]).ok();
    assert_eq!(home.sh("a", "cat /kept").ok(), "kept");
    home.sh("b", "true").ok();
    home.run(&["stop", "a"]).ok();
    // Stopping what does not run is success too.
    home.run(&["stop", "a"]).ok();
    assert!(!running().contains('a'));
    let before = home.qemu_pids();
    assert_eq!(before.len(), 1);
    home.run(&["shutdown"]).ok();
    assert_eq!(home.qemu_pids(), Vec::<u32>::new());
    assert_eq!(running(), "");
    // And again, by force, and the next command works.
    assert_eq!(home.sh("a", "cat /kept").ok(), "kept");
    home.run(&["shutdown", "--force"]).ok();
    assert_eq!(home.qemu_pids(), Vec::<u32>::new());
    assert_eq!(home.sh("a", "cat /kept").ok(), "kept");
}

/// END-2 and END-3 on purpose otherwise: a process keeps its distribution, a client need not.
fn an_idle_distribution_stops_and_a_busy_one_stays() {
    let home = Home::with_kernel()
        .unwrap()
        .env("HOSTEL_DAEMON_IDLE_MS", "1000");
    fs_err::write(
        home.config(),
        "[wsl2]\nmemory=1GB\nvmIdleTimeout=1000\n[general]\ninstanceIdleTimeout=1000\n",
    )
    .unwrap();
    home.import("idle", &small());
    home.import("busy", &small());
    home.sh("busy", "sleep 1000 > /dev/null 2>&1 &").ok();
    home.sh("idle", "true").ok();
    let state = |name: &str| {
        home.json(&["inspect", name])["distro"]["state"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    until("the idle one stops", DEADLINE, || {
        (state("idle") == "stopped").then_some(())
    })
    .unwrap();
    assert_eq!(state("busy"), "running");
    home.sh("busy", "pkill sleep || killall sleep").ok();
    until("the VM goes off", DEADLINE, || {
        home.qemu_pids().is_empty().then_some(())
    })
    .unwrap();
    // Then nothing keeps the daemon, and it leaves no socket behind.
    until("the daemon leaves", DEADLINE, || {
        home.daemon_pid().is_none().then_some(())
    })
    .unwrap();
    assert!(!home.runtime().join("api.sock").exists());
}

/// Everything works without root: import, VM, commands, export.
fn an_ordinary_user_needs_no_rights() {
    let home = Home::with_kernel().unwrap().owned_by_a_user().unwrap();
    home.import("d", &small());
    // Root inside, nobody outside.
    assert_eq!(home.sh("d", "id -u; stat -c %u /bin/busybox").ok(), "0\n0");
    let qemu = home.qemu_pids();
    let owner = host("stat", &["-c", "%u", &format!("/proc/{}", qemu[0])])
        .unwrap()
        .ok();
    assert_eq!(owner.parse().ok(), home.user());
    let out = home.scratch("out.tar");
    home.run(&["export", "d", out.to_str().unwrap()]).ok();
    assert!(fs_err::metadata(&out).unwrap().len() > 1_000_000);
    home.run(&["shutdown"]).ok();
}

fn help_manual_and_completions_are_complete() {
    let home = Home::new().unwrap();
    let help = home.run(&["--help"]).ok();
    for verb in [
        "exec",
        "import",
        "export",
        "install",
        "list",
        "start",
        "stop",
        "restart",
        "shutdown",
        "rm",
        "rename",
        "set-default",
        "status",
        "inspect",
        "kernel",
        "doctor",
        "logs",
        "debug-shell",
        "completions",
        "version",
    ] {
        assert!(help.contains(verb), "{verb} is not in {help}");
        let own = home.run(&[verb, "--help"]).ok();
        assert!(own.contains("Usage"), "{verb}: {own}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.run(&["completions", shell]).ok().contains("hostel"));
    }
    home.run(&["list", "--no-such-option"])
        .fails(2, &["--no-such-option"]);
    // None of these needs a daemon.
    assert_eq!(home.daemon_pid(), None);
}
