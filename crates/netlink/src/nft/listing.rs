//! Chains and rules that are in the kernel, whoever made them: as much of them as tells what becomes of a bridge's packets.

use std::fmt;

use super::chain::{Hook, Policy};
use super::encode::{GET_CHAIN, GET_RULE, NEW_CHAIN, NEW_RULE, UNSPECIFIED, message};
use super::{Nft, reading};
use crate::message::{Answer, Attributes, flags};
use crate::socket::NetlinkError;

/// Behind the header of nfnetlink.
const FIXED: usize = 4;

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// What is not routed, by its number.
    Other(u8),
}

impl Family {
    const fn new(number: u8) -> Self {
        match number {
            1 => Self::Inet,
            2 => Self::Ip,
            10 => Self::Ip6,
            other => Self::Other(other),
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
            Self::Other(number) => number,
        }
    }
}

/// As `nft` names it.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet => f.write_str("inet"),
            Self::Ip => f.write_str("ip"),
            Self::Ip6 => f.write_str("ip6"),
            Self::Other(number) => write!(f, "family {number}"),
        }
    }
}

/// A chain of a table of any family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainState {
    /// Its table's family.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where packets meet it, and what becomes of those that no rule decides on; `None` when only rules lead to it.
    pub base: Option<(Hook, Policy)>,
}

/// What a rule wants of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Interface {
    /// Nothing.
    #[default]
    Any,
    /// To have this name.
    Is(String),
    /// To have a name that begins so.
    Begins(String),
    /// Something else: a set, a number, another name than one.
    Else,
}

/// What a rule does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Lets it go on.
    Accept,
    /// Drops or refuses it.
    Drop,
    /// Goes back to where the chain was called.
    Return,
    /// Calls a chain.
    Jump(String),
    /// Goes to a chain and does not come back.
    Goto(String),
    /// Depends on what a map says, or is somebody's own.
    Else,
}

/// A rule, as far as it is understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleState {
    /// Where the packet came in.
    pub input: Interface,
    /// Where it will leave.
    pub output: Interface,
    /// The rule asks for the connection's state, and that of connections that were let through is one that it is for.
    pub answers: bool,
    /// The rule asks for something else too.
    pub conditions: bool,
    /// What it does; `None` when it lets the next rule decide.
    pub verdict: Option<Verdict>,
}

impl Nft {
    /// Lists the chains of all tables of all families.
    pub fn chains(&self) -> Result<Vec<ChainState>, NetlinkError> {
        let request = message(GET_CHAIN, flags::DUMP, UNSPECIFIED);
        self.socket.list(&request, chain)
    }

    /// Lists the rules of a chain, in their order; none when there is no such chain.
    pub fn rules(
        &self,
        family: Family,
        table: &str,
        chain: &str,
    ) -> Result<Vec<RuleState>, NetlinkError> {
        let mut request = message(GET_RULE, flags::DUMP, family.number());
        request.text(1, table);
        request.text(2, chain);
        let listed = self.socket.list(&request, |answer| {
            if answer.kind != NEW_RULE || answer.body.first() != Some(&family.number()) {
                return None;
            }
            let attributes = Attributes::after(answer.body, FIXED);
            // Old kernels list more than was asked for.
            let is = |kind, name| attributes.text(kind).as_deref() == Some(name);
            (is(1, table) && is(2, chain)).then(|| reading::rule(&attributes.nested(4)))
        });
        match listed {
            Err(error) if error.is_missing() => Ok(Vec::new()),
            listed => listed,
        }
    }
}

fn chain(answer: Answer<'_>) -> Option<ChainState> {
    if answer.kind != NEW_CHAIN {
        return None;
    }
    let attributes = Attributes::after(answer.body, FIXED);
    let hook = attributes.nested(4).network(1).and_then(Hook::from_number);
    let policy = match attributes.network(5) {
        Some(0) => Policy::Drop,
        _ => Policy::Accept,
    };
    Some(ChainState {
        family: Family::new(*answer.body.first()?),
        table: attributes.text(1)?,
        name: attributes.text(3)?,
        base: hook.map(|hook| (hook, policy)),
    })
}
