//! Sessions, and the calls about the machine as a whole.

use std::collections::HashMap;

use hostel_model::{ErrorCode, Token};
use hostel_proto::v1::{self, StreamKind, agent_client::AgentClient, session_event::Event};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::Endpoint;

use crate::host::{Host, LIMIT, accept, host};

/// A session as the daemon sees it.
struct Session {
    id: String,
    events: Streaming<v1::SessionEvent>,
    streams: HashMap<StreamKind, UnixStream>,
}

impl Host {
    async fn claim(&self, tokens: &[v1::StreamToken]) -> HashMap<StreamKind, UnixStream> {
        let mut streams = HashMap::new();
        for _ in tokens {
            let (mut stream, _) = timeout(LIMIT, self.streams.accept())
                .await
                .unwrap()
                .unwrap();
            let mut token = [0; Token::LEN];
            timeout(LIMIT, stream.read_exact(&mut token))
                .await
                .unwrap()
                .unwrap();
            let kind = tokens
                .iter()
                .find(|t| t.token[..] == token)
                .expect("a token we gave")
                .kind();
            streams.insert(kind, stream);
        }
        streams
    }

    async fn exec(
        &mut self,
        command: v1::CommandSpec,
        kinds: &[StreamKind],
    ) -> Result<Session, tonic::Status> {
        let id = hostel_model::SessionId::new_random().to_string();
        let streams = tokens(kinds);
        let request = v1::AgentExecRequest {
            distro: String::new(),
            session: id.clone(),
            command: Some(command),
            streams: streams.clone(),
        };
        let mut client = self.client.clone();
        // The call answers only after its streams are taken, unless it fails before.
        let call = tokio::spawn(async move { client.exec(request).await });
        let claimed = tokio::select! {
            claimed = self.claim(&streams), if !streams.is_empty() => claimed,
            () = async { while !call.is_finished() { tokio::task::yield_now().await } } => HashMap::new(),
        };
        let events = timeout(LIMIT, call).await.unwrap().unwrap()?.into_inner();
        Ok(Session {
            id,
            events,
            streams: claimed,
        })
    }

    async fn attach(&mut self, id: &str, kinds: &[StreamKind]) -> Session {
        let streams = tokens(kinds);
        let request = v1::AgentAttachRequest {
            session: id.to_owned(),
            streams: streams.clone(),
        };
        let mut client = self.client.clone();
        let call = tokio::spawn(async move { client.attach(request).await });
        let claimed = self.claim(&streams).await;
        let events = timeout(LIMIT, call)
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .into_inner();
        Session {
            id: id.to_owned(),
            events,
            streams: claimed,
        }
    }
}

impl Session {
    fn take(&mut self, kind: StreamKind) -> UnixStream {
        self.streams.remove(&kind).expect("the stream was claimed")
    }

    /// Reads events up to the end of the session.
    async fn exited(&mut self) -> v1::SessionExited {
        loop {
            let event = timeout(LIMIT, self.events.message())
                .await
                .expect("an event comes")
                .unwrap();
            match event.expect("the end is told").event.unwrap() {
                Event::Exited(exited) => return exited,
                Event::Opened(opened) => assert_eq!(opened.session, self.id),
                Event::Started(started) => assert!(started.pid > 0),
                Event::Warning(warning) => eprintln!("warning: {warning}"),
            }
        }
    }
}

fn tokens(kinds: &[StreamKind]) -> Vec<v1::StreamToken> {
    let token = |kind: &StreamKind| v1::StreamToken {
        kind: (*kind).into(),
        token: Token::new_random().as_bytes().to_vec().into(),
    };
    kinds.iter().map(token).collect()
}

/// A command of this machine's shell, all streams of the given sort.
fn shell(line: &str, stdio: v1::Stdio) -> v1::CommandSpec {
    v1::CommandSpec {
        shell: v1::ShellMode::None.into(),
        argv: vec!["/bin/sh".into(), "-c".into(), line.to_owned().into()],
        stdin: stdio.into(),
        stdout: stdio.into(),
        stderr: stdio.into(),
        directory: "/".into(),
        ..Default::default()
    }
}

const PIPES: &[StreamKind] = &[StreamKind::Stdin, StreamKind::Stdout, StreamKind::Stderr];

fn total(exited: &v1::SessionExited, kind: StreamKind) -> u64 {
    exited
        .totals
        .iter()
        .find(|t| t.kind() == kind)
        .expect("the stream is counted")
        .bytes
}

async fn rest_of(mut stream: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut bytes))
        .await
        .expect("the stream ends")
        .unwrap();
    bytes
}

#[tokio::test]
async fn it_greets_and_tells_of_the_machine() {
    let Some(mut host) = host("it_greets_and_tells_of_the_machine").await else {
        return;
    };
    let greeting = host
        .client
        .greet(v1::AgentGreetRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(greeting.generation, 1);
    assert!(!greeting.kernel_release.is_empty() && greeting.boottime_ms > 0);
    let memory = host
        .client
        .memory(v1::MemoryRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(memory.total_bytes > memory.free_bytes);
    let stopped = host
        .client
        .stop_distro(v1::StopDistroRequest {
            id: "none".into(),
            timeout_ms: 1,
        })
        .await
        .unwrap();
    assert!(!stopped.into_inner().was_running);
}

#[tokio::test]
async fn pipes_carry_everything_and_the_end_is_told_with_totals() {
    let Some(mut host) = host("pipes_carry_everything_and_the_end_is_told_with_totals").await
    else {
        return;
    };
    let command = shell("cat; echo oh >&2; exit 7", v1::Stdio::Pipe);
    let mut session = host.exec(command, PIPES).await.unwrap();
    let sent: Vec<u8> = (0..32 << 20).map(|i: u32| (i % 251) as u8).collect();
    let (mut stdin, stdout, stderr) = (
        session.take(StreamKind::Stdin),
        session.take(StreamKind::Stdout),
        session.take(StreamKind::Stderr),
    );
    let reader = tokio::spawn(rest_of(stdout));
    timeout(LIMIT, stdin.write_all(&sent))
        .await
        .unwrap()
        .unwrap();
    stdin.shutdown().await.unwrap();
    let exited = session.exited().await;
    assert_eq!((exited.code, exited.signal), (7, 0));
    assert_eq!(total(&exited, StreamKind::Stdout), sent.len() as u64);
    assert_eq!(total(&exited, StreamKind::Stderr), 3);
    assert!(reader.await.unwrap() == sent);
    assert_eq!(rest_of(stderr).await, b"oh\n");
}

#[tokio::test]
async fn a_background_child_neither_delays_the_end_nor_is_cut_off() {
    let Some(mut host) = host("a_background_child_neither_delays_the_end_nor_is_cut_off").await
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (gate, done) = (dir.path().join("gate"), dir.path().join("done"));
    rustix::fs::mkfifoat(rustix::fs::CWD, &gate, 0o600.into()).unwrap();
    let line = format!(
        "echo now; (read x < {}; head -c 300000 /dev/zero; echo ok > {}) & exit 0",
        gate.display(),
        done.display()
    );
    let mut session = host
        .exec(shell(&line, v1::Stdio::Pipe), PIPES)
        .await
        .unwrap();
    let exited = session.exited().await;
    assert_eq!((exited.code, total(&exited, StreamKind::Stdout)), (0, 4));
    let mut stdout = session.take(StreamKind::Stdout);
    let mut now = [0; 4];
    timeout(LIMIT, stdout.read_exact(&mut now))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&now, b"now\n");
    // The client leaves; what the child writes afterwards must not block it.
    drop(stdout);
    drop(session);
    tokio::task::spawn_blocking(move || {
        std::io::Write::write_all(
            &mut fs_err::OpenOptions::new().write(true).open(gate).unwrap(),
            b"go\n",
        )
        .unwrap();
    })
    .await
    .unwrap();
    timeout(LIMIT, async {
        while !fs_err::read(&done).is_ok_and(|d| d == b"ok\n") {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the child went on to its end");
}

#[tokio::test]
async fn a_terminal_has_its_size_and_is_hung_up() {
    let Some(mut host) = host("a_terminal_has_its_size_and_is_hung_up").await else {
        return;
    };
    let mut command = shell("stty size; read x; stty size; sleep 1000", v1::Stdio::Tty);
    command.window = Some(v1::WindowSize {
        rows: 33,
        columns: 77,
        ..Default::default()
    });
    let mut session = host.exec(command, &[StreamKind::Tty]).await.unwrap();
    let mut tty = session.take(StreamKind::Tty);
    let mut seen = String::new();
    read_until(&mut tty, &mut seen, "33 77").await;
    let window = Some(v1::WindowSize {
        rows: 44,
        columns: 88,
        ..Default::default()
    });
    host.client
        .resize(v1::ResizeRequest {
            session: session.id.clone(),
            window,
        })
        .await
        .unwrap();
    tty.write_all(b"go\r").await.unwrap();
    read_until(&mut tty, &mut seen, "44 88").await;
    host.client
        .hangup(v1::HangupRequest {
            session: session.id.clone(),
        })
        .await
        .unwrap();
    let exited = session.exited().await;
    assert_eq!(exited.signal, 1, "{exited:?}");
    host.client
        .hangup(v1::HangupRequest {
            session: session.id,
        })
        .await
        .unwrap();
}

async fn read_until(stream: &mut UnixStream, seen: &mut String, what: &str) {
    while !seen.contains(what) {
        let mut chunk = [0; 256];
        let read = timeout(LIMIT, stream.read(&mut chunk))
            .await
            .unwrap_or_else(|_| panic!("`{what}` comes, not {seen:?}"));
        let read = read.unwrap();
        assert!(read > 0, "the stream ended after {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&chunk[..read]));
    }
}

#[tokio::test]
async fn a_session_outlives_client_and_daemon() {
    let Some(mut host) = host("a_session_outlives_client_and_daemon").await else {
        return;
    };
    let line = "read a; echo first $a; read b; echo second $b; exit 3";
    let mut session = host
        .exec(shell(line, v1::Stdio::Tty), &[StreamKind::Tty])
        .await
        .unwrap();
    let mut tty = session.take(StreamKind::Tty);
    tty.write_all(b"one\r").await.unwrap();
    read_until(&mut tty, &mut String::new(), "first one").await;
    let id = session.id.clone();
    // Everything that the daemon held is gone; the agent dials again.
    drop((tty, session));
    host.client = AgentClient::new(Endpoint::from_static("http://gone").connect_lazy());
    host.client = accept(&host.control).await;
    let mut session = host.attach(&id, &[StreamKind::Tty]).await;
    let mut tty = session.take(StreamKind::Tty);
    tty.write_all(b"two\r").await.unwrap();
    read_until(&mut tty, &mut String::new(), "second two").await;
    assert_eq!(session.exited().await.code, 3);
    let request = v1::AgentAttachRequest {
        session: id,
        streams: vec![],
    };
    assert!(
        host.client.attach(request).await.is_err(),
        "an end that was told is forgotten"
    );
}

#[tokio::test]
async fn a_signal_reaches_the_command() {
    let Some(mut host) = host("a_signal_reaches_the_command").await else {
        return;
    };
    let mut session = host
        .exec(shell("exec sleep 1000", v1::Stdio::Null), &[])
        .await
        .unwrap();
    host.client
        .signal(v1::SignalRequest {
            session: session.id.clone(),
            signal: 15,
        })
        .await
        .unwrap();
    let bad = host
        .client
        .signal(v1::SignalRequest {
            session: session.id.clone(),
            signal: 65,
        })
        .await
        .unwrap_err();
    assert_eq!(
        hostel_proto::failure_of(&bad).code,
        ErrorCode::InvalidArgument
    );
    assert_eq!(session.exited().await.signal, 15);
}

#[tokio::test]
async fn what_cannot_be_started_has_a_code() {
    let Some(mut host) = host("what_cannot_be_started_has_a_code").await else {
        return;
    };
    let mut missing = shell("", v1::Stdio::Null);
    missing.argv = vec!["/no/such/command".into()];
    let mut nobody = shell("true", v1::Stdio::Null);
    nobody.user = "no-such-user".into();
    let mut empty = shell("", v1::Stdio::Null);
    empty.argv.clear();
    for (command, kinds, code) in [
        (missing, &[][..], ErrorCode::CommandNotFound),
        (nobody, &[], ErrorCode::UserNotFound),
        (empty, &[], ErrorCode::InvalidArgument),
        (shell("true", v1::Stdio::Null), PIPES, ErrorCode::Protocol),
    ] {
        let Err(status) = host.exec(command, kinds).await else {
            panic!("{code:?} was expected")
        };
        assert_eq!(hostel_proto::failure_of(&status).code, code, "{status}");
    }
    let request = v1::StartDistroRequest {
        id: "x".into(),
        disk_serial: "../etc".into(),
        ..Default::default()
    };
    let status = host.client.start_distro(request).await.unwrap_err();
    assert_eq!(hostel_proto::failure_of(&status).code, ErrorCode::Protocol);
    let status = host
        .client
        .inspect_distro(v1::InspectDistroRequest { id: "x".into() })
        .await
        .unwrap_err();
    assert_eq!(
        hostel_proto::failure_of(&status).code,
        ErrorCode::DistroStopped
    );
}

#[tokio::test]
async fn the_debug_shell_answers() {
    let Some(mut host) = host("the_debug_shell_answers").await else {
        return;
    };
    let mut command = shell("", v1::Stdio::Pipe);
    command.shell = v1::ShellMode::Login.into();
    command.argv.clear();
    let mut session = host.exec(command, PIPES).await.unwrap();
    let mut stdin = session.take(StreamKind::Stdin);
    let stdout = session.take(StreamKind::Stdout);
    stdin.write_all(b"help\nexit\n").await.unwrap();
    let text = String::from_utf8(rest_of(stdout).await).unwrap();
    assert!(text.contains("dmesg"), "{text}");
    assert_eq!(session.exited().await.code, 0);
}

#[tokio::test]
async fn power_off_ends_the_agent_with_its_word() {
    let Some(mut host) = host("power_off_ends_the_agent_with_its_word").await else {
        return;
    };
    let _watch = host.client.watch(v1::WatchRequest {}).await.unwrap();
    host.client
        .power_off(v1::PowerOffRequest { timeout_ms: 1000 })
        .await
        .unwrap();
    let status = timeout(LIMIT, async {
        loop {
            if let Some(status) = host.agent.try_wait().unwrap() {
                return status;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(status.await.expect("the agent ends").code(), Some(86));
}
