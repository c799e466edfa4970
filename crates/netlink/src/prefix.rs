//! Addresses with the length of their prefix.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address and how many of its bits say which network it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// The address, with whatever bits.
    pub address: IpAddr,
    /// At most 32, or 128.
    pub length: u8,
}

/// A text is not an address with a prefix.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address with the length of a prefix")]
pub struct BadPrefix(String);

impl Prefix {
    /// Makes a prefix; `None` when the length is more than the address has bits.
    pub fn new(address: impl Into<IpAddr>, length: u8) -> Option<Self> {
        let address = address.into();
        (length <= bits(address)).then_some(Self { address, length })
    }

    /// Makes the prefix that holds one address.
    pub fn host(address: impl Into<IpAddr>) -> Self {
        let address = address.into();
        Self {
            address,
            length: bits(address),
        }
    }

    /// Returns every IPv4 address.
    pub fn all_v4() -> Self {
        Self {
            address: Ipv4Addr::UNSPECIFIED.into(),
            length: 0,
        }
    }

    /// Returns every IPv6 address.
    pub fn all_v6() -> Self {
        Self {
            address: Ipv6Addr::UNSPECIFIED.into(),
            length: 0,
        }
    }

    /// Returns the same network with its first address.
    #[must_use]
    pub fn network(self) -> Self {
        let mut octets = octets(self.address);
        for (octet, mask) in octets.iter_mut().zip(self.mask()) {
            *octet &= mask;
        }
        Self {
            address: from_octets(&octets).unwrap_or(self.address),
            length: self.length,
        }
    }

    /// Returns whether an address lies in the network.
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && Self { address, ..self }.network() == self.network()
    }

    /// Returns the mask's bytes.
    pub(crate) fn mask(self) -> Vec<u8> {
        (0..bits(self.address) / 8)
            .map(|i| match self.length.saturating_sub(i * 8) {
                n @ 0..8 => !(0xff >> n),
                _ => 0xff,
            })
            .collect()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = BadPrefix;

    /// Reads `10.0.0.0/8`, or one address.
    fn from_str(text: &str) -> Result<Self, BadPrefix> {
        let parsed = match text.split_once('/') {
            None => text.parse().ok().map(|a: IpAddr| Self::host(a)),
            Some((address, length)) => address
                .parse()
                .ok()
                .zip(length.parse().ok())
                .and_then(|(a, l): (IpAddr, u8)| Self::new(a, l)),
        };
        parsed.ok_or_else(|| BadPrefix(text.chars().take(64).collect()))
    }
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

pub(crate) fn from_octets(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => Some(<[u8; 4]>::try_from(octets).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(octets).ok()?.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_their_members() {
        let prefix: Prefix = "172.19.132.144/20".parse().unwrap();
        assert_eq!(prefix.network().to_string(), "172.19.128.0/20");
        assert!(prefix.contains("172.19.143.255".parse().unwrap()));
        assert!(!prefix.contains("172.19.144.0".parse().unwrap()));
        assert!(!prefix.contains("::1".parse().unwrap()));
        let six: Prefix = "fd00:1:2:3::9/64".parse().unwrap();
        assert_eq!(six.network().to_string(), "fd00:1:2:3::/64");
        assert_eq!(Prefix::all_v4().mask(), [0; 4]);
        assert!(Prefix::all_v6().contains("2001:db8::1".parse().unwrap()));
        assert_eq!("::1".parse(), Ok(Prefix::host(Ipv6Addr::LOCALHOST)));
    }

    #[test]
    fn what_is_no_prefix_is_told() {
        for bad in ["", "1.2.3.4/33", "::/129", "1.2.3.4/", "1.2.3/8", "a/b"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
        assert_eq!(Prefix::new(Ipv4Addr::LOCALHOST, 33), None);
    }
}
