//! Finding, starting and greeting the daemon.

use std::os::unix::net::UnixListener;

use crate::support::{Fake, Running, Script, shell_program, texts};

/// A `hosteld` that moves the fake's socket into place and says so; one line in `starts` for each time it ran.
fn hosteld(fake: &Fake) -> std::path::PathBuf {
    let script = r#"echo "$$ $HOSTEL_HOME $HOSTEL_RUNTIME_DIR" >> "$HOSTEL_RUNTIME_DIR/starts"
[ "$(ps -o sid= -p $$ | tr -d ' ')" = "$$" ] || { echo "no session of its own" > /proc/self/fd/"$HOSTEL_READY_FD"; exit 1; }
mv "$HOSTEL_RUNTIME_DIR/real.sock" "$HOSTEL_RUNTIME_DIR/api.sock"
echo ready > /proc/self/fd/"$HOSTEL_READY_FD"
"#;
    shell_program(fake.dir.path(), "hosteld", script)
}

#[test]
fn many_clients_at_once_start_one_daemon() {
    let fake = Fake::listening_at("real.sock", Script::default());
    // What a daemon that was killed leaves behind: a socket that nobody serves, and locks that nobody holds.
    drop(UnixListener::bind(fake.runtime_dir().join("api.sock")).unwrap());
    fs_err::write(fake.runtime_dir().join("start.lock"), "1").unwrap();
    fs_err::write(fake.runtime_dir().join("daemon.lock"), "1").unwrap();
    let program = hosteld(&fake);
    let clients: Vec<_> = (0..6)
        .map(|_| Running::start(fake.command(&["status", "--json"]).env("HOSTELD", &program)))
        .collect();
    for client in clients {
        let (code, out, err) = texts(&client.finish());
        assert_eq!(code, Some(0), "{err}");
        assert!(out.contains("\"pid\": 42"), "{out}");
    }
    let starts = fs_err::read_to_string(fake.runtime_dir().join("starts")).unwrap();
    assert_eq!(starts.lines().count(), 1, "{starts}");
    let home = fake.dir.path().join("h");
    assert!(
        starts.contains(&format!(
            " {} {}",
            home.display(),
            fake.runtime_dir().display()
        )),
        "{starts}"
    );
    assert_eq!(fake.calls("status"), 6);
}

#[test]
fn a_daemon_that_does_not_start_is_one_clear_error() {
    for (script, wanted) in [
        (
            "echo 'registry is damaged' > /proc/self/fd/$HOSTEL_READY_FD",
            "the daemon did not start: registry is damaged",
        ),
        (
            "echo 'panicked at x' >&2; exit 3",
            "ended without a word (exit status: 3): panicked at x",
        ),
        (
            "echo ready > /proc/self/fd/$HOSTEL_READY_FD",
            "it is ready, but",
        ),
    ] {
        let fake = Fake::listening_at("real.sock", Script::default());
        let program = shell_program(fake.dir.path(), "hosteld", script);
        let (code, out, err) =
            texts(&Running::start(fake.command(&["list"]).env("HOSTELD", &program)).finish());
        assert_eq!((code, out.as_str()), (Some(125), ""));
        assert!(
            err.starts_with("error: the daemon did not start: ") && err.contains(wanted),
            "{err}"
        );
        assert!(
            err.contains("hint: run `hostel doctor`") && err.contains("daemon.log"),
            "{err}"
        );
    }
}

#[test]
fn a_missing_daemon_program_is_named() {
    let fake = Fake::listening_at("real.sock", Script::default());
    let (code, _, err) =
        texts(&Running::start(fake.command(&["list"]).env("HOSTELD", "/no/hosteld")).finish());
    assert_eq!(code, Some(125));
    assert!(err.contains("HOSTELD names `/no/hosteld`"), "{err}");
}

#[test]
fn what_needs_no_daemon_starts_none() {
    let fake = Fake::listening_at("real.sock", Script::default());
    let program = hosteld(&fake);
    for (args, out_part, err_part) in [
        (&["version"][..], "hosteld  not running", ""),
        (&["shutdown"], "", "nothing runs"),
        (&["sessions"], "", "no session runs"),
        (&["logs"], "", "there is no log yet"),
    ] {
        let (code, out, err) =
            texts(&Running::start(fake.command(args).env("HOSTELD", &program)).finish());
        assert_eq!(code, Some(0), "{args:?} {err}");
        assert!(
            out.contains(out_part) && err.contains(err_part),
            "{args:?} {out} {err}"
        );
    }
    assert!(!fake.runtime_dir().join("starts").exists());
}

#[test]
fn a_daemon_of_another_age_is_understood_or_refused() {
    let newer = Fake::new(Script {
        generation: Some(99),
        ..Script::default()
    });
    assert_eq!(newer.run(&["list"]).status.code(), Some(0));

    let older = Fake::new(Script {
        generation: Some(0),
        ..Script::default()
    });
    let (code, _, err) = texts(&older.run(&["list"]));
    assert_eq!(code, Some(125));
    assert!(
        err.contains("the daemon (version 9.9.9, generation 0) is older than this client"),
        "{err}"
    );
    assert!(
        err.contains("hint: run `hostel shutdown --daemon`"),
        "{err}"
    );
    // The way out works.
    let (code, _, err) = texts(&older.run(&["shutdown", "--daemon"]));
    assert_eq!(code, Some(0), "{err}");
    assert_eq!((older.calls("shutdown"), older.calls("quit")), (1, 1));
}

#[test]
fn a_runtime_directory_that_others_may_write_is_refused() {
    let fake = Fake::new(Script::default());
    std::fs::set_permissions(
        fake.runtime_dir(),
        std::os::unix::fs::PermissionsExt::from_mode(0o770),
    )
    .unwrap();
    let (code, _, err) = texts(&fake.run(&["list"]));
    assert_eq!(code, Some(125));
    assert_eq!(err.matches("error:").count(), 1);
    assert!(err.contains("others may write to it (mode 770)"), "{err}");
    assert_eq!(fake.calls("greet"), 0);
}
