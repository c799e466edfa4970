//! The device as a driver sees it: here the rules for packets at the mux, without queues.

mod queues;
mod random;

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::Arc,
};

use tokio::sync::mpsc;

use super::{
    mux::{BUF_ALLOC, MAX_RESETS, Mux},
    packet::{
        HOST_CID, Header, MAX_PAYLOAD, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND, TYPE_STREAM, op,
    },
};
use crate::port::{Incoming, Ports};

const CID: u64 = 3;
const PORT: u32 = 1024;

/// A guest without queues, and the listener at the other end.
struct Guest {
    mux: Mux,
    accepts: mpsc::Receiver<Incoming>,
    ports: Arc<Ports>,
}

impl Guest {
    fn new() -> Self {
        let ports = Arc::new(Ports::default());
        let (_, accepts) = ports.open(PORT).unwrap();
        Self {
            mux: Mux::new(CID, Arc::clone(&ports)).unwrap(),
            accepts,
            ports,
        }
    }

    fn header(port: u32, op: u16) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: port,
            dst_port: PORT,
            type_: TYPE_STREAM,
            op,
            buf_alloc: 1 << 18,
            ..Header::default()
        }
    }

    fn send(&mut self, port: u32, op: u16) {
        self.mux.packet(&Self::header(port, op), &[]);
    }

    fn send_data(&mut self, port: u32, data: &[u8]) {
        self.mux.packet(
            &Header {
                len: data.len() as u32,
                ..Self::header(port, op::RW)
            },
            data,
        );
    }

    fn send_shutdown(&mut self, port: u32, flags: u32) {
        self.mux.packet(
            &Header {
                flags,
                ..Self::header(port, op::SHUTDOWN)
            },
            &[],
        );
    }

    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        self.mux.socket_events();
        let mut buf = vec![0; MAX_PAYLOAD];
        let header = self.mux.next(&mut buf)?;
        assert_eq!(
            (header.src_cid, header.dst_cid, header.type_),
            (HOST_CID, CID, TYPE_STREAM)
        );
        buf.truncate(header.len as usize);
        Some((header, buf))
    }

    fn next_op(&mut self) -> Option<u16> {
        self.next().map(|(h, _)| h.op)
    }

    fn connect(&mut self, port: u32) -> Incoming {
        self.send(port, op::REQUEST);
        let incoming = self.accepts.try_recv().unwrap();
        assert_eq!(self.next_op(), Some(op::RESPONSE));
        incoming
    }
}

fn read_all(socket: &mut UnixStream) -> (Vec<u8>, bool) {
    let mut data = Vec::new();
    let clean = socket.read_to_end(&mut data).is_ok();
    (data, clean)
}

#[test]
fn bytes_flow_both_ways_and_each_half_closes_alone() {
    let mut guest = Guest::new();
    let mut host = guest.connect(7).socket;
    guest.send_data(7, b"from guest");
    let mut buf = [0; 10];
    host.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"from guest");

    guest.send_shutdown(7, SHUTDOWN_SEND);
    assert_eq!(
        read_all(&mut host),
        (vec![], true),
        "the guest's half is closed"
    );

    host.write_all(b"from host").unwrap();
    let (header, data) = guest.next().unwrap();
    assert_eq!(
        (header.op, &data[..], header.fwd_cnt),
        (op::RW, &b"from host"[..], 10)
    );
    host.shutdown(Shutdown::Write).unwrap();
    let (header, _) = guest.next().unwrap();
    assert_eq!(
        (header.op, header.flags & SHUTDOWN_SEND),
        (op::SHUTDOWN, SHUTDOWN_SEND)
    );
    guest.send_shutdown(7, SHUTDOWN_BOTH);
    assert_eq!(guest.next_op(), Some(op::RST));
    assert_eq!(guest.mux.load(), (0, 0, 0));
}

#[test]
fn a_dropped_owner_is_told_after_its_last_bytes_and_the_guest_confirms() {
    let mut guest = Guest::new();
    let mut host = guest.connect(7);
    host.socket.write_all(b"last words").unwrap();
    drop(host);
    assert_eq!(guest.next().unwrap().1, b"last words");
    let (header, _) = guest.next().unwrap();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
    assert_eq!(guest.next_op(), None);
    guest.send(7, op::RST);
    assert_eq!(guest.mux.load(), (0, 0, 0));
}

#[test]
fn a_guest_that_closes_is_confirmed_at_once_and_nothing_it_sent_is_lost() {
    let mut guest = Guest::new();
    let mut host = guest.connect(7);
    let data: Vec<u8> = (0..BUF_ALLOC).map(|i| (i * 7) as u8).collect();
    // More than the socket pair holds, so a part waits in the device.
    for chunk in data.chunks(MAX_PAYLOAD) {
        guest.send_data(7, chunk);
    }
    guest.send_shutdown(7, SHUTDOWN_BOTH);
    let ops: Vec<_> = std::iter::from_fn(|| guest.next_op()).collect();
    assert_eq!(ops, [op::RST]);
    let (mut got, _) = read_all(&mut host.socket);
    let remains = host.remains.lock().unwrap();
    assert!(!remains.cut_off);
    got.extend_from_slice(&remains.tail);
    assert!(got == data, "{} bytes of {}", got.len(), data.len());
}

#[test]
fn a_reset_is_told_from_a_proper_end() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    guest.send_data(7, b"half a mess");
    guest.send(7, op::RST);
    assert_eq!(guest.next_op(), None, "a reset is not answered");
    assert!(host.remains.lock().unwrap().cut_off);
    // The same ports can be used again at once.
    guest.connect(7);
}

#[test]
fn credit_is_kept_in_both_directions() {
    let mut guest = Guest::new();
    let mut host = guest.connect(7).socket;
    // To the guest: never more than its buffer holds, then one question.
    let update = |guest: &mut Guest, buf_alloc, fwd_cnt| {
        guest.mux.packet(
            &Header {
                buf_alloc,
                fwd_cnt,
                ..Guest::header(7, op::CREDIT_UPDATE)
            },
            &[],
        );
    };
    update(&mut guest, 10, 0);
    host.write_all(&[1; 25]).unwrap();
    assert_eq!(guest.next().unwrap().1.len(), 10);
    assert_eq!(guest.next_op(), Some(op::CREDIT_REQUEST));
    assert_eq!(guest.next_op(), None);
    update(&mut guest, 10, 4);
    assert_eq!(guest.next().unwrap().1.len(), 4);
    // Numbers that make no sense mean no room, not much room.
    update(&mut guest, 10, 1000);
    while let Some(op) = guest.next_op() {
        assert_eq!(op, op::CREDIT_REQUEST);
    }
    update(&mut guest, 100, 14);
    assert_eq!(guest.next().unwrap().1.len(), 11);

    // From the guest: told again after a quarter was handed on, and asked for.
    guest.send_data(7, &vec![0; BUF_ALLOC as usize / 4]);
    let (header, _) = guest.next().unwrap();
    assert_eq!(
        (header.op, header.fwd_cnt, header.buf_alloc),
        (op::CREDIT_UPDATE, BUF_ALLOC / 4, BUF_ALLOC)
    );
    guest.send(7, op::CREDIT_REQUEST);
    assert_eq!(guest.next_op(), Some(op::CREDIT_UPDATE));

    // More than was granted ends the connection.
    for _ in 0..8 {
        guest.send_data(7, &vec![0; MAX_PAYLOAD]);
    }
    assert_eq!(guest.next_op(), Some(op::RST));
    assert_eq!(guest.mux.load().0, 0);
}

#[test]
fn what_waits_for_a_slow_owner_arrives_when_it_reads() {
    let mut guest = Guest::new();
    let mut host = guest.connect(7).socket;
    for _ in 0..BUF_ALLOC as usize / MAX_PAYLOAD {
        guest.send_data(7, &vec![5; MAX_PAYLOAD]);
    }
    assert!(guest.mux.load().1 > 0, "the socket pair took everything");
    let mut got = 0;
    let mut buf = vec![0; 1 << 16];
    while got < BUF_ALLOC as usize {
        guest.mux.socket_events();
        got += host.read(&mut buf).unwrap();
    }
    guest.mux.socket_events();
    assert_eq!(guest.mux.load().1, 0);
    assert_eq!(guest.next_op(), Some(op::CREDIT_UPDATE));
}

#[test]
fn a_guest_that_will_not_receive_stops_the_owner() {
    let mut guest = Guest::new();
    let mut host = guest.connect(7).socket;
    guest.send_shutdown(7, SHUTDOWN_RCV);
    assert_eq!(
        host.write_all(b"x").unwrap_err().kind(),
        std::io::ErrorKind::BrokenPipe
    );
    guest.send_data(7, b"still sending");
    let mut buf = [0; 13];
    host.read_exact(&mut buf).unwrap();
    drop(host);
    guest.mux.socket_events();
    let (header, _) = guest.next().unwrap();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
}

#[test]
fn nonsense_is_reset_or_dropped() {
    let mut guest = Guest::new();
    // For no connection: everything but a reset is refused.
    for (op, want) in [
        (op::RESPONSE, Some(op::RST)),
        (op::RST, None),
        (op::SHUTDOWN, Some(op::RST)),
        (op::RW, Some(op::RST)),
        (op::CREDIT_UPDATE, Some(op::RST)),
        (op::CREDIT_REQUEST, Some(op::RST)),
        (0, Some(op::RST)),
        (99, Some(op::RST)),
    ] {
        guest.send(9, op);
        assert_eq!(guest.next_op(), want, "op {op}");
    }
    // A port nobody listens on, another socket type, and false addresses.
    guest.mux.packet(
        &Header {
            dst_port: 1,
            ..Guest::header(9, op::REQUEST)
        },
        &[],
    );
    let (header, _) = guest.next().unwrap();
    assert_eq!(
        (header.op, header.src_port, header.dst_port),
        (op::RST, 1, 9)
    );
    guest.mux.packet(
        &Header {
            type_: 2,
            ..Guest::header(9, op::REQUEST)
        },
        &[],
    );
    assert_eq!(guest.next_op(), Some(op::RST));
    guest.mux.packet(
        &Header {
            src_cid: 4,
            ..Guest::header(9, op::REQUEST)
        },
        &[],
    );
    guest.mux.packet(
        &Header {
            dst_cid: 1,
            ..Guest::header(9, op::REQUEST)
        },
        &[],
    );
    assert_eq!(guest.next_op(), None);
    // On a connection: out of place, or with a length that is not so.
    for bad in [
        Guest::header(9, op::REQUEST),
        Guest::header(9, op::RESPONSE),
        Guest::header(9, 0),
        Header {
            len: 5,
            ..Guest::header(9, op::RW)
        },
        Header {
            len: u32::MAX,
            ..Guest::header(9, op::RW)
        },
        Header {
            type_: 2,
            ..Guest::header(9, op::RW)
        },
    ] {
        let host = guest.connect(9);
        guest.mux.packet(&bad, &[]);
        assert_eq!(guest.next_op(), Some(op::RST), "{bad:?}");
        assert!(host.remains.lock().unwrap().cut_off);
    }
    // Data before the answer to the request, and after the end of sending.
    guest.send(9, op::REQUEST);
    guest.send_data(9, b"early");
    assert_eq!(guest.next_op(), Some(op::RST));
    guest.connect(10);
    guest.send_shutdown(10, SHUTDOWN_SEND);
    guest.send_data(10, b"late");
    assert!(std::iter::from_fn(|| guest.next_op()).any(|op| op == op::RST));
    assert_eq!(guest.mux.load().0, 0);
}

#[test]
fn backlog_table_and_resets_have_limits() {
    let mut guest = Guest::new();
    for port in 0..=crate::BACKLOG as u32 {
        guest.send(port, op::REQUEST);
    }
    let refused = std::iter::from_fn(|| guest.next_op())
        .filter(|op| *op == op::RST)
        .count();
    assert_eq!(refused, 1, "one more than the backlog");
    for port in 0..MAX_RESETS as u32 * 2 {
        guest.send(1_000_000 + port, op::RW);
    }
    assert_eq!(guest.mux.load().2, MAX_RESETS);
    // Listeners that left take their port with them.
    guest.accepts.close();
    guest.mux.remove_all();
    guest.send(5, op::REQUEST);
    assert_eq!(guest.next_op(), Some(op::RST));
    assert!(guest.ports.open(PORT).is_some());
}
