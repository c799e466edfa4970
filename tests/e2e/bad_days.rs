//! What must go on when something is killed, stale, missing, cut or full.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use hostel_tests::{
    home::{Home, kill},
    run::{DEADLINE, host, until},
};
use rustix::process::Signal;

use crate::shared::small;

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "two_clients_at_the_same_instant_share_one_daemon",
        two_clients_at_the_same_instant_share_one_daemon,
    ),
    (
        "a_second_daemon_names_the_first",
        a_second_daemon_names_the_first,
    ),
    ("stale_files_do_not_matter", stale_files_do_not_matter),
    (
        "a_killed_daemon_leaves_nothing_and_the_next_command_works",
        a_killed_daemon_leaves_nothing_and_the_next_command_works,
    ),
    (
        "a_killed_vm_is_told_and_the_next_command_works",
        a_killed_vm_is_told_and_the_next_command_works,
    ),
    (
        "a_killed_agent_does_not_lose_the_machine",
        a_killed_agent_does_not_lose_the_machine,
    ),
    (
        "a_killed_init_ends_its_distribution_only",
        a_killed_init_ends_its_distribution_only,
    ),
    (
        "a_killed_client_in_an_import_leaves_nothing",
        a_killed_client_in_an_import_leaves_nothing,
    ),
    (
        "a_daemon_killed_in_an_import_leaves_nothing",
        a_daemon_killed_in_an_import_leaves_nothing,
    ),
    (
        "a_cut_state_file_loses_nothing",
        a_cut_state_file_loses_nothing,
    ),
    ("what_is_missing_is_named", what_is_missing_is_named),
    (
        "too_little_memory_is_said_before_the_start",
        too_little_memory_is_said_before_the_start,
    ),
    (
        "a_root_without_a_shell_is_an_error_and_not_a_hang",
        a_root_without_a_shell_is_an_error_and_not_a_hang,
    ),
    (
        "a_foreign_runtime_directory_is_refused",
        a_foreign_runtime_directory_is_refused,
    ),
    (
        "a_hung_machine_goes_down_by_force",
        a_hung_machine_goes_down_by_force,
    ),
    (
        "a_kernel_that_changes_its_own_code_goes_on",
        a_kernel_that_changes_its_own_code_goes_on,
    ),
];

fn two_clients_at_the_same_instant_share_one_daemon() {
    let home = Home::with_kernel().unwrap();
    home.import("d", &small());
    home.run(&["shutdown"]).ok();
    if let Some(pid) = home.daemon_pid() {
        kill(pid, Signal::TERM);
        until("the daemon leaves", DEADLINE, || {
            home.daemon_pid().is_none().then_some(())
        })
        .unwrap();
    }
    let clients: Vec<_> = (0..4)
        .map(|i| home.start(&["-d", "d", "--", &format!("echo {i}")]))
        .collect();
    for (i, client) in clients.into_iter().enumerate() {
        assert_eq!(client.wait(DEADLINE).unwrap().ok(), i.to_string());
    }
    assert_eq!(home.qemu_pids().len(), 1);
}

fn a_second_daemon_names_the_first() {
    let home = Home::new().unwrap();
    home.run(&["list", "-q"]).ok();
    home.json(&["status"]);
    let first = home.daemon_pid().expect("the first one runs");
    let mut command = std::process::Command::new(hostel_tests::world::program("hosteld"));
    home.prepare(&mut command);
    let output = hostel_tests::run::Running::start(&mut command, None)
        .unwrap()
        .wait(DEADLINE)
        .unwrap();
    assert!(!output.status.success());
    assert!(
        output.stderr.contains(&first.to_string()),
        "{}",
        output.stderr
    );
}

fn stale_files_do_not_matter() {
    let home = Home::with_kernel().unwrap();
    fs_err::create_dir_all(home.runtime()).unwrap();
    fs_err::set_permissions(home.runtime(), std::fs::Permissions::from_mode(0o700)).unwrap();
    for name in ["api.sock", "stream.sock", "daemon.lock", "start.lock"] {
        fs_err::write(home.runtime().join(name), "999999\n").unwrap();
    }
    home.import("d", &small());
    assert_eq!(home.sh("d", "echo works").ok(), "works");
}

/// Waits until the command `sleep 1000` of another client runs in a distribution.
fn wait_for_sleeper(home: &Home, distro: &str) {
    until("the command runs", DEADLINE, || {
        let seen = home.sh(distro, "ps | grep '[s]leep 1000'");
        seen.status.success().then_some(())
    })
    .unwrap();
}

fn a_killed_daemon_leaves_nothing_and_the_next_command_works() {
    let home = Home::with_kernel().unwrap();
    home.import("d", &small());
    home.sh("d", "echo kept > /kept; sync").ok();
    let client = home.start(&["-d", "d", "--", "sleep 1000"]);
    wait_for_sleeper(&home, "d");
    kill(home.daemon_pid().unwrap(), Signal::KILL);
    client.wait(DEADLINE).unwrap().fails(125, &[]);
    until("QEMU is gone too", DEADLINE, || {
        home.qemu_pids().is_empty().then_some(())
    })
    .unwrap();
    assert_eq!(home.sh("d", "cat /kept").ok(), "kept");
}

fn a_killed_vm_is_told_and_the_next_command_works() {
    let home = Home::with_kernel().unwrap();
    home.import("d", &small());
    let client = home.start(&["-d", "d", "--", "echo there; sleep 1000"]);
    wait_for_sleeper(&home, "d");
    kill(home.qemu_pids()[0], Signal::KILL);
    let said = client.wait(DEADLINE).unwrap().fails(125, &[]);
    assert!(said.contains("VM") || said.contains("QEMU"), "{said}");
    assert_eq!(home.sh("d", "echo again").ok(), "again");
    assert!(home.json(&["status"])["vm"]["state"] == "running");
}

fn a_killed_agent_does_not_lose_the_machine() {
    let home = Home::with_kernel().unwrap();
    home.import("d", &small());
    home.run(&["start", "d"]).ok();
    let agent = || {
        let table = home.run(&["debug-shell", "--", "ps"]).ok();
        let line = table.lines().find(|l| l.ends_with("init agent"));
        let line = line.unwrap_or_else(|| panic!("no agent in {table}"));
        line.split_whitespace().next().unwrap().to_owned()
    };
    let before = agent();
    let qemu = home.qemu_pids();
    // The session that does it dies with the agent.
    home.run(&["debug-shell", "--", "kill", "-9", &before])
        .fails(125, &[]);
    assert_eq!(home.sh("d", "echo again").ok(), "again");
    assert_ne!(agent(), before);
    assert_eq!(home.qemu_pids(), qemu, "the machine is the same one");
}

fn a_killed_init_ends_its_distribution_only() {
    let home = Home::with_kernel().unwrap();
    home.import("a", &small());
    home.import("b", &small());
    home.sh("b", "echo there").ok();
    let client = home.start(&["-d", "a", "--", "sleep 1000"]);
    let pid = until("a runs", DEADLINE, || {
        home.json(&["inspect", "a"])["distro"]["init_pid"]
            .as_u64()
            .filter(|p| *p > 0)
    })
    .unwrap();
    wait_for_sleeper(&home, "a");
    // SIGKILL from the machine's own PID namespace; from inside it PID 1 is immune.
    home.run(&["debug-shell", "--", "kill", "-9", &pid.to_string()])
        .ok();
    // The command is killed with its PID namespace. Which is noticed first is a race: its end, or the distribution's.
    let output = client.wait(DEADLINE).unwrap();
    assert!(
        output.code() == 137 || (output.code() == 125 && output.stderr.contains("error: ")),
        "exit {}: {}",
        output.code(),
        output.stderr
    );
    assert_eq!(home.sh("b", "echo still there").ok(), "still there");
    assert_eq!(home.sh("a", "echo again").ok(), "again");
}

/// Feeds an import slowly so that it can be killed in the middle.
fn slow_import(home: &Home) -> hostel_tests::run::Running {
    let mut command = std::process::Command::new("bash");
    let hostel = hostel_tests::world::program("hostel");
    command.args([
        "-c",
        &format!(
            "(head -c 600000 {}; sleep 600) | exec {} import slow -",
            small().display(),
            hostel.display()
        ),
    ]);
    home.prepare(&mut command);
    let running = hostel_tests::run::Running::start(&mut command, None).unwrap();
    until("the import is under way", DEADLINE, || {
        fs_err::read_dir(home.path().join("bases"))
            .ok()
            .and_then(|mut d| d.next())
            .map(|_| ())
    })
    .unwrap();
    running
}

fn nothing_is_left(home: &Home) {
    until(
        "nothing is left of the import",
        Duration::from_secs(30),
        || {
            ["distros", "bases"]
                .iter()
                .all(|d| fs_err::read_dir(home.path().join(d)).map_or(0, Iterator::count) == 0)
                .then_some(())
        },
    )
    .unwrap();
    home.import("slow", &small());
}

fn a_killed_client_in_an_import_leaves_nothing() {
    let home = Home::new().unwrap();
    drop(slow_import(&home));
    nothing_is_left(&home);
}

fn a_daemon_killed_in_an_import_leaves_nothing() {
    let home = Home::new().unwrap();
    let import = slow_import(&home);
    kill(home.daemon_pid().unwrap(), Signal::KILL);
    drop(import);
    home.run(&["status"]).ok();
    nothing_is_left(&home);
}

fn a_cut_state_file_loses_nothing() {
    let home = Home::new().unwrap();
    home.import("one", &small());
    home.import("two", &small());
    home.close().unwrap();
    let registry = home.path().join("registry.json");
    let whole = fs_err::read(&registry).unwrap();
    for cut in [0, 1, whole.len() / 2, whole.len() - 2] {
        fs_err::write(&registry, &whole[..cut]).unwrap();
        let names = home.run(&["list", "-q"]);
        let mut names: Vec<String> = names.ok().lines().map(str::to_owned).collect();
        names.sort();
        assert_eq!(names, ["one", "two"], "cut at {cut}");
        home.close().unwrap();
    }
}

fn what_is_missing_is_named() {
    let home = Home::new().unwrap();
    home.import("d", &small());
    home.sh("d", "true").fails(125, &["hostel kernel install"]);
    home.close().unwrap();
    home.adopt_kernel(&hostel_tests::world::kernel_store().unwrap())
        .unwrap();
    let home = home.env("PATH", "/not/there");
    home.sh("d", "true")
        .fails(125, &["qemu-system-x86_64", "apt-get install"]);
    home.run(&["doctor"]).fails(1, &[]);
    drop(home);
    // A module that is needed and gone.
    let home = Home::with_kernel().unwrap();
    home.import("d", &small());
    let gone = host(
        "find",
        &[
            home.path().join("kernels").to_str().unwrap(),
            "-name",
            "virtio_scsi.ko*",
        ],
    )
    .unwrap()
    .ok();
    fs_err::remove_file(&gone).unwrap();
    home.sh("d", "true").fails(125, &["virtio_scsi"]);
}

fn too_little_memory_is_said_before_the_start() {
    let home = Home::with_kernel().unwrap();
    home.import("d", &small());
    home.close().unwrap();
    // A host with 100 MiB left, as this home's daemon sees it.
    let fake = home.scratch("meminfo");
    fs_err::write(
        &fake,
        "MemTotal: 2000000 kB\nMemFree: 100000 kB\nMemAvailable: 100000 kB\n",
    )
    .unwrap();
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-ec"]);
    command.arg(format!(
        "mount --bind {} /proc/meminfo; exec {} -d d -- true",
        fake.display(),
        hostel_tests::world::program("hostel").display()
    ));
    home.prepare(&mut command);
    let running = hostel_tests::run::Running::start(&mut command, None).unwrap();
    running.wait(DEADLINE).unwrap().fails(125, &["memory"]);
    assert_eq!(home.qemu_pids(), Vec::<u32>::new());
    home.close().unwrap();
    // More than the host has is capped, and said (section 3 of the specification).
    fs_err::write(home.config(), "[wsl2]\nmemory=4000GB\nprocessors=999\n").unwrap();
    let output = home.sh("d", "echo works");
    for word in ["memory", "processors"] {
        assert!(output.stderr.contains(word), "{}", output.stderr);
    }
    assert_eq!(output.ok(), "works");
}

/// ERR-5.
fn a_root_without_a_shell_is_an_error_and_not_a_hang() {
    let home = Home::with_kernel().unwrap();
    let tree = home.scratch("t");
    fs_err::create_dir_all(tree.join("etc")).unwrap();
    let archive = home.scratch("t.tar");
    host(
        "tar",
        &[
            "-C",
            tree.to_str().unwrap(),
            "-cf",
            archive.to_str().unwrap(),
            ".",
        ],
    )
    .unwrap()
    .ok();
    home.import("hollow", &archive);
    home.run(&["-d", "hollow", "--", "true"])
        .fails(125, &["hollow", "/bin/sh"]);
}

fn a_foreign_runtime_directory_is_refused() {
    let home = Home::new().unwrap();
    fs_err::create_dir_all(home.runtime()).unwrap();
    fs_err::set_permissions(home.runtime(), std::fs::Permissions::from_mode(0o777)).unwrap();
    home.run(&["status"])
        .fails(125, &[home.runtime().to_str().unwrap()]);
    fs_err::set_permissions(home.runtime(), std::fs::Permissions::from_mode(0o700)).unwrap();
    home.run(&["status"]).ok();
}

fn a_hung_machine_goes_down_by_force() {
    let home = Home::with_kernel().unwrap();
    home.import("d", &small());
    home.sh("d", "echo kept > /kept; sync").ok();
    kill(home.qemu_pids()[0], Signal::STOP);
    home.run(&["shutdown", "--force"]).ok();
    assert_eq!(home.qemu_pids(), Vec::<u32>::new());
    assert_eq!(home.sh("d", "cat /kept").ok(), "kept");
}

/// QEMU before 8.1 hangs here within seconds when its processors have a thread each: what one of them translates while the
/// other writes there is not noticed.
fn a_kernel_that_changes_its_own_code_goes_on() {
    let home = Home::with_kernel().unwrap();
    fs_err::write(home.config(), "[wsl2]\nmemory=1GB\nprocessors=2\n").unwrap();
    home.import("d", &small());
    // Each change writes over a dozen places of the scheduler, which both processors execute all the time.
    let output = home.sh(
        "d",
        "end=$(($(date +%s) + 15)); busy() { while [ $(date +%s) -lt $end ]; do $@; done; } \n\
         change() { for i in 1 2 3 4 5 6 7 8; do for on in 1 0; do echo $on > /proc/sys/kernel/sched_schedstats; done; done; } \n\
         busy /bin/busybox true & busy change; wait; echo gone on",
    );
    assert_eq!(output.ok(), "gone on");
}
