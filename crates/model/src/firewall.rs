//! Rules about who may open connections to the guest; shared by what enforces them in the kernel and in the relay.
//!
//! For people and files a rule is one line, `allow tcp 3000-3010 from 192.168.0.0/16`:
//!
//! ```text
//! allow|deny  tcp|udp|icmp|any  [PORT|FIRST-LAST]  [from ADDRESS|NETWORK|any]
//! ```
//!
//! The host itself is never subject to them; whoever enforces them lets it in before it asks here.

use std::{fmt, net::IpAddr, str::FromStr};

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

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Prints an address alone when it is one, else a network.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if u32::from(self.bits) == width(&self.address) {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.bits)
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action, self.protocol)?;
        match self.ports {
            None => {}
            Some((first, last)) if first == last => write!(f, " {first}")?,
            Some((first, last)) => write!(f, " {first}-{last}")?,
        }
        self.source
            .map_or(Ok(()), |source| write!(f, " from {source}"))
    }
}

impl FromStr for Action {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        [Self::Allow, Self::Deny]
            .into_iter()
            .find(|action| action.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| RuleError::Action(shown(text)))
    }
}

impl FromStr for Protocol {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        [Self::Tcp, Self::Udp, Self::Icmp, Self::Any]
            .into_iter()
            .find(|protocol| protocol.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| RuleError::Protocol(shown(text)))
    }
}

impl FromStr for Source {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let wrong = || RuleError::Source(shown(text));
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(number(bits).ok_or_else(wrong)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        Self::new(address, bits.unwrap_or_else(|| width(&address)))
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let mut words = text.split_whitespace().peekable();
        let action = words.next().ok_or(RuleError::Short)?.parse()?;
        let protocol = words.next().ok_or(RuleError::Short)?.parse()?;
        let ports = words
            .next_if(|word| !word.eq_ignore_ascii_case("from"))
            .map(parse_ports)
            .transpose()?;
        let source = match words.next() {
            None => None,
            Some(word) if word.eq_ignore_ascii_case("from") => match words.next() {
                None => return Err(RuleError::Source(String::new())),
                Some(any) if any.eq_ignore_ascii_case("any") => None,
                Some(source) => Some(source.parse()?),
            },
            Some(word) => return Err(RuleError::Rest(shown(word))),
        };
        if let Some(word) = words.next() {
            return Err(RuleError::Rest(shown(word)));
        }
        let rule = Self {
            action,
            protocol,
            ports,
            source,
        };
        rule.validate().map(|()| rule)
    }
}

/// Reads a port, or a first and a last one with `-` between them.
fn parse_ports(text: &str) -> Result<(u16, u16), RuleError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text| {
        let port = number(text).and_then(|port| u16::try_from(port).ok());
        port.filter(|port| *port > 0)
    };
    port(first)
        .zip(port(last))
        .ok_or_else(|| RuleError::Ports(shown(text)))
}

/// A number without signs.
fn number(text: &str) -> Option<u32> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

/// Makes a text from outside fit to print.
fn shown(text: &str) -> String {
    text.chars().take(50).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap()
    }

    #[test]
    fn rules_are_read_and_printed() {
        for (text, printed) in [
            ("allow tcp 3000-3010 from 192.168.0.0/16", ""),
            ("deny any", ""),
            ("allow icmp", ""),
            ("allow udp 53 from 10.0.0.7", ""),
            ("allow tcp from fd00::/8", ""),
            ("allow tcp 1-65535", ""),
            ("deny any from 0.0.0.0/0", ""),
            ("  Allow  TCP\t80-80  FROM  ANY ", "allow tcp 80"),
            (
                "allow tcp 80 from 10.0.0.7/32",
                "allow tcp 80 from 10.0.0.7",
            ),
            (
                "allow tcp 80 from ::ffff:10.0.0.0/104",
                "allow tcp 80 from 10.0.0.0/8",
            ),
            (
                "allow tcp 80 from ::ffff:10.0.0.7",
                "allow tcp 80 from 10.0.0.7",
            ),
        ] {
            let want = if printed.is_empty() { text } else { printed };
            assert_eq!(rule(text).to_string(), want);
        }
    }

    #[test]
    fn mistakes_say_what_to_write() {
        for (text, want) in [
            ("", "a rule needs an action"),
            ("allow", "a rule needs an action"),
            ("accept tcp", "`accept` is no action"),
            ("allow sctp", "`sctp` is no protocol"),
            ("allow tcp http", "`http` is no port"),
            ("allow tcp 0", "`0` is no port"),
            ("allow tcp 65536", "`65536` is no port"),
            ("allow tcp +80", "`+80` is no port"),
            ("allow tcp 80-", "`80-` is no port"),
            ("allow tcp 1-2-3", "`1-2-3` is no port"),
            ("allow tcp 90-80", "write 80-90"),
            ("allow any 80", "`any` cannot be limited to ports"),
            ("allow icmp 8", "`icmp` cannot be limited to ports"),
            ("allow tcp 80 from", "`` is no address"),
            ("allow tcp 80 from there", "`there` is no address"),
            ("allow tcp 80 from 10.0.0.0/x", "`10.0.0.0/x` is no address"),
            ("allow tcp 80 from 10.0.0.0/33", "an address has 32 bits"),
            ("allow tcp 80 from fd00::/129", "an address has 128 bits"),
            (
                "allow tcp 80 from 10.1.0.0/8",
                "for the network write 10.0.0.0/8",
            ),
            ("allow tcp 80 to 10.0.0.0/8", "`to` has no place"),
            ("allow tcp 80 from any too", "`too` has no place"),
            ("allow tcp \u{1b}[2J", "`\\u{1b}[2J` is no port"),
        ] {
            let error = text.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_match_decides_and_nothing_is_open_by_itself() {
        let rules = [
            "deny tcp 22 from 192.168.1.0/24",
            "allow tcp 20-25 from 192.168.0.0/16",
            "allow icmp",
            "allow udp from fd00::/8",
            "deny any from 10.0.0.7",
            "allow any from 10.0.0.0/8",
        ]
        .map(rule);
        use Protocol::{Icmp, Tcp, Udp};
        for (protocol, port, source, want) in [
            (Tcp, 22, "192.168.1.9", Action::Deny),
            (Tcp, 22, "192.168.2.9", Action::Allow),
            (Tcp, 22, "::ffff:192.168.2.9", Action::Allow),
            (Tcp, 26, "192.168.2.9", Action::Deny),
            (Udp, 22, "192.168.2.9", Action::Deny),
            (Icmp, 0, "203.0.113.1", Action::Allow),
            (Udp, 53, "fd12::1", Action::Allow),
            (Tcp, 53, "fd12::1", Action::Deny),
            (Tcp, 80, "10.0.0.7", Action::Deny),
            (Tcp, 80, "10.0.0.8", Action::Allow),
            (Tcp, 80, "11.0.0.8", Action::Deny),
        ] {
            let source = source.parse().unwrap();
            assert_eq!(
                decide(&rules, protocol, port, source),
                want,
                "{protocol} {port} {source}"
            );
        }
        let any = [rule("allow any from 0.0.0.0/0")];
        assert_eq!(decide(&any, Tcp, 1, "::1".parse().unwrap()), Action::Deny);
        assert_eq!(
            decide(&[], Tcp, 1, "10.0.0.1".parse().unwrap()),
            Action::Deny
        );
    }

    #[test]
    fn a_rule_made_by_hand_is_checked() {
        let mut made = rule("allow tcp 80 from 10.0.0.0/8");
        assert_eq!(made.validate(), Ok(()));
        made.ports = Some((0, 5));
        assert!(matches!(made.validate(), Err(RuleError::Ports(_))));
        made.ports = None;
        for (address, bits) in [("10.0.0.1", 8), ("10.0.0.0", 33), ("::ffff:10.0.0.1", 128)] {
            let address = address.parse().unwrap();
            made.source = Some(Source { address, bits });
            assert!(made.validate().is_err(), "{made}");
        }
    }

    #[test]
    fn a_rule_from_a_file_is_checked_too() {
        let text = r#"{"action":"allow","protocol":"tcp","ports":[80,81],"source":{"address":"10.0.0.0","bits":8}}"#;
        let read: Rule = serde_json::from_str(text).unwrap();
        assert_eq!(read, rule("allow tcp 80-81 from 10.0.0.0/8"));
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        let short = r#"{"action":"deny","protocol":"any"}"#;
        assert_eq!(
            serde_json::from_str::<Rule>(short).unwrap(),
            rule("deny any")
        );
        for (from, to) in [
            ("[80,81]", "[81,80]"),
            ("[80,81]", "[0,1]"),
            ("tcp", "any"),
            (":8}", ":33}"),
            (":8}", ":4}"),
            ("\"bits\"", "\"more\":1,\"bits\""),
            ("\"action\"", "\"more\":1,\"action\""),
        ] {
            let text = text.replace(from, to);
            assert!(serde_json::from_str::<Rule>(&text).is_err(), "{text}");
        }
    }

    fn sources() -> impl Strategy<Value = Source> {
        let v4 = (any::<u32>(), 0..=32u32).prop_map(|(a, b)| (IpAddr::from(a.to_be_bytes()), b));
        let v6 = (any::<u128>(), 0..=128u32).prop_map(|(a, b)| (IpAddr::from(a.to_be_bytes()), b));
        prop_oneof![v4, v6].prop_map(|(address, bits)| {
            Source::new(network(address, bits as u8), bits).expect("a network")
        })
    }

    fn rules() -> impl Strategy<Value = Rule> {
        let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
        let with_ports = (
            prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)],
            proptest::option::of(
                (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| (a.min(b), a.max(b))),
            ),
        );
        let without = (
            prop_oneof![Just(Protocol::Icmp), Just(Protocol::Any)],
            Just(None),
        );
        let what = prop_oneof![with_ports, without];
        (action, what, proptest::option::of(sources())).prop_map(
            |(action, (protocol, ports), source)| Rule {
                action,
                protocol,
                ports,
                source,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_the_same(rule in rules()) {
            prop_assert_eq!(rule.validate(), Ok(()));
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }

        #[test]
        fn any_text_is_judged_without_a_panic(text in "((allow|deny|tcp|udp|any|icmp|from|[0-9]{1,6}|-|/|[0-9a-f:.]{1,9}|\\PC{0,3}) ?){0,9}") {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
            }
        }

        #[test]
        fn a_source_holds_what_shares_its_prefix(source in sources(), other in any::<u128>(), v6: bool) {
            let address = if v6 { IpAddr::from(other.to_be_bytes()) } else { IpAddr::from((other as u32).to_be_bytes()) };
            let same = address.is_ipv4() == source.address.is_ipv4() && match (address, source.address) {
                (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(source.bits),
                (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(source.bits),
                _ => false,
            };
            prop_assert_eq!(source.contains(address), same);
            prop_assert!(source.contains(source.address));
        }

        #[test]
        fn the_decision_is_that_of_the_first_match(rules in proptest::collection::vec(rules(), 0..6), port: u16, source in sources()) {
            let source = source.address;
            let first = rules.iter().position(|r| r.matches(Protocol::Tcp, port, source));
            let want = first.map_or(Action::Deny, |i| rules[i].action);
            prop_assert_eq!(decide(&rules, Protocol::Tcp, port, source), want);
            if let Some(first) = first {
                prop_assert_eq!(decide(&rules[..first], Protocol::Tcp, port, source), Action::Deny);
                prop_assert_eq!(decide(&rules[first..], Protocol::Tcp, port, source), want);
            }
        }
    }
}
