//! Chains of rules.

use super::rule::Rule;

/// What a base chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Lets packets pass or not.
    Filter,
    /// Changes addresses; sees the first packet of a connection alone.
    Nat,
    /// Decides anew where a packet goes when it was changed.
    Route,
}

impl Kind {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

/// Where on its way a packet meets a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// As it comes in.
    Prerouting,
    /// On its way to this machine's programs.
    Input,
    /// On its way through this machine.
    Forward,
    /// On its way from this machine's programs.
    Output,
    /// As it leaves.
    Postrouting,
}

impl Hook {
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }

    pub(super) fn from_number(number: u32) -> Option<Self> {
        let all = [
            Self::Prerouting,
            Self::Input,
            Self::Forward,
            Self::Output,
            Self::Postrouting,
        ];
        all.into_iter().find(|hook| hook.number() == number)
    }
}

/// The order among chains of one hook: smaller comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(pub i32);

impl Priority {
    /// Before connections are tracked.
    pub const RAW: Self = Self(-300);
    /// Where packets are changed.
    pub const MANGLE: Self = Self(-150);
    /// Where destinations are changed.
    pub const DESTINATION_NAT: Self = Self(-100);
    /// Where packets are filtered.
    pub const FILTER: Self = Self(0);
    /// Where sources are changed.
    pub const SOURCE_NAT: Self = Self(100);
}

/// What happens to a packet that no rule decides on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It is gone.
    Drop,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Base {
    pub(super) kind: Kind,
    pub(super) hook: Hook,
    pub(super) priority: Priority,
    pub(super) policy: Policy,
}

/// A list of rules.
#[derive(Clone, Debug)]
pub struct Chain {
    pub(super) name: String,
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

impl Chain {
    /// Makes a chain that packets meet at a hook.
    pub fn base(
        name: impl Into<String>,
        kind: Kind,
        hook: Hook,
        priority: Priority,
        policy: Policy,
    ) -> Self {
        Self {
            name: name.into(),
            base: Some(Base {
                kind,
                hook,
                priority,
                policy,
            }),
            rules: Vec::new(),
        }
    }

    /// Makes a chain that rules jump to.
    pub fn regular(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            base: None,
            rules: Vec::new(),
        }
    }

    /// Adds a rule at the end.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Adds rules at the end.
    #[must_use]
    pub fn rules(mut self, rules: impl IntoIterator<Item = Rule>) -> Self {
        self.rules.extend(rules);
        self
    }
}
