//! Addresses of distributions that have one of their own.

use std::net::Ipv4Addr;

use crate::{NatRecord, Prefix, nat::stable_hash};

/// Where they begin, above gateway, resolver and VM: 172.19.133.0 in the first choice.
const FIRST: u32 = 0x500;

/// Why an address cannot be a distribution's own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoomError {
    /// Not in the subnet, or its first or last address.
    #[error("{0} is not the address of a machine in {1}")]
    Outside(Ipv4Addr, Prefix),
    /// The network's own.
    #[error("{0} belongs to the network itself: it is {1}")]
    Own(Ipv4Addr, &'static str),
    /// Another distribution's.
    #[error("{0} belongs to another distribution")]
    Taken(Ipv4Addr),
}

impl NatRecord {
    /// Checks an address that somebody wants for a distribution.
    pub fn check_room(&self, address: Ipv4Addr, taken: &[Ipv4Addr]) -> Result<(), RoomError> {
        let subnet = self.subnet;
        if !subnet.contains(address) || address == subnet.network() || address == subnet.broadcast()
        {
            return Err(RoomError::Outside(address, subnet));
        }
        let own = [
            (self.gateway, "the gateway"),
            (self.address, "the VM"),
            (self.relay_address(), "the relay's"),
            (self.resolver(), "the resolver's"),
        ];
        if let Some((_, what)) = own.iter().find(|(own, _)| *own == address) {
            return Err(RoomError::Own(address, what));
        }
        if taken.contains(&address) {
            return Err(RoomError::Taken(address));
        }
        Ok(())
    }

    /// Chooses the address of a distribution: always the same for an id, unless that is taken; `None`: all are.
    pub fn room_address(&self, id: &str, taken: &[Ipv4Addr]) -> Option<Ipv4Addr> {
        let subnet = self.subnet;
        let count = subnet.broadcast().to_bits() - subnet.network().to_bits();
        let first = FIRST.min(count / 2);
        let rooms = count - first;
        let start = (stable_hash(id.as_bytes()) % u64::from(rooms)) as u32;
        (0..rooms)
            .filter_map(|i| subnet.address(first + (start + i) % rooms))
            .find(|address| self.check_room(*address, taken).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> NatRecord {
        NatRecord::choose("7f1c", "hostel", &[]).unwrap()
    }

    #[test]
    fn addresses_are_checked() {
        let record = record();
        let taken = [Ipv4Addr::new(172, 19, 133, 7)];
        let check = |text: &str| record.check_room(text.parse().unwrap(), &taken);
        check("172.19.133.8").unwrap();
        check("172.19.143.254").unwrap();
        for bad in ["172.19.128.0", "172.19.143.255", "172.20.0.1"] {
            assert!(matches!(check(bad), Err(RoomError::Outside(..))), "{bad}");
        }
        for own in [
            "172.19.128.1",
            "172.19.128.2",
            "172.19.128.53",
            "172.19.132.144",
        ] {
            assert!(matches!(check(own), Err(RoomError::Own(..))), "{own}");
        }
        assert!(matches!(check("172.19.133.7"), Err(RoomError::Taken(_))));
    }

    #[test]
    fn an_id_keeps_its_address_and_gets_another_when_it_is_taken() {
        let record = record();
        let first = record.room_address("a", &[]).unwrap();
        assert_eq!(record.room_address("a", &[]), Some(first));
        assert!(first >= Ipv4Addr::new(172, 19, 133, 0));
        let second = record.room_address("a", &[first]).unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn a_small_network_can_be_full() {
        let mut record = record();
        record.subnet = "10.0.0.0/26".parse().unwrap();
        record.gateway = Ipv4Addr::new(10, 0, 0, 1);
        record.address = Ipv4Addr::new(10, 0, 0, 31);
        let mut taken = Vec::new();
        while let Some(address) = record.room_address("x", &taken) {
            record.check_room(address, &taken).unwrap();
            taken.push(address);
        }
        assert!((20..62).contains(&taken.len()), "{}", taken.len());
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_chosen_may_be_used(id in ".{0,40}", taken in proptest::collection::vec(0u32..4096, 0..60)) {
            let record = record();
            let taken: Vec<Ipv4Addr> = taken.iter().filter_map(|o| record.subnet.address(*o)).collect();
            let address = record.room_address(&id, &taken).unwrap();
            proptest::prop_assert_eq!(record.check_room(address, &taken), Ok(()));
        }
    }
}
