//! Whole queues in memory made here: the driver's side by hand, handed to the device as the library would.

use std::{
    io::{Read as _, Write as _},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;
use vhost_user_backend::{VhostUserBackend as _, VringRwLock, VringT};
use vm_memory::{
    Bytes as _, GuestAddress, GuestAddressSpace as _, GuestMemoryBackend as _, GuestMemoryMmap,
};
use vmm_sys_util::epoll::EventSet;

use super::{CID, Guest, PORT};
use crate::{
    device::{
        Device, RX, TX,
        mux::BUF_ALLOC,
        packet::{Header, MAX_PAYLOAD, SHUTDOWN_BOTH, op},
    },
    port::{Incoming, Ports},
};

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
    /// Notifications are lost.
    deaf: bool,
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
            deaf: false,
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

    /// Tells the device of a packet.
    fn notify(&self) {
        if self.deaf {
            // It was told and did not hear: it looks by itself, in time.
            let patience = Timespec {
                tv_sec: 10,
                tv_nsec: 0,
            };
            let mut fds = [PollFd::new(&self.device.look, PollFlags::IN)];
            assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1);
        }
        self.pump();
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
        self.notify();
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
fn a_notification_that_is_lost_is_made_up_for() {
    let mut driver = Driver::new();
    driver.deaf = true;
    let hosts: Vec<Incoming> = (1..4).map(|port| driver.connect(port)).collect();
    assert_eq!(hosts.len(), 3);
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
