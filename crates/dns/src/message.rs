//! DNS messages (RFC 1035, RFC 6891): as much of them as a forwarder must understand. Header, question and the OPT record
//! are read; all other records are only walked over. Names are never followed through their compression.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest message.
pub(crate) const MAX: usize = 65_535;
/// The length of the header.
const HEADER: usize = 12;
/// What a UDP asker without EDNS takes.
const PLAIN_UDP: usize = 512;
/// What we say that we take by UDP ourselves; fits every path without fragments.
const OUR_UDP: u16 = 1232;
/// A reference to the name in the question.
const QUESTION_NAME: [u8; 2] = [0xc0, HEADER as u8];

pub(crate) const CLASS_IN: u16 = 1;
pub(crate) const A: u16 = 1;
pub(crate) const PTR: u16 = 12;
pub(crate) const AAAA: u16 = 28;
const OPT: u16 = 41;
const IXFR: u16 = 251;
const AXFR: u16 = 252;

/// A code of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rcode {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
    BadVers = 16,
}

/// Why a message is not answered in the usual way.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not a query at all: no answer, so that two servers never talk to each other without end.
    Silent,
    /// This is the whole answer.
    Answer(Vec<u8>),
}

/// What the asker says of itself in an OPT record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Edns {
    udp_size: u16,
    /// Extended code, version, flags.
    ttl: [u8; 4],
}

/// A question that was checked.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    bytes: Vec<u8>,
    question_end: usize,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// The name in lower case without the last dot, when it is made of usual characters.
    pub(crate) name: Option<String>,
    edns: Option<Edns>,
}

impl Query {
    /// Checks a message. With `best_effort` (DNS-7) records that cannot be understood are dropped; else such a message is
    /// refused.
    pub(crate) fn parse(message: &[u8], best_effort: bool) -> Result<Self, Refusal> {
        if message.len() < HEADER || message.len() > MAX || message[2] & 0x80 != 0 {
            return Err(Refusal::Silent);
        }
        if message[2] & 0x78 != 0 {
            return Err(Refusal::Answer(bare(message, Rcode::NotImp)));
        }
        let malformed = || Refusal::Answer(bare(message, Rcode::FormErr));
        if u16_at(message, 4) != Some(1) {
            return Err(malformed());
        }
        let (name, end) = question_name(message).ok_or_else(malformed)?;
        let (kind, class) = u16_at(message, end)
            .zip(u16_at(message, end + 2))
            .ok_or_else(malformed)?;
        let question_end = end + 4;
        let mut query = Self {
            bytes: message.to_vec(),
            question_end,
            kind,
            class,
            name,
            edns: None,
        };
        match query.records() {
            Some(opt) => query.edns = opt.first().copied(),
            None if best_effort => query.strip(),
            None => return Err(Refusal::Answer(query.answer(Rcode::FormErr, &[]))),
        }
        // Answers of these are many messages. Nobody asks a stub resolver for a whole zone but to find things out.
        if matches!(kind, AXFR | IXFR) {
            return Err(Refusal::Answer(query.answer(Rcode::Refused, &[])));
        }
        if query.edns.is_some_and(|edns| edns.ttl[1] != 0) {
            return Err(Refusal::Answer(query.answer(Rcode::BadVers, &[])));
        }
        Ok(query)
    }

    /// Walks over the records and returns the OPT records, of which there is one at most; `None` when they cannot be
    /// understood.
    fn records(&self) -> Option<Vec<Edns>> {
        let message = &self.bytes;
        let mut pos = self.question_end;
        let mut found = Vec::new();
        for (section, offset) in [6, 8, 10].into_iter().enumerate() {
            for _ in 0..u16_at(message, offset)? {
                let fixed = skip_name(message, pos)?;
                let kind = u16_at(message, fixed)?;
                let length = u16_at(message, fixed + 8)?;
                if section == 2 && kind == OPT {
                    // It belongs to the root, whose name is one byte.
                    if !found.is_empty() || fixed != pos + 1 {
                        return None;
                    }
                    found.push(Edns {
                        udp_size: u16_at(message, fixed + 2)?,
                        ttl: message.get(fixed + 4..fixed + 8)?.try_into().ok()?,
                    });
                }
                pos = fixed + 10 + usize::from(length);
                message.get(..pos)?;
            }
        }
        Some(found)
    }

    /// Leaves the header and the question.
    fn strip(&mut self) {
        self.bytes.truncate(self.question_end);
        self.bytes[6..12].fill(0);
    }

    /// Returns the whole message.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the message under another id.
    pub(crate) fn with_id(&self, id: u16) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        bytes
    }

    /// Makes an answer of our own.
    pub(crate) fn answer(&self, code: Rcode, records: &[Data]) -> Vec<u8> {
        let mut out = self.bytes[..self.question_end].to_vec();
        out[2] = 0x80 | (self.bytes[2] & 0x01);
        out[3] = 0x80 | (self.bytes[3] & 0x10) | (code as u8 & 0x0f);
        let mut count = 0u16;
        for record in records {
            // Never cached: names of the house move.
            let before = out.len();
            out.extend(QUESTION_NAME);
            record.write(&mut out);
            if out.len() > MAX - 11 {
                out.truncate(before);
                break;
            }
            count += 1;
        }
        out[6..8].copy_from_slice(&count.to_be_bytes());
        out[8..12].fill(0);
        self.add_opt(&mut out, code);
        out
    }

    /// Answers an asker that spoke EDNS in it (RFC 6891 6.1.1).
    fn add_opt(&self, out: &mut Vec<u8>, code: Rcode) {
        let Some(edns) = self.edns else {
            return;
        };
        out[10..12].copy_from_slice(&1u16.to_be_bytes());
        out.extend([0, 0, OPT as u8]);
        out.extend(OUR_UDP.to_be_bytes());
        // The upper bits of the code, our version, and the asker's wish for signatures.
        out.extend([(code as u16 >> 4) as u8, 0, edns.ttl[2] & 0x80, 0]);
        out.extend([0, 0]);
    }

    /// Makes a message that came from a resolver fit for the asker: its own id, and a UDP asker gets no more than it
    /// takes.
    pub(crate) fn deliver(&self, mut answer: Vec<u8>, tcp: bool) -> Vec<u8> {
        let limit = if tcp { MAX } else { self.udp_limit() };
        if answer.len() > limit {
            let flags = [answer[2] | 0x02, answer[3]];
            answer = self.answer(Rcode::NoError, &[]);
            answer[2..4].copy_from_slice(&flags);
        }
        answer[..2].copy_from_slice(&self.bytes[..2]);
        answer
    }

    /// Returns how large a datagram the asker takes.
    pub(crate) fn udp_limit(&self) -> usize {
        self.edns
            .map_or(PLAIN_UDP, |edns| usize::from(edns.udp_size).max(PLAIN_UDP))
    }

    /// Judges a message that claims to be the answer to this query sent under `id`; `None` when it is not: somebody
    /// else's, or forged.
    pub(crate) fn judge(&self, id: u16, message: &[u8]) -> Option<Reply> {
        let fits = (HEADER..=MAX).contains(&message.len());
        if !fits || message[..2] != id.to_be_bytes() || message[2] & 0xf8 != 0x80 {
            return None;
        }
        let code = message[3] & 0x0f;
        if u16_at(message, 4) == Some(0) {
            // Old servers answer what they do not understand with a bare header.
            let code = [Rcode::FormErr, Rcode::NotImp]
                .into_iter()
                .find(|c| *c as u8 == code)?;
            return Some(Reply::Cannot(self.answer(code, &[])));
        }
        let question = message.get(HEADER..self.question_end)?;
        let asked = &self.bytes[HEADER..self.question_end];
        if u16_at(message, 4) != Some(1) || !question.eq_ignore_ascii_case(asked) {
            return None;
        }
        let soft = [Rcode::ServFail, Rcode::NotImp, Rcode::Refused];
        let make = if soft.into_iter().any(|c| c as u8 == code) {
            Reply::Cannot
        } else if message[2] & 0x02 != 0 {
            Reply::Cut
        } else {
            Reply::Whole
        };
        Some(make(message.to_vec()))
    }
}

/// What a resolver answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// All of it.
    Whole(Vec<u8>),
    /// What fits a datagram.
    Cut(Vec<u8>),
    /// That it cannot answer.
    Cannot(Vec<u8>),
}

impl Reply {
    /// Returns the message.
    pub(crate) fn into_message(self) -> Vec<u8> {
        match self {
            Self::Whole(message) | Self::Cut(message) | Self::Cannot(message) => message,
        }
    }
}

/// The data of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    Address(IpAddr),
    /// A name with dots between its labels.
    Name(String),
}

impl Data {
    fn write(&self, out: &mut Vec<u8>) {
        let (kind, data) = match self {
            Self::Address(IpAddr::V4(address)) => (A, address.octets().to_vec()),
            Self::Address(IpAddr::V6(address)) => (AAAA, address.octets().to_vec()),
            Self::Name(name) => (PTR, wire_name(name)),
        };
        out.extend(kind.to_be_bytes());
        out.extend(CLASS_IN.to_be_bytes());
        out.extend([0; 4]);
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
    }
}

/// Writes a name; labels are cut at 63 characters and the name at 253, which the callers' names never reach.
fn wire_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(63)];
        if out.len() + 1 + label.len() > 254 {
            break;
        }
        out.push(label.len() as u8);
        out.extend(label);
    }
    out.push(0);
    out
}

/// Tells whether a text can be a name: what [`wire_name`] writes whole.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_graphic())
        })
}

/// Returns the address that a name under `in-addr.arpa` or `ip6.arpa` stands for.
pub(crate) fn reverse_name(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut parts = labels.split('.');
        for octet in octets.iter_mut().rev() {
            let part = parts.next()?;
            let canonical = part == "0" || !part.starts_with(['0', '+']);
            *octet = part.parse().ok().filter(|_| canonical)?;
        }
        return parts
            .next()
            .is_none()
            .then(|| Ipv4Addr::from(octets).into());
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0u128;
    let mut count = 0;
    for label in labels.split('.') {
        let [digit] = label.as_bytes() else {
            return None;
        };
        let digit = (*digit as char).to_digit(16)?;
        bits |= u128::from(digit).checked_shl(count * 4)?;
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from(bits).into())
}

/// Answers with the header alone.
fn bare(message: &[u8], code: Rcode) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    out[..2].copy_from_slice(&message[..2]);
    out[2] = 0x80 | (message[2] & 0x79);
    out[3] = 0x80 | code as u8;
    out
}

/// Reads the name in the question, which has nothing before it to refer to; gives its text and where it ends.
fn question_name(message: &[u8]) -> Option<(Option<String>, usize)> {
    let mut text = String::new();
    let mut usual = true;
    let mut pos = HEADER;
    loop {
        let length = usize::from(*message.get(pos)?);
        pos += 1;
        if length == 0 {
            return Some((usual.then_some(text), pos));
        }
        if length > 63 || pos + length - HEADER > 254 {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        for byte in message.get(pos..pos + length)? {
            usual &= byte.is_ascii_graphic() && *byte != b'.';
            text.push(char::from(byte.to_ascii_lowercase()));
        }
        pos += length;
    }
}

/// Returns where a name ends.
fn skip_name(message: &[u8], mut pos: usize) -> Option<usize> {
    let start = pos;
    loop {
        let length = *message.get(pos)?;
        match length {
            0 => return Some(pos + 1),
            1..=63 => pos += 1 + usize::from(length),
            0xc0..=0xff => return message.get(pos + 1).map(|_| pos + 2),
            _ => return None,
        }
        if pos - start > 254 {
            return None;
        }
    }
}

fn u16_at(bytes: &[u8], pos: usize) -> Option<u16> {
    let bytes = bytes.get(pos..pos + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A question for `a.b`, with EDNS of a version.
    fn query(kind: u16, edns: Option<(u16, u8)>) -> Vec<u8> {
        let mut out = vec![0xab, 0xcd, 0x01, 0x10, 0, 1, 0, 0, 0, 0, 0, 0];
        out.extend(b"\x01A\x01b\0");
        out.extend(kind.to_be_bytes());
        out.extend([0, 1]);
        if let Some((size, version)) = edns {
            out[11] = 1;
            out.extend([0, 0, 41]);
            out.extend(size.to_be_bytes());
            out.extend([0, version, 0x80, 0, 0, 0]);
        }
        out
    }

    fn refusal(message: &[u8], best_effort: bool) -> u8 {
        match Query::parse(message, best_effort) {
            Err(Refusal::Answer(answer)) => answer[3] & 0x0f,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_question_is_understood() {
        let parsed = Query::parse(&query(AAAA, Some((4096, 0))), false).unwrap();
        assert_eq!((parsed.kind, parsed.class), (AAAA, CLASS_IN));
        assert_eq!(
            (parsed.name.as_deref(), parsed.udp_limit()),
            (Some("a.b"), 4096)
        );
        assert_eq!(
            Query::parse(&query(A, None), false).unwrap().udp_limit(),
            512
        );
        assert_eq!(
            Query::parse(&query(A, Some((0, 0))), false)
                .unwrap()
                .udp_limit(),
            512
        );
    }

    #[test]
    fn a_later_version_of_edns_is_refused_in_its_own_words() {
        let Err(Refusal::Answer(answer)) = Query::parse(&query(A, Some((1232, 1))), false) else {
            panic!("taken");
        };
        // BADVERS is 16: nothing in the header, one in the upper bits; our version is 0; the wish for signatures stays.
        let opt = &answer[answer.len() - 11..];
        assert_eq!(answer[3] & 0x0f, 0);
        assert_eq!(opt, [0, 0, 41, 0x04, 0xd0, 1, 0, 0x80, 0, 0, 0]);
    }

    #[test]
    fn records_that_cannot_be_understood_are_refused_or_dropped() {
        let whole = query(A, Some((1232, 0)));
        let mut two = whole.clone();
        two[11] = 2;
        two.extend([0, 0, 41, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut named = whole.clone();
        named.splice(19 + 2..19 + 3, *b"\x01x\0");
        let mut promised = whole.clone();
        promised[7] = 9;
        let mut reserved = whole.clone();
        reserved[21] = 0x80;
        for message in [
            &whole[..whole.len() - 1],
            &two,
            &named,
            &promised,
            &reserved,
        ] {
            assert_eq!(refusal(message, false), 1, "{message:?}");
            // DNS-7.
            let stripped = Query::parse(message, true).unwrap();
            assert_eq!(stripped.bytes(), query(A, None), "{message:?}");
        }
        // The question itself cannot be dropped.
        assert_eq!(refusal(&whole[..18], true), 1);
        // Names that refer to others are passed over, wherever they refer to.
        let mut reference = query(A, None);
        reference[11] = 1;
        reference.extend([0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4]);
        assert!(Query::parse(&reference, false).is_ok());
    }

    #[test]
    fn names_are_as_long_as_they_may_be_and_no_longer() {
        let long = |labels: &[usize]| {
            let mut out = query(A, None)[..12].to_vec();
            for length in labels {
                out.push(*length as u8);
                out.extend(vec![b'x'; *length]);
            }
            out.extend([0, 0, 1, 0, 1]);
            out
        };
        // 255 bytes with all lengths and the end.
        let most = Query::parse(&long(&[63, 63, 63, 61]), false).unwrap();
        let name = most.name.unwrap();
        assert_eq!(name.len(), 253);
        assert!(is_name(&name) && wire_name(&name).len() == 255);
        assert_eq!(refusal(&long(&[63, 63, 63, 62]), false), 1);
        assert_eq!(refusal(&long(&[64]), false), 1);
        assert!(Query::parse(&long(&[1; 127]), false).is_ok());
        assert_eq!(refusal(&long(&[1; 128]), false), 1);
    }

    #[test]
    fn reverse_names_are_addresses() {
        let v6 = format!("b.a.{}8.b.d.0.1.0.0.2.ip6.arpa", "0.".repeat(22));
        for (name, want) in [
            ("1.2.3.4.in-addr.arpa", Some("4.3.2.1")),
            ("0.0.0.0.in-addr.arpa", Some("0.0.0.0")),
            (v6.as_str(), Some("2001:db8::ab")),
            ("2.3.4.in-addr.arpa", None),
            ("0.1.2.3.4.in-addr.arpa", None),
            ("01.2.3.4.in-addr.arpa", None),
            ("+1.2.3.4.in-addr.arpa", None),
            ("256.2.3.4.in-addr.arpa", None),
            ("in-addr.arpa", None),
            ("0.ip6.arpa", None),
            (&v6[2..], None),
            (&format!("0.{v6}"), None),
            (&v6.replace("b.a", "g.a"), None),
        ] {
            assert_eq!(
                reverse_name(name),
                want.map(|a| a.parse().unwrap()),
                "{name}"
            );
        }
    }

    #[test]
    fn answers_of_our_own_never_outgrow_a_message() {
        let parsed = Query::parse(&query(AAAA, Some((1232, 0))), false).unwrap();
        let many = vec![Data::Address(Ipv6Addr::LOCALHOST.into()); 10_000];
        let answer = parsed.answer(Rcode::NoError, &many);
        assert!(answer.len() <= MAX);
        let cut = parsed.deliver(answer, false);
        assert!(cut.len() <= 1232 && cut[2] & 0x02 != 0);
    }
}
