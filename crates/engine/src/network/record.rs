//! The recorded network, asked for again: what cannot be used any more is chosen anew, with one warning (NAT-6, NAT-9).

use std::net::Ipv4Addr;

use hostel_switch::{Host, NatRecord, NoFreeSubnet, Prefix};

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
    host: &Host,
) -> Result<Renewed, NoFreeSubnet> {
    let prefixes: Vec<Prefix> = host.taken.iter().map(|t| t.prefix).collect();
    let Some(value) = recorded else {
        let record = NatRecord::choose(id, name, &prefixes)?;
        return Ok(Renewed {
            record,
            warning: None,
        });
    };
    let parsed = serde_json::from_value::<NatRecord>(value).map_err(|e| e.to_string());
    let record = match parsed.and_then(|r| r.validate().map(|()| r).map_err(|e| e.to_string())) {
        Ok(record) => record,
        Err(why) => {
            let record = NatRecord::choose(id, name, &prefixes)?;
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
    match host.collides(&record.subnet) {
        None => Ok(Renewed {
            record,
            warning: None,
        }),
        Some(other) => {
            let new = NatRecord::choose(&record.id, &record.name, &prefixes)?;
            let warning = format!(
                "the recorded network {} collides with {other}; {} is used from now on",
                record.subnet, new.subnet
            );
            Ok(Renewed {
                record: new,
                warning: Some(warning),
            })
        }
    }
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
        (Some(record.relay_address()), "the relay"),
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
