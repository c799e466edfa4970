//! Ends of a distribution.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hostel_instance::{CommandEnd, ExecError, InitEnd};

use crate::fixture::{
    House, PATIENCE, Test, cgroup_parent, ended, expect, mounts_below, on_tty, output, readable,
    shell, spec_of,
};

pub(crate) const TESTS: &[Test] = &[
    ("a_stop_lets_processes_say_goodbye", goodbye),
    ("a_stop_kills_what_does_not_end", stubborn),
    ("a_killed_pid_1_takes_everything_along", killed),
    ("a_caller_that_goes_takes_its_distribution_along", orphaned),
    ("a_dropped_instance_is_killed", dropped),
    ("a_stop_while_a_command_runs_tells_its_end", running_command),
];

fn goodbye() {
    let house = House::new();
    let i = house.start("goodbye").instance;
    let mut session = i
        .exec(&shell(
            "trap 'echo bye > /var/bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done",
        ))
        .unwrap();
    expect(&session.stdout.take().unwrap(), "ready");
    let outcome = i.stop(PATIENCE);
    assert!(outcome.was_running && !outcome.killed, "{outcome:?}");
    assert_eq!(i.try_wait(), Some(InitEnd::Exited(0)));
    assert_eq!(
        fs_err::read_to_string(house.root.join("var/bye")).unwrap(),
        "bye\n"
    );
    assert!(!i.stop(PATIENCE).was_running, "a second stop is a success");
    assert!(matches!(i.exec(&shell("true")), Err(ExecError::NotRunning)));
    assert_eq!(mounts_below(house.dir.path()), Vec::<String>::new());
}

fn stubborn() {
    let house = House::new();
    let i = house.start("stubborn").instance;
    let mut session = i
        .exec(&shell(
            "trap '' TERM HUP; echo ready; while :; do sleep 0.05; done",
        ))
        .unwrap();
    expect(&session.stdout.take().unwrap(), "ready");
    let begin = Instant::now();
    let outcome = i.stop(Duration::from_millis(300));
    assert!(
        outcome.was_running && outcome.killed && outcome.warnings.is_empty(),
        "{outcome:?}"
    );
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
    assert!(i.try_wait().is_some());
}

fn killed() {
    let house = House::new();
    let i = house.start("killed").instance;
    let mut session = i.exec(&shell("sleep 1000; echo never")).unwrap();
    let pid = rustix::process::Pid::from_raw(i.init_pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let pidfd = i.pidfd().try_clone_to_owned().unwrap();
    assert!(readable(&pidfd, Instant::now() + PATIENCE));
    assert_eq!(i.try_wait(), Some(InitEnd::Signaled(9)));
    assert_eq!(
        crate::fixture::reader(session.stdout.take())
            .join()
            .unwrap(),
        b""
    );
    assert_eq!(
        crate::fixture::report(&session),
        None,
        "the session ended without a word"
    );
    assert!(matches!(i.exec(&shell("true")), Err(ExecError::NotRunning)));
    assert!(!i.stop(PATIENCE).was_running);
    assert_eq!(
        output(&house.start("killed").instance, "echo again"),
        "again"
    );
}

/// The caller of [`orphaned`]: starts a distribution and a command in it, says the pids, and waits to be killed.
pub(crate) fn be_a_caller(root: &str, cgroup: Option<&str>) {
    let mut spec = spec_of(root.as_ref(), "orphan");
    spec.cgroup_parent = cgroup.map(Into::into);
    let launched = hostel_instance::launch(&spec).unwrap();
    let session = launched
        .instance
        .exec(&shell("trap '' HUP; sleep 1000"))
        .unwrap();
    println!("{}", launched.instance.init_pid());
    let _ = std::io::stdin().read_line(&mut String::new());
    drop((launched, session));
}

fn orphaned() {
    let house = House::new();
    let mut caller = Command::new(std::env::current_exe().unwrap())
        .arg("--caller")
        .arg(&house.root)
        .args(cgroup_parent())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(caller.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let pid = rustix::process::Pid::from_raw(line.trim().parse().unwrap()).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    caller.kill().unwrap();
    caller.wait().unwrap();
    assert!(
        readable(&pidfd, Instant::now() + PATIENCE),
        "the distribution outlives its caller"
    );
    // What is left of it is an empty cgroup, and the next start sees to that.
    assert_eq!(
        output(&house.start("orphan").instance, "echo again"),
        "again"
    );
}

fn dropped() {
    let house = House::new();
    let launched = house.start("dropped");
    let pidfd = launched.instance.pidfd().try_clone_to_owned().unwrap();
    drop(launched);
    assert!(readable(&pidfd, Instant::now() + PATIENCE));
}

fn running_command() {
    let house = House::new();
    let i = house.start("running").instance;
    let session = i
        .exec(&on_tty(shell("echo ready; exec sleep 1000")))
        .unwrap();
    expect(&session.tty_master, "ready");
    assert!(!i.stop(PATIENCE).killed);
    assert_eq!(
        ended(&session),
        CommandEnd::Signaled {
            signal: 15,
            core: false
        }
    );
}
