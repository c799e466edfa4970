//! Verbs: what they ask, what they print, how they exit.

use std::{io::Write, process::Stdio};

use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1;

use crate::support::{Fake, Running, Script, texts};

fn two_distros() -> Script {
    let distro = |name: &str, state: &str, is_default| v1::Distro {
        name: name.into(),
        state: state.into(),
        version: 2,
        is_default,
        ..Default::default()
    };
    Script {
        distros: vec![
            distro("trixie", "running", true),
            distro("b", "stopped", false),
        ],
        ..Script::default()
    }
}

#[test]
fn list_prints_data_and_nothing_else() {
    let fake = Fake::new(two_distros());
    for (args, want) in [
        (&["list"][..], "trixie (Default)\nb\n"),
        (&["list", "-q"], "trixie\nb\n"),
        (
            &["list", "-v"],
            "  NAME    STATE    VERSION  OS  DISK  BASE  NETWORK\n* trixie  Running  2            0 B   0 B\n  b       Stopped  2            0 B   0 B\n",
        ),
    ] {
        assert_eq!(
            texts(&fake.run(args)),
            (Some(0), want.into(), String::new()),
            "{args:?}"
        );
    }
    let (_, out, _) = texts(&fake.run(&["list", "--json", "--running"]));
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (value[0]["name"].as_str(), value[0]["default"].as_bool()),
        (Some("trixie"), Some(true))
    );
    assert!(fake.script(|s| s.calls.last().unwrap().1.contains("running_only: true")));

    let empty = Fake::new(Script::default());
    let (code, out, err) = texts(&empty.run(&["list"]));
    assert_eq!((code, out.as_str()), (Some(0), ""));
    assert!(err.contains("hostel install debian:trixie"), "{err}");
    assert_eq!(
        texts(&empty.run(&["list", "-q"])),
        (Some(0), String::new(), String::new())
    );
    assert_eq!(
        texts(&empty.run(&["list", "--json"])),
        (Some(0), "[]\n".into(), String::new())
    );
}

#[test]
fn every_json_is_json() {
    let fake = Fake::new(two_distros());
    for args in [
        &["list"][..],
        &["status"],
        &["inspect"],
        &["sessions"],
        &["version"],
        &["doctor"],
        &["kernel", "list"],
        &["kernel", "install"],
        &["install", "debian:trixie"],
        &["start", "trixie"],
        &["stop"],
        &["shutdown"],
    ] {
        let (_, out, err) = texts(&fake.run(&[args, &["--json"]].concat()));
        serde_json::from_str::<serde_json::Value>(&out)
            .unwrap_or_else(|e| panic!("{args:?}: {e}: {out} {err}"));
        assert_eq!(err, "", "{args:?}");
    }
}

#[test]
fn a_task_tells_its_steps_unless_told_not_to() {
    let fake = Fake::new(two_distros());
    let (code, out, err) = texts(&fake.run(&["start", "trixie"]));
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (Some(0), "", "working (2.0 KiB) …\nstarted `trixie`\n")
    );
    assert_eq!(
        texts(&fake.run(&["start", "trixie", "--quiet"])),
        (Some(0), String::new(), String::new())
    );
    assert_eq!(fake.run(&["restart"]).status.code(), Some(0));
    assert_eq!((fake.calls("stop"), fake.calls("start")), (1, 3));
}

#[test]
fn a_failure_is_told_once_with_its_hints() {
    let fake = Fake::new(Script::default());
    let (code, out, err) = texts(&fake.run(&["set-default", "x"]));
    assert_eq!((code, out.as_str()), (Some(125), ""));
    assert_eq!(
        err,
        "error: no distribution `x\\u{1b}[0m`\nhint: run `hostel list`\n"
    );
    let (_, _, err) = texts(&fake.run(&["set-default", "x", "--json"]));
    let json: serde_json::Value = serde_json::from_str(err.lines().last().unwrap()).unwrap();
    assert_eq!(
        (json["code"].as_str(), json["hints"][0].as_str()),
        (Some("distro-not-found"), Some("run `hostel list`"))
    );
}

#[test]
fn wrong_use_exits_with_2() {
    let fake = Fake::new(Script::default());
    for args in [
        &["list", "--bogus"][..],
        &["-d", "a/b"],
        &["-d", "x", "list"],
        &["exec", "x"],
    ] {
        let (code, out, err) = texts(&fake.run(args));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}");
        assert!(err.starts_with("error: "), "{args:?} {err}");
    }
    let (_, _, err) = texts(&fake.run(&["--json", "list", "--bogus"]));
    assert!(
        err.lines()
            .last()
            .unwrap()
            .starts_with("{\"code\":\"usage\""),
        "{err}"
    );
    assert_eq!(fake.calls("greet"), 0);
}

#[test]
fn a_reader_that_has_gone_is_a_quiet_success() {
    let fake = Fake::new(two_distros());
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    let (code, _, err) = texts(&Running::start(fake.command(&["list"]).stdout(write)).finish());
    assert_eq!((code, err.as_str()), (Some(0), ""));
}

#[test]
fn import_hands_the_open_file_over() {
    let fake = Fake::new(Script::default());
    let file = fake.dir.path().join("a.tar");
    fs_err::write(&file, "archive").unwrap();
    let file = file.to_str().unwrap();
    let (code, out, err) = texts(&fake.run(&["import", "x", file, "--disk-size", "64GB"]));
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (Some(0), "", "imported `x` (7 B read)\n")
    );
    assert_eq!(fake.script(|s| std::mem::take(&mut s.imported)), b"archive");
    assert!(fake.script(|s| {
        s.calls
            .last()
            .unwrap()
            .1
            .contains("disk_limit_bytes: 68719476736")
    }));

    let mut client = Running::start(fake.command(&["import", "x", "-"]).stdin(Stdio::piped()));
    client
        .child()
        .stdin
        .take()
        .unwrap()
        .write_all(b"piped")
        .unwrap();
    assert_eq!(texts(&client.finish()).0, Some(0));
    assert_eq!(fake.script(|s| std::mem::take(&mut s.imported)), b"piped");

    let (code, _, err) = texts(&fake.run(&["import", "x", "/no/such.tar"]));
    assert_eq!(
        (code, err.as_str()),
        (
            Some(125),
            "error: cannot open the archive `/no/such.tar`: no such file or directory\n"
        )
    );
}

#[test]
fn export_leaves_a_whole_file_or_none() {
    let fake = Fake::new(Script {
        archive: b"archive".to_vec(),
        ..Script::default()
    });
    let dir = fake.dir.path().join("out");
    fs_err::create_dir_all(&dir).unwrap();
    let file = dir.join("a.tgz");
    let name = file.to_str().unwrap();
    assert_eq!(texts(&fake.run(&["export", "x", name])).0, Some(0));
    assert_eq!(fs_err::read(&file).unwrap(), b"archive");
    assert!(fake.script(|s| s.calls.last().unwrap().1.contains("tar.gz")));

    let (code, out, _) = texts(&fake.run(&["export", "x", "-", "--format", "tar.xz"]));
    assert_eq!((code, out.as_str()), (Some(0), "archive"));

    fake.script(|s| {
        s.archive = b"half".to_vec();
        s.task_failure = Some(Failure::new(
            ErrorCode::DiskCorrupted,
            "the disk is damaged",
        ));
    });
    assert_eq!(texts(&fake.run(&["export", "x", name])).0, Some(125));
    assert_eq!(
        fs_err::read(&file).unwrap(),
        b"archive",
        "the old file is still there"
    );
    assert_eq!(
        fs_err::read_dir(&dir).unwrap().count(),
        1,
        "and nothing else"
    );
}

#[test]
fn doctor_fails_when_the_daemon_finds_an_error() {
    let check = |verdict: &str| v1::Check {
        name: "disks".into(),
        verdict: verdict.into(),
        found: "f".into(),
        next_step: "n".into(),
    };
    let fake = Fake::new(Script {
        checks: vec![check("error")],
        ..Script::default()
    });
    let (code, out, _) = texts(&fake.run(&["doctor"]));
    assert_eq!(code, Some(1));
    assert!(out.contains("disks") && out.contains("next: n"), "{out}");
    // Also without a daemon it tells what it sees, and that the daemon is what is missing.
    let off = Fake::listening_at("real.sock", Script::default());
    let (code, out, _) = texts(&off.run(&["doctor", "--json"]));
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, value["ok"].as_bool()), (Some(1), Some(false)));
    let daemon = value["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == "daemon")
        .unwrap();
    assert_eq!(daemon["verdict"], "error");
}

#[test]
fn logs_come_from_the_daemon_or_from_its_file() {
    let fake = Fake::new(Script::default());
    assert_eq!(
        texts(&fake.run(&["logs", "console", "-n", "5"])).1,
        "a\nb\n"
    );
    assert!(fake.script(|s| s.calls.last().unwrap().1.contains("tail_lines: 5")));
    let off = Fake::listening_at("real.sock", Script::default());
    fs_err::write(off.runtime_dir().join("daemon.log"), "x\ny\n").unwrap();
    assert_eq!(texts(&off.run(&["logs", "-n", "1"])).1, "y\n");
    assert_eq!(texts(&off.run(&["logs", "-f"])).0, Some(125));
}
