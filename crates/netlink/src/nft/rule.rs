//! Rules: what a packet must be, and what happens to it then.

use std::net::{IpAddr, Ipv4Addr};

use super::expression::{Comparison, Expression, ct, fib, meta, payload, verdict};
use super::set::interface;
use crate::prefix::{Prefix, octets};

const TCP_OPTION_MSS: u8 = 2;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;

/// A protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP of IPv4.
    Icmp,
    /// ICMP of IPv6.
    Icmpv6,
}

impl Protocol {
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Icmp => 1,
            Self::Icmpv6 => 58,
        }
    }
}

/// A set of states that the tracking of connections gives a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States(u32);

impl States {
    /// Belongs to no connection that makes sense.
    pub const INVALID: Self = Self(1);
    /// Belongs to a connection that both sides have spoken on.
    pub const ESTABLISHED: Self = Self(2);
    /// Belongs to another connection: its errors, for example.
    pub const RELATED: Self = Self(4);
    /// Begins a connection.
    pub const NEW: Self = Self(8);
    /// Established or related.
    pub const ANSWERS: Self = Self(6);
}

/// What the sender of a rejected packet is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// ICMP: an administrator forbids it.
    Prohibited,
    /// ICMP: nobody listens there.
    PortUnreachable,
    /// A reset; only after a match of TCP.
    Reset,
}

/// What a packet must be, all of it, and what happens to it then. Matches come first, in the order in which they cost least.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    pub(super) expressions: Vec<Expression>,
    pub(super) comment: String,
    /// Matches that others stand on, asked for once.
    family: Option<u8>,
    protocol: Option<Protocol>,
}

// --- what a packet must be
impl Rule {
    /// Makes a rule that every packet matches and that does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Came in through an interface; a name that ends with `*` is the beginning of names.
    #[must_use]
    pub fn input_is(self, name: &str) -> Self {
        self.interface(meta::INPUT_NAME, Comparison::Equal, name)
    }

    /// Came in through any other interface.
    #[must_use]
    pub fn input_is_not(self, name: &str) -> Self {
        self.interface(meta::INPUT_NAME, Comparison::Unequal, name)
    }

    /// Leaves through an interface; a name that ends with `*` is the beginning of names.
    #[must_use]
    pub fn output_is(self, name: &str) -> Self {
        self.interface(meta::OUTPUT_NAME, Comparison::Equal, name)
    }

    /// Leaves through any other interface.
    #[must_use]
    pub fn output_is_not(self, name: &str) -> Self {
        self.interface(meta::OUTPUT_NAME, Comparison::Unequal, name)
    }

    /// Came in through an interface of a set of interfaces.
    #[must_use]
    pub fn input_in(self, set: &str) -> Self {
        self.meta(meta::INPUT_NAME).push(Expression::lookup(set))
    }

    /// Leaves through an interface of a set of interfaces.
    #[must_use]
    pub fn output_in(self, set: &str) -> Self {
        self.meta(meta::OUTPUT_NAME).push(Expression::lookup(set))
    }

    /// Is IPv4.
    #[must_use]
    pub fn ipv4(self) -> Self {
        self.family_is(2)
    }

    /// Is IPv6.
    #[must_use]
    pub fn ipv6(self) -> Self {
        self.family_is(10)
    }

    /// Comes from a network.
    #[must_use]
    pub fn source(self, prefix: Prefix) -> Self {
        self.address(prefix, Comparison::Equal, payload::Address::Source)
    }

    /// Is of the network's family and does not come from it.
    #[must_use]
    pub fn source_not(self, prefix: Prefix) -> Self {
        self.address(prefix, Comparison::Unequal, payload::Address::Source)
    }

    /// Goes to a network.
    #[must_use]
    pub fn destination(self, prefix: Prefix) -> Self {
        self.address(prefix, Comparison::Equal, payload::Address::Destination)
    }

    /// Is of the network's family and does not go to it.
    #[must_use]
    pub fn destination_not(self, prefix: Prefix) -> Self {
        self.address(prefix, Comparison::Unequal, payload::Address::Destination)
    }

    /// Is IPv4 and comes from a network of a set.
    #[must_use]
    pub fn source4_in(self, set: &str) -> Self {
        self.ipv4()
            .push(payload::address4(payload::Address::Source))
            .push(Expression::lookup(set))
    }

    /// Is IPv4 and goes to a network of a set.
    #[must_use]
    pub fn destination4_in(self, set: &str) -> Self {
        self.ipv4()
            .push(payload::address4(payload::Address::Destination))
            .push(Expression::lookup(set))
    }

    /// Is IPv6 and comes from a network of a set.
    #[must_use]
    pub fn source6_in(self, set: &str) -> Self {
        self.ipv6()
            .push(payload::address6(payload::Address::Source))
            .push(Expression::lookup(set))
    }

    /// Is IPv6 and goes to a network of a set.
    #[must_use]
    pub fn destination6_in(self, set: &str) -> Self {
        self.ipv6()
            .push(payload::address6(payload::Address::Destination))
            .push(Expression::lookup(set))
    }

    /// Goes to an address of this machine, whichever interface has it.
    #[must_use]
    pub fn destination_is_local(self) -> Self {
        self.push(fib::destination_type())
            .push(Expression::equal(&fib::LOCAL.to_ne_bytes()))
    }

    /// Goes to no address of this machine.
    #[must_use]
    pub fn destination_is_not_local(self) -> Self {
        let not = Expression::compare(Comparison::Unequal, &fib::LOCAL.to_ne_bytes());
        self.push(fib::destination_type()).push(not)
    }

    /// Has a protocol above IP.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        if self.protocol == Some(protocol) {
            return self;
        }
        self.protocol = Some(protocol);
        self.meta(meta::PROTOCOL)
            .push(Expression::equal(&[protocol.number()]))
    }

    /// Goes to a port of a range, both ends included; after [`Rule::protocol`] with TCP or UDP.
    #[must_use]
    pub fn destination_ports(self, first: u16, last: u16) -> Self {
        self.ports(payload::port(payload::Address::Destination), first, last)
    }

    /// Comes from a port of a range, both ends included; after [`Rule::protocol`] with TCP or UDP.
    #[must_use]
    pub fn source_ports(self, first: u16, last: u16) -> Self {
        self.ports(payload::port(payload::Address::Source), first, last)
    }

    /// Goes to a port of a set; after [`Rule::protocol`] with TCP or UDP.
    #[must_use]
    pub fn destination_port_in(self, set: &str) -> Self {
        self.push(payload::port(payload::Address::Destination))
            .push(Expression::lookup(set))
    }

    /// Is in one of some states.
    #[must_use]
    pub fn state(self, states: States) -> Self {
        self.push(ct::load(ct::STATE)).any_bit(states.0)
    }

    /// Belongs to a connection whose destination was changed.
    #[must_use]
    pub fn destination_was_changed(self) -> Self {
        self.push(ct::load(ct::STATUS)).any_bit(ct::DESTINATION_NAT)
    }

    /// Belongs to a connection that was opened to an address of a network, before any change of it.
    #[must_use]
    pub fn original_destination(self, prefix: Prefix) -> Self {
        let key = match prefix.address {
            IpAddr::V4(_) => ct::DESTINATION_4,
            IpAddr::V6(_) => ct::DESTINATION_6,
        };
        self.match_family(prefix)
            .push(ct::load_original(key))
            .prefix(prefix, Comparison::Equal)
    }

    fn push(mut self, expression: Expression) -> Self {
        self.expressions.push(expression);
        self
    }

    fn meta(self, key: u32) -> Self {
        self.push(meta::load(key))
    }

    fn interface(self, key: u32, comparison: Comparison, name: &str) -> Self {
        let value = match name.strip_suffix('*') {
            // Compared as far as it goes.
            Some(beginning) => beginning.as_bytes().to_vec(),
            None => interface(name),
        };
        self.meta(key).push(Expression::compare(comparison, &value))
    }

    fn family_is(mut self, family: u8) -> Self {
        if self.family == Some(family) {
            return self;
        }
        self.family = Some(family);
        self.meta(meta::FAMILY).push(Expression::equal(&[family]))
    }

    fn match_family(self, prefix: Prefix) -> Self {
        match prefix.address {
            IpAddr::V4(_) => self.ipv4(),
            IpAddr::V6(_) => self.ipv6(),
        }
    }

    fn address(self, prefix: Prefix, comparison: Comparison, which: payload::Address) -> Self {
        let rule = self.match_family(prefix);
        if prefix.length == 0 && comparison == Comparison::Equal {
            return rule;
        }
        let load = match prefix.address {
            IpAddr::V4(_) => payload::address4(which),
            IpAddr::V6(_) => payload::address6(which),
        };
        rule.push(load).prefix(prefix, comparison)
    }

    fn prefix(self, prefix: Prefix, comparison: Comparison) -> Self {
        let mask = prefix.mask();
        let value = octets(prefix.network().address);
        let rule = if mask.iter().all(|m| *m == 0xff) {
            self
        } else {
            self.push(Expression::mask(&mask))
        };
        rule.push(Expression::compare(comparison, &value))
    }

    fn ports(self, load: Expression, first: u16, last: u16) -> Self {
        let rule = self.push(load);
        if first == last {
            return rule.push(Expression::equal(&first.to_be_bytes()));
        }
        rule.push(Expression::compare(
            Comparison::AtLeast,
            &first.to_be_bytes(),
        ))
        .push(Expression::compare(Comparison::AtMost, &last.to_be_bytes()))
    }

    fn any_bit(self, bits: u32) -> Self {
        self.push(Expression::mask(&bits.to_ne_bytes()))
            .push(Expression::compare(Comparison::Unequal, &[0; 4]))
    }
}

// --- what happens to it
impl Rule {
    /// Counts packets and bytes.
    #[must_use]
    pub fn counter(self) -> Self {
        self.push(Expression::empty("counter"))
    }

    /// Makes the packets of TCP that open a connection ask for no larger ones than the way takes. Not at prerouting or input.
    #[must_use]
    pub fn clamp_segments(self) -> Self {
        self.protocol(Protocol::Tcp)
            .push(payload::tcp_flags())
            .push(Expression::mask(&[TCP_SYN | TCP_RST]))
            .push(Expression::equal(&[TCP_SYN]))
            .push(Expression::route_segment_size())
            .push(Expression::to_network(2))
            .push(Expression::set_tcp_option(TCP_OPTION_MSS, 2, 2))
    }

    /// Gives it the address of the interface that it leaves through as its source. In a chain of kind nat at postrouting.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.push(Expression::empty("masq"))
    }

    /// Sends it to another address, and to another port if given. In a chain of kind nat at prerouting or output.
    ///
    /// A port needs [`Rule::protocol`] before it.
    #[must_use]
    pub fn send_to(self, address: IpAddr, port: Option<u16>) -> Self {
        let rule = match address {
            IpAddr::V4(_) => self.ipv4(),
            IpAddr::V6(_) => self.ipv6(),
        };
        let rule = rule.push(Expression::put(1, &octets(address)));
        let rule = match port {
            Some(port) => rule.push(Expression::put(2, &port.to_be_bytes())),
            None => rule,
        };
        let family = if address.is_ipv4() { 2 } else { 10 };
        rule.push(Expression::destination_nat(family, port.is_some()))
    }

    /// Writes another source into it. Nobody remembers: the answers must be changed back by another rule.
    #[must_use]
    pub fn rewrite_source4(self, address: Ipv4Addr) -> Self {
        self.rewrite4(payload::Address::Source, address)
    }

    /// Writes another destination into it, as [`Rule::rewrite_source4`] does; before the packet finds its way.
    #[must_use]
    pub fn rewrite_destination4(self, address: Ipv4Addr) -> Self {
        self.rewrite4(payload::Address::Destination, address)
    }

    fn rewrite4(self, which: payload::Address, address: Ipv4Addr) -> Self {
        self.ipv4()
            .push(Expression::put(1, &address.octets()))
            .push(payload::set_address4(which))
    }

    /// Keeps it from the tracking of connections. At prerouting or output, with [`Priority::RAW`](super::Priority::RAW).
    #[must_use]
    pub fn untracked(self) -> Self {
        self.push(Expression::empty("notrack"))
    }

    /// Sends it to a port of this machine. In a chain of kind nat at prerouting or output; after [`Rule::protocol`].
    #[must_use]
    pub fn redirect(self, port: u16) -> Self {
        self.push(Expression::put(1, &port.to_be_bytes()))
            .push(Expression::redirect())
    }

    /// Lets it pass this hook's chain.
    #[must_use]
    pub fn accept(self) -> Self {
        self.push(verdict::code(verdict::ACCEPT))
    }

    /// Drops it.
    #[must_use]
    pub fn drop(self) -> Self {
        self.push(verdict::code(verdict::DROP))
    }

    /// Refuses it and tells its sender.
    #[must_use]
    pub fn reject(self, how: Rejection) -> Self {
        self.push(Expression::reject(how))
    }

    /// Goes through a regular chain, and comes back.
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        self.push(verdict::to(verdict::JUMP, chain))
    }

    /// Goes on in a regular chain for good.
    #[must_use]
    pub fn goto(self, chain: &str) -> Self {
        self.push(verdict::to(verdict::GOTO, chain))
    }

    /// Goes back to where this chain was jumped to from.
    #[must_use]
    pub fn back(self) -> Self {
        self.push(verdict::code(verdict::RETURN))
    }

    /// Adds words for people, at most 127 bytes; `nft list` shows them.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = comment.into();
        self
    }
}
