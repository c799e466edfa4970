//! One connection: ends, resets, back-pressure, failures (REL-6, and past it).

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use hostel_relay::{Limits, Relay, Settings};

use crate::support::{
    DEADLINE, alone, connect, entry, listener, real, relay, relay_with, serve, until, wait_for,
};

const AT: &str = "127.0.0.1:3000";

/// A relayed connection, both ends in our hands.
fn pair(boxed: bool) -> (Arc<Relay>, TcpStream, TcpStream) {
    let to = listener("0.0.0.0", 3000);
    let server = TcpListener::bind(real(&to)).unwrap();
    let relay = relay_with(Settings::default(), Limits::default(), boxed);
    relay.reset(vec![to]);
    let client = connect(AT).unwrap();
    let (guest, _) = server.accept().unwrap();
    guest.set_read_timeout(Some(DEADLINE)).unwrap();
    guest.set_write_timeout(Some(DEADLINE)).unwrap();
    (relay, client, guest)
}

fn reset(stream: TcpStream) {
    let zero = Some(Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(&stream, zero).unwrap();
}

fn read_some(stream: &mut TcpStream, text: &[u8]) {
    let mut buffer = vec![0; text.len()];
    stream.read_exact(&mut buffer).unwrap();
    assert_eq!(buffer, text);
}

/// REL-6 loses the rest of the answer here.
#[test]
fn a_half_closed_connection_still_carries_the_other_half() {
    if !alone("stream::a_half_closed_connection_still_carries_the_other_half") {
        return;
    }
    for boxed in [false, true] {
        for turned in [false, true] {
            let (relay, client, guest) = pair(boxed);
            let (mut one, mut two) = if turned {
                (guest, client)
            } else {
                (client, guest)
            };
            one.write_all(b"question").unwrap();
            one.shutdown(Shutdown::Write).unwrap();
            let mut question = Vec::new();
            two.read_to_end(&mut question).unwrap();
            assert_eq!(question, b"question");
            let answer = vec![42; 3 << 20];
            let copy = answer.clone();
            let writer = thread::spawn(move || two.write_all(&copy).map(|()| drop(two)));
            let mut got = Vec::new();
            one.read_to_end(&mut got).unwrap();
            assert!(got == answer, "{} of {} bytes", got.len(), answer.len());
            writer.join().unwrap().unwrap();
            until(&relay, |e| e[0].connections == 0);
        }
    }
}

#[test]
fn a_reset_is_a_reset_on_the_other_side() {
    if !alone("stream::a_reset_is_a_reset_on_the_other_side") {
        return;
    }
    for turned in [false, true] {
        // While nothing is said; after the end of one half; while the other side does not read.
        for case in ["idle", "half closed", "held up"] {
            let (relay, client, guest) = pair(false);
            let (mut one, mut two) = if turned {
                (guest, client)
            } else {
                (client, guest)
            };
            one.write_all(b"a").unwrap();
            read_some(&mut two, b"a");
            match case {
                "half closed" => {
                    one.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(two.read(&mut [0]).unwrap(), 0);
                }
                "held up" => {
                    fill(&mut one);
                }
                _ => {}
            }
            reset(one);
            // Noticed by itself: nothing is sent, and in the last case nothing is read.
            until(&relay, |e| e[0].connections == 0);
            let end = Instant::now() + DEADLINE;
            let error = loop {
                // What had arrived is still there to be read.
                match two.read(&mut [0; 16_000]) {
                    Ok(0) if case == "half closed" => {
                        // The end was read before; the reset shows when something is sent.
                        match two.write_all(b"b") {
                            Ok(()) => {}
                            Err(e) => break e,
                        }
                    }
                    Ok(0) => panic!("{case}: a clean end"),
                    Ok(_) => {}
                    Err(e) => break e,
                }
                assert!(Instant::now() < end, "{case}");
            };
            let kinds = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
            assert!(kinds.contains(&error.kind()), "{case}: {error}");
        }
    }
}

#[test]
fn a_reset_ends_a_boxed_stream() {
    if !alone("stream::a_reset_ends_a_boxed_stream") {
        return;
    }
    let (relay, client, mut guest) = pair(true);
    reset(client);
    assert_eq!(guest.read(&mut [0]).unwrap(), 0);
    until(&relay, |e| e[0].connections == 0);
    let (relay, mut client, guest) = pair_again(relay);
    reset(guest);
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    until(&relay, |e| e[0].connections == 0);
}

/// The first pair's server is gone; its port is free again.
fn pair_again(relay: Arc<Relay>) -> (Arc<Relay>, TcpStream, TcpStream) {
    drop(relay);
    let end = Instant::now() + DEADLINE;
    while TcpListener::bind("127.0.0.1:3000").is_err() {
        assert!(Instant::now() < end);
        thread::yield_now();
    }
    pair(true)
}

/// Writes until nothing more is taken; returns how much was.
fn fill(stream: &mut TcpStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let bytes = vec![9; 256 * 1024];
    let (mut written, mut quiet) = (0, Instant::now());
    // Taken for full when the kernel and the relay had a second to take more, and did not.
    while quiet.elapsed() < Duration::from_secs(1) {
        match stream.write(&bytes) {
            Ok(n) => {
                written += n;
                quiet = Instant::now();
            }
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
        thread::yield_now();
    }
    stream.set_nonblocking(false).unwrap();
    written
}

/// A side that does not read stops its own sender and nobody else, costs little, and loses nothing.
#[test]
fn a_side_that_does_not_read_holds_up_only_its_own_sender() {
    if !alone("stream::a_side_that_does_not_read_holds_up_only_its_own_sender") {
        return;
    }
    let (relay, mut client, mut guest) = pair(false);
    let written = fill(&mut client);
    assert!(written < 64 << 20, "{written} bytes were taken");
    // The other direction goes on.
    guest.write_all(b"still here").unwrap();
    read_some(&mut client, b"still here");
    // And so does another port.
    let other = listener("0.0.0.0", 3001);
    serve(&other, b"");
    relay.change(vec![other], &[]);
    let mut second = connect("127.0.0.1:3001").unwrap();
    second.write_all(b"echo").unwrap();
    read_some(&mut second, b"echo");

    client.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    guest.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), written);
    assert!(all.iter().all(|&b| b == 9));
}

/// Whatever the sizes of the writes, the bytes arrive in order.
#[test]
fn bytes_arrive_in_order_both_ways_at_once() {
    if !alone("stream::bytes_arrive_in_order_both_ways_at_once") {
        return;
    }
    const TOTAL: u32 = 4 << 20;
    fn send(mut to: TcpStream, step: usize) -> std::io::Result<()> {
        let bytes: Vec<u8> = (0..TOTAL).flat_map(u32::to_be_bytes).collect();
        let mut size = 1;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(size.min(rest.len()));
            to.write_all(now)?;
            rest = later;
            size = size * step % 300_007 + 1;
        }
        to.shutdown(Shutdown::Write)
    }
    fn receive(mut from: TcpStream) {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), TOTAL as usize * 4);
        for (i, chunk) in bytes.as_chunks().0.iter().enumerate() {
            assert_eq!(u32::from_be_bytes(*chunk), i as u32);
        }
    }
    for boxed in [false, true] {
        let (_relay, client, guest) = pair(boxed);
        let ends = [client.try_clone().unwrap(), guest.try_clone().unwrap()];
        let [a, b] = ends.map(|end| thread::spawn(move || receive(end)));
        let up = thread::spawn(move || send(client, 7919));
        send(guest, 104_729).unwrap();
        up.join().unwrap().unwrap();
        a.join().unwrap();
        b.join().unwrap();
    }
}

#[test]
fn a_guest_that_refuses_is_a_reset_and_is_told() {
    if !alone("stream::a_guest_that_refuses_is_a_reset_and_is_told") {
        return;
    }
    let to = listener("0.0.0.0", 3000);
    let relay = relay(Settings::default());
    relay.reset(vec![to.clone()]);
    let mut changed = relay.changed();
    // As early as while it connects.
    let error = connect(AT).and_then(|mut client| client.read(&mut [0]));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::ConnectionReset);
    until(&relay, |e| {
        e[0].reason.contains("Connection refused") && e[0].reason.contains("1 failed")
    });
    wait_for(changed.changed()).unwrap();
    // And is forgotten when it goes well again.
    serve(&to, b"well");
    let mut client = connect(AT).unwrap();
    read_some(&mut client, b"well");
    until(&relay, |e| e[0].reason.is_empty());
    assert_eq!(entry(&relay, 3000).connections, 1);
}
