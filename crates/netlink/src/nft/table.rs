//! A whole table.

use super::chain::Chain;
use super::set::Set;

/// A table of the family `inet`: both IPv4 and IPv6 pass through it.
#[derive(Clone, Debug)]
pub struct Table {
    pub(super) name: String,
    pub(super) comment: String,
    pub(super) owned: bool,
    pub(super) sets: Vec<Set>,
    pub(super) chains: Vec<Chain>,
}

impl Table {
    /// Makes an empty table.
    pub fn inet(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            comment: String::new(),
            owned: false,
            sets: Vec::new(),
            chains: Vec::new(),
        }
    }

    /// Adds words for people, at most 127 bytes; `nft list` shows them.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = comment.into();
        self
    }

    /// Makes the table belong to the socket that writes it: nobody else can change it, and the kernel removes it when the
    /// socket is closed, however that comes about. Since Linux 5.12.
    #[must_use]
    pub fn owned(mut self) -> Self {
        self.owned = true;
        self
    }

    /// Adds a set, which rules name.
    #[must_use]
    pub fn set(mut self, set: Set) -> Self {
        self.sets.push(set);
        self
    }

    /// Adds a chain. Rules may jump to chains that come later.
    #[must_use]
    pub fn chain(mut self, chain: Chain) -> Self {
        self.chains.push(chain);
        self
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}
