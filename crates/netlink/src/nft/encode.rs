//! A table as the kernel's messages: one batch, all or nothing.

use super::Nft;
use super::chain::Chain;
use super::set::{Edge, Set};
use super::table::Table;
use crate::message::{Message, flags};
use crate::socket::NetlinkError;

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// nf_tables' number among the subsystems of nfnetlink.
const SUBSYSTEM: u16 = 10;
pub(super) const NEW_TABLE: u16 = SUBSYSTEM << 8;
pub(super) const GET_TABLE: u16 = NEW_TABLE + 1;
const DELETE_TABLE: u16 = NEW_TABLE + 2;
pub(super) const NEW_CHAIN: u16 = NEW_TABLE + 3;
pub(super) const GET_CHAIN: u16 = NEW_TABLE + 4;
pub(super) const NEW_RULE: u16 = NEW_TABLE + 6;
pub(super) const GET_RULE: u16 = NEW_TABLE + 7;
const NEW_SET: u16 = NEW_TABLE + 9;
const NEW_ELEMENT: u16 = NEW_TABLE + 12;
pub(super) const GET_GENERATION: u16 = NEW_TABLE + 16;

pub(super) const UNSPECIFIED: u8 = 0;
pub(super) const INET: u8 = 1;

const ELEMENT_OF_LIST: u16 = 1;
/// Elements in one message: an attribute holds less than 64 KiB.
const ELEMENTS: usize = 1000;
const MAX_COMMENT: usize = 127;

const OWNED: u32 = 2;
const INTERVALS: u32 = 4;
const INTERVAL_END: u32 = 1;

/// How often a table is written when it comes or goes while we do so.
const AGAIN: usize = 4;

impl Nft {
    /// Puts a table in the place of the one with its name, in one transaction: at no moment is it incomplete.
    pub fn replace(&self, table: &Table) -> Result<(), NetlinkError> {
        self.transact(
            |exists| {
                let mut messages = Vec::new();
                if exists {
                    messages.push(delete(&table.name));
                }
                messages.extend(create(table));
                messages
            },
            &table.name,
        )
    }

    /// Removes a table of the family `inet`; one that is not there is a success.
    pub fn delete(&self, name: &str) -> Result<(), NetlinkError> {
        let gone = |exists| {
            if exists {
                vec![delete(name)]
            } else {
                Vec::new()
            }
        };
        self.transact(gone, name)
    }

    fn transact(
        &self,
        messages: impl Fn(bool) -> Vec<Message>,
        name: &str,
    ) -> Result<(), NetlinkError> {
        let mut tries = AGAIN;
        loop {
            let mut batch = vec![mark(BATCH_BEGIN)];
            batch.extend(messages(self.table(name)?.is_some()));
            let last = batch.len() - 1;
            if last == 0 {
                return Ok(());
            }
            // The kernel works in order: an acknowledgement of the last one is that of all.
            batch[last].request(flags::ACKNOWLEDGE);
            batch.push(mark(BATCH_END));
            let last = last as u32;
            tries -= 1;
            match self.socket.batch(batch, last) {
                Err(error) if tries > 0 && (error.is_missing() || error.is_present()) => {}
                outcome => return outcome,
            }
        }
    }
}

/// Begins a message of nf_tables. `family` is the table's.
pub(super) fn message(kind: u16, how: u16, family: u8) -> Message {
    let mut message = Message::new(kind, flags::REQUEST | how);
    message.bytes(&[family, 0, 0, 0]);
    message
}

fn mark(kind: u16) -> Message {
    let mut message = Message::new(kind, flags::REQUEST);
    let [high, low] = SUBSYSTEM.to_be_bytes();
    message.bytes(&[UNSPECIFIED, 0, high, low]);
    message
}

fn delete(name: &str) -> Message {
    let mut message = message(DELETE_TABLE, 0, INET);
    message.text(1, name);
    message
}

fn create(table: &Table) -> Vec<Message> {
    // The sets come before the rules that name them, all chains before the rules that jump.
    let mut messages = vec![head(table)];
    for (set, number) in table.sets.iter().zip(1..) {
        messages.push(self::set(table, set, number));
        messages.extend(elements(table, set));
    }
    messages.extend(table.chains.iter().map(|c| chain(table, c)));
    for chain in &table.chains {
        messages.extend(rules(table, chain));
    }
    messages
}

fn head(table: &Table) -> Message {
    let mut message = message(NEW_TABLE, flags::CREATE, INET);
    message.text(1, &table.name);
    message.network(2, if table.owned { OWNED } else { 0 });
    comment(&mut message, 6, &table.comment);
    message
}

fn chain(table: &Table, chain: &Chain) -> Message {
    let mut message = message(NEW_CHAIN, flags::CREATE, INET);
    message.text(1, &table.name);
    message.text(3, &chain.name);
    if let Some(base) = chain.base {
        message.nest(4, |hook| {
            hook.network(1, base.hook.number());
            hook.network(2, base.priority.0 as u32);
        });
        message.network(5, u32::from(base.policy == super::Policy::Accept));
        message.text(7, base.kind.word());
    }
    message
}

fn rules<'a>(table: &'a Table, chain: &'a Chain) -> impl Iterator<Item = Message> + 'a {
    chain.rules.iter().map(|rule| {
        let mut message = message(NEW_RULE, flags::CREATE | flags::APPEND, INET);
        message.text(1, &table.name);
        message.text(2, &chain.name);
        message.nest(4, |list| {
            for expression in &rule.expressions {
                list.nest(ELEMENT_OF_LIST, |e| expression.write(e));
            }
        });
        comment(&mut message, 7, &rule.comment);
        message
    })
}

fn set(table: &Table, set: &Set, number: u32) -> Message {
    let mut message = message(NEW_SET, flags::CREATE, INET);
    message.text(1, &table.name);
    message.text(2, &set.name);
    let interval = set.elements.is_interval();
    message.network(3, if interval { INTERVALS } else { 0 });
    message.network(4, set.elements.key_type());
    message.network(5, set.elements.key_length());
    message.network(10, number);
    if !interval {
        // For `nft` alone: the values are texts of this machine, not numbers of the network.
        let mut order = vec![0, 4];
        order.extend(1u32.to_ne_bytes());
        message.attribute(13, &order);
    }
    message
}

fn elements<'a>(table: &'a Table, set: &'a Set) -> impl Iterator<Item = Message> + 'a {
    let mut edges = set.elements.edges();
    if set.elements.is_interval() && edges.first().is_some_and(|e| e.key.iter().any(|b| *b != 0)) {
        // `nft` begins at the beginning of all values, with the end of nothing.
        let key = vec![0; edges[0].key.len()];
        edges.insert(0, Edge { key, end: true });
    }
    let chunks: Vec<Vec<Edge>> = edges.chunks(ELEMENTS).map(<[Edge]>::to_vec).collect();
    chunks.into_iter().map(|edges| {
        let mut message = message(NEW_ELEMENT, flags::CREATE, INET);
        message.text(1, &table.name);
        message.text(2, &set.name);
        message.nest(3, |list| {
            for edge in &edges {
                list.nest(ELEMENT_OF_LIST, |element| {
                    if edge.end {
                        element.network(3, INTERVAL_END);
                    }
                    element.nest(1, |key| key.attribute(1, &edge.key));
                });
            }
        });
        message
    })
}

/// Appends a comment in the form that `nft` gives to bytes that the kernel only keeps.
fn comment(message: &mut Message, kind: u16, text: &str) {
    if text.is_empty() {
        return;
    }
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let mut end = text.len().min(MAX_COMMENT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = vec![0, end as u8 + 1];
    bytes.extend(&text.as_bytes()[..end]);
    bytes.push(0);
    message.attribute(kind, &bytes);
}
