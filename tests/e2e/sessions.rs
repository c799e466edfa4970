//! Terminals, pipes, signals, exit codes, and what outlives a command.

use std::{
    os::fd::{AsFd, OwnedFd},
    process::{Command, Stdio},
    time::Duration,
};

use hostel_tests::{
    home::kill,
    run::{DEADLINE, Output, Running, until},
};
use rustix::process::Signal;

use crate::shared::{DEBIAN_12, SMALL, home};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "exit_codes_are_the_commands_own",
        exit_codes_are_the_commands_own,
    ),
    ("a_signal_is_128_plus_n", a_signal_is_128_plus_n),
    (
        "exec_passes_arguments_without_loss",
        exec_passes_arguments_without_loss,
    ),
    (
        "a_missing_command_is_127_and_a_file_that_cannot_run_126",
        a_missing_command_is_127_and_a_file_that_cannot_run_126,
    ),
    ("standard_error_stays_apart", standard_error_stays_apart),
    (
        "end_of_input_reaches_the_command",
        end_of_input_reaches_the_command,
    ),
    ("every_command_has_a_terminal", every_command_has_a_terminal),
    (
        "a_terminal_has_size_echo_and_interrupt",
        a_terminal_has_size_echo_and_interrupt,
    ),
    ("a_terminal_and_a_pipe_mix", a_terminal_and_a_pipe_mix),
    (
        "a_command_that_never_reads_does_not_block_output",
        a_command_that_never_reads_does_not_block_output,
    ),
    (
        "a_gibibyte_goes_through_intact_both_ways",
        a_gibibyte_goes_through_intact_both_ways,
    ),
    (
        "background_children_outlive_the_command",
        background_children_outlive_the_command,
    ),
    (
        "a_killed_client_hangs_its_session_up",
        a_killed_client_hangs_its_session_up,
    ),
    (
        "a_kept_session_is_taken_over_by_another_client",
        a_kept_session_is_taken_over_by_another_client,
    ),
    (
        "an_interrupt_is_forwarded_through_pipes",
        an_interrupt_is_forwarded_through_pipes,
    ),
    ("orphans_are_reaped", orphans_are_reaped),
    ("twenty_commands_at_once", twenty_commands_at_once),
];

/// CLI-3.
fn exit_codes_are_the_commands_own() {
    for code in [0, 1, 67, 87, 125, 255] {
        assert_eq!(home().sh(SMALL, &format!("exit {code}")).code(), code);
    }
}

/// CLI-4 on purpose otherwise: as every shell says it.
fn a_signal_is_128_plus_n() {
    assert_eq!(
        home()
            .run(&["exec", SMALL, "--", "sh", "-c", "kill -9 $$"])
            .code(),
        137
    );
    assert_eq!(
        home()
            .run(&["exec", SMALL, "--", "sh", "-c", "kill -TERM $$"])
            .code(),
        143
    );
}

/// CLI-25.
fn exec_passes_arguments_without_loss() {
    use std::os::unix::ffi::OsStrExt;
    let odd = std::ffi::OsStr::from_bytes(b"a  b\xff'\"$HOME\n*");
    let mut command = home().command(&["exec", SMALL, "--", "printf", "%s|%s|"]);
    command.arg(odd).arg("");
    let output = Running::start(&mut command, None)
        .unwrap()
        .wait(DEADLINE)
        .unwrap();
    assert_eq!(output.stdout, b"a  b\xff'\"$HOME\n*||");
    // Without exec the words are one line for the shell, joined by single spaces.
    assert_eq!(
        home()
            .run(&["-d", SMALL, "--", "echo", "a  b", "$HOME"])
            .ok(),
        "a b /root"
    );
    assert_eq!(
        home()
            .run(&["-d", SMALL, "--", "echo 'a  b' | tr a x"])
            .ok(),
        "x  b"
    );
}

fn a_missing_command_is_127_and_a_file_that_cannot_run_126() {
    home()
        .run(&["exec", SMALL, "--", "no-such-command"])
        .fails(127, &["no-such-command"]);
    home()
        .run(&["exec", SMALL, "--", "/etc/passwd"])
        .fails(126, &["/etc/passwd"]);
    assert_eq!(home().sh(SMALL, "no-such-command").code(), 127);
}

fn standard_error_stays_apart() {
    let output = home().sh(SMALL, "echo out; echo err >&2; exit 3");
    assert_eq!(
        (output.text().as_str(), output.stderr.trim(), output.code()),
        ("out", "err", 3)
    );
}

/// TTY-3.
fn end_of_input_reaches_the_command() {
    assert_eq!(
        home()
            .run_with(&["-d", SMALL, "--", "wc -c"], vec![b'x'; 100_000])
            .ok(),
        "100000"
    );
    assert_eq!(
        home()
            .run_with(&["-d", SMALL, "--", "cat; echo end"], "")
            .ok(),
        "end"
    );
}

/// TTY-1: also when nothing is a terminal.
fn every_command_has_a_terminal() {
    let tty = home()
        .sh(DEBIAN_12, "ps -o tty= -p $$ && true < /dev/tty")
        .ok();
    assert!(tty.starts_with("pts/"), "{tty}");
    home().sh(DEBIAN_12, "tty").fails(1, &[]);
}

/// A client on a pseudoterminal of the test's.
struct Terminal {
    master: OwnedFd,
    child: std::process::Child,
}

impl Terminal {
    fn start(mut command: Command, rows: u16, columns: u16, pipe_stdout: bool) -> Self {
        let pty =
            rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY)
                .unwrap();
        rustix::pty::grantpt(&pty).unwrap();
        rustix::pty::unlockpt(&pty).unwrap();
        let name = rustix::pty::ptsname(&pty, Vec::new()).unwrap();
        let slave = rustix::fs::open(
            name,
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&slave, size).unwrap();
        command.stdin(Stdio::from(slave.try_clone().unwrap()));
        command.stdout(if pipe_stdout {
            Stdio::piped()
        } else {
            Stdio::from(slave.try_clone().unwrap())
        });
        command.stderr(Stdio::from(slave));
        Self {
            master: pty,
            child: command.spawn().unwrap(),
        }
    }

    fn write(&self, text: &str) {
        rustix::io::write(&self.master, text.as_bytes()).unwrap();
    }

    /// Reads the screen until it shows `what`; returns all that it showed.
    fn expect(&self, what: &str) -> String {
        let mut seen = Vec::new();
        let end = std::time::Instant::now() + DEADLINE;
        while !String::from_utf8_lossy(&seen).contains(what) {
            assert!(
                std::time::Instant::now() < end,
                "`{what}` is not in {}",
                String::from_utf8_lossy(&seen)
            );
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(
                self.master.as_fd(),
                rustix::event::PollFlags::IN,
            )];
            let timeout = rustix::event::Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            if rustix::event::poll(&mut fds, Some(&timeout)).unwrap() > 0 {
                let mut buffer = [0; 4096];
                match rustix::io::read(&self.master, &mut buffer) {
                    Ok(n) => seen.extend_from_slice(&buffer[..n]),
                    Err(error) => panic!(
                        "`{what}` is not in {} ({error})",
                        String::from_utf8_lossy(&seen)
                    ),
                }
            }
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    fn wait(mut self) -> i32 {
        until("the client leaves", DEADLINE, || {
            self.child.try_wait().unwrap()
        })
        .unwrap()
        .code()
        .unwrap_or(-1)
    }
}

/// TTY-2.
fn a_terminal_has_size_echo_and_interrupt() {
    let terminal = Terminal::start(home().command(&["-d", DEBIAN_12]), 33, 99, false);
    terminal.write("stty size; echo $0; echo mark-$((1+1))\n");
    let screen = terminal.expect("mark-2");
    assert!(screen.contains("33 99"), "{screen}");
    // The shell is a login shell (section 1.3 of the specification).
    assert!(screen.contains("-bash"), "{screen}");
    let size = rustix::termios::Winsize {
        ws_row: 40,
        ws_col: 120,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&terminal.master, size).unwrap();
    kill(terminal.child.id(), Signal::WINCH);
    terminal.write("sleep 1; stty size\n");
    terminal.expect("40 120");
    terminal.write("sleep 1000\n");
    terminal.expect("sleep 1000");
    // The foreground job must be there before the key is pressed.
    until("sleep runs", DEADLINE, || {
        home()
            .sh(DEBIAN_12, "pgrep -x sleep")
            .status
            .success()
            .then_some(())
    })
    .unwrap();
    terminal.write("\x03");
    terminal.write("echo code-$?\n");
    terminal.expect("code-130");
    terminal.write("exit 7\n");
    assert_eq!(terminal.wait(), 7);
}

fn a_terminal_and_a_pipe_mix() {
    use std::io::Read;
    let command = home().command(&[
        "-d",
        DEBIAN_12,
        "--",
        "tty; test -t 1 && echo tty || echo pipe; test -t 2 && echo err-tty >&2",
    ]);
    let mut terminal = Terminal::start(command, 24, 80, true);
    let mut out = String::new();
    terminal
        .child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut out)
        .unwrap();
    assert!(
        out.starts_with("/dev/pts/") && out.ends_with("pipe\n"),
        "{out}"
    );
    terminal.expect("err-tty");
    assert_eq!(terminal.wait(), 0);
}

/// TTY-4.
fn a_command_that_never_reads_does_not_block_output() {
    let input = vec![b'x'; 4 << 20];
    let output = home().run_with(
        &[
            "-d",
            SMALL,
            "--",
            "head -c 1000000 /dev/zero | tr '\\0' y; exit 5",
        ],
        input,
    );
    assert_eq!((output.stdout.len(), output.code()), (1_000_000, 5));
}

/// A deterministic stream that no block repeats, hashed on both sides.
fn a_gibibyte_goes_through_intact_both_ways() {
    const GIB: u64 = 1 << 30;
    let hash = |text: &str| {
        text.split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    // Towards the command: the host makes the bytes, the guest hashes them.
    let make = format!("seq 1 200000000 | head -c {GIB}");
    let run = |line: String| -> Output {
        let mut command = Command::new("bash");
        command.args(["-o", "pipefail", "-c", &line]);
        home().prepare(&mut command);
        Running::start(&mut command, None)
            .unwrap()
            .wait(Duration::from_secs(900))
            .unwrap()
    };
    let hostel = hostel_tests::world::program("hostel");
    let hostel = hostel.display();
    let want = hash(&run(format!("({make}; true) | cksum")).text());
    let inside = run(format!("({make}; true) | {hostel} -d {DEBIAN_12} -- cksum")).ok();
    assert_eq!(hash(&inside), want, "{inside}");
    assert!(inside.contains(&GIB.to_string()), "{inside}");
    // And back: the guest makes the same bytes.
    let outside = run(format!(
        "{hostel} -d {DEBIAN_12} -- 'seq 1 200000000 | head -c {GIB}' | cksum"
    ))
    .text();
    assert_eq!(hash(&outside), want, "{outside}");
}

/// TTY-5.
fn background_children_outlive_the_command() {
    let home = home();
    let before = std::time::Instant::now();
    home.sh(
        DEBIAN_12,
        "(for i in $(seq 200); do echo noise; sleep 0.5; done) & echo started",
    )
    .ok();
    assert!(
        before.elapsed() < Duration::from_secs(60),
        "the client did not wait for the child"
    );
    // The shell must not end, and hang its terminal up, before `nohup` has asked not to hear of it.
    home.sh(
        DEBIAN_12,
        "nohup sleep 4321 > /dev/null 2>&1 & until pgrep -f '^sleep 4321'; do sleep 0.1; done",
    )
    .ok();
    home.sh(DEBIAN_12, "pkill -f '^sleep 4321'").ok();
}

fn a_killed_client_hangs_its_session_up() {
    let home = home();
    let client = home.start(&["-d", DEBIAN_12, "--", "exec sleep 9876"]);
    let there = || {
        home.sh(DEBIAN_12, "pgrep -f '^sleep 9876'")
            .status
            .success()
    };
    until("the command runs", DEADLINE, || there().then_some(())).unwrap();
    kill(client.pid(), Signal::KILL);
    until("the command is gone", DEADLINE, || (!there()).then_some(())).unwrap();
}

/// A session belongs to the agent, not to its client's connection.
fn a_kept_session_is_taken_over_by_another_client() {
    let home = home();
    let first = home.start(&[
        "--keep",
        "-d",
        DEBIAN_12,
        "--",
        "for i in $(seq 1000); do test -e /root/go-on && break; sleep 0.2; done; echo kept; exit 9",
    ]);
    let id = until("the session is listed", DEADLINE, || {
        let sessions = home.json(&["sessions"]);
        let mut all = sessions.as_array().unwrap().iter();
        let mine = all.find(|s| s["command"].as_str().is_some_and(|c| c.contains("go-on")))?;
        (mine["pid"].as_u64()? > 0).then(|| mine["id"].as_str().unwrap().to_owned())
    })
    .unwrap();
    kill(first.pid(), Signal::KILL);
    drop(first);
    let second = home.start(&["attach", &id]);
    home.sh(DEBIAN_12, "touch /root/go-on").ok();
    let output = second.wait(DEADLINE).unwrap();
    home.sh(DEBIAN_12, "rm /root/go-on").ok();
    assert_eq!(
        (output.text().as_str(), output.code()),
        ("kept", 9),
        "{}",
        output.stderr
    );
    home.run(&["attach", &id]).fails(125, &[&id[..8]]);
}

fn an_interrupt_is_forwarded_through_pipes() {
    let home = home();
    let client = home.start(&[
        "-d",
        DEBIAN_12,
        "--",
        "trap 'echo caught; exit 42' INT; echo ready; touch /root/trapped; while :; do sleep 0.2; done",
    ]);
    let there = || {
        home.sh(DEBIAN_12, "rm /root/trapped 2> /dev/null")
            .status
            .success()
    };
    until("the command is ready", DEADLINE, || there().then_some(())).unwrap();
    kill(client.pid(), Signal::INT);
    let output = client.wait(DEADLINE).unwrap();
    assert_eq!(
        (output.text().as_str(), output.code()),
        ("ready\ncaught", 42)
    );
}

fn orphans_are_reaped() {
    let home = home();
    home.sh(
        DEBIAN_12,
        "for i in 1 2 3 4 5; do (sleep 0.1 &) ; done; sleep 0.5",
    )
    .ok();
    until("no zombie is left", DEADLINE, || {
        (home.sh(DEBIAN_12, "ps -eo stat= | grep -c ^Z || true").ok() == "0").then_some(())
    })
    .unwrap();
}

fn twenty_commands_at_once() {
    let running: Vec<Running> = (0..20)
        .map(|i| home().start(&["-d", SMALL, "--", &format!("echo {i}; exit {i}")]))
        .collect();
    for (i, one) in running.into_iter().enumerate() {
        let output = one.wait(DEADLINE).unwrap();
        assert_eq!(
            (output.text(), output.code()),
            (i.to_string(), i32::try_from(i).unwrap()),
            "{}",
            output.stderr
        );
    }
}
