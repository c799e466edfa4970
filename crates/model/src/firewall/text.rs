//! How rules are written and read.

use std::{fmt, net::IpAddr, str::FromStr};

use super::{Action, Protocol, Rule, RuleError, Source, width};

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
