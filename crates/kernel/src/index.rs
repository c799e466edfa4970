//! The binary index files that kmod's modprobe reads (`modules.dep.bin`, `modules.alias.bin`, …).
//!
//! A prefix tree in one file, all numbers big endian: magic, version, offset of the root; then nodes, children before
//! parents. A node is a NUL-terminated prefix, the first and last byte of its children with an offset for each, and its
//! values with their priorities; each of the three may be missing, and the upper bits of the node's offset say which
//! are there. kmod reads only these, never the text files beside them, so a distribution's modprobe needs them.

use std::collections::BTreeMap;

const MAGIC: u32 = 0xb007_f457;
const VERSION: u32 = 0x0002_0001;
const HAS_PREFIX: u32 = 0x8000_0000;
const HAS_VALUES: u32 = 0x4000_0000;
const HAS_CHILDREN: u32 = 0x2000_0000;

/// The longest key that is kept: it bounds the depth of the tree. The kernel's own are some hundred bytes long.
const LONGEST_KEY: usize = 1024;

/// Values of one key, each with its priority.
type Values = Vec<(u32, String)>;

/// Collects keys with values, then writes the file.
#[derive(Default)]
pub(crate) struct Index {
    entries: BTreeMap<Vec<u8>, Values>,
}

impl Index {
    /// Adds a value; of several for one key the one with the lowest priority is tried first. Keys that are not ASCII
    /// cannot be asked for and are left out, as are those of more than [`LONGEST_KEY`] bytes.
    pub(crate) fn add(&mut self, key: &str, value: &str, priority: u32) {
        if key.len() <= LONGEST_KEY && key.bytes().all(|b| (1..=0x7f).contains(&b)) {
            let values = self.entries.entry(key.as_bytes().to_vec()).or_default();
            if !values.iter().any(|(_, v)| v == value) {
                values.push((priority, value.to_owned()));
            }
        }
    }

    /// Returns the bytes of the file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let entries: Vec<(&[u8], &Values)> = self
            .entries
            .iter()
            .map(|(k, v)| (k.as_slice(), v))
            .collect();
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC.to_be_bytes());
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        let root = write_node(&mut out, &entries, 0);
        out[8..12].copy_from_slice(&root.to_be_bytes());
        out
    }
}

/// Writes the node for the sorted entries, which agree in their first `depth` bytes, and returns its offset and flags.
fn write_node(out: &mut Vec<u8>, entries: &[(&[u8], &Values)], depth: usize) -> u32 {
    let prefix = match entries {
        [] => &[][..],
        [(first, _), .., (last, _)] => {
            let common = first[depth..]
                .iter()
                .zip(&last[depth..])
                .take_while(|(a, b)| a == b)
                .count();
            &first[depth..depth + common]
        }
        [(only, _)] => &only[depth..],
    };
    let end = depth + prefix.len();
    let (here, below) = match entries.split_first() {
        Some(((key, values), rest)) if key.len() == end => (Some((*values).clone()), rest),
        _ => (None, entries),
    };
    let mut children = Vec::new();
    for group in below.chunk_by(|a, b| a.0[end] == b.0[end]) {
        children.push((group[0].0[end], write_node(out, group, end + 1)));
    }
    let mut offset = out.len() as u32;
    if !prefix.is_empty() {
        offset |= HAS_PREFIX;
        out.extend_from_slice(prefix);
        out.push(0);
    }
    if let (Some((first, _)), Some((last, _))) = (children.first(), children.last()) {
        offset |= HAS_CHILDREN;
        out.extend_from_slice(&[*first, *last]);
        let table = out.len();
        out.resize(table + 4 * (*last - *first + 1) as usize, 0);
        for (byte, child) in &children {
            let at = table + 4 * (byte - first) as usize;
            out[at..at + 4].copy_from_slice(&child.to_be_bytes());
        }
    }
    if let Some(mut values) = here {
        offset |= HAS_VALUES;
        values.sort_by_key(|(priority, _)| *priority);
        out.extend_from_slice(&(values.len() as u32).to_be_bytes());
        for (priority, value) in values {
            out.extend_from_slice(&priority.to_be_bytes());
            out.extend_from_slice(value.as_bytes());
            out.push(0);
        }
    }
    offset
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn text_at(bytes: &[u8], at: usize) -> String {
        String::from_utf8(bytes[at..].split(|b| *b == 0).next().unwrap().to_vec()).unwrap()
    }

    /// Reads a file back, as kmod walks it.
    fn read(bytes: &[u8], node: u32, key: &str, found: &mut Vec<(String, Vec<String>)>) {
        let mut at = (node & 0x0fff_ffff) as usize;
        let mut key = key.to_owned();
        if node & HAS_PREFIX != 0 {
            let prefix = text_at(bytes, at);
            at += prefix.len() + 1;
            key += &prefix;
        }
        let mut children = Vec::new();
        if node & HAS_CHILDREN != 0 {
            let (first, last) = (bytes[at], bytes[at + 1]);
            at += 2;
            for byte in first..=last {
                children.push((byte, u32_at(bytes, at)));
                at += 4;
            }
        }
        if node & HAS_VALUES != 0 {
            let count = u32_at(bytes, at);
            at += 4;
            let mut values = Vec::new();
            for _ in 0..count {
                let value = text_at(bytes, at + 4);
                at += 4 + value.len() + 1;
                values.push(value);
            }
            found.push((key.clone(), values));
        }
        for (byte, child) in children.into_iter().filter(|(_, c)| *c != 0) {
            read(bytes, child, &format!("{key}{}", byte as char), found);
        }
    }

    #[test]
    fn what_is_written_reads_back_with_values_by_priority() {
        let mut index = Index::default();
        for (key, value, priority) in [
            ("ab", "two", 2),
            ("abc", "x", 0),
            ("ab", "one", 1),
            ("a*", "w", 0),
            ("z", "", 0),
            ("é", "no", 0),
        ] {
            index.add(key, value, priority);
        }
        let bytes = index.to_bytes();
        assert_eq!(bytes[..8], [0xb0, 0x07, 0xf4, 0x57, 0, 2, 0, 1]);
        let mut found = Vec::new();
        read(&bytes, u32_at(&bytes, 8), "", &mut found);
        let want = [
            ("a*", vec!["w"]),
            ("ab", vec!["one", "two"]),
            ("abc", vec!["x"]),
            ("z", vec![""]),
        ];
        let found: Vec<(&str, Vec<&str>)> = found
            .iter()
            .map(|(k, v)| (k.as_str(), v.iter().map(String::as_str).collect()))
            .collect();
        assert_eq!(found, want);
    }

    #[test]
    fn a_staircase_of_keys_ends_before_the_stack_does() {
        let mut index = Index::default();
        for len in 1..5000 {
            index.add(&"a".repeat(len), "x", 0);
        }
        assert!(index.to_bytes().len() < 64 * LONGEST_KEY);
    }

    #[test]
    fn an_empty_index_is_a_file_too() {
        assert_eq!(
            Index::default().to_bytes(),
            [0xb0, 0x07, 0xf4, 0x57, 0, 2, 0, 1, 0, 0, 0, 12]
        );
    }

    proptest::proptest! {
        #[test]
        fn any_keys_read_back(keys in proptest::collection::btree_set("[a-c*]{0,6}", 0..40)) {
            let mut index = Index::default();
            for k in &keys {
                index.add(k, &format!("v{k}"), 0);
            }
            let bytes = index.to_bytes();
            let mut found = Vec::new();
            read(&bytes, u32_at(&bytes, 8), "", &mut found);
            found.sort();
            let want: Vec<(String, Vec<String>)> = keys.iter().map(|k| (k.clone(), vec![format!("v{k}")])).collect();
            proptest::prop_assert_eq!(found, want);
        }
    }
}
