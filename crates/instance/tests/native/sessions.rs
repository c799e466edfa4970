//! Commands: streams, terminals, users, environment, ends.

use std::io::{Read as _, Write as _};
use std::time::Instant;

use hostel_instance::{
    CommandEnd, Directory, EnvVar, ExecError, LocalContext, Program, SessionReport, SessionRequest,
    Stdio, WindowSize, spawn_local_session,
};

use crate::fixture::{
    House, PATIENCE, Test, ended, expect, job, on_tty, output, readable, reader, report, run, shell,
};

pub(crate) const TESTS: &[Test] = &[
    ("exit_codes_and_signals_are_told", ends),
    (
        "a_terminal_is_there_even_when_nothing_is_one",
        always_a_terminal,
    ),
    ("terminal_and_pipes_can_be_mixed", mixed),
    ("the_window_has_its_size_and_changes_it", window),
    ("ctrl_c_reaches_the_foreground", ctrl_c),
    ("ctrl_z_does_not_strand_a_command", ctrl_z),
    ("signals_reach_the_foreground_group", signals),
    ("a_hang_up_ends_a_shell_and_what_it_runs", hang_up),
    ("a_caller_that_goes_hangs_up", caller_gone),
    ("the_end_of_input_is_passed_on_both_ways", end_of_input),
    ("a_command_that_never_reads_does_not_block", never_reads),
    ("background_children_outlive_the_command", background),
    ("what_was_written_last_is_not_lost", last_words),
    ("64_mib_pass_unchanged", large),
    ("users_groups_and_homes", users),
    ("environment_in_its_order", environment),
    ("directories", directories),
    ("programs_that_cannot_run", cannot_run),
    ("arguments_of_any_bytes", any_bytes),
    ("fifty_sessions_at_once", fifty),
    ("a_session_without_a_distribution", local),
    ("how_long_a_command_takes", how_long),
];

fn ends() {
    let house = House::new();
    let i = house.start("ends").instance;
    for code in [0, 1, 7, 127, 255] {
        assert_eq!(
            run(&i, &shell(&format!("exit {code}"))).end,
            CommandEnd::Exited(code)
        );
    }
    for signal in [9, 15] {
        let end = run(&i, &shell(&format!("kill -{signal} $$"))).end;
        assert_eq!(
            end,
            CommandEnd::Signaled {
                signal,
                core: false
            }
        );
    }
    let CommandEnd::Signaled { signal: 11, core } =
        run(&i, &shell("ulimit -c unlimited; cd /tmp; kill -11 $$")).end
    else {
        panic!("not signal 11");
    };
    // Where core files go is the kernel's setting; a plain name makes one here, and then the flag has to be told.
    let made = output(&i, "ls /tmp | grep -c core || true");
    if made != "0" {
        assert!(core, "a core file without the flag");
    }
}

fn always_a_terminal() {
    let house = House::new();
    let i = house.start("tty").instance;
    let mut quiet = shell(
        "echo on the terminal > /dev/tty; ps -o pid,sid,tty | grep $$; stat -c '%u %g %a' /dev/pts/0",
    );
    quiet.user = Some("ada".to_owned());
    let mut session = i.exec(&quiet).unwrap();
    expect(&session.tty_master, "on the terminal");
    let text = String::from_utf8(reader(session.stdout.take()).join().unwrap()).unwrap();
    assert!(text.contains("1000 5 620"), "{text}");
    assert_eq!(ended(&session), CommandEnd::Exited(0));
}

fn mixed() {
    let house = House::new();
    let i = house.start("mixed").instance;
    let mut job = shell("test -t 0 && test -t 2 && ! test -t 1 && echo out && echo err >&2");
    (job.stdin, job.stderr) = (Stdio::Tty, Stdio::Tty);
    let mut session = i.exec(&job).unwrap();
    assert!(session.stdin.is_none() && session.stderr.is_none());
    assert_eq!(reader(session.stdout.take()).join().unwrap(), b"out\n");
    expect(&session.tty_master, "err\r\n");
    assert_eq!(ended(&session), CommandEnd::Exited(0));
    assert_eq!(report(&session), Some(SessionReport::Empty));
    assert_eq!(report(&session), None);
    // All slaves are closed: the terminal ends.
    assert_eq!(
        rustix::io::read(&session.tty_master, &mut [0; 8]),
        Err(rustix::io::Errno::IO)
    );
}

fn window() {
    let house = House::new();
    let i = house.start("window").instance;
    let mut job = on_tty(shell(
        "stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 1; done",
    ));
    job.window = WindowSize {
        rows: 41,
        columns: 133,
        ..WindowSize::default()
    };
    let session = i.exec(&job).unwrap();
    let seen = expect(&session.tty_master, "ready");
    assert!(seen.contains("41 133"), "{seen}");
    session
        .request(SessionRequest::Resize(WindowSize {
            rows: 20,
            columns: 70,
            ..WindowSize::default()
        }))
        .unwrap();
    expect(&session.tty_master, "20 70");
    assert_eq!(ended(&session), CommandEnd::Exited(3));
}

fn ctrl_c() {
    let house = House::new();
    let i = house.start("ctrlc").instance;
    let session = i
        .exec(&on_tty(shell("echo ready; exec sleep 1000")))
        .unwrap();
    expect(&session.tty_master, "ready");
    rustix::io::write(&session.tty_master, b"\x03").unwrap();
    assert_eq!(
        ended(&session),
        CommandEnd::Signaled {
            signal: 2,
            core: false
        }
    );

    // In an interactive shell it ends the job, not the shell.
    let mut login = on_tty(job(&["x"]));
    login.program = Program::LoginShell;
    let session = i.exec(&login).unwrap();
    rustix::io::write(&session.tty_master, b"echo name $0; sleep 1000\n").unwrap();
    expect(&session.tty_master, "name -sh");
    while !output(&i, "ps").contains("sleep 1000") {}
    rustix::io::write(&session.tty_master, b"\x03echo st''ill; exit 5\n").unwrap();
    expect(&session.tty_master, "still");
    assert_eq!(ended(&session), CommandEnd::Exited(5));
}

fn ctrl_z() {
    let house = House::new();
    let i = house.start("ctrlz").instance;
    let session = i
        .exec(&on_tty(shell("echo ready; read x; echo got $x")))
        .unwrap();
    expect(&session.tty_master, "ready");
    rustix::io::write(&session.tty_master, b"\x1a").unwrap();
    rustix::io::write(&session.tty_master, b"on\n").unwrap();
    expect(&session.tty_master, "got on");
    assert_eq!(ended(&session), CommandEnd::Exited(0));
}

fn signals() {
    let house = House::new();
    let i = house.start("signals").instance;
    let mut session = i
        .exec(&shell(
            "trap 'echo caught; exit 4' USR1; echo ready; while :; do sleep 0.1; done",
        ))
        .unwrap();
    let out = session.stdout.take().unwrap();
    expect(&out, "ready");
    session.request(SessionRequest::Signal(10)).unwrap();
    expect(&out, "caught");
    assert_eq!(ended(&session), CommandEnd::Exited(4));
}

fn hang_up() {
    let house = House::new();
    let i = house.start("hangup").instance;
    let mut login = on_tty(job(&["x"]));
    login.program = Program::LoginShell;
    let mut session = i.exec(&login).unwrap();
    rustix::io::write(&session.tty_master, b"echo re''ady; sleep 1000\n").unwrap();
    expect(&session.tty_master, "ready");
    // Only then it is the foreground group.
    while !output(&i, "ps").contains("sleep 1000") {}
    session.request(SessionRequest::Hangup).unwrap();
    // The terminal hangs up when its last holder lets go; a reader of nothing takes its place.
    session.tty_master = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let end = ended(&session);
    assert!(
        matches!(
            end,
            CommandEnd::Signaled { signal: 1, .. } | CommandEnd::Exited(_)
        ),
        "{end:?}"
    );
    assert_eq!(report(&session), Some(SessionReport::Empty));
    assert!(!output(&i, "ps").contains("sleep 1000"));
}

fn caller_gone() {
    let house = House::new();
    let i = house.start("gone").instance;
    let session = i.exec(&on_tty(shell("sleep 1000"))).unwrap();
    drop(session);
    let deadline = Instant::now() + PATIENCE;
    while output(&i, "ps").contains("sleep 1000") {
        assert!(Instant::now() < deadline, "the command is still there");
    }
}

fn end_of_input() {
    let house = House::new();
    let i = house.start("eof").instance;
    let mut cat = job(&["cat"]);
    cat.stdin = Stdio::Pipe;
    let mut session = i.exec(&cat).unwrap();
    let mut stdin = std::fs::File::from(session.stdin.take().unwrap());
    stdin.write_all(b"to the end").unwrap();
    drop(stdin);
    assert_eq!(reader(session.stdout.take()).join().unwrap(), b"to the end");
    assert_eq!(ended(&session), CommandEnd::Exited(0));
    // A reader that goes away is a broken pipe to the command.
    let mut session = i.exec(&job(&["yes"])).unwrap();
    drop(session.stdout.take());
    assert_eq!(
        ended(&session),
        CommandEnd::Signaled {
            signal: 13,
            core: false
        }
    );
}

fn never_reads() {
    let house = House::new();
    let i = house.start("deaf").instance;
    let mut deaf = shell("echo speaking; exit 9");
    deaf.stdin = Stdio::Pipe;
    let mut session = i.exec(&deaf).unwrap();
    let stdin = session.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        std::fs::File::from(stdin)
            .write_all(&vec![b'x'; 1 << 20])
            .unwrap_err()
            .kind()
    });
    assert_eq!(reader(session.stdout.take()).join().unwrap(), b"speaking\n");
    assert_eq!(ended(&session), CommandEnd::Exited(9));
    assert_eq!(writer.join().unwrap(), std::io::ErrorKind::BrokenPipe);
}

fn background() {
    let house = House::new();
    let i = house.start("background").instance;
    let mut session = i
        .exec(&shell("setsid sh -c 'while ! test -e /tmp/go; do sleep 0.05; done; touch /tmp/done' >/dev/null 2>&1 & echo $!"))
        .unwrap();
    assert_eq!(ended(&session), CommandEnd::Exited(0));
    let text = reader(session.stdout.take()).join().unwrap();
    assert!(!text.is_empty());
    assert!(matches!(
        session.read_report(Instant::now()),
        Err(hostel_instance::WireError::Timeout)
    ));
    output(&i, "touch /tmp/go");
    assert_eq!(report(&session), Some(SessionReport::Empty));
    assert_eq!(output(&i, "ls /tmp/done"), "/tmp/done");
    assert!(!output(&i, "ps").contains(" Z "), "a zombie");
}

fn last_words() {
    let house = House::new();
    let i = house.start("words").instance;
    // A background process holds the terminal while the command ends with much that nobody has read yet.
    let text = "(trap '' HUP; exec sleep 1000) & seq 1 700; echo the end";
    let session = i.exec(&on_tty(shell(text))).unwrap();
    assert_eq!(ended(&session), CommandEnd::Exited(0));
    let seen = expect(&session.tty_master, "the end");
    assert!(
        (1..=700).all(|n| seen.contains(&format!("{n}\r\n"))),
        "{} bytes",
        seen.len()
    );
}

fn large() {
    const BYTES: usize = 64 << 20;
    let house = House::new();
    let i = house.start("large").instance;
    let mut cat = job(&["cat"]);
    cat.stdin = Stdio::Pipe;
    let mut session = i.exec(&cat).unwrap();
    let mut stdin = std::fs::File::from(session.stdin.take().unwrap());
    let block: Vec<u8> = (0..1_048_573_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let sent = block.clone();
    let writer = std::thread::spawn(move || {
        let mut left = BYTES;
        while left > 0 {
            let part = left.min(sent.len());
            stdin.write_all(&sent[..part]).unwrap();
            left -= part;
        }
    });
    let mut stdout = std::fs::File::from(session.stdout.take().unwrap());
    let mut got = Vec::with_capacity(BYTES);
    stdout.read_to_end(&mut got).unwrap();
    writer.join().unwrap();
    assert_eq!(got.len(), BYTES);
    assert!(got.chunks(block.len()).all(|c| c == &block[..c.len()]));
    assert_eq!(ended(&session), CommandEnd::Exited(0));
}

fn users() {
    let house = House::new();
    let i = house.start("users").instance;
    let mut ada = shell("id -u; id -g; id -G; echo $HOME $USER $LOGNAME $SHELL; pwd");
    ada.user = Some("ada".to_owned());
    let text = run(&i, &ada).stdout;
    assert_eq!(
        text,
        "1000\n1000\n1000 27 998\n/home/ada ada ada /bin/sh\n/home/ada\n"
    );
    ada.program = Program::ShellCommand(b"exec cat > /dev/stdout < /etc/hostname".to_vec());
    assert_eq!(run(&i, &ada).stdout, "host-users\n");
    // The home does not exist: the command starts in /.
    let mut lost = shell("pwd");
    lost.user = Some("lost".to_owned());
    assert_eq!(run(&i, &lost).stdout, "/\n");
    lost.user = Some("nobody-here".to_owned());
    match i.exec(&lost) {
        Err(ExecError::UnknownUser(name)) => assert_eq!(name, "nobody-here"),
        other => panic!("{other:?}"),
    }
}

fn environment() {
    let house = House::new();
    house.write("etc/default/locale", "LANG=\"de_DE.UTF-8\"\n");
    let i = house.start("env").instance;
    let mut env = job(&["env"]);
    env.env = vec![
        EnvVar::new("TERM", "vt100"),
        EnvVar::new("HOME", "/evil"),
        EnvVar::new("ODD", b"\xff=".to_vec()),
    ];
    env.program = Program::ShellCommand(b"env; echo ${#ODD}".to_vec());
    let mut session = i.exec(&env).unwrap();
    let bytes = reader(session.stdout.take()).join().unwrap();
    let text = String::from_utf8_lossy(&bytes);
    for line in [
        "TERM=vt100",
        "HOME=/root",
        "LANG=de_DE.UTF-8",
        "NAME=host-env",
        "WSL_DISTRO_NAME=Name-env",
        "USER=root",
        "SHELL=/bin/sh",
        "HOSTTYPE=x86_64",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games:/usr/local/games",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
    assert!(bytes.windows(6).any(|w| w == b"ODD=\xff="));
    env.env = vec![EnvVar::new("A=B", "x")];
    assert!(matches!(i.exec(&env), Err(ExecError::InvalidJob(_))));
}

fn directories() {
    let house = House::new();
    let i = house.start("dirs").instance;
    for (wanted, result) in [
        ("/var", "/var"),
        ("~", "/root"),
        ("~/../var", "/var"),
        ("/no/such", "/root"),
    ] {
        let mut pwd = shell("pwd");
        pwd.directory = Some(Directory(wanted.into()));
        let mut session = i.exec(&pwd).unwrap();
        let text = reader(session.stdout.take()).join().unwrap();
        assert_eq!(String::from_utf8(text).unwrap().trim(), result, "{wanted}");
        assert_eq!(
            session.warnings.is_empty(),
            wanted != "/no/such",
            "{:?}",
            session.warnings
        );
    }
    let mut pwd = shell("pwd");
    pwd.directory = Some(Directory(b"relative".to_vec()));
    assert!(matches!(i.exec(&pwd), Err(ExecError::InvalidJob(_))));
}

fn cannot_run() {
    let house = House::new();
    house.write("bin/plain", "text");
    house.executable("bin/script", "echo no interpreter line: $1\n");
    house.executable("bin/lost", "#!/no/such/interpreter\n");
    let i = house.start("cannot").instance;
    for missing in ["no-such-program", "/no/such/program", "/bin/lost"] {
        match i.exec(&job(&[missing])) {
            Err(ExecError::NotFound { program }) => assert_eq!(program, missing),
            other => panic!("{missing}: {other:?}"),
        }
    }
    for refused in ["plain", "/etc", "/bin/plain"] {
        let error = i.exec(&job(&[refused])).unwrap_err();
        assert!(
            matches!(error, ExecError::NotExecutable { .. }),
            "{refused}: {error}"
        );
    }
    assert_eq!(
        run(&i, &job(&["script", "x"])).stdout,
        "no interpreter line: x\n"
    );
    let mut shellless = job(&["x"]);
    shellless.user = Some("shellless".to_owned());
    shellless.program = Program::LoginShell;
    match i.exec(&shellless) {
        Err(ExecError::NotFound { program }) => assert_eq!(program, "/bin/gone"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(i.exec(&job(&[])), Err(ExecError::InvalidJob(_))));
    let huge = "x".repeat(5 << 20);
    assert!(matches!(
        i.exec(&job(&["echo", &huge])),
        Err(ExecError::InvalidJob(_))
    ));
    // The kernel's own limit of one argument.
    let long = "x".repeat(200 << 10);
    assert!(matches!(
        i.exec(&job(&["echo", &long])),
        Err(ExecError::NotExecutable { .. })
    ));
    assert_eq!(
        output(&i, "ps | grep -c '[h]ostel-init' || true"),
        "2",
        "PID 1 and this session only"
    );
}

fn any_bytes() {
    let house = House::new();
    let i = house.start("bytes").instance;
    let mut echo = job(&["x"]);
    let odd: Vec<u8> = (1..=255).collect();
    echo.program = Program::Argv(vec![b"echo".to_vec(), b"-n".to_vec(), odd.clone()]);
    let mut session = i.exec(&echo).unwrap();
    assert_eq!(reader(session.stdout.take()).join().unwrap(), odd);
    echo.program = Program::Argv(vec![b"echo".to_vec(), b"\0".to_vec()]);
    assert!(matches!(i.exec(&echo), Err(ExecError::InvalidJob(_))));
}

fn fifty() {
    let house = House::new();
    let i = house.start("fifty").instance;
    let sessions: Vec<_> = (0..50)
        .map(|n| i.exec(&shell(&format!("read x; exit {n}"))).unwrap())
        .collect();
    for (n, session) in sessions.iter().enumerate() {
        assert_eq!(ended(session), CommandEnd::Exited(n as u8));
    }
}

fn local() {
    let mut job = on_tty(shell("echo $A; readlink /proc/self/ns/pid; exit 6"));
    job.stdout = Stdio::Pipe;
    let context = LocalContext {
        environment: vec![EnvVar::new("A", "outside")],
    };
    let mut session =
        spawn_local_session(&std::env::current_exe().unwrap(), &context, &job).unwrap();
    let text = String::from_utf8(reader(session.stdout.take()).join().unwrap()).unwrap();
    let own = fs_err::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(text, format!("outside\n{}\n", own.display()));
    assert_eq!(ended(&session), CommandEnd::Exited(6));
    assert_eq!(report(&session), Some(SessionReport::Empty));
    assert!(
        readable(&session.control, Instant::now() + PATIENCE),
        "the session process ends"
    );
}

fn how_long() {
    let house = House::new();
    let begin = Instant::now();
    let i = house.start("fast").instance;
    let cold = begin.elapsed();
    let mut times: Vec<_> = (0..15)
        .map(|_| {
            let begin = Instant::now();
            assert_eq!(run(&i, &job(&["true"])).end, CommandEnd::Exited(0));
            begin.elapsed()
        })
        .collect();
    times.sort();
    eprintln!(
        "launch {cold:?}, then a command {:?} (median; unoptimised build, other tests beside it)",
        times[7]
    );
    assert!(
        times[7] < std::time::Duration::from_millis(500),
        "{times:?}"
    );
}
