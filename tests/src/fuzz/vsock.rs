//! Packets of a guest to the host's end of the channel.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
};

use hostel_vsock::LoneGuest;

/// Length of a packet's header.
const HEADER: usize = 44;
/// The most payload of one packet.
const MAX_PAYLOAD: usize = 64 << 10;
/// The most connections that are held by the accepting side here; descriptors are not endless.
const MAX_HOSTS: usize = 32;

/// Takes a history: steps of a kind, an argument, and for packets the fields that matter. Whatever the guest sends, the
/// device keeps to its limits, and what it answers is well formed.
pub fn vsock_packet(bytes: &[u8]) {
    let mut guest = LoneGuest::new().expect("a guest");
    let mut hosts: Vec<UnixStream> = Vec::new();
    let mut buffer = vec![3; MAX_PAYLOAD];
    let mut rest = bytes;
    while let Some(([kind, argument], later)) = rest.split_first_chunk() {
        rest = later;
        let argument = usize::from(*argument);
        let host = argument.checked_rem(hosts.len());
        match (kind % 8, host) {
            (0..=2, _) => {
                let (header, later) = header(argument, rest);
                rest = later;
                let len = u32::from_le_bytes(header[24..28].try_into().expect("four bytes"));
                // Mostly the payload is as long as the header says; in the last kind it is short.
                let len = (len as usize).min(MAX_PAYLOAD) >> u32::from(kind % 8 == 2);
                guest.packet(&header, &buffer[..len]);
            }
            (3, _) => {
                let room = [argument, MAX_PAYLOAD][usize::from(argument > 99)];
                if let Some(header) = guest.receive(&mut buffer[..room]) {
                    let field =
                        |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8"));
                    assert_eq!((field(0), field(8)), (2, LoneGuest::CID));
                    assert!(
                        field(24) as u32 <= room as u32,
                        "more than there was room for"
                    );
                    assert_eq!((header[28], header[29]), (1, 0), "a stream");
                    assert!(
                        (1..=7).contains(&header[30]) && header[31] == 0,
                        "an operation"
                    );
                }
            }
            (4, _) => {
                hosts.extend(guest.accept());
                hosts.truncate(MAX_HOSTS);
            }
            (5, Some(at)) => {
                let _ = hosts[at].set_nonblocking(true);
                let _ = hosts[at].write(&buffer[..argument * 100]);
            }
            (6, Some(at)) => {
                let _ = hosts[at].set_nonblocking(true);
                let _ = hosts[at].read(&mut buffer);
            }
            (7, _) if argument == 255 => guest.unplug(),
            (7, Some(at)) => drop(hosts.swap_remove(at)),
            _ => {}
        }
        assert!(guest.is_within_limits());
    }
}

/// Makes a header: honest but for what the argument's bits ask to be taken from the input.
fn header(argument: usize, mut rest: &[u8]) -> ([u8; HEADER], &[u8]) {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&LoneGuest::CID.to_le_bytes());
    header[8..16].copy_from_slice(&2u64.to_le_bytes());
    // Few ports, so that packets meet.
    header[16] = (argument % 4) as u8;
    header[20..24].copy_from_slice(&LoneGuest::PORT.to_le_bytes());
    header[28] = 1;
    header[36..40].copy_from_slice(&(1u32 << 18).to_le_bytes());
    let mut take = |at: usize, n: usize| {
        let n = n.min(rest.len());
        header[at..at + n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
    };
    // The operation, and how much of the length and of the flags.
    take(30, 1);
    take(24, (argument >> 2) & 1);
    take(25, (argument >> 3) & 1);
    take(32, (argument >> 4) & 1);
    // Credit.
    take(36, 8 * ((argument >> 5) & 1));
    // Addresses and ports, type, all of the length.
    take(0, 24 * ((argument >> 6) & 1));
    take(24, 12 * ((argument >> 7) & 1));
    (header, rest)
}
