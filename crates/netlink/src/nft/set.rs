//! Named sets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::prefix::{Prefix, octets};

/// What is in a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elements {
    /// IPv4 networks; those of the other family are left out.
    Networks4(Vec<Prefix>),
    /// IPv6 networks; those of the other family are left out.
    Networks6(Vec<Prefix>),
    /// Ranges of ports, both ends included.
    Ports(Vec<(u16, u16)>),
    /// Names of interfaces.
    Interfaces(Vec<String>),
}

/// A set of values with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub(super) name: String,
    pub(super) elements: Elements,
}

impl Set {
    /// Makes a set.
    pub fn new(name: impl Into<String>, elements: Elements) -> Self {
        Self {
            name: name.into(),
            elements,
        }
    }
}

/// One end of an interval as nf_tables has it: the first value in it, or the first behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) key: Vec<u8>,
    pub(super) end: bool,
}

impl Elements {
    /// The number by which `nft` knows the type, to show the set as it was meant.
    pub(super) const fn key_type(&self) -> u32 {
        match self {
            Self::Networks4(_) => 7,
            Self::Networks6(_) => 8,
            Self::Ports(_) => 13,
            Self::Interfaces(_) => 41,
        }
    }

    pub(super) const fn key_length(&self) -> u32 {
        match self {
            Self::Networks4(_) => 4,
            Self::Networks6(_) | Self::Interfaces(_) => 16,
            Self::Ports(_) => 2,
        }
    }

    pub(super) const fn is_interval(&self) -> bool {
        !matches!(self, Self::Interfaces(_))
    }

    /// Returns the elements in order, intervals that touch or overlap made one.
    pub(super) fn edges(&self) -> Vec<Edge> {
        match self {
            Self::Networks4(list) => intervals(
                list.iter().filter_map(|p| v4_range(*p)),
                u32::MAX.into(),
                |n| Ipv4Addr::from(n as u32).octets().to_vec(),
            ),
            Self::Networks6(list) => {
                intervals(list.iter().filter_map(|p| v6_range(*p)), u128::MAX, |n| {
                    Ipv6Addr::from(n).octets().to_vec()
                })
            }
            Self::Ports(list) => intervals(
                list.iter().map(|(a, b)| (u128::from(*a), u128::from(*b))),
                u16::MAX.into(),
                |n| (n as u16).to_be_bytes().to_vec(),
            ),
            Self::Interfaces(names) => {
                let mut keys: Vec<Vec<u8>> = names.iter().map(|n| interface(n)).collect();
                keys.sort();
                keys.dedup();
                keys.into_iter()
                    .map(|key| Edge { key, end: false })
                    .collect()
            }
        }
    }
}

/// A name of an interface as nf_tables compares it.
pub(super) fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn v4_range(prefix: Prefix) -> Option<(u128, u128)> {
    let IpAddr::V4(first) = prefix.network().address else {
        return None;
    };
    let first = u32::from(first);
    let size = u32::MAX.checked_shr(prefix.length.into()).unwrap_or(0);
    Some((first.into(), (first | size).into()))
}

fn v6_range(prefix: Prefix) -> Option<(u128, u128)> {
    let octets: [u8; 16] = octets(prefix.network().address).try_into().ok()?;
    let first = u128::from_be_bytes(octets);
    let size = u128::MAX.checked_shr(prefix.length.into()).unwrap_or(0);
    Some((first, first | size))
}

/// Sorts, joins and writes intervals; ends that are before their beginnings are left out.
fn intervals(
    ranges: impl Iterator<Item = (u128, u128)>,
    last: u128,
    key: impl Fn(u128) -> Vec<u8>,
) -> Vec<Edge> {
    let mut ranges: Vec<_> = ranges.filter(|(a, b)| a <= b).collect();
    ranges.sort_unstable();
    let mut joined: Vec<(u128, u128)> = Vec::new();
    for (first, end) in ranges {
        match joined.last_mut() {
            Some((_, before)) if first <= before.saturating_add(1) => *before = (*before).max(end),
            _ => joined.push((first, end)),
        }
    }
    let mut edges = Vec::new();
    for (first, end) in joined {
        edges.push(Edge {
            key: key(first),
            end: false,
        });
        // What reaches to the last value has no end.
        if end < last {
            edges.push(Edge {
                key: key(end + 1),
                end: true,
            });
        }
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_joined_and_sorted() {
        let list = ["10.0.1.0/24", "10.0.0.0/24", "10.0.0.7", "255.0.0.0/8"];
        let edges = Elements::Networks4(list.iter().map(|p| p.parse().unwrap()).collect()).edges();
        let shown: Vec<_> = edges.iter().map(|e| (e.key[..].to_vec(), e.end)).collect();
        assert_eq!(
            shown,
            [
                (vec![10, 0, 0, 0], false),
                (vec![10, 0, 2, 0], true),
                (vec![255, 0, 0, 0], false)
            ]
        );
        let all = Elements::Networks6(vec![Prefix::all_v6()]).edges();
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn ports_that_make_no_range_are_left_out() {
        let edges = Elements::Ports(vec![(9, 8), (65535, 65535), (1, 1)]).edges();
        assert_eq!(edges.len(), 3);
        assert_eq!(edges[2].key, [255, 255]);
    }
}
