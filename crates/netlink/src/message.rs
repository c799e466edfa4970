//! Messages as netlink(7) lays them out: requests being made, answers being read.

/// Flags of requests (`NLM_F_*`).
pub mod flags {
    /// It is a request.
    pub const REQUEST: u16 = 0x001;
    /// An answer is wanted also when there is nothing to say.
    pub const ACKNOWLEDGE: u16 = 0x004;
    /// Everything of a kind is wanted.
    pub const DUMP: u16 = 0x300;
    /// What is there already is replaced.
    pub const REPLACE: u16 = 0x100;
    /// What is there already makes it fail.
    pub const EXCLUSIVE: u16 = 0x200;
    /// What is not there is made.
    pub const CREATE: u16 = 0x400;
    /// Goes behind what is there.
    pub const APPEND: u16 = 0x800;
}

pub(crate) const HEADER: usize = 16;

/// The bit of an attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's number that are not flags.
const KIND: u16 = 0x3fff;

/// A request being made.
///
/// ```
/// use hostel_netlink::{Message, flags};
/// let mut message = Message::new(16, flags::REQUEST | flags::ACKNOWLEDGE);
/// message.bytes(&[0; 16]);
/// message.text(3, "eth0");
/// message.nest(18, |info| info.text(1, "bridge"));
/// ```
#[derive(Clone, Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// Begins a request of one kind.
    pub fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self(bytes)
    }

    /// Adds flags.
    pub(crate) fn request(&mut self, more: u16) {
        let flags = u16::from_ne_bytes([self.0[6], self.0[7]]) | more;
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
    }

    /// Appends bytes as they are: the fixed part before the attributes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Appends an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        // Values are names, numbers and addresses; nothing that callers may pass comes near 64 KiB.
        let length = u16::try_from(4 + value.len()).expect("an attribute is shorter than 64 KiB");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Appends a text with its final NUL.
    pub fn text(&mut self, kind: u16, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// Appends a number in the machine's order of bytes, as rtnetlink has them.
    pub fn native(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// Appends a number in the network's order of bytes, as nf_tables has them.
    pub fn network(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Appends an attribute that holds what `fill` appends.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.attribute(kind | NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.0.len() - start);
        let length = length.expect("a nest of attributes is shorter than 64 KiB");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Sets the length and the number by which the answer is recognised.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// One message of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Its kind.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The number of the request that it answers; 0 for events.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// Splits the first message off; `None` at the end, and for what is not a message.
pub(crate) fn split(bytes: &[u8]) -> Option<(Answer<'_>, &[u8])> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let length = word(0)? as usize;
    let answer = Answer {
        kind: half(4)?,
        flags: half(6)?,
        sequence: word(8)?,
        body: bytes.get(HEADER..length)?,
    };
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((answer, rest))
}

/// The attributes in a body: number (without flags) and value. Ends at the first that is malformed.
#[derive(Clone, Debug)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Reads attributes that begin at `offset`, behind the fixed part.
    pub fn after(body: &'a [u8], offset: usize) -> Self {
        Self(body.get(offset..).unwrap_or_default())
    }

    /// Returns the value of the first attribute with this number.
    pub fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone()
            .find_map(|(k, value)| (k == kind).then_some(value))
    }

    /// Reads the attributes within the first attribute with this number; none when it is not there.
    #[must_use]
    pub fn nested(&self, kind: u16) -> Self {
        Self(self.find(kind).unwrap_or_default())
    }

    /// Reads a number in the machine's order of bytes.
    pub fn native(&self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.find(kind)?.try_into().ok()?))
    }

    /// Reads a number in the network's order of bytes.
    pub fn network(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    /// Reads a text up to its NUL.
    pub fn text(&self, kind: u16) -> Option<String> {
        let bytes = self.find(kind)?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = self.0.get(4..length)?;
        let kind = u16::from_ne_bytes([head[2], head[3]]) & KIND;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_counted_and_nested() {
        let mut message = Message::new(16, flags::REQUEST);
        message.bytes(&[7; 16]);
        message.text(3, "eth0");
        message.nest(18, |info| {
            info.text(1, "bridge");
            info.nest(2, |data| data.network(5, 1));
        });
        let bytes = message.finish(9);
        let (answer, rest) = split(&bytes).unwrap();
        assert_eq!((answer.kind, answer.sequence, rest.len()), (16, 9, 0));
        let attributes = Attributes::after(answer.body, 16);
        assert_eq!(attributes.text(3).as_deref(), Some("eth0"));
        assert_eq!(attributes.nested(18).text(1).as_deref(), Some("bridge"));
        assert_eq!(attributes.nested(18).nested(2).network(5), Some(1));
        assert_eq!(attributes.count(), 2);
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_read_to_its_end_without_a_panic(bytes in proptest::collection::vec(0u8..=255, 0..200)) {
            let mut rest = &bytes[..];
            while let Some((answer, after)) = split(rest) {
                let attributes = Attributes::after(answer.body, 8);
                let _ = (attributes.text(1), attributes.nested(2).native(3), attributes.count());
                assert!(after.len() < rest.len());
                rest = after;
            }
        }
    }
}
