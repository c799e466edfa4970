//! The device as a driver sees it: packet rules at the mux, then whole queues in memory made here.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::Arc,
};

use proptest::prelude::*;
use tokio::sync::mpsc;

use super::{
    mux::{BUF_ALLOC, MAX_CONNECTIONS, MAX_RESETS, Mux},
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

/// Hands the driver's queues to the device, as the library would.
mod queues {
    use super::*;
    use crate::device::{Device, RX, TX};
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::time::{Duration, Instant};
    use vhost_user_backend::{VhostUserBackend as _, VringRwLock, VringT};
    use vm_memory::{Bytes as _, GuestAddress, GuestAddressSpace as _, GuestMemoryMmap};
    use vmm_sys_util::epoll::EventSet;

    const SIZE: u16 = 64;
    const RX_LEN: u32 = 4096;
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;

    /// One split queue in guest memory: descriptors, available ring, used ring, then one buffer per descriptor.
    struct Queue {
        base: u64,
        avail: u16,
        used: u16,
    }

    impl Queue {
        fn buffer(&self, i: u16) -> u64 {
            self.base + 0x4000 + u64::from(i) * 0x2_0000
        }
    }

    pub(super) struct Driver {
        pub(super) device: Device,
        vrings: Vec<VringRwLock>,
        memory: GuestMemoryMmap<()>,
        queues: [Queue; 2],
        pub(super) accepts: mpsc::Receiver<Incoming>,
    }

    impl Driver {
        pub(super) fn new() -> Self {
            let ports = Arc::new(Ports::default());
            let (_, accepts) = ports.open(PORT).unwrap();
            let device = Device::new(CID, ports).unwrap();
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
            device.memory().lock().unwrap().replace(memory.clone());
            let vrings: Vec<VringRwLock> = (0..3)
                .map(|_| VringT::new(device.memory(), 1024).unwrap())
                .collect();
            let queues = [0x10_0000, 0x200_0000].map(|base| Queue {
                base,
                avail: 0,
                used: 0,
            });
            let mut driver = Self {
                device,
                vrings,
                memory,
                queues,
                accepts,
            };
            driver.start();
            driver
        }

        pub(super) fn start(&mut self) {
            for (queue, vring) in self.queues.iter_mut().zip(&self.vrings) {
                self.memory
                    .write_slice(&[0; 0x4000], GuestAddress(queue.base))
                    .unwrap();
                (queue.avail, queue.used) = (0, 0);
                vring.set_queue_size(SIZE);
                vring
                    .set_queue_info(queue.base, queue.base + 0x1000, queue.base + 0x2000)
                    .unwrap();
                vring.set_queue_next_avail(0);
                vring.set_queue_next_used(0);
                vring.set_queue_ready(true);
                vring.set_enabled(true);
            }
        }

        pub(super) fn stop(&mut self) {
            for (index, vring) in self.vrings.iter().enumerate() {
                vring.set_queue_ready(false);
                self.device.stop_vring(index as u32).unwrap();
            }
        }

        pub(super) fn resume(&mut self) {
            for vring in &self.vrings[..2] {
                vring.set_queue_ready(true);
            }
        }

        fn descriptor(&self, table: u64, i: u16, addr: u64, len: u32, flags: u16, next: u16) {
            let at = table + u64::from(i) * 16;
            self.memory.write_obj(addr, GuestAddress(at)).unwrap();
            self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
            self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
            self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
        }

        fn make_available(&mut self, queue: usize, head: u16) {
            let q = &mut self.queues[queue];
            let ring = q.base + 0x1000;
            self.memory
                .write_obj(head, GuestAddress(ring + 4 + u64::from(q.avail % SIZE) * 2))
                .unwrap();
            q.avail = q.avail.wrapping_add(1);
            self.memory
                .write_obj(q.avail, GuestAddress(ring + 2))
                .unwrap();
        }

        pub(super) fn pump(&self) {
            self.device
                .handle_event(0, EventSet::IN, &self.vrings, 0)
                .unwrap();
        }

        /// Sends raw bytes as one chain, cut into the given number of descriptors.
        pub(super) fn send_raw(&mut self, bytes: &[u8], parts: usize, indirect: bool) {
            let (base, buffer) = (self.queues[TX].base, self.queues[TX].buffer(0));
            self.memory
                .write_slice(bytes, GuestAddress(buffer))
                .unwrap();
            let part = bytes.len().div_ceil(parts).max(1);
            let table = if indirect { base + 0x3000 } else { base };
            let mut i = 0;
            for (n, chunk) in bytes.chunks(part).enumerate() {
                let more = (n + 1) * part < bytes.len();
                let addr = buffer + (n * part) as u64;
                self.descriptor(
                    table,
                    i,
                    addr,
                    chunk.len() as u32,
                    if more { NEXT } else { 0 },
                    i + 1,
                );
                i += 1;
            }
            if indirect {
                self.descriptor(base, 0, table, u32::from(i) * 16, INDIRECT, 0);
            }
            self.make_available(TX, 0);
            self.pump();
            let used: u16 = self.memory.read_obj(GuestAddress(base + 0x2002)).unwrap();
            self.queues[TX].used = self.queues[TX].used.wrapping_add(1);
            assert_eq!(used, self.queues[TX].used, "every chain is given back");
        }

        pub(super) fn send(&mut self, header: &Header, payload: &[u8]) {
            let mut bytes = header.encode().to_vec();
            bytes.extend_from_slice(payload);
            self.send_raw(&bytes, 2, false);
        }

        /// Keeps four buffers on offer, and does not notify.
        pub(super) fn offer(&mut self) {
            while self.queues[RX].avail.wrapping_sub(self.queues[RX].used) < 4 {
                let queue = &self.queues[RX];
                let i = queue.avail % 4;
                self.descriptor(queue.base, i, queue.buffer(i), RX_LEN, WRITE, 0);
                self.make_available(RX, i);
            }
        }

        /// Returns what the device put into the buffer, if it did.
        pub(super) fn collect(&mut self) -> Option<(Header, Vec<u8>)> {
            let queue = &mut self.queues[RX];
            let used: u16 = self
                .memory
                .read_obj(GuestAddress(queue.base + 0x2002))
                .unwrap();
            if used == queue.used {
                return None;
            }
            let slot = queue.base + 0x2004 + u64::from(queue.used % SIZE) * 8;
            let len: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
            let buffer = queue.buffer(queue.used % 4);
            queue.used = queue.used.wrapping_add(1);
            let mut bytes = vec![0; len as usize];
            self.memory
                .read_slice(&mut bytes, GuestAddress(buffer))
                .unwrap();
            let header = Header::decode(bytes[..44].try_into().unwrap());
            assert_eq!(header.len as usize + 44, bytes.len());
            Some((header, bytes.split_off(44)))
        }

        /// Offers a buffer, notifies, and returns what the device put there.
        pub(super) fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
            self.collect().or_else(|| {
                self.offer();
                self.pump();
                self.collect()
            })
        }

        pub(super) fn connect(&mut self, port: u32) -> Incoming {
            self.send(&Guest::header(port, op::REQUEST), &[]);
            let incoming = self.accepts.try_recv().unwrap();
            assert_eq!(self.receive().unwrap().0.op, op::RESPONSE);
            incoming
        }
    }

    /// The thread sleeps until a descriptor is readable, so an event that is seen and not acted upon stops everything. The
    /// host writes the moment it is connected here, which puts its bytes into the middle of the device's work.
    #[test]
    fn no_socket_event_is_seen_without_being_acted_upon() {
        const ROUNDS: u32 = 1000;
        let mut driver = Driver::new();
        let mut accepts = std::mem::replace(&mut driver.accepts, mpsc::channel(1).1);
        let answering = std::thread::spawn(move || {
            let mut hosts = Vec::new();
            // Sleeping would always be too late.
            while hosts.len() < ROUNDS as usize {
                match accepts.try_recv() {
                    Ok(mut incoming) => {
                        incoming.socket.write_all(b"x").unwrap();
                        hosts.push(incoming);
                    }
                    Err(mpsc::error::TryRecvError::Empty) => std::hint::spin_loop(),
                    Err(mpsc::error::TryRecvError::Disconnected) => return,
                }
            }
        });
        for round in 0..ROUNDS {
            driver.offer();
            driver.send(&Guest::header(round, op::REQUEST), &[]);
            loop {
                match driver.collect() {
                    Some((header, _)) if header.op == op::RW => break,
                    Some(_) => {}
                    None => {
                        let mut fds = [PollFd::new(&driver.device.events, PollFlags::IN)];
                        let patience = Timespec {
                            tv_sec: 10,
                            tv_nsec: 0,
                        };
                        assert_eq!(
                            poll(&mut fds, Some(&patience)).unwrap(),
                            1,
                            "asleep in round {round}"
                        );
                        driver.pump();
                    }
                }
            }
        }
        answering.join().unwrap();
    }

    #[test]
    fn chains_of_any_shape_are_understood() {
        let mut driver = Driver::new();
        let mut host = driver.connect(7).socket;
        let payload: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        let header = Header {
            len: 1000,
            ..Guest::header(7, op::RW)
        };
        for (parts, indirect) in [
            (1, false),
            (2, false),
            (7, false),
            (40, false),
            (1, true),
            (9, true),
        ] {
            let mut bytes = header.encode().to_vec();
            bytes.extend_from_slice(&payload);
            driver.send_raw(&bytes, parts, indirect);
            let mut got = vec![0; 1000];
            host.read_exact(&mut got).unwrap();
            assert_eq!(got, payload, "{parts} parts, indirect {indirect}");
        }
        // A header that is not whole is dropped, one that promises more than there is ends the connection.
        driver.send_raw(&[1; 20], 1, false);
        driver.send_raw(&[], 1, false);
        assert!(driver.receive().is_none());
        driver.send_raw(&header.encode(), 1, false);
        assert_eq!(driver.receive().unwrap().0.op, op::RST);
    }

    #[test]
    fn a_starved_receive_queue_keeps_everything_until_it_is_fed() {
        let mut driver = Driver::new();
        driver.send(&Guest::header(7, op::REQUEST), &[]);
        let mut host = driver.accepts.try_recv().unwrap().socket;
        host.write_all(&vec![9; 20_000]).unwrap();
        driver.pump();
        driver.pump();
        assert_eq!(driver.receive().unwrap().0.op, op::RESPONSE);
        let mut got = 0;
        while let Some((header, data)) = driver.receive() {
            assert_eq!(header.op, op::RW);
            assert!(data.len() <= RX_LEN as usize - 44);
            got += data.len();
        }
        assert_eq!(got, 20_000);
    }

    #[test]
    fn a_host_event_before_the_queues_run_is_not_lost() {
        let mut driver = Driver::new();
        let mut host = driver.connect(7).socket;
        driver.stop();
        host.write_all(b"while away").unwrap();
        driver.pump();
        driver.resume();
        assert_eq!(
            driver.receive().unwrap().1,
            b"while away",
            "a pause keeps the connection and its bytes"
        );
    }

    #[test]
    fn a_restarted_driver_ends_the_old_connections_and_can_make_new_ones() {
        let mut driver = Driver::new();
        let host = driver.connect(7);
        driver.stop();
        driver.start();
        driver.pump();
        assert!(host.remains.lock().unwrap().cut_off);
        driver.connect(7);
    }

    #[test]
    fn rings_full_of_nonsense_are_survived() {
        let mut driver = Driver::new();
        let base = driver.queues[TX].base;
        // A loop of descriptors, an index far ahead, a head outside the table, and addresses outside memory.
        driver.descriptor(base, 0, 0, 10, NEXT, 0);
        driver.make_available(TX, 0);
        driver.pump();
        driver.descriptor(base, 1, u64::MAX - 4, u32::MAX, 0, 0);
        driver.make_available(TX, 1);
        driver.make_available(TX, 60_000);
        driver.pump();
        driver
            .memory
            .write_obj(0x7fff_u16, GuestAddress(base + 0x1002))
            .unwrap();
        driver.pump();
        driver
            .memory
            .write_obj(0xffff_u16, GuestAddress(driver.queues[RX].base + 0x1002))
            .unwrap();
        driver.pump();
        // A fresh start mends it.
        driver.stop();
        driver.start();
        driver.connect(3);
    }

    /// Not a benchmark: an unoptimised build must still move far more than the guest can.
    #[test]
    fn the_device_is_not_the_bottleneck() {
        let mut driver = Driver::new();
        let mut host = driver.connect(7).socket;
        let reader = std::thread::spawn(move || {
            let mut total = 0;
            let mut buf = vec![0; 1 << 16];
            while let Ok(n @ 1..) = host.read(&mut buf) {
                total += n;
            }
            total
        });
        let begun = Instant::now();
        let payload = vec![1; MAX_PAYLOAD];
        let header = Header {
            len: MAX_PAYLOAD as u32,
            ..Guest::header(7, op::RW)
        };
        let (mut sent, mut credit) = (0u32, 0u32);
        while sent < 64 << 20 {
            while sent.wrapping_sub(credit) + MAX_PAYLOAD as u32 > BUF_ALLOC {
                if let Some((header, _)) = driver.receive() {
                    credit = header.fwd_cnt;
                }
                assert!(
                    begun.elapsed() < Duration::from_secs(60),
                    "no credit comes back"
                );
            }
            driver.send(&header, &payload);
            sent += MAX_PAYLOAD as u32;
        }
        driver.send(
            &Header {
                flags: SHUTDOWN_BOTH,
                ..Guest::header(7, op::SHUTDOWN)
            },
            &[],
        );
        let total = reader.join().unwrap();
        let rate = f64::from(sent) / 1_048_576.0 / begun.elapsed().as_secs_f64();
        eprintln!("{rate:.0} MiB/s through the queues");
        assert!(total <= sent as usize && total > sent as usize - BUF_ALLOC as usize);
    }

    #[test]
    fn configuration_space_holds_the_address_and_reads_stay_inside() {
        let device = Device::new(0x1122, Arc::new(Ports::default())).unwrap();
        assert_eq!(device.get_config(0, 8), [0x22, 0x11, 0, 0, 0, 0, 0, 0]);
        assert_eq!(device.get_config(1, 1), [0x11]);
        assert_eq!(device.get_config(7, 100), [0]);
        assert!(device.get_config(u32::MAX, u32::MAX).is_empty());
        assert_eq!(device.memory().memory().num_regions(), 0);
    }

    use vm_memory::GuestMemoryBackend as _;
}

fn any_header() -> impl Strategy<Value = Header> {
    let op = prop_oneof![8 => 0u16..9, 1 => any::<u16>()];
    let type_ = prop_oneof![20 => Just(TYPE_STREAM), 1 => any::<u16>()];
    let cids = prop_oneof![20 => Just((CID, HOST_CID)), 1 => any::<(u64, u64)>()];
    let dst_port = prop_oneof![20 => Just(PORT), 1 => any::<u32>()];
    let len = prop_oneof![4 => 0u32..200, 2 => 0u32..=MAX_PAYLOAD as u32, 1 => any::<u32>()];
    let rest = (0u32..6, 0u32..5, any::<u32>(), any::<u32>());
    (op, type_, cids, dst_port, len, rest).prop_map(
        |(op, type_, (src_cid, dst_cid), dst_port, len, (src_port, flags, buf_alloc, fwd_cnt))| {
            Header {
                src_cid,
                dst_cid,
                src_port,
                dst_port,
                len,
                type_,
                op,
                flags,
                buf_alloc,
                fwd_cnt,
            }
        },
    )
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Packet(Header),
    /// The payload has the length the header says.
    Honest(Header),
    Receive(u8),
    Accept,
    HostWrite(usize, u16),
    HostRead(usize),
    HostDrop(usize),
    RemoveAll,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any_header().prop_map(Step::Packet),
        8 => any_header().prop_map(Step::Honest),
        6 => any::<u8>().prop_map(Step::Receive),
        4 => Just(Step::Accept),
        2 => (0usize..8, any::<u16>()).prop_map(|(i, n)| Step::HostWrite(i, n)),
        2 => (0usize..8).prop_map(Step::HostRead),
        1 => (0usize..8).prop_map(Step::HostDrop),
        1 => Just(Step::RemoveAll),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn no_history_of_packets_panics_or_outgrows_the_limits(steps in prop::collection::vec(any_step(), 1..300)) {
        let mut guest = Guest::new();
        let mut hosts: Vec<Incoming> = Vec::new();
        let mut buf = vec![0; MAX_PAYLOAD];
        for step in steps {
            match step {
                Step::Packet(header) => guest.mux.packet(&header, &[0; 100]),
                Step::Honest(header) => {
                    let header = Header { len: header.len.min(MAX_PAYLOAD as u32), ..header };
                    guest.mux.packet(&header, &vec![3; header.len as usize]);
                }
                Step::Receive(room) => {
                    guest.mux.socket_events();
                    if let Some(header) = guest.mux.next(&mut buf[..usize::from(room)]) {
                        prop_assert!(header.len <= u32::from(room));
                    }
                }
                Step::Accept => hosts.extend(guest.accepts.try_recv().ok()),
                Step::HostWrite(i, n) => {
                    if let Some(host) = hosts.get_mut(i) {
                        host.socket.set_nonblocking(true).unwrap();
                        let _ = host.socket.write(&vec![0; usize::from(n)]);
                    }
                }
                Step::HostRead(i) => {
                    if let Some(host) = hosts.get_mut(i) {
                        host.socket.set_nonblocking(true).unwrap();
                        let _ = host.socket.read(&mut buf);
                    }
                }
                Step::HostDrop(i) => {
                    if i < hosts.len() {
                        drop(hosts.swap_remove(i));
                    }
                }
                Step::RemoveAll => guest.mux.remove_all(),
            }
            let (conns, waiting, resets) = guest.mux.load();
            prop_assert!(conns <= MAX_CONNECTIONS && resets <= MAX_RESETS);
            prop_assert!(waiting <= conns * BUF_ALLOC as usize);
        }
    }

    #[test]
    fn no_bytes_in_the_transmit_queue_break_the_device(
        chains in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), 1usize..20, any::<bool>()), 1..30)
    ) {
        let mut driver = queues::Driver::new();
        for (bytes, parts, indirect) in chains {
            driver.send_raw(&bytes, parts, indirect);
        }
        driver.connect(7);
    }
}
