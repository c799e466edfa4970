//! IPv4 prefixes.

use std::{fmt, net::Ipv4Addr, str::FromStr};

/// An IPv4 network: an address without host bits, and a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    network: Ipv4Addr,
    len: u8,
}

/// Why a text is not a prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParsePrefixError {
    /// Not `a.b.c.d/n`.
    #[error("`{0}` is not an IPv4 network such as 172.19.128.0/20")]
    Malformed(String),
    /// The address has bits beyond the length.
    #[error("`{0}` is an address inside a network; the network itself is {1}")]
    HostBits(String, Prefix),
}

impl Prefix {
    /// Returns the network that an address is in; `None` for a length above 32.
    pub fn containing(address: Ipv4Addr, len: u8) -> Option<Self> {
        (len <= 32).then(|| Self {
            network: Ipv4Addr::from_bits(address.to_bits() & mask(len)),
            len,
        })
    }

    /// Returns the first address, which names the network.
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// Returns the length in bits.
    pub fn bits(&self) -> u8 {
        self.len
    }

    /// Returns the last address: the broadcast address of the network.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !mask(self.len))
    }

    /// Tells whether an address is in the network.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.len) == self.network.to_bits()
    }

    /// Tells whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// Returns the address that is `offset` above the first; `None` outside the network.
    pub fn address(&self, offset: u32) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::from_bits(self.network.to_bits().checked_add(offset)?);
        self.contains(address).then_some(address)
    }
}

const fn mask(len: u8) -> u32 {
    match len {
        0 => 0,
        1..=32 => u32::MAX << (32 - len),
        _ => u32::MAX,
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.len)
    }
}

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ParsePrefixError::Malformed(text.chars().take(64).collect());
        let (address, len) = text.split_once('/').ok_or_else(malformed)?;
        let address: Ipv4Addr = address.parse().map_err(|_| malformed())?;
        if len.is_empty() || len.len() > 2 || !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        let prefix = Self::containing(address, len.parse().map_err(|_| malformed())?)
            .ok_or_else(malformed)?;
        if prefix.network != address {
            return Err(ParsePrefixError::HostBits(text.to_owned(), prefix));
        }
        Ok(prefix)
    }
}

impl TryFrom<String> for Prefix {
    type Error = ParsePrefixError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_are_parsed_strictly() {
        for good in ["172.19.128.0/20", "0.0.0.0/0", "10.1.2.3/32", "128.0.0.0/1"] {
            assert_eq!(prefix(good).to_string(), good);
        }
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0/8",
            "x/8",
            "10.0.0.0/008",
            "::/0",
        ] {
            assert!(
                matches!(bad.parse::<Prefix>(), Err(ParsePrefixError::Malformed(_))),
                "{bad}"
            );
        }
        let error = "172.19.132.144/20".parse::<Prefix>().unwrap_err();
        assert!(error.to_string().contains("172.19.128.0/20"), "{error}");
    }

    #[test]
    fn networks_contain_overlap_and_end_where_they_should() {
        let net = prefix("172.19.128.0/20");
        assert_eq!(net.broadcast(), Ipv4Addr::new(172, 19, 143, 255));
        assert!(
            net.contains(Ipv4Addr::new(172, 19, 143, 255))
                && !net.contains(Ipv4Addr::new(172, 19, 144, 0))
        );
        for (other, want) in [
            ("172.19.0.0/16", true),
            ("172.19.130.0/24", true),
            ("0.0.0.0/0", true),
            ("172.19.144.0/20", false),
        ] {
            assert_eq!(
                (net.overlaps(&prefix(other)), prefix(other).overlaps(&net)),
                (want, want),
                "{other}"
            );
        }
        assert_eq!(net.address(1), Some(Ipv4Addr::new(172, 19, 128, 1)));
        assert_eq!(net.address(4096), None);
        assert_eq!(prefix("255.255.255.255/32").address(1), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(.|\n|/|[0-9]){0,100}") {
            let _ = text.parse::<Prefix>();
        }

        #[test]
        fn overlap_is_having_an_address_in_common(a: u32, la in 0u8..=32, b: u32, lb in 0u8..=32) {
            let a = Prefix::containing(Ipv4Addr::from_bits(a), la).unwrap();
            let b = Prefix::containing(Ipv4Addr::from_bits(b), lb).unwrap();
            let common = a.network().max(b.network()) <= a.broadcast().min(b.broadcast());
            proptest::prop_assert_eq!(a.overlaps(&b), common);
        }
    }
}
