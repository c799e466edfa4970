//! What rules are made of: the kernel's small machine that loads, compares and acts. Register 0 is the verdict.

use super::rule::Rejection;
use crate::message::Message;

const NAME: u16 = 1;
const DATA: u16 = 2;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal = 0,
    Unequal = 1,
    AtMost = 3,
    AtLeast = 5,
}

/// One value that an expression has.
#[derive(Clone, Debug)]
enum Field {
    /// A number, in the network's order of bytes.
    Word(u32),
    Byte(u8),
    Text(String),
    /// Data in a nest of its own.
    Value(Vec<u8>),
    /// What becomes of the packet, and the chain that it goes to.
    Verdict(i32, Option<String>),
}

/// One expression: its name, and its attributes by number.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    name: &'static str,
    fields: Vec<(u16, Field)>,
}

impl Expression {
    fn new(name: &'static str, fields: impl IntoIterator<Item = (u16, Field)>) -> Self {
        Self {
            name,
            fields: fields.into_iter().collect(),
        }
    }

    /// One that needs to be told nothing: `counter`, `masq`.
    pub(super) fn empty(name: &'static str) -> Self {
        Self::new(name, [])
    }

    /// Goes on when register 1 compares so with a value.
    pub(super) fn compare(comparison: Comparison, value: &[u8]) -> Self {
        Self::new(
            "cmp",
            [
                (1, Field::Word(1)),
                (2, Field::Word(comparison as u32)),
                (3, Field::Value(value.to_vec())),
            ],
        )
    }

    pub(super) fn equal(value: &[u8]) -> Self {
        Self::compare(Comparison::Equal, value)
    }

    /// Goes on when register 1 is in a set.
    pub(super) fn lookup(set: &str) -> Self {
        Self::new(
            "lookup",
            [(1, Field::Text(set.to_owned())), (2, Field::Word(1))],
        )
    }

    /// Keeps the bits of a mask in register 1.
    pub(super) fn mask(mask: &[u8]) -> Self {
        Self::new(
            "bitwise",
            [
                (1, Field::Word(1)),
                (2, Field::Word(1)),
                (3, Field::Word(mask.len() as u32)),
                (4, Field::Value(mask.to_vec())),
                (5, Field::Value(vec![0; mask.len()])),
            ],
        )
    }

    /// Puts a value into a register.
    pub(super) fn put(register: u32, value: &[u8]) -> Self {
        Self::new(
            "immediate",
            [
                (1, Field::Word(register)),
                (2, Field::Value(value.to_vec())),
            ],
        )
    }

    /// Turns register 1, a number of some bytes, into the network's order.
    pub(super) fn to_network(bytes: u32) -> Self {
        Self::new(
            "byteorder",
            [
                (1, Field::Word(1)),
                (2, Field::Word(1)),
                (3, Field::Word(1)),
                (4, Field::Word(bytes)),
                (5, Field::Word(bytes)),
            ],
        )
    }

    /// Loads the largest segment that the packet's route takes.
    pub(super) fn route_segment_size() -> Self {
        Self::new("rt", [(1, Field::Word(1)), (2, Field::Word(3))])
    }

    /// Writes register 1 into an option of TCP.
    pub(super) fn set_tcp_option(kind: u8, offset: u32, length: u32) -> Self {
        Self::new(
            "exthdr",
            [
                (7, Field::Word(1)),
                (2, Field::Byte(kind)),
                (3, Field::Word(offset)),
                (4, Field::Word(length)),
                (6, Field::Word(1)),
            ],
        )
    }

    /// Sends to the address in register 1, and to the port in register 2.
    pub(super) fn destination_nat(family: u32, port: bool) -> Self {
        let mut fields = vec![
            (1, Field::Word(1)),
            (2, Field::Word(family)),
            (3, Field::Word(1)),
        ];
        if port {
            fields.push((5, Field::Word(2)));
        }
        Self::new("nat", fields)
    }

    /// Sends to this machine's port in register 1.
    pub(super) fn redirect() -> Self {
        Self::new("redir", [(1, Field::Word(1))])
    }

    pub(super) fn reject(how: Rejection) -> Self {
        // Kind 1 is a reset, kind 2 is ICMP of the packet's own family.
        let (kind, code) = match how {
            Rejection::Prohibited => (2, 3),
            Rejection::PortUnreachable => (2, 1),
            Rejection::Reset => (1, 0),
        };
        Self::new("reject", [(1, Field::Word(kind)), (2, Field::Byte(code))])
    }

    pub(super) fn write(&self, message: &mut Message) {
        message.text(NAME, self.name);
        message.nest(DATA, |data| {
            for (kind, field) in &self.fields {
                match field {
                    Field::Word(word) => data.network(*kind, *word),
                    Field::Byte(byte) => data.attribute(*kind, &[*byte]),
                    Field::Text(text) => data.text(*kind, text),
                    Field::Value(value) => data.nest(*kind, |v| v.attribute(VALUE, value)),
                    Field::Verdict(code, chain) => data.nest(*kind, |value| {
                        value.nest(VERDICT, |verdict| {
                            verdict.network(1, *code as u32);
                            if let Some(chain) = chain {
                                verdict.text(2, chain);
                            }
                        });
                    }),
                }
            }
        });
    }
}

/// Facts about a packet that are not in it.
pub(super) mod meta {
    use super::{Expression, Field};

    pub(in crate::nft) const INPUT_NAME: u32 = 6;
    pub(in crate::nft) const OUTPUT_NAME: u32 = 7;
    pub(in crate::nft) const FAMILY: u32 = 15;
    pub(in crate::nft) const PROTOCOL: u32 = 16;

    pub(in crate::nft) fn load(key: u32) -> Expression {
        Expression::new("meta", [(2, Field::Word(key)), (1, Field::Word(1))])
    }
}

/// What is in a packet.
pub(super) mod payload {
    use super::{Expression, Field};

    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;

    /// Which of the two.
    #[derive(Clone, Copy, Debug)]
    pub(in crate::nft) enum Address {
        Source,
        Destination,
    }

    pub(in crate::nft) fn address4(which: Address) -> Expression {
        load(NETWORK, 12 + 4 * which as u32, 4)
    }

    pub(in crate::nft) fn address6(which: Address) -> Expression {
        load(NETWORK, 8 + 16 * which as u32, 16)
    }

    pub(in crate::nft) fn port(which: Address) -> Expression {
        load(TRANSPORT, 2 * which as u32, 2)
    }

    pub(in crate::nft) fn tcp_flags() -> Expression {
        load(TRANSPORT, 13, 1)
    }

    /// Writes register 1 over an address, and mends the checksums of IPv4's header and of what is above it.
    pub(in crate::nft) fn set_address4(which: Address) -> Expression {
        const INTERNET_CHECKSUM: u32 = 1;
        const CHECKSUM_OFFSET: u32 = 10;
        const PSEUDO_HEADER: u32 = 1;
        Expression::new(
            "payload",
            [
                (5, Field::Word(1)),
                (2, Field::Word(NETWORK)),
                (3, Field::Word(12 + 4 * which as u32)),
                (4, Field::Word(4)),
                (6, Field::Word(INTERNET_CHECKSUM)),
                (7, Field::Word(CHECKSUM_OFFSET)),
                (8, Field::Word(PSEUDO_HEADER)),
            ],
        )
    }

    fn load(base: u32, offset: u32, length: u32) -> Expression {
        Expression::new(
            "payload",
            [
                (1, Field::Word(1)),
                (2, Field::Word(base)),
                (3, Field::Word(offset)),
                (4, Field::Word(length)),
            ],
        )
    }
}

/// What the tracking of connections knows.
pub(super) mod ct {
    use super::{Expression, Field};

    pub(in crate::nft) const STATE: u32 = 0;
    pub(in crate::nft) const STATUS: u32 = 2;
    pub(in crate::nft) const DESTINATION_4: u32 = 20;
    pub(in crate::nft) const DESTINATION_6: u32 = 22;
    /// The bit of the status.
    pub(in crate::nft) const DESTINATION_NAT: u32 = 1 << 5;

    pub(in crate::nft) fn load(key: u32) -> Expression {
        Expression::new("ct", [(2, Field::Word(key)), (1, Field::Word(1))])
    }

    /// Of the direction in which the connection was opened.
    pub(in crate::nft) fn load_original(key: u32) -> Expression {
        Expression::new(
            "ct",
            [
                (2, Field::Word(key)),
                (1, Field::Word(1)),
                (3, Field::Byte(0)),
            ],
        )
    }
}

/// What the routing table knows.
pub(super) mod fib {
    use super::{Expression, Field};

    /// The type of addresses of this machine.
    pub(in crate::nft) const LOCAL: u32 = 2;
    const ADDRESS_TYPE: u32 = 3;
    const OF_DESTINATION: u32 = 2;

    pub(in crate::nft) fn destination_type() -> Expression {
        Expression::new(
            "fib",
            [
                (1, Field::Word(1)),
                (2, Field::Word(ADDRESS_TYPE)),
                (3, Field::Word(OF_DESTINATION)),
            ],
        )
    }
}

/// What becomes of a packet.
pub(super) mod verdict {
    use super::{Expression, Field};

    pub(in crate::nft) const DROP: i32 = 0;
    pub(in crate::nft) const ACCEPT: i32 = 1;
    pub(in crate::nft) const JUMP: i32 = -3;
    pub(in crate::nft) const GOTO: i32 = -4;
    pub(in crate::nft) const RETURN: i32 = -5;

    pub(in crate::nft) fn code(code: i32) -> Expression {
        with(code, None)
    }

    pub(in crate::nft) fn to(code: i32, chain: &str) -> Expression {
        with(code, Some(chain.to_owned()))
    }

    fn with(code: i32, chain: Option<String>) -> Expression {
        Expression::new(
            "immediate",
            [(1, Field::Word(0)), (2, Field::Verdict(code, chain))],
        )
    }
}
