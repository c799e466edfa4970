//! The pumps against real pipes, terminals and sockets.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::agent::dial::BoxStream;

const LIMIT: Duration = Duration::from_secs(60);

struct Rig {
    connections: mpsc::Sender<OutputConnection>,
    tally: Tally,
    hangup: CancellationToken,
    task: JoinHandle<()>,
}

fn output_of(fd: OwnedFd, terminal: bool) -> Rig {
    let (connections, incoming) = mpsc::channel(WAITING);
    let hangup = CancellationToken::new();
    let (pump, tally) = Output::new(end(fd).unwrap(), terminal, incoming, hangup.clone());
    Rig {
        connections,
        tally,
        hangup,
        task: tokio::spawn(pump.run()),
    }
}

fn connection() -> (OutputConnection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (read, write) = tokio::io::split(Box::new(ours) as BoxStream);
    (
        OutputConnection {
            write,
            read: Some(read),
        },
        theirs,
    )
}

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

/// Waits for a condition that another task brings about.
async fn until(mut condition: impl FnMut() -> bool) {
    timeout(LIMIT, async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the condition comes true");
}

#[tokio::test]
async fn output_arrives_whole_and_ends() {
    let (read, write) = pipe();
    let rig = output_of(read, false);
    let (ours, mut theirs) = connection();
    rig.connections.send(ours).await.unwrap();
    let sent: Vec<u8> = (0..8 << 20).map(|i: u32| (i % 251) as u8).collect();
    let data = sent.clone();
    let writer =
        tokio::task::spawn_blocking(move || std::fs::File::from(write).write_all_sync(&data));
    let mut got = Vec::new();
    timeout(LIMIT, theirs.read_to_end(&mut got))
        .await
        .unwrap()
        .unwrap();
    writer.await.unwrap();
    assert!(got == sent);
    assert_eq!(rig.tally.count(), sent.len() as u64);
    drop(rig.connections);
    timeout(LIMIT, rig.task).await.unwrap().unwrap();
}

trait WriteAllSync {
    fn write_all_sync(self, data: &[u8]);
}

impl WriteAllSync for std::fs::File {
    fn write_all_sync(mut self, data: &[u8]) {
        std::io::Write::write_all(&mut self, data).unwrap();
    }
}

#[tokio::test]
async fn output_without_a_connection_waits_and_goes_to_the_next_one() {
    let (read, write) = pipe();
    let rig = output_of(read, false);
    rustix::io::write(&write, b"first ").unwrap();
    let (ours, theirs) = connection();
    drop(theirs);
    rig.connections.send(ours).await.unwrap();
    rustix::io::write(&write, b"second").unwrap();
    let (ours, mut theirs) = connection();
    rig.connections.send(ours).await.unwrap();
    let mut got = [0; 12];
    timeout(LIMIT, theirs.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&got, b"first second");
    rig.hangup.cancel();
    timeout(LIMIT, rig.task).await.unwrap().unwrap();
    assert_eq!(
        rustix::io::write(&write, b"x"),
        Err(rustix::io::Errno::PIPE)
    );
}

#[tokio::test]
async fn a_reader_that_closes_on_purpose_closes_the_pipe() {
    let (read, write) = pipe();
    let rig = output_of(read, false);
    let (ours, theirs) = connection();
    rig.connections.send(ours).await.unwrap();
    rustix::net::shutdown(&theirs, rustix::net::Shutdown::Read).unwrap();
    rustix::io::write(&write, b"x").unwrap();
    timeout(LIMIT, rig.task).await.unwrap().unwrap();
    assert_eq!(
        rustix::io::write(&write, b"x"),
        Err(rustix::io::Errno::PIPE)
    );
}

#[tokio::test]
async fn a_slow_client_holds_the_writer_up_and_the_count_is_right() {
    let (read, write) = pipe();
    let rig = output_of(read, false);
    let (ours, mut theirs) = connection();
    rig.connections.send(ours).await.unwrap();
    rustix::io::ioctl_fionbio(&write, true).unwrap();
    let mut written = 0u64;
    let mut stuck = 0;
    // Until nothing moves: the socket, the pump's buffer and the pipe are full.
    while stuck < 1000 {
        match rustix::io::write(&write, &[7; 4096]) {
            Ok(n) => (written, stuck) = (written + n as u64, 0),
            Err(_) => stuck += 1,
        }
        tokio::task::yield_now().await;
    }
    assert!(written < 8 << 20, "{written} bytes are held somewhere");
    assert_eq!(rig.tally.count(), written);
    drop(write);
    drop(rig.connections);
    let mut got = Vec::new();
    timeout(LIMIT, theirs.read_to_end(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(got.len() as u64, written);
}

#[tokio::test]
async fn without_a_client_for_ever_output_is_dropped() {
    let (read, write) = pipe();
    let rig = output_of(read, false);
    drop(rig.connections);
    rustix::io::ioctl_fionbio(&write, true).unwrap();
    let mut written = 0;
    until(|| {
        written += rustix::io::write(&write, &[0; 4096]).unwrap_or(0);
        written > 4 << 20
    })
    .await;
    drop(write);
    timeout(LIMIT, rig.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_terminals_count_covers_all_that_was_written() {
    let (master, slave) = pty();
    let rig = output_of(master, true);
    let (ours, mut theirs) = connection();
    for _ in 0..20 {
        rustix::io::write(&slave, &[b'x'; 100]).unwrap();
    }
    assert_eq!(rig.tally.count(), 2000);
    rig.connections.send(ours).await.unwrap();
    let mut got = vec![0; 2000];
    timeout(LIMIT, theirs.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    rustix::io::write(&slave, b"later").unwrap();
    let mut more = [0; 5];
    timeout(LIMIT, theirs.read_exact(&mut more))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((&more, rig.tally.count()), (b"later", 2005));
    drop(slave);
    drop(rig.connections);
    timeout(LIMIT, rig.task).await.unwrap().unwrap();
    assert_eq!(theirs.read(&mut more).await.unwrap(), 0);
}

fn pty() -> (OwnedFd, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
    (master, slave)
}

struct InputRig {
    connections: mpsc::Sender<tokio::io::ReadHalf<BoxStream>>,
    hangup: CancellationToken,
    task: JoinHandle<()>,
}

fn input_of(fd: OwnedFd, terminal: bool) -> InputRig {
    let (connections, incoming) = mpsc::channel(WAITING);
    let hangup = CancellationToken::new();
    let pump = Input::new(end(fd).unwrap(), terminal, incoming, hangup.clone());
    InputRig {
        connections,
        hangup,
        task: tokio::spawn(pump.run()),
    }
}

fn source() -> (tokio::io::ReadHalf<BoxStream>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (tokio::io::split(Box::new(ours) as BoxStream).0, theirs)
}

#[tokio::test]
async fn input_arrives_whole_and_its_end_closes_the_pipe() {
    let (read, write) = pipe();
    let rig = input_of(write, false);
    let (ours, mut theirs) = source();
    rig.connections.send(ours).await.unwrap();
    let reader = tokio::task::spawn_blocking(move || {
        let mut got = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(read), &mut got).unwrap();
        got
    });
    let sent: Vec<u8> = (0..8 << 20).map(|i: u32| (i % 253) as u8).collect();
    timeout(LIMIT, theirs.write_all(&sent))
        .await
        .unwrap()
        .unwrap();
    theirs.shutdown().await.unwrap();
    assert!(timeout(LIMIT, reader).await.unwrap().unwrap() == sent);
    timeout(LIMIT, rig.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_command_that_closed_its_input_ends_the_pump() {
    let (read, write) = pipe();
    drop(read);
    let rig = input_of(write, false);
    let (ours, mut theirs) = source();
    rig.connections.send(ours).await.unwrap();
    theirs.write_all(b"x").await.unwrap();
    timeout(LIMIT, rig.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_command_that_never_reads_can_be_hung_up() {
    let (_read, write) = pipe();
    let rig = input_of(write, false);
    let (ours, theirs) = source();
    rig.connections.send(ours).await.unwrap();
    while theirs.try_write(&[0; 4096]).is_ok() {
        tokio::task::yield_now().await;
    }
    rig.hangup.cancel();
    timeout(LIMIT, rig.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_terminal_outlives_its_connections() {
    let (master, slave) = pty();
    let rig = input_of(master, true);
    for text in [&b"one\n"[..], b"two\n"] {
        let (ours, mut theirs) = source();
        rig.connections.send(ours).await.unwrap();
        theirs.write_all(text).await.unwrap();
        drop(theirs);
        let slave = slave.try_clone().unwrap();
        let got = tokio::task::spawn_blocking(move || {
            let mut line = [0; 16];
            let read = rustix::io::read(&slave, &mut line[..]).unwrap();
            line[..read].to_vec()
        });
        assert_eq!(timeout(LIMIT, got).await.unwrap().unwrap(), text);
    }
    rig.hangup.cancel();
    timeout(LIMIT, rig.task).await.unwrap().unwrap();
}
