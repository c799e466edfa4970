//! The command line, case by case.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use clap::Parser;

use super::*;

fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
    let mut args: Vec<OsString> = std::iter::once("hostel")
        .chain(words.iter().copied())
        .map(Into::into)
        .collect();
    mark_command(&command(), &mut args);
    Cli::try_parse_from(args)
}

#[test]
fn the_definition_holds_together() {
    command().debug_assert();
}

#[test]
fn every_verb_parses() {
    for words in [
        &[][..],
        &["-d", "x", "-u", "me", "--cd", "/tmp", "--keep"],
        &["exec", "x", "--", "ls", "-la"],
        &[
            "exec", "x", "-u", "root", "--cd", "~/a", "-e", "A=1", "-e", "B", "--keep", "--", "ls",
        ],
        &["exec", "x", "ls", "-la"],
        &["import", "x", "-"],
        &[
            "import",
            "x",
            "a.tar",
            "--disk-size",
            "64GB",
            "--set-default",
        ],
        &["export", "x", "-", "--format", "tar.zst"],
        &[
            "install",
            "debian:trixie",
            "--name",
            "x",
            "--include",
            "vim,git",
            "--include",
            "less",
            "--set-default",
        ],
        &["list"],
        &["list", "-v", "--running", "--json"],
        &["list", "-q"],
        &["start"],
        &["start", "x"],
        &["stop", "x", "--timeout", "5"],
        &["restart", "x"],
        &["shutdown"],
        &["shutdown", "--force", "--daemon"],
        &["rm", "x"],
        &["rename", "x", "y"],
        &["set-default", "x"],
        &["status", "--json"],
        &["inspect"],
        &["inspect", "x"],
        &["manage"],
        &[
            "manage",
            "x",
            "--network",
            "own",
            "--address",
            "172.19.133.7",
        ],
        &["net"],
        &["net", "show"],
        &["net", "list", "--json"],
        &["net", "adapters"],
        &["net", "backends"],
        &["net", "set", "--subnet", "172.20.0.0/20"],
        &[
            "net",
            "set",
            "--gateway",
            "172.20.0.1",
            "--address",
            "172.20.0.2",
        ],
        &["net", "set", "--reset"],
        &["net", "firewall"],
        &["net", "firewall", "list"],
        &["net", "firewall", "add", "allow tcp 80"],
        &[
            "net",
            "firewall",
            "add",
            "allow",
            "tcp",
            "80",
            "from",
            "fd00::/64",
        ],
        &["net", "firewall", "rm", "1", "2"],
        &["net", "firewall", "clear"],
        &["net", "helper"],
        &["net", "helper", "install", "--group", "g"],
        &["net", "helper", "uninstall"],
        &["net", "helper", "status"],
        &["ports"],
        &["ports", "-w", "--json"],
        &["ports", "rules"],
        &["ports", "set", "80", "remap=8080"],
        &["ports", "set", "-d", "x", "--udp", "all", "off"],
        &["ports", "unset", "--distro", "x", "80"],
        &["kernel", "install"],
        &[
            "kernel",
            "install",
            "vmlinuz",
            "--modules",
            "dir",
            "--no-use",
        ],
        &["kernel", "list"],
        &["kernel", "use", "6.1"],
        &["doctor", "--quiet", "--no-color"],
        &["logs"],
        &["logs", "console", "-f", "-n", "5"],
        &["debug-shell"],
        &["debug-shell", "--", "dmesg", "-w"],
        &["completions", "bash"],
        &["version"],
        &["sessions"],
        &["attach", "abc"],
        &["__man", "dir"],
    ] {
        assert!(
            parse(words).is_ok(),
            "{words:?}: {}",
            parse(words).unwrap_err()
        );
    }
}

#[test]
fn what_is_wrong_is_refused() {
    for words in [
        &["list", "-v", "-q"][..],
        &["list", "x"],
        &["exec", "x"],
        &["exec"],
        &["exec", "x", "-e", "=1", "--", "ls"],
        &["--cd", "relative"],
        &["-d", "a/b"],
        &["-d", "x", "-d", "y"],
        &["import", "x"],
        &["import", "-x", "-"],
        &["import", "x", "-", "--disk-size", "1.5GB"],
        &["export", "x", "-", "--format", "zip"],
        &["rename", "x"],
        &["stop", "x", "--timeout", "0"],
        &["manage", "x", "--network", "bridged"],
        &["manage", "x", "--address", "::1"],
        &["net", "other"],
        &["net", "set"],
        &["net", "set", "--subnet", "172.20.0.0"],
        &["net", "set", "--reset", "--gateway", "1.2.3.4"],
        &["net", "firewall", "add"],
        &["net", "firewall", "rm"],
        &["net", "firewall", "rm", "0"],
        &["ports", "set", "80"],
        &["ports", "set", "0", "off"],
        &["ports", "set", "80", "remap=0"],
        &["ports", "unset"],
        &["ports", "--watch", "rules"],
        &["kernel"],
        &["kernel", "install", "--modules", "dir"],
        &["logs", "other"],
        &["logs", "-n", "0"],
        &["completions", "tcsh"],
        &["--bogus"],
    ] {
        assert!(parse(words).is_err(), "{words:?}");
    }
}

#[test]
fn a_command_keeps_every_word() {
    for (words, want) in [
        (&["uname", "-a"][..], &["uname", "-a"][..]),
        (&["--", "list", "-v"], &["list", "-v"]),
        (&["ls", "--", "-x"], &["ls", "--", "-x"]),
        (&["ls", "--json"], &["ls", "--json"]),
        (&["-d", "x", "ls", "-d"], &["ls", "-d"]),
        (&["--", "a", "", "b"], &["a", "", "b"]),
        (&["--", "--"], &["--"]),
        (&["--"], &[]),
    ] {
        let cli = parse(words).unwrap();
        assert!(cli.verb.is_none());
        assert!(!cli.global.json, "{words:?}");
        assert_eq!(cli.run.command, want, "{words:?}");
    }
}

#[test]
fn exec_keeps_every_word() {
    for (words, want) in [
        (&["--", "ls", "--", "-x"][..], &["ls", "--", "-x"][..]),
        (&["ls", "--", "-x"], &["ls", "--", "-x"]),
        (&["ls", "-u", "me", "--json"], &["ls", "-u", "me", "--json"]),
        (&["--", "-odd"], &["-odd"]),
        (&["-u", "me", "--", "", " "], &["", " "]),
    ] {
        let cli = parse(&[&["exec", "x"], words].concat()).unwrap();
        let Some(Verb::Exec(args)) = cli.verb else {
            panic!("exec")
        };
        assert_eq!(args.command, want, "{words:?}");
    }
}

#[test]
fn bytes_that_are_no_text_get_through() {
    let odd = OsString::from_vec(b"\xff\xfe a".to_vec());
    let words = |words: &[&str]| {
        let mut args: Vec<OsString> = words.iter().map(Into::into).collect();
        args.push(odd.clone());
        mark_command(&command(), &mut args);
        Cli::try_parse_from(args)
    };
    assert_eq!(
        words(&["hostel", "--"]).unwrap().run.command,
        std::slice::from_ref(&odd)
    );
    assert_eq!(
        words(&["hostel"]).unwrap().run.command,
        std::slice::from_ref(&odd)
    );
    let Some(Verb::Exec(args)) = words(&["hostel", "exec", "x", "--", "ls"]).unwrap().verb else {
        panic!("exec")
    };
    assert_eq!(args.command[1], odd);
    let Some(Verb::Import(args)) = words(&["hostel", "import", "x"]).unwrap().verb else {
        panic!("import")
    };
    assert_eq!(args.file.as_os_str(), odd);
    assert!(words(&["hostel", "-d"]).is_err());
}

#[test]
fn run_options_do_not_go_with_verbs() {
    for (words, want) in [
        (&["-d", "x", "list"][..], Some("--distro")),
        (&["-u", "x", "list"], Some("--user")),
        (&["--cd", "/", "list"], Some("--cd")),
        (&["--keep", "list"], Some("--keep")),
        (&["--json", "list"], None),
        (&["-d", "x", "--", "list"], None),
    ] {
        assert_eq!(
            run_option_with_verb(&parse(words).unwrap()),
            want,
            "{words:?}"
        );
    }
}

/// Every verb and option says what it is for; every verb shows an example.
#[test]
fn help_is_complete() {
    fn check(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        assert!(command.get_about().is_some(), "{path} has no help");
        if !command.has_subcommands() && !command.is_hide_set() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.contains("hostel "), "{path} has no example");
        }
        for arg in command.get_arguments() {
            assert!(
                arg.get_help().is_some(),
                "{path} {} has no help",
                arg.get_id()
            );
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(!help.ends_with('.'), "{path} {}: {help}", arg.get_id());
        }
        for sub in command.get_subcommands() {
            check(sub, &path);
        }
    }
    check(&command(), "");
}
