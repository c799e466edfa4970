//! Histories of packets and bytes that nobody would write by hand.

use std::io::{Read as _, Write as _};

use proptest::prelude::*;

use super::{CID, Guest, PORT, queues};
use crate::{
    device::{
        mux::{BUF_ALLOC, MAX_CONNECTIONS, MAX_RESETS},
        packet::{HOST_CID, Header, MAX_PAYLOAD, TYPE_STREAM},
    },
    port::Incoming,
};

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
