//! Extended attributes: their place in an inode's spare bytes and in one external block.

use std::collections::BTreeMap;

use super::{BLOCK, acl};
use crate::bytes::{le16, le32, put16, put32};

/// Begins both forms.
pub(super) const MAGIC: u32 = 0xea02_0000;
/// Bytes of an entry before its name.
pub(super) const ENTRY: usize = 16;
/// Bytes of the header of an external block.
pub(super) const HEADER: usize = 32;
/// Bytes of an inode behind its fields, where small attributes live.
pub(super) const INLINE: usize = 96;
/// The name of inline file data, which is no attribute.
pub(super) const INLINE_DATA: (u8, &[u8]) = (7, b"data");

/// Prefixes and the numbers that stand for them on disk. The ACLs are whole names.
const PREFIXES: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
const ACLS: [(u8, &[u8]); 2] = [
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
];

/// The attributes of one file, ready for the disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Encoded {
    /// What goes behind the inode's fields; empty or [`INLINE`] bytes.
    pub inline: Box<[u8]>,
    /// The external block, whose checksum is still to be set.
    pub block: Option<Box<[u8]>>,
}

struct Attribute {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Attribute {
    fn parse(name: &[u8], value: &[u8]) -> Result<Self, String> {
        let shown = || String::from_utf8_lossy(name).into_owned();
        if let Some((index, _)) = ACLS.iter().find(|(_, full)| *full == name) {
            let value = acl::to_disk(value)
                .ok_or_else(|| format!("`{}` is not an access control list", shown()))?;
            return Ok(Self {
                index: *index,
                name: Vec::new(),
                value,
            });
        }
        for (index, prefix) in PREFIXES {
            match name.strip_prefix(prefix) {
                Some(rest) if (1..=255).contains(&rest.len()) && !rest.contains(&0) => {
                    return Ok(Self {
                        index,
                        name: rest.to_vec(),
                        value: value.to_vec(),
                    });
                }
                Some(_) => return Err(format!("`{}` is not a name for an attribute", shown())),
                None => {}
            }
        }
        Err(format!("ext4 has no place for the attribute `{}`", shown()))
    }

    fn entry_len(&self) -> usize {
        ENTRY + self.name.len().next_multiple_of(4)
    }

    fn cost(&self) -> usize {
        self.entry_len() + self.value.len().next_multiple_of(4)
    }

    fn hash(&self) -> u32 {
        let mut hash = self
            .name
            .iter()
            .fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        for word in self.value.chunks(4) {
            let mut padded = [0; 4];
            padded[..word.len()].copy_from_slice(word);
            hash = hash.rotate_left(16) ^ u32::from_le_bytes(padded);
        }
        hash
    }
}

/// Places the attributes of one file.
pub(super) fn encode(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<Encoded, String> {
    let mut sorted = BTreeMap::new();
    for (name, value) in xattrs {
        let attribute = Attribute::parse(name, value)?;
        // The kernel looks attributes of a block up in this order.
        sorted.insert(
            (
                attribute.index,
                attribute.name.len(),
                attribute.name.clone(),
            ),
            attribute,
        );
    }
    let mut room = INLINE - 8;
    let (inline, block): (Vec<_>, Vec<_>) = sorted.into_values().partition(|attribute| {
        let fits = attribute.cost() <= room;
        room -= if fits { attribute.cost() } else { 0 };
        fits
    });
    if block.iter().map(Attribute::cost).sum::<usize>() > BLOCK - HEADER - 4 {
        return Err("its extended attributes are larger than ext4's 4 KiB".to_owned());
    }
    let mut encoded = Encoded::default();
    if !inline.is_empty() {
        let mut raw = vec![0; INLINE];
        put32(&mut raw, 0, MAGIC);
        fill(&mut raw, 4, 4, &inline);
        encoded.inline = raw.into();
    }
    if !block.is_empty() {
        let mut raw = vec![0; BLOCK];
        put32(&mut raw, 0, MAGIC);
        put32(&mut raw, 4, 1);
        put32(&mut raw, 8, 1);
        let hash = block.iter().fold(0u32, |hash, attribute| {
            hash.rotate_left(16) ^ attribute.hash()
        });
        put32(&mut raw, 12, hash);
        fill(&mut raw, HEADER, 0, &block);
        encoded.block = Some(raw.into());
    }
    Ok(encoded)
}

/// Writes entries from `at` and values from the end; offsets of values count from `origin`.
fn fill(raw: &mut [u8], mut at: usize, origin: usize, attributes: &[Attribute]) {
    let mut end = raw.len();
    for attribute in attributes {
        raw[at] = attribute.name.len() as u8;
        raw[at + 1] = attribute.index;
        if !attribute.value.is_empty() {
            end -= attribute.value.len().next_multiple_of(4);
            raw[end..end + attribute.value.len()].copy_from_slice(&attribute.value);
            put16(raw, at + 2, (end - origin) as u16);
        }
        put32(raw, at + 8, attribute.value.len() as u32);
        put32(raw, at + 12, attribute.hash());
        raw[at + ENTRY..at + ENTRY + attribute.name.len()].copy_from_slice(&attribute.name);
        at += attribute.entry_len();
    }
}

/// An attribute as found on disk: number of the prefix, rest of the name, and where its value is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub index: u8,
    pub name: Vec<u8>,
    pub value: Value,
}

/// The value of a found attribute.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// The bytes themselves.
    Here(Vec<u8>),
    /// The data of an inode of its own, and their length.
    Inode(u32, u32),
}

/// Lists the entries that begin at `at`; offsets of values count from `origin`. `None` when they make no sense.
pub(super) fn decode(raw: &[u8], mut at: usize, origin: usize) -> Option<Vec<Found>> {
    let mut found = Vec::new();
    while at + 4 <= raw.len() && le32(raw, at) != 0 {
        let name_len = usize::from(raw[at]);
        let name = raw.get(at + ENTRY..at + ENTRY + name_len)?.to_vec();
        let size = le32(raw, at + 8);
        let inode = le32(raw, at + 4);
        let value = if inode != 0 {
            Value::Inode(inode, size)
        } else if size == 0 {
            Value::Here(Vec::new())
        } else {
            let start = origin + usize::from(le16(raw, at + 2));
            Value::Here(raw.get(start..start.checked_add(size as usize)?)?.to_vec())
        };
        found.push(Found {
            index: raw[at + 1],
            name,
            value,
        });
        at += ENTRY + name_len.next_multiple_of(4);
    }
    Some(found)
}

/// Gives a found attribute its full name and the value that user space sees. `None` for what is no attribute at all or
/// makes no sense.
pub(super) fn shown(index: u8, name: &[u8], value: Vec<u8>) -> Option<(Vec<u8>, Vec<u8>)> {
    if let Some((_, full)) = ACLS.iter().find(|(number, _)| *number == index) {
        return name
            .is_empty()
            .then(|| Some((full.to_vec(), acl::from_disk(&value)?)))?;
    }
    let (_, prefix) = PREFIXES.iter().find(|(number, _)| *number == index)?;
    let good = !name.is_empty() && !name.contains(&0);
    good.then(|| ([*prefix, name].concat(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &[u8]) -> (Vec<u8>, Vec<u8>) {
        (name.as_bytes().to_vec(), value.to_vec())
    }

    fn read_back(encoded: &Encoded) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        if !encoded.inline.is_empty() {
            all.extend(decode(&encoded.inline, 4, 4).unwrap());
        }
        if let Some(block) = &encoded.block {
            all.extend(decode(block, HEADER, 0).unwrap());
        }
        let mut all: Vec<_> = all
            .into_iter()
            .map(|found| match found.value {
                Value::Here(value) => shown(found.index, &found.name, value).unwrap(),
                Value::Inode(..) => panic!("no inodes were written"),
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn impossible_names_of_a_guest_are_not_shown() {
        assert!(shown(1, b"a", vec![]).is_some());
        for (index, name) in [(1, &b""[..]), (1, b"a\0b"), (2, b"a"), (99, b"a")] {
            assert_eq!(shown(index, name, vec![]), None, "{index} {name:?}");
        }
    }

    #[test]
    fn small_ones_stay_in_the_inode_and_large_ones_go_out() {
        let capability = pair("security.capability", &[1; 20]);
        let encoded = encode(std::slice::from_ref(&capability)).unwrap();
        assert!(encoded.block.is_none());
        assert_eq!(read_back(&encoded), std::slice::from_ref(&capability));

        let mut all = vec![
            capability,
            pair("trusted.big", &[9; 3000]),
            pair("user.a", b""),
            pair("user.b", b"xyz"),
        ];
        let encoded = encode(&all).unwrap();
        assert!(encoded.block.is_some());
        all.sort();
        assert_eq!(read_back(&encoded), all);
    }

    #[test]
    fn what_has_no_place_is_refused() {
        for (name, value) in [
            ("user.", &b"x"[..]),
            ("com.apple.x", b"x"),
            ("system.data", b"x"),
            ("system.posix_acl_access", b"junk"),
        ] {
            assert!(encode(&[pair(name, value)]).is_err(), "{name}");
        }
        assert!(encode(&[pair("user.x", &[0; 4096])]).is_err());
    }

    #[test]
    fn cut_entries_are_refused() {
        assert_eq!(decode(&[200, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 0, 0), None);
        assert_eq!(decode(&[], 0, 0), Some(Vec::new()));
    }
}
