//! The record of the VM's network: chosen once, stored, and asked for again at every start (NAT-3, NAT-4).

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::{Host, Prefix, Taken};

/// The subnet that is taken when nothing of the host is in its way.
const FIRST_CHOICE: Ipv4Addr = Ipv4Addr::new(172, 19, 128, 0);
/// Subnets are chosen inside this.
const RANGE: (Ipv4Addr, u8) = (Ipv4Addr::new(172, 16, 0, 0), 12);
/// Their length.
const LEN: u8 = 20;
/// Offset of the gateway in the subnet.
const GATEWAY: u32 = 1;
/// Offset of the VM: 172.19.132.144 in the first choice.
const GUEST: u32 = 4 * 256 + 144;
/// Offset of the relay's address.
const RELAY: u32 = 2;
/// Offset of the resolver that the user-mode network brings.
const RESOLVER: u32 = 53;

/// FNV-1a: well spread and the same in every build, which the hasher of the standard library does not promise.
pub(crate) fn stable_hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The address of a network card.
#[derive(Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// Why a text is not a usable card address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the locally administered address of one network card, such as 52:54:00:12:34:56"
)]
pub struct ParseMacError(String);

impl MacAddress {
    /// Derives an address from an id: the same id always gives the same address.
    ///
    /// 52:54 marks it as locally administered, as virtual machines use it; 32 bits come from the id.
    pub fn from_id(id: &str) -> Self {
        let hash = stable_hash(id.as_bytes());
        let [a, b, c, d] = ((hash >> 32) as u32 ^ hash as u32).to_be_bytes();
        Self([0x52, 0x54, a, b, c, d])
    }

    /// Takes six bytes as they are.
    pub fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Returns the six bytes.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseMacError(text.chars().take(32).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part
                .and_then(|p| u8::from_str_radix(p, 16).ok())
                .ok_or_else(wrong)?;
        }
        // Of one card (bit 0 clear) and administered locally (bit 1 set).
        if parts.next().is_some() || bytes[0] & 3 != 2 {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = ParseMacError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

/// The VM's network, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatRecord {
    /// Never changes; the card's address came from it.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The subnet.
    pub subnet: Prefix,
    /// The host's address in it.
    pub gateway: Ipv4Addr,
    /// The VM's address in it.
    pub address: Ipv4Addr,
    /// The VM's card.
    pub mac: MacAddress,
    /// What it is: records of the first release do not say it.
    #[serde(default, rename = "type")]
    pub kind: NetworkType,
    /// Somebody chose the addresses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chosen: bool,
}

/// The kinds of networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum NetworkType {
    /// Behind the host's address.
    #[default]
    #[serde(rename = "NAT")]
    Nat,
}

impl fmt::Display for NetworkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nat => f.write_str("NAT"),
        }
    }
}

/// Why a record, which a person may have edited, cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NatError {
    /// Too few addresses, or a whole private range.
    #[error("the subnet {0} must have a length from 12 to 26")]
    SubnetSize(Prefix),
    /// Not one of the private ranges.
    #[error("the subnet {0} is not inside 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16")]
    NotPrivate(Prefix),
    /// An address outside, or the first or last of the subnet.
    #[error("{what} {address} is not the address of a machine in {subnet}")]
    Outside {
        /// `the gateway` or `the VM's address`.
        what: &'static str,
        /// The address.
        address: Ipv4Addr,
        /// The subnet.
        subnet: Prefix,
    },
    /// Two of gateway, VM and resolver are the same.
    #[error("{0} is given twice in the network's record")]
    Twice(Ipv4Addr),
    /// In use by the host.
    #[error("the subnet {subnet} has addresses in common with {taken}, which the host uses")]
    Collides {
        /// The subnet.
        subnet: Prefix,
        /// What is in the way.
        taken: Taken,
    },
    /// The id is empty or too long.
    #[error("the network's id must have 1 to 64 characters")]
    Id,
    /// The name is empty, too long, or cannot be printed.
    #[error("the network's name must have 1 to 64 printable characters")]
    Name,
}

/// Every /20 of 172.16.0.0/12 collides with a network of the host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no /20 inside 172.16.0.0/12 is free: the host uses {used} networks there; set one of your own"
)]
pub struct NoFreeSubnet {
    /// How many networks of the host are in the range or around it.
    pub used: usize,
}

impl NatRecord {
    /// Makes the record of a new network: the first choice, or the nearest /20 that collides with none of `host`.
    pub fn choose(id: &str, name: &str, host: &[Prefix]) -> Result<Self, NoFreeSubnet> {
        let subnet = free_subnet(host)?;
        Ok(Self {
            id: id.to_owned(),
            name: name.to_owned(),
            subnet,
            gateway: subnet.address(GATEWAY).expect("a /20 has 4096 addresses"),
            address: subnet.address(GUEST).expect("a /20 has 4096 addresses"),
            mac: MacAddress::from_id(id),
            kind: NetworkType::Nat,
            chosen: false,
        })
    }

    /// Checks a record that comes from disk.
    pub fn validate(&self) -> Result<(), NatError> {
        if !(1..=64).contains(&self.id.len()) {
            return Err(NatError::Id);
        }
        if !(1..=64).contains(&self.name.chars().count()) || self.name.chars().any(char::is_control)
        {
            return Err(NatError::Name);
        }
        let subnet = self.subnet;
        if !(12..=26).contains(&subnet.bits()) {
            return Err(NatError::SubnetSize(subnet));
        }
        if !subnet.network().is_private() || !subnet.broadcast().is_private() {
            return Err(NatError::NotPrivate(subnet));
        }
        for (what, address) in [
            ("the gateway", self.gateway),
            ("the VM's address", self.address),
        ] {
            if !subnet.contains(address)
                || address == subnet.network()
                || address == subnet.broadcast()
            {
                return Err(NatError::Outside {
                    what,
                    address,
                    subnet,
                });
            }
        }
        if [self.gateway, self.resolver(), self.relay_address()].contains(&self.address) {
            return Err(NatError::Twice(self.address));
        }
        Ok(())
    }

    /// Returns the address by which the gateway reaches the guest's loopback: the second of the subnet, or the third when
    /// the gateway has that.
    pub fn relay_address(&self) -> Ipv4Addr {
        let at = |offset| {
            self.subnet
                .address(offset)
                .unwrap_or(self.subnet.broadcast())
        };
        if self.gateway == at(RELAY) {
            at(RELAY + 1)
        } else {
            at(RELAY)
        }
    }

    /// Returns the private IPv6 network, a /64 that comes from the id (RFC 4193).
    pub fn ipv6_network(&self) -> Ipv6Addr {
        let hash = u128::from(stable_hash(format!("{} ipv6", self.id).as_bytes()) >> 24);
        Ipv6Addr::from_bits((0xfd << 120) | (hash << 80))
    }

    /// Returns the host's address in it.
    pub fn ipv6_gateway(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.ipv6_network().to_bits() | 1)
    }

    /// Returns the VM's address in it.
    pub fn ipv6_address(&self) -> Ipv6Addr {
        self.ipv6_of(self.address)
    }

    /// Returns the address in it that goes with an IPv4 address.
    pub fn ipv6_of(&self, address: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.ipv6_network().to_bits() | u128::from(address.to_bits()))
    }

    /// Returns the address of the resolver that a user-mode network puts into the subnet: .53, or the next one when the
    /// gateway has that (slirp wants two different addresses).
    pub fn resolver(&self) -> Ipv4Addr {
        let at = |offset| {
            self.subnet
                .address(offset)
                .unwrap_or(self.subnet.broadcast())
        };
        if self.gateway == at(RESOLVER) {
            at(RESOLVER + 1)
        } else {
            at(RESOLVER)
        }
    }
}

/// A record that has taken the place of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The new one.
    pub record: NatRecord,
    /// What changed and why: one sentence with old and new.
    pub warning: String,
}

impl NatRecord {
    /// Looks whether the record can still be used; `None`: it can.
    ///
    /// Where the subnet is bad or taken, everything but id, name and card is chosen anew (NAT-6); where only an address in
    /// it is bad, the range stays (NAT-9).
    pub fn renew(&self, host: &Host) -> Result<Option<Renewal>, NoFreeSubnet> {
        let old = self.subnet;
        let why = match (self.validate(), host.collides(&old)) {
            (Ok(()), None) => return Ok(None),
            (Ok(()), Some(taken)) => format!("{taken} of the host is in its way"),
            (Err(error @ (NatError::Outside { .. } | NatError::Twice(_))), None) => {
                let mut record = self.clone();
                record.place();
                if record.validate().is_ok() {
                    let warning = format!(
                        "the network {old} stays, but gateway {} and VM address {} cannot be used ({error}): {} and {} are used from now on",
                        self.gateway, self.address, record.gateway, record.address
                    );
                    return Ok(Some(Renewal { record, warning }));
                }
                error.to_string()
            }
            (Err(error), _) => error.to_string(),
        };
        let taken: Vec<Prefix> = host.taken.iter().map(|t| t.prefix).collect();
        let record = Self {
            mac: self.mac,
            ..Self::choose(&self.id, &self.name, &taken)?
        };
        let warning = format!(
            "the recorded network {old} cannot be used ({why}): {} is used from now on, with the VM at {}",
            record.subnet, record.address
        );
        Ok(Some(Renewal { record, warning }))
    }

    /// Returns the record with addresses that somebody chose; what is not given is as before, or usual in a new subnet.
    /// Checked against the network of the host as well.
    pub fn with(
        &self,
        subnet: Option<Prefix>,
        gateway: Option<Ipv4Addr>,
        address: Option<Ipv4Addr>,
        host: &Host,
    ) -> Result<Self, NatError> {
        let mut record = self.clone();
        if let Some(subnet) = subnet.filter(|subnet| *subnet != self.subnet) {
            record.subnet = subnet;
            record.place();
        }
        record.gateway = gateway.unwrap_or(record.gateway);
        record.address = address.unwrap_or(record.address);
        record.chosen = true;
        record.validate()?;
        match host.collides(&record.subnet) {
            None => Ok(record),
            Some(taken) => Err(NatError::Collides {
                subnet: record.subnet,
                taken: taken.clone(),
            }),
        }
    }

    /// Puts gateway and VM where they usually are: a small subnet has the VM in its middle.
    fn place(&mut self) {
        let last = self.subnet.broadcast().to_bits() - self.subnet.network().to_bits();
        let at = |offset: u32| self.subnet.address(offset).unwrap_or(self.subnet.network());
        (self.gateway, self.address) = (at(GATEWAY), at(GUEST.min(last / 2)));
    }

    /// Returns the first address that a machine can have.
    pub fn first_host(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.network().to_bits().saturating_add(1))
    }

    /// Returns the last address that a machine can have.
    pub fn last_host(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.broadcast().to_bits().saturating_sub(1))
    }

    /// Returns how many machines there can be.
    pub fn hosts(&self) -> u32 {
        (self.last_host().to_bits() + 1).saturating_sub(self.first_host().to_bits())
    }
}

fn free_subnet(host: &[Prefix]) -> Result<Prefix, NoFreeSubnet> {
    let range = Prefix::containing(RANGE.0, RANGE.1).expect("12 is a length");
    let first = (FIRST_CHOICE.to_bits() - range.network().to_bits()) >> (32 - LEN);
    let count = 1 << (LEN - range.bits());
    // From the first choice upwards and around: neighbours differ as little as possible from what people expect.
    (0..count)
        .map(|i| range.network().to_bits() + (((first + i) % count) << (32 - LEN)))
        .filter_map(|bits| Prefix::containing(Ipv4Addr::from_bits(bits), LEN))
        .find(|subnet| host.iter().all(|prefix| !prefix.overlaps(subnet)))
        .ok_or_else(|| NoFreeSubnet {
            used: host.iter().filter(|prefix| prefix.overlaps(&range)).count(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(host: &[&str]) -> Result<NatRecord, NoFreeSubnet> {
        let host: Vec<Prefix> = host.iter().map(|p| p.parse().unwrap()).collect();
        NatRecord::choose("7f1c", "hostel", &host)
    }

    /// NAT-3.
    #[test]
    fn the_first_choice_is_the_expected_network() {
        let record = choose(&["192.168.1.0/24", "10.0.0.0/8", "172.17.0.0/16"]).unwrap();
        assert_eq!(record.subnet.to_string(), "172.19.128.0/20");
        assert_eq!(record.gateway, Ipv4Addr::new(172, 19, 128, 1));
        assert_eq!(record.address, Ipv4Addr::new(172, 19, 132, 144));
        assert_eq!(record.resolver(), Ipv4Addr::new(172, 19, 128, 53));
        record.validate().unwrap();
    }

    #[test]
    fn a_colliding_host_moves_the_subnet_or_leaves_none() {
        for (host, want) in [
            (vec!["172.19.130.0/24"], "172.19.144.0/20"),
            (vec!["172.19.0.0/16"], "172.20.0.0/20"),
            (
                vec!["172.19.128.0/17", "172.20.0.0/14", "172.24.0.0/13"],
                "172.16.0.0/20",
            ),
        ] {
            assert_eq!(choose(&host).unwrap().subnet.to_string(), want, "{host:?}");
        }
        assert_eq!(
            choose(&["172.16.0.0/12", "10.0.0.0/8"]).unwrap_err(),
            NoFreeSubnet { used: 1 }
        );
    }

    fn host(taken: &[&str]) -> Host {
        let taken = taken.iter().map(|p| Taken {
            prefix: p.parse().unwrap(),
            interface: "eth7".to_owned(),
        });
        Host {
            taken: taken.collect(),
            ..Host::default()
        }
    }

    /// NAT-4, and records of the first release.
    #[test]
    fn a_record_that_can_be_used_is_used() {
        let old = r#"{ "id": "7f1c", "name": "hostel", "subnet": "172.19.128.0/20", "gateway": "172.19.128.1",
            "address": "172.19.132.144", "mac": "52:54:00:12:34:56" }"#;
        let record: NatRecord = serde_json::from_str(old).unwrap();
        assert_eq!(record.renew(&host(&["192.168.1.0/24"])), Ok(None));
        assert_eq!(
            (record.kind.to_string().as_str(), record.chosen),
            ("NAT", false)
        );
        let text = serde_json::to_string(&record).unwrap();
        assert!(text.contains(r#""type":"NAT""#), "{text}");
        assert_eq!(serde_json::from_str::<NatRecord>(&text).unwrap(), record);
    }

    /// NAT-6: one warning with old and new; id, name and card stay.
    #[test]
    fn a_subnet_that_is_taken_or_bad_is_chosen_anew() {
        let mut record = choose(&[]).unwrap();
        record.mac = "52:54:00:12:34:56".parse().unwrap();
        let renewed = record.renew(&host(&["172.19.0.0/16"])).unwrap().unwrap();
        assert_eq!(renewed.record.subnet.to_string(), "172.20.0.0/20");
        assert_eq!(
            (&renewed.record.id, renewed.record.mac),
            (&record.id, record.mac)
        );
        for part in [
            "172.19.128.0/20",
            "172.19.0.0/16 of `eth7`",
            "172.20.0.0/20",
            "172.20.4.144",
        ] {
            assert!(renewed.warning.contains(part), "{}", renewed.warning);
        }
        record.subnet = "8.8.0.0/20".parse().unwrap();
        let renewed = record.renew(&host(&[])).unwrap().unwrap();
        assert_eq!(renewed.record.subnet.to_string(), "172.19.128.0/20");
        assert!(record.renew(&host(&["172.16.0.0/12"])).is_err());
    }

    /// NAT-9: the range stays.
    #[test]
    fn an_address_that_is_bad_leaves_the_range() {
        let mut record = choose(&[]).unwrap();
        record.subnet = "10.77.16.0/20".parse().unwrap();
        record.gateway = "10.77.16.1".parse().unwrap();
        record.address = "10.99.0.1".parse().unwrap();
        let renewed = record.renew(&host(&["10.1.0.0/16"])).unwrap().unwrap();
        assert_eq!(renewed.record.subnet, record.subnet);
        assert_eq!(renewed.record.address.to_string(), "10.77.20.144");
        for part in ["10.99.0.1", "10.77.20.144", "10.77.16.0/20"] {
            assert!(renewed.warning.contains(part), "{}", renewed.warning);
        }
    }

    #[test]
    fn addresses_that_somebody_chooses_are_checked_at_the_door() {
        let record = choose(&[]).unwrap();
        let free = host(&["192.168.1.0/24"]);
        let subnet = Some("10.20.0.0/24".parse().unwrap());
        let chosen = record.with(subnet, None, None, &free).unwrap();
        assert_eq!(
            (chosen.gateway.to_string(), chosen.address.to_string()),
            ("10.20.0.1".into(), "10.20.0.127".into())
        );
        assert!(chosen.chosen);
        let address: Ipv4Addr = "172.19.140.7".parse().unwrap();
        let moved = record.with(None, None, Some(address), &free).unwrap();
        assert_eq!((moved.subnet, moved.address), (record.subnet, address));
        let error = record.with(subnet, None, Some(address), &free).unwrap_err();
        assert!(matches!(error, NatError::Outside { .. }), "{error}");
        let error = record
            .with(Some("192.168.0.0/16".parse().unwrap()), None, None, &free)
            .unwrap_err();
        assert!(
            error.to_string().contains("192.168.1.0/24 of `eth7`"),
            "{error}"
        );
        let relay = Some(record.relay_address());
        assert!(matches!(
            record.with(None, None, relay, &free),
            Err(NatError::Twice(_))
        ));
    }

    #[test]
    fn the_range_is_counted() {
        let record = choose(&[]).unwrap();
        assert_eq!(record.first_host().to_string(), "172.19.128.1");
        assert_eq!(record.last_host().to_string(), "172.19.143.254");
        assert_eq!(record.hosts(), 4094);
    }

    #[test]
    fn private_ipv6_comes_from_the_id() {
        let record = choose(&[]).unwrap();
        let network = record.ipv6_network();
        assert_eq!(network.segments()[0] >> 8, 0xfd);
        assert_eq!(network.to_bits() as u64, 0, "a /64");
        assert_eq!(record.ipv6_gateway().to_bits(), network.to_bits() | 1);
        assert_eq!(
            record.ipv6_address().to_bits() as u32,
            record.address.to_bits()
        );
        let other = NatRecord::choose("7f1d", "hostel", &[]).unwrap();
        assert_ne!(other.ipv6_network(), network);
    }

    #[test]
    fn edited_records_are_checked() {
        let good = choose(&[]).unwrap();
        let changes: [fn(&mut NatRecord); 9] = [
            |r| r.id.clear(),
            |r| r.name = "a\nb".into(),
            |r| r.subnet = "172.19.128.0/27".parse().unwrap(),
            |r| r.subnet = "8.8.0.0/20".parse().unwrap(),
            |r| r.gateway = Ipv4Addr::new(172, 19, 144, 1),
            |r| r.gateway = Ipv4Addr::new(172, 19, 128, 0),
            |r| r.address = Ipv4Addr::new(172, 19, 143, 255),
            |r| r.address = r.gateway,
            |r| r.address = r.resolver(),
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut record = good.clone();
            change(&mut record);
            assert!(record.validate().is_err(), "change {i}");
        }
        let mut moved = good.clone();
        moved.gateway = Ipv4Addr::new(172, 19, 128, 53);
        moved.validate().unwrap();
        assert_eq!(moved.resolver(), Ipv4Addr::new(172, 19, 128, 54));
    }

    #[test]
    fn card_addresses_follow_the_id_and_are_local() {
        let a = MacAddress::from_id("7f1c");
        assert_eq!(a, MacAddress::from_id("7f1c"));
        assert_ne!(a, MacAddress::from_id("7f1d"));
        assert_eq!(a.bytes()[..2], [0x52, 0x54]);
        assert_eq!(a.to_string().parse::<MacAddress>().unwrap(), a);
        for bad in [
            "",
            "52:54:00:12:34",
            "53:54:00:12:34:56",
            "00:54:00:12:34:56",
            "52:54:0:12:34:56",
            "52:54:00:12:34:56:78",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_chosen_is_valid_and_collides_with_nothing(
            host in proptest::collection::vec((0xac10_0000_u32..=0xac1f_ffff, 14u8..=32), 0..40), id in "[a-z0-9]{1,20}"
        ) {
            let host: Vec<Prefix> =
                host.into_iter().map(|(a, len)| Prefix::containing(Ipv4Addr::from_bits(a), len).unwrap()).collect();
            if let Ok(record) = NatRecord::choose(&id, "x", &host) {
                proptest::prop_assert_eq!(record.validate(), Ok(()));
                proptest::prop_assert!(!host.iter().any(|p| p.overlaps(&record.subnet)));
            }
        }
    }
}
