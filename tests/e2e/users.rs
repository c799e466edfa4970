//! Users, groups, homes and shells come from the distribution's own files.

use crate::shared::{DEBIAN_12, SMALL, home};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("the_default_user_is_root", the_default_user_is_root),
    (
        "a_user_brings_groups_home_and_shell",
        a_user_brings_groups_home_and_shell,
    ),
    ("an_unknown_user_is_named", an_unknown_user_is_named),
    (
        "the_working_directory_follows_cd",
        the_working_directory_follows_cd,
    ),
    (
        "the_environment_is_the_distributions_own",
        the_environment_is_the_distributions_own,
    ),
];

/// CLI-35.
fn the_default_user_is_root() {
    assert_eq!(home().sh(SMALL, "id -un").ok(), "root");
    assert_eq!(home().sh(SMALL, "echo $HOME").ok(), "/root");
}

/// CLI-30, TTY-6.
fn a_user_brings_groups_home_and_shell() {
    let home = home();
    home.sh(
        DEBIAN_12,
        "id alice 2>/dev/null || useradd -m -u 1234 -s /bin/bash -G daemon,audio alice",
    )
    .ok();
    let run = |line: &str| home.run(&["-d", DEBIAN_12, "-u", "alice", "--", line]).ok();
    assert_eq!(
        run("id -u; id -Gn | tr ' ' '\\n' | sort | tr '\\n' ' '; umask").replace('\n', " "),
        "1234 alice audio daemon 0022"
    );
    assert_eq!(
        run("echo $HOME $SHELL $USER $LOGNAME"),
        "/home/alice /bin/bash alice alice"
    );
    assert_eq!(run("pwd"), "/home/alice");
    // The terminal belongs to the user (TTY-2).
    assert_eq!(run("stat -c %U:%G /dev/$(ps -o tty= -p $$)"), "alice:tty");
}

/// WSL_E_USER_NOT_FOUND; unlike CLI-5 a command that exits 67 is not misreported.
fn an_unknown_user_is_named() {
    home()
        .run(&["-d", SMALL, "-u", "nobody-here", "--", "true"])
        .fails(125, &["nobody-here"]);
    assert_eq!(home().sh(SMALL, "exit 67").code(), 67);
    assert_eq!(home().sh(SMALL, "exit 87").code(), 87);
}

fn the_working_directory_follows_cd() {
    let home = home();
    let at = |dir: &str| home.run(&["-d", SMALL, "--cd", dir, "--", "pwd"]).ok();
    assert_eq!(at("/etc"), "/etc");
    assert_eq!(at("~"), "/root");
    home.sh(SMALL, "mkdir -p /root/deep").ok();
    assert_eq!(at("~/deep"), "/root/deep");
    // A directory that is not there is no error, as in the reference.
    home.run(&["-d", SMALL, "--cd", "/not/there", "--", "true"])
        .ok();
}

/// ENV-1, ENV-2, ENV-4, ENV-5.
fn the_environment_is_the_distributions_own() {
    let home = home();
    let mut command = home.command(&["-d", SMALL, "--", "env"]);
    command
        .env("SECRET_OF_THE_HOST", "x")
        .env("WSLENV", "PASSED")
        .env("PASSED", "yes");
    let running = hostel_tests::run::Running::start(&mut command, None).unwrap();
    let text = running.wait(hostel_tests::run::DEADLINE).unwrap().ok();
    assert!(!text.contains("SECRET_OF_THE_HOST"), "{text}");
    for want in [
        "PASSED=yes",
        "WSL_DISTRO_NAME=small",
        "HOSTTYPE=x86_64",
        "PATH=/usr/local/sbin:",
        "NAME=",
    ] {
        assert!(
            text.lines().any(|l| l.starts_with(want)),
            "`{want}` is not in {text}"
        );
    }
}
