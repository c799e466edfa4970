//! Sessions over real pipes and a real terminal.

use std::{
    io::{Read, Write},
    os::fd::OwnedFd,
    process::Stdio,
};

use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1::{self, StreamKind};
use rustix::{
    process::Signal,
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

use crate::support::{Fake, Running, Script, read_until, texts};

/// A terminal: the user's side, and the side that the program gets.
struct Terminal {
    user: std::fs::File,
    program: OwnedFd,
}

impl Terminal {
    fn new() -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let program = ioctl_tiocgptpeer(
            &user,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )
        .unwrap();
        let terminal = Self {
            user: user.into(),
            program,
        };
        terminal.resize(40, 100);
        terminal
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.user, size).unwrap();
    }

    fn stdio(&self) -> Stdio {
        self.program.try_clone().unwrap().into()
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.program)
            .unwrap()
            .local_modes
            .contains(LocalModes::ICANON)
    }
}

/// Starts the program with all three streams on the terminal.
fn on_terminal(fake: &Fake, terminal: &Terminal, args: &[&str]) -> Running {
    let mut command = fake.command(args);
    command
        .env("TERM", "xterm")
        .stdin(terminal.stdio())
        .stdout(terminal.stdio())
        .stderr(terminal.stdio());
    Running::start(&mut command)
}

fn argv(request: &v1::ExecRequest) -> Vec<String> {
    let command = request.command.clone().unwrap();
    command
        .argv
        .iter()
        .map(|a| String::from_utf8_lossy(a).into_owned())
        .collect()
}

#[test]
fn pipes_carry_bytes_and_the_exit_status_is_the_command_s() {
    let fake = Fake::new(Script::default());
    let mut client = Running::start(
        fake.command(&["-d", "x", "-u", "me", "--cd", "~/a", "echo", "a  b"])
            .stdin(Stdio::piped()),
    );
    let mut session = fake.session();
    let command = session.request.command.clone().unwrap();
    assert_eq!(session.request.name, "x");
    assert_eq!(argv(&session.request), ["echo a  b"]);
    assert_eq!(
        (
            command.shell(),
            command.user.as_str(),
            &command.directory[..]
        ),
        (v1::ShellMode::Command, "me", &b"~/a"[..])
    );
    assert!(command.window.is_none() && !session.has(StreamKind::Tty));
    assert!(
        command.env.iter().all(|v| v.name != "TERM"),
        "a session without a terminal has none"
    );

    client
        .child()
        .stdin
        .take()
        .unwrap()
        .write_all(b"in")
        .unwrap();
    let mut got = String::new();
    session
        .stream(StreamKind::Stdin)
        .read_to_string(&mut got)
        .unwrap();
    assert_eq!(got, "in", "and then the end of the input");
    // What is still on its way when the command ends arrives before the client leaves; the streams stay open, as a child
    // in the background would keep them.
    session.exit(7, 0, &[(StreamKind::Stdout, 3), (StreamKind::Stderr, 3)]);
    session
        .stream(StreamKind::Stderr)
        .write_all(b"err")
        .unwrap();
    session
        .stream(StreamKind::Stdout)
        .write_all(b"out")
        .unwrap();
    assert_eq!(
        texts(&client.finish()),
        (Some(7), "out".into(), "err".into())
    );
}

#[test]
fn the_client_leaves_although_its_input_is_open_and_unread() {
    let fake = Fake::new(Script::default());
    let mut client = Running::start(
        fake.command(&["exec", "x", "--", "true", "-x"])
            .stdin(Stdio::piped()),
    );
    let mut input = client.child().stdin.take().unwrap();
    let mut session = fake.session();
    assert_eq!(argv(&session.request), ["true", "-x"]);
    assert_eq!(
        session.request.command.as_ref().unwrap().shell(),
        v1::ShellMode::None
    );
    // More than every buffer on the way: nobody reads it, and the output must come all the same.
    let writer = std::thread::spawn(move || while input.write_all(&[0; 65536]).is_ok() {});
    session
        .stream(StreamKind::Stdout)
        .write_all(b"out")
        .unwrap();
    session.exit(0, 15, &[(StreamKind::Stdout, 3), (StreamKind::Stderr, 0)]);
    assert_eq!(
        texts(&client.finish()),
        (Some(143), "out".into(), String::new())
    );
    writer.join().unwrap();
}

#[test]
fn much_output_arrives_whole() {
    let fake = Fake::new(Script::default());
    let client = Running::start(&mut fake.command(&["cat", "big"]));
    let mut session = fake.session();
    let mut data: Vec<u8> = (0..4 << 20_u32).map(|i: u32| (i % 251) as u8).collect();
    session.exit(
        0,
        0,
        &[
            (StreamKind::Stdout, data.len() as u64),
            (StreamKind::Stderr, 0),
        ],
    );
    let sent = data.clone();
    std::thread::spawn(move || {
        session
            .stream(StreamKind::Stdout)
            .write_all(&sent)
            .map(|()| session)
    });
    let output = client.finish();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == data);
    data.clear();
}

#[test]
fn a_reader_that_goes_closes_the_command_s_output() {
    let fake = Fake::new(Script::default());
    let (read, write) = std::io::pipe().unwrap();
    let mut client = Running::start(fake.command(&["yes"]).stdout(write));
    let mut session = fake.session();
    drop(read);
    let out = session.stream(StreamKind::Stdout);
    while out.write_all(&[b'y'; 4096]).is_ok() {}
    session.exit(
        0,
        13,
        &[(StreamKind::Stdout, 1 << 40), (StreamKind::Stderr, 0)],
    );
    assert_eq!(client.wait().code(), Some(141));
}

#[test]
fn without_a_terminal_signals_go_to_the_command() {
    let fake = Fake::new(Script::default());
    let mut client = Running::start(&mut fake.command(&["sleep", "9"]));
    let session = fake.session();
    // The client begins to watch signals before it moves bytes, and it moves bytes only then.
    let mut session = session;
    session.stream(StreamKind::Stderr).write_all(b"!").unwrap();
    let mut stderr = client.child().stderr.take().unwrap();
    stderr.read_exact(&mut [0]).unwrap();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
        client.kill(signal);
        let (what, _, request) = fake.nudge();
        assert_eq!(
            (what, request.session.as_str(), request.signal),
            ("signal", "s1", signal.as_raw() as u32)
        );
    }
    session.exit(0, 2, &[(StreamKind::Stdout, 0), (StreamKind::Stderr, 1)]);
    assert_eq!(client.wait().code(), Some(130));
}

#[test]
fn a_terminal_is_raw_for_the_session_and_as_before_after_it() {
    let fake = Fake::new(Script::default());
    let mut terminal = Terminal::new();
    let mut client = on_terminal(&fake, &terminal, &[]);
    let mut session = fake.session();
    let command = session.request.command.clone().unwrap();
    assert_eq!(
        (command.shell(), command.argv.len()),
        (v1::ShellMode::Login, 0)
    );
    assert_eq!(session.streams.len(), 1, "one terminal carries all three");
    let window = command.window.unwrap();
    assert_eq!((window.rows, window.columns), (40, 100));
    assert!(
        command
            .env
            .iter()
            .any(|v| v.name == "TERM" && v.value == "xterm")
    );

    session
        .stream(StreamKind::Tty)
        .write_all(b"prompt$ ")
        .unwrap();
    read_until(&mut terminal.user, "prompt$ ");
    assert!(terminal.is_raw());
    // Ctrl-C, Ctrl-D and Ctrl-Z are bytes.
    terminal.user.write_all(b"\x03\x04\x1a").unwrap();
    let mut got = [0; 3];
    session
        .stream(StreamKind::Tty)
        .read_exact(&mut got)
        .unwrap();
    assert_eq!(&got, b"\x03\x04\x1a");

    terminal.resize(50, 120);
    client.kill(Signal::WINCH);
    let (what, request, _) = fake.nudge();
    let window = request.window.unwrap();
    assert_eq!((what, window.rows, window.columns), ("resize", 50, 120));

    session.stream(StreamKind::Tty).write_all(b"bye").unwrap();
    session.exit(3, 0, &[(StreamKind::Tty, 11)]);
    assert_eq!(client.wait().code(), Some(3));
    read_until(&mut terminal.user, "bye");
    assert!(!terminal.is_raw());
}

#[test]
fn a_terminal_is_as_before_after_a_signal_and_the_session_hangs_up() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130)] {
        let fake = Fake::new(Script::default());
        let mut terminal = Terminal::new();
        let mut client = on_terminal(&fake, &terminal, &[]);
        let mut session = fake.session();
        session.stream(StreamKind::Tty).write_all(b"$").unwrap();
        read_until(&mut terminal.user, "$");
        client.kill(signal);
        assert_eq!(client.wait().code(), Some(code));
        assert!(!terminal.is_raw());
        session.wait_hung_up();
    }
}

#[test]
fn a_stopped_client_gives_the_terminal_back_and_takes_it_again() {
    let fake = Fake::new(Script::default());
    let mut terminal = Terminal::new();
    let mut client = on_terminal(&fake, &terminal, &[]);
    let mut session = fake.session();
    session.stream(StreamKind::Tty).write_all(b"$").unwrap();
    read_until(&mut terminal.user, "$");
    client.kill(Signal::TSTP);
    let options = rustix::process::WaitOptions::UNTRACED;
    let (_, status) = rustix::process::waitpid(Some(client.pid()), options)
        .unwrap()
        .unwrap();
    assert!(status.stopped());
    assert!(!terminal.is_raw());
    client.kill(Signal::CONT);
    assert_eq!(
        fake.nudge().0,
        "resize",
        "the window may have changed meanwhile"
    );
    session.exit(0, 0, &[(StreamKind::Tty, 1)]);
    assert_eq!(client.wait().code(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn redirected_streams_are_pipes_beside_the_terminal() {
    let fake = Fake::new(Script::default());
    let mut terminal = Terminal::new();
    let mut command = fake.command(&["vi"]);
    command
        .stdin(terminal.stdio())
        .stdout(Stdio::piped())
        .stderr(terminal.stdio());
    let client = Running::start(&mut command);
    let mut session = fake.session();
    let kinds: Vec<_> = session.streams.iter().map(|(k, _)| *k).collect();
    assert_eq!(kinds, [StreamKind::Tty, StreamKind::Stdout]);
    session
        .stream(StreamKind::Tty)
        .write_all(b"screen")
        .unwrap();
    read_until(&mut terminal.user, "screen");
    assert!(terminal.is_raw());
    session
        .stream(StreamKind::Stdout)
        .write_all(b"data")
        .unwrap();
    session.exit(0, 0, &[(StreamKind::Tty, 6), (StreamKind::Stdout, 4)]);
    assert_eq!(texts(&client.finish()).1, "data");
    assert!(!terminal.is_raw());

    // The other way round: input from a pipe, output on the terminal. Nothing is raw, and input goes by its own stream.
    let mut command = fake.command(&["less"]);
    command
        .stdin(Stdio::piped())
        .stdout(terminal.stdio())
        .stderr(terminal.stdio());
    let mut client = Running::start(&mut command);
    client
        .child()
        .stdin
        .take()
        .unwrap()
        .write_all(b"text")
        .unwrap();
    let mut session = fake.session();
    let mut got = String::new();
    session
        .stream(StreamKind::Stdin)
        .read_to_string(&mut got)
        .unwrap();
    assert_eq!(got, "text");
    session.stream(StreamKind::Tty).write_all(b"page").unwrap();
    read_until(&mut terminal.user, "page");
    assert!(!terminal.is_raw());
    session.exit(0, 0, &[(StreamKind::Tty, 4)]);
    assert_eq!(client.wait().code(), Some(0));
}

#[test]
fn what_kills_the_session_is_told_and_the_terminal_is_as_before() {
    let fake = Fake::new(Script::default());
    let mut terminal = Terminal::new();
    let mut client = on_terminal(&fake, &terminal, &[]);
    let mut session = fake.session();
    session.stream(StreamKind::Tty).write_all(b"$").unwrap();
    read_until(&mut terminal.user, "$");
    session.fail(
        &Failure::new(
            ErrorCode::VmCrashed,
            "the machine has ended: QEMU was killed",
        )
        .hint("run `hostel logs console`"),
    );
    assert_eq!(client.wait().code(), Some(125));
    let text = read_until(&mut terminal.user, "logs console`");
    assert_eq!(text.matches("error:").count(), 1, "{text}");
    assert!(!terminal.is_raw());
}

#[test]
fn a_daemon_that_dies_is_told() {
    let mut fake = Fake::new(Script::default());
    let client = Running::start(fake.command(&["sleep", "9"]).stdin(Stdio::piped()));
    let session = fake.session();
    fake.kill();
    let (code, _, err) = texts(&client.finish());
    // Only now: ended before the daemon is dead, the session would be an orderly end of the events.
    drop(session);
    assert_eq!(code, Some(125));
    assert!(
        err.starts_with("error: lost the connection to the daemon"),
        "{err}"
    );
    assert_eq!(err.matches("error:").count(), 1, "{err}");
}

#[test]
fn lost_output_is_an_error() {
    let fake = Fake::new(Script::default());
    let client = Running::start(&mut fake.command(&["x"]));
    let mut session = fake.session();
    session
        .stream(StreamKind::Stdout)
        .write_all(b"abc")
        .unwrap();
    session.exit(0, 0, &[(StreamKind::Stdout, 5), (StreamKind::Stderr, 0)]);
    session.streams.clear();
    let (code, out, err) = texts(&client.finish());
    assert_eq!((code, out.as_str()), (Some(125), "abc"));
    assert!(
        err.contains("only 3 of 5 bytes of its standard output arrived"),
        "{err}"
    );
}

#[test]
fn a_command_that_cannot_run_exits_as_in_a_shell() {
    for (code, want) in [
        (ErrorCode::CommandNotFound, 127),
        (ErrorCode::CommandNotExecutable, 126),
        (ErrorCode::UserNotFound, 125),
    ] {
        let fake = Fake::new(Script {
            exec_failure: Some(Failure::new(code, "no")),
            ..Script::default()
        });
        let (got, _, err) = texts(&fake.run(&["lsit"]));
        assert_eq!(got, Some(want));
        assert_eq!(
            err.contains("hint: did you mean the verb `hostel list`?"),
            want != 126,
            "{err}"
        );
        let (_, _, err) = texts(&fake.run(&["--", "lsit"]));
        assert!(!err.contains("did you mean"), "{err}");
    }
}

#[test]
fn attach_takes_a_session_over_by_the_beginning_of_its_id() {
    let fake = Fake::new(Script::default());
    let client = Running::start(&mut fake.command(&["attach", "s1"]));
    let mut session = fake.session();
    assert!(fake.script(|s| {
        s.calls
            .iter()
            .any(|(n, r)| *n == "attach" && r.contains("s1-abc"))
    }));
    session
        .stream(StreamKind::Stdout)
        .write_all(b"again")
        .unwrap();
    session.exit(0, 0, &[(StreamKind::Stdout, 5), (StreamKind::Stderr, 0)]);
    assert_eq!(
        texts(&client.finish()),
        (Some(0), "again".into(), String::new())
    );
    assert_eq!(fake.run(&["attach", "zz"]).status.code(), Some(125));
}

#[test]
fn variables_go_along_as_asked() {
    let fake = Fake::new(Script::default());
    let mut command = fake.command(&[
        "exec", "x", "-e", "A=1", "-e", "HOST", "--keep", "--", "env",
    ]);
    let client = Running::start(
        command
            .env("HOST", "h")
            .env("LISTED", "l")
            .env("WSLENV", "LISTED/u"),
    );
    let session = fake.session();
    let env = session.request.command.as_ref().unwrap().env.clone();
    let env: Vec<_> = env
        .iter()
        .map(|v| {
            format!(
                "{}={}",
                String::from_utf8_lossy(&v.name),
                String::from_utf8_lossy(&v.value)
            )
        })
        .collect();
    assert_eq!(env, ["LISTED=l", "WSLENV=LISTED/u", "A=1", "HOST=h"]);
    assert!(session.request.detach);
    session.exit(0, 0, &[]);
    assert_eq!(texts(&client.finish()).0, Some(0));
}
