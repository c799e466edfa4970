//! Rules about who may open connections to the guest; shared by what enforces them in the kernel and in the relay.
//!
//! For people and files a rule is one line, `allow tcp 3000-3010 from 192.168.0.0/16`:
//!
//! ```text
//! allow|deny  tcp|udp|icmp|any  [PORT|FIRST-LAST]  [from ADDRESS|NETWORK|any]
//! ```
//!
//! The host itself is never subject to them; whoever enforces them lets it in before it asks here.

#[cfg(test)]
mod tests;
mod text;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The most rules; whoever takes rules from outside checks it.
pub const MAX_RULES: usize = 256;

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Lets the connection in.
    Allow,
    /// Drops it.
    Deny,
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// Everything.
    Any,
}

/// Addresses a connection comes from. Nothing stands behind the prefix, and an IPv4 address is never written as IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawSource")]
pub struct Source {
    /// The network's first address.
    pub address: IpAddr,
    /// The length of its prefix.
    pub bits: u8,
}

/// One rule. The first that matches decides; what no rule matches is denied. One that was read is valid; one made by hand
/// goes through [`Rule::validate`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawRule")]
pub struct Rule {
    /// What to do.
    pub action: Action,
    /// With what.
    pub protocol: Protocol,
    /// First and last port; `None`: every port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<(u16, u16)>,
    /// From where; `None`: from anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// Why something is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Nothing, or too little.
    #[error(
        "a rule needs an action and a protocol; an example is `allow tcp 3000-3010 from 192.168.0.0/16`"
    )]
    Short,
    /// The first word.
    #[error("`{0}` is no action; it is `allow` or `deny`")]
    Action(String),
    /// The second word.
    #[error("`{0}` is no protocol; it is `tcp`, `udp`, `icmp` or `any`")]
    Protocol(String),
    /// The ports.
    #[error(
        "`{0}` is no port or range of ports; ports are numbers from 1 to 65535, as in `80` or `3000-3010`"
    )]
    Ports(String),
    /// A range that runs backwards.
    #[error("the range of ports {0}-{1} begins with the higher one; write {1}-{0}")]
    Backwards(u16, u16),
    /// Ports for a protocol that has none, or for all protocols.
    #[error("`{}` cannot be limited to ports; only `tcp` and `udp` can", .0.as_str())]
    NoPorts(Protocol),
    /// The source.
    #[error(
        "`{0}` is no address and no network; write one as `192.168.0.0/16`, `10.0.0.7`, `fd00::/8` or `any`"
    )]
    Source(String),
    /// A prefix that is too long for its address.
    #[error("the prefix of {0}/{1} is too long; an address has {max} bits", max = width(.0))]
    Prefix(IpAddr, u32),
    /// An address with bits behind its prefix, which could be a slip.
    #[error(
        "{address}/{bits} is an address within a network; for the network write {network}/{bits}, for the address alone {address}"
    )]
    Inside {
        /// The address.
        address: IpAddr,
        /// Its prefix.
        bits: u8,
        /// The first address of the network.
        network: IpAddr,
    },
    /// Words that have no place.
    #[error("`{0}` has no place in a rule; behind the ports only `from` and a source can stand")]
    Rest(String),
}

/// As a rule stands in a file, not checked yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    action: Action,
    protocol: Protocol,
    #[serde(default)]
    ports: Option<(u16, u16)>,
    #[serde(default)]
    source: Option<Source>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSource {
    address: IpAddr,
    bits: u8,
}

impl TryFrom<RawRule> for Rule {
    type Error = RuleError;

    fn try_from(raw: RawRule) -> Result<Self, RuleError> {
        let rule = Self {
            action: raw.action,
            protocol: raw.protocol,
            ports: raw.ports,
            source: raw.source,
        };
        rule.validate().map(|()| rule)
    }
}

impl TryFrom<RawSource> for Source {
    type Error = RuleError;

    fn try_from(raw: RawSource) -> Result<Self, RuleError> {
        Self::new(raw.address, u32::from(raw.bits))
    }
}

impl Action {
    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl Protocol {
    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Any => "any",
        }
    }
}

impl Source {
    /// Checks a network.
    pub fn new(address: IpAddr, bits: u32) -> Result<Self, RuleError> {
        let width = width(&address);
        let Some(fits) = u8::try_from(bits).ok().filter(|_| bits <= width) else {
            return Err(RuleError::Prefix(address, bits));
        };
        // Written as IPv6, but an IPv4 network.
        let (address, bits) = match address.to_canonical() {
            IpAddr::V4(v4) if address.is_ipv6() && fits >= 96 => (v4.into(), fits - 96),
            _ => (address, fits),
        };
        let source = Self {
            address: network(address, bits),
            bits,
        };
        if source.address == address {
            Ok(source)
        } else {
            Err(RuleError::Inside {
                address,
                bits,
                network: source.address,
            })
        }
    }

    /// Tells whether an address is one of these.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let here = |address| network(address, self.bits);
        address.is_ipv4() == self.address.is_ipv4() && here(address) == here(self.address)
    }
}

/// Returns how many bits an address has.
fn width(address: &IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Clears what stands behind the prefix.
fn network(address: IpAddr, bits: u8) -> IpAddr {
    let behind = width(&address).saturating_sub(u32::from(bits));
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(behind).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(behind).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

impl Rule {
    /// Checks a rule that was not read, and a source in it that was not made by [`Source::new`].
    pub fn validate(&self) -> Result<(), RuleError> {
        if let Some((first, last)) = self.ports {
            if matches!(self.protocol, Protocol::Icmp | Protocol::Any) {
                return Err(RuleError::NoPorts(self.protocol));
            }
            if first == 0 {
                return Err(RuleError::Ports(format!("{first}-{last}")));
            }
            if first > last {
                return Err(RuleError::Backwards(first, last));
            }
        }
        self.source.map_or(Ok(()), |source| {
            let checked = Source::new(source.address, u32::from(source.bits))?;
            if checked == source {
                Ok(())
            } else {
                Err(RuleError::Source(source.to_string()))
            }
        })
    }

    /// Tells whether the rule is about a connection; `port` is of no account for what has none.
    pub fn matches(&self, protocol: Protocol, port: u16, source: IpAddr) -> bool {
        let protocol_fits = self.protocol == Protocol::Any || self.protocol == protocol;
        let port_fits = self
            .ports
            .is_none_or(|(first, last)| (first..=last).contains(&port));
        protocol_fits && port_fits && self.source.is_none_or(|s| s.contains(source))
    }
}

/// Decides about a connection from elsewhere: the first rule that matches, else no.
pub fn decide(rules: &[Rule], protocol: Protocol, port: u16, source: IpAddr) -> Action {
    rules
        .iter()
        .find(|rule| rule.matches(protocol, port, source))
        .map_or(Action::Deny, |rule| rule.action)
}
