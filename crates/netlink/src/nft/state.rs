//! What is in the kernel, and noticing that it changed.

use super::Nft;
use super::encode::{GET_GENERATION, GET_RULE, GET_TABLE, INET, NEW_RULE, NEW_TABLE, message};
use crate::message::{Answer, Attributes, flags};
use crate::socket::{Events, NetlinkError};

/// Behind the header of nfnetlink.
const FIXED: usize = 4;
/// The group of changes to tables.
const CHANGES: u32 = 1 << (7 - 1);

/// A table of the family `inet` that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableState {
    /// Its name.
    pub name: String,
    /// Its number; a table that is made anew gets another.
    pub handle: u64,
    /// Words that it was given.
    pub comment: String,
}

/// A table and its rules by their numbers: any change by anybody gives another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    table: u64,
    rules: Vec<(String, u64)>,
}

impl Nft {
    /// Lists the tables of the family `inet`.
    pub fn tables(&self) -> Result<Vec<TableState>, NetlinkError> {
        let request = message(GET_TABLE, flags::DUMP, INET);
        self.socket.list(&request, table)
    }

    /// Finds a table of the family `inet`.
    pub fn table(&self, name: &str) -> Result<Option<TableState>, NetlinkError> {
        Ok(self.tables()?.into_iter().find(|t| t.name == name))
    }

    /// Takes a table's fingerprint; `None` when it is not there.
    pub fn fingerprint(&self, name: &str) -> Result<Option<Fingerprint>, NetlinkError> {
        let Some(table) = self.table(name)? else {
            return Ok(None);
        };
        let mut request = message(GET_RULE, flags::DUMP, INET);
        request.text(1, name);
        let rules = self.socket.list(&request, |answer| {
            if answer.kind != NEW_RULE {
                return None;
            }
            let attributes = Attributes::after(answer.body, FIXED);
            if attributes.text(1)? != name {
                return None;
            }
            Some((attributes.text(2)?, long(&attributes, 3)?))
        })?;
        Ok(Some(Fingerprint {
            table: table.handle,
            rules,
        }))
    }

    /// Returns a number that every change to any table of the namespace raises.
    pub fn generation(&self) -> Result<u32, NetlinkError> {
        let mut found = None;
        let request = message(GET_GENERATION, flags::ACKNOWLEDGE, 0);
        self.socket.get(request, |answer| {
            found = Attributes::after(answer.body, FIXED).network(1);
        })?;
        found.ok_or(NetlinkError::Malformed)
    }
}

/// Tells that something changed in the tables of a network namespace, whoever did it.
#[derive(Debug)]
pub struct Changes(Events);

impl Changes {
    /// Subscribes. The descriptor of [`Changes::events`] is readable when there is something.
    pub fn subscribe() -> Result<Self, NetlinkError> {
        let netfilter = Some(rustix::net::netlink::NETFILTER);
        Events::subscribe(netfilter, CHANGES).map(Self)
    }

    /// Reads all that waits; whether there was anything. Never blocks.
    pub fn seen(&self) -> Result<bool, NetlinkError> {
        let mut any = false;
        let complete = self.0.drain(|_| any = true)?;
        Ok(any || !complete)
    }

    /// Returns the socket, to wait on.
    pub fn events(&self) -> &Events {
        &self.0
    }
}

fn table(answer: Answer<'_>) -> Option<TableState> {
    // The dump has every family when the kernel is old.
    if answer.kind != NEW_TABLE || answer.body.first() != Some(&INET) {
        return None;
    }
    let attributes = Attributes::after(answer.body, FIXED);
    let comment = attributes.find(6).and_then(|bytes| {
        let text = bytes.get(2..)?.split(|b| *b == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    });
    Some(TableState {
        name: attributes.text(1)?,
        handle: long(&attributes, 4)?,
        comment: comment.unwrap_or_default(),
    })
}

fn long(attributes: &Attributes<'_>, kind: u16) -> Option<u64> {
    Some(u64::from_be_bytes(attributes.find(kind)?.try_into().ok()?))
}
