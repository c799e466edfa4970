//! POSIX ACLs: what getxattr(2) shows and what ext4 stores differ.
//!
//! User space sees version 2 with an id in every entry; the disk holds version 1, where only named users and groups
//! carry one.

use crate::bytes::{le16, le32};

const SHOWN: u32 = 2;
const STORED: u32 = 1;
const NAMED_USER: u16 = 0x02;
const NAMED_GROUP: u16 = 0x08;
/// What the kernel shows for entries that have no id.
const NO_ID: u32 = u32::MAX;

fn has_id(tag: u16) -> bool {
    tag == NAMED_USER || tag == NAMED_GROUP
}

/// Tells whether the tag is one of the six that exist.
fn is_tag(tag: u16) -> bool {
    matches!(tag, 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x20)
}

/// Turns the value that getxattr(2) returns into the one on disk.
pub(super) fn to_disk(shown: &[u8]) -> Option<Vec<u8>> {
    let entries = shown.get(4..)?;
    if le32(shown, 0) != SHOWN || entries.is_empty() || !entries.len().is_multiple_of(8) {
        return None;
    }
    let mut stored = STORED.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = le16(entry, 0);
        if !is_tag(tag) {
            return None;
        }
        stored.extend_from_slice(if has_id(tag) { entry } else { &entry[..4] });
    }
    Some(stored)
}

/// Turns the value on disk into the one that getxattr(2) returns.
pub(super) fn from_disk(stored: &[u8]) -> Option<Vec<u8>> {
    let mut rest = stored.get(4..)?;
    if le32(stored, 0) != STORED {
        return None;
    }
    let mut shown = SHOWN.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let tag = le16(rest, 0);
        if !is_tag(tag) {
            return None;
        }
        let len = if has_id(tag) { 8 } else { 4 };
        let entry = rest.get(..len)?;
        shown.extend_from_slice(entry);
        if len == 4 {
            shown.extend_from_slice(&NO_ID.to_le_bytes());
        }
        rest = &rest[len..];
    }
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_convert_both_ways() {
        let shown = [
            2, 0, 0, 0, //
            1, 0, 7, 0, 255, 255, 255, 255, //
            2, 0, 5, 0, 232, 3, 0, 0, //
            4, 0, 5, 0, 255, 255, 255, 255, //
            16, 0, 5, 0, 255, 255, 255, 255, //
            32, 0, 0, 0, 255, 255, 255, 255,
        ];
        let stored = to_disk(&shown).unwrap();
        assert_eq!(stored.len(), 4 + 4 * 4 + 8);
        assert_eq!(from_disk(&stored).unwrap(), shown);
    }

    #[test]
    fn malformed_lists_are_refused() {
        for bad in [
            &b""[..],
            &[2, 0, 0, 0],
            &[1, 0, 0, 0, 1, 0, 7, 0, 0, 0, 0, 0],
            &[2, 0, 0, 0, 1],
            &[2, 0, 0, 0, 3, 0, 7, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(to_disk(bad), None, "{bad:?}");
        }
        for bad in [
            &b""[..],
            &[2, 0, 0, 0],
            &[1, 0, 0, 0, 1],
            &[1, 0, 0, 0, 2, 0, 7, 0],
        ] {
            assert_eq!(from_disk(bad), None, "{bad:?}");
        }
    }
}
