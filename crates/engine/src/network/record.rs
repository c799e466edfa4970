//! The recorded network, asked for again: what cannot be used any more is chosen anew, with one warning (NAT-6, NAT-9).

use std::net::Ipv4Addr;

use hostel_switch::{NatRecord, NoFreeSubnet, Prefix, host_prefixes};

/// A record that can be used.
#[derive(Clone, Debug)]
pub(crate) struct Renewed {
    pub(crate) record: NatRecord,
    /// What changed, with old and new.
    pub(crate) warning: Option<String>,
}

/// Returns the recorded network, or one that takes its place.
pub(crate) fn ask_again(
    recorded: Option<serde_json::Value>,
    id: &str,
    name: &str,
    host: &[Prefix],
) -> Result<Renewed, NoFreeSubnet> {
    let Some(value) = recorded else {
        let record = NatRecord::choose(id, name, host)?;
        return Ok(Renewed {
            record,
            warning: None,
        });
    };
    let parsed = serde_json::from_value::<NatRecord>(value).map_err(|e| e.to_string());
    let record = match parsed.and_then(|r| r.validate().map(|()| r).map_err(|e| e.to_string())) {
        Ok(record) => record,
        Err(why) => {
            let record = NatRecord::choose(id, name, host)?;
            let warning = format!(
                "the recorded network cannot be used ({why}); {} is used from now on",
                record.subnet
            );
            return Ok(Renewed {
                record,
                warning: Some(warning),
            });
        }
    };
    match host.iter().find(|p| p.overlaps(&record.subnet)) {
        None => Ok(Renewed {
            record,
            warning: None,
        }),
        Some(other) => {
            let new = NatRecord::choose(&record.id, &record.name, host)?;
            let warning = format!(
                "the recorded network {} collides with {other} of the host; {} is used from now on",
                record.subnet, new.subnet
            );
            Ok(Renewed {
                record: new,
                warning: Some(warning),
            })
        }
    }
}

/// Returns the networks that this host knows.
pub(crate) fn host_networks() -> Vec<Prefix> {
    let read = |path| fs_err::read_to_string(path).ok();
    host_prefixes(
        &read("/proc/net/route").unwrap_or_default(),
        read("/proc/net/fib_trie").as_deref(),
    )
}

/// Why an address cannot be a room's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RoomError {
    #[error("{0} is not the address of a machine in {1}")]
    Outside(Ipv4Addr, Prefix),
    #[error("{0} belongs to the network itself: {1}")]
    Own(Ipv4Addr, &'static str),
    #[error("{0} belongs to another distribution")]
    Taken(Ipv4Addr),
}

/// Checks the address of a room.
pub(crate) fn check_room(
    record: &NatRecord,
    address: Ipv4Addr,
    taken: &[Ipv4Addr],
) -> Result<(), RoomError> {
    let subnet = record.subnet;
    if !subnet.contains(address) || address == subnet.network() || address == subnet.broadcast() {
        return Err(RoomError::Outside(address, subnet));
    }
    let own = [
        (Some(record.gateway), "the gateway"),
        (Some(record.address), "the VM"),
        (subnet.address(2), "the relay"),
        (Some(record.resolver()), "the resolver"),
    ];
    if let Some((_, what)) = own.iter().find(|(a, _)| *a == Some(address)) {
        return Err(RoomError::Own(address, what));
    }
    if taken.contains(&address) {
        return Err(RoomError::Taken(address));
    }
    Ok(())
}

/// Chooses the address of a room.
pub(crate) fn room_address(record: &NatRecord, id: &str, taken: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let subnet = record.subnet;
    let count = u64::from(subnet.broadcast().to_bits() - subnet.network().to_bits());
    let first = 0x500.min(count / 2);
    (0..count)
        .map(|i| first + (hash % (count - first) + i) % (count - first))
        .filter_map(|offset| subnet.address(offset as u32))
        .find(|a| check_room(record, *a, taken).is_ok())
}

/// Puts addresses into a record.
pub(crate) fn change(
    mut record: NatRecord,
    subnet: Option<Prefix>,
    gateway: Option<Ipv4Addr>,
    address: Option<Ipv4Addr>,
) -> Result<NatRecord, hostel_switch::NatError> {
    if let Some(subnet) = subnet {
        record.subnet = subnet;
        record.gateway = subnet.address(1).unwrap_or(record.gateway);
        let offset = 0x490.min((subnet.broadcast().to_bits() - subnet.network().to_bits()) / 2);
        record.address = subnet.address(offset).unwrap_or(record.address);
    }
    record.gateway = gateway.unwrap_or(record.gateway);
    record.address = address.unwrap_or(record.address);
    record.validate()?;
    Ok(record)
}

/// Tells whether the host has a global IPv6 address.
pub(crate) fn host_has_ipv6() -> bool {
    let text = fs_err::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    text.lines().any(|line| {
        let scope = line.split_ascii_whitespace().nth(3);
        // 2000::/3, the only range that is global today.
        scope == Some("00") && matches!(line.as_bytes().first(), Some(b'2' | b'3'))
    })
}
