//! POSIX ACLs: the text that archives hold, and the binary form of the `system.posix_acl_*` attributes.

/// The attribute that holds a file's access ACL.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds a directory's default ACL.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The most entries one ACL may have; ext4 holds some 500 in a block of attributes.
const MAX_ENTRIES: usize = 8192;

/// Finds the id of a name: the first argument tells whether it is a user's (else a group's).
pub(crate) type Lookup<'a> = &'a dyn Fn(bool, &[u8]) -> Option<u32>;

/// Why a text is not an ACL.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AclError {
    /// It does not follow the grammar.
    Malformed,
    /// It names a user or group whose number nothing tells.
    UnknownName(String),
}

/// Turns an ACL's text into the attribute's value; `None` when it says no more than the mode.
///
/// Entries are separated by commas or line ends. A fourth field, where star and libarchive put it, is the numeric id.
pub(crate) fn to_binary(
    text: &[u8],
    default: bool,
    lookup: Lookup<'_>,
) -> Result<Option<Vec<u8>>, AclError> {
    let text = std::str::from_utf8(text).map_err(|_| AclError::Malformed)?;
    let mut entries = Vec::new();
    for entry in text.split([',', '\n']) {
        // acl(5) allows comments behind `#`: tools print the effective rights there.
        let entry = entry.split('#').next().unwrap_or_default().trim();
        let entry = entry.strip_prefix("default:").unwrap_or(entry);
        if entry.is_empty() {
            continue;
        }
        if entries.len() == MAX_ENTRIES {
            return Err(AclError::Malformed);
        }
        let fields: Vec<&str> = entry.split(':').map(str::trim).collect();
        let (tag, who, perms, id) = match fields[..] {
            [tag @ ("mask" | "m" | "other" | "o"), perms] => (tag, "", perms, None),
            [tag, who, perms] => (tag, who, perms, None),
            [tag, who, perms, id] => (tag, who, perms, Some(id)),
            _ => return Err(AclError::Malformed),
        };
        let (tag, named) = match (tag, who.is_empty()) {
            ("user" | "u", true) => (USER_OBJ, None),
            ("user" | "u", false) => (USER, Some(true)),
            ("group" | "g", true) => (GROUP_OBJ, None),
            ("group" | "g", false) => (GROUP, Some(false)),
            ("mask" | "m", true) => (MASK, None),
            ("other" | "o", true) => (OTHER, None),
            _ => return Err(AclError::Malformed),
        };
        let id = match named {
            None => NO_ID,
            Some(user) => id
                .filter(|id| !id.is_empty())
                .and_then(|id| id.parse().ok())
                .or_else(|| who.parse().ok())
                .or_else(|| lookup(user, who.as_bytes()))
                .ok_or_else(|| AclError::UnknownName(crate::errors::shown(who.as_bytes())))?,
        };
        entries.push((tag, id, permissions(perms)?));
    }
    if entries.is_empty() {
        return Ok(None);
    }
    entries.sort_unstable();
    let count = |tag| entries.iter().filter(|(t, ..)| *t == tag).count();
    let named = count(USER) + count(GROUP) > 0;
    let twice = entries
        .windows(2)
        .any(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1));
    if count(USER_OBJ) != 1
        || count(GROUP_OBJ) != 1
        || count(OTHER) != 1
        || twice
        || (named && count(MASK) == 0)
    {
        return Err(AclError::Malformed);
    }
    // Three entries are the mode itself; the kernel keeps no attribute for them, save as a default.
    if entries.len() == 3 && !default {
        return Ok(None);
    }
    let mut out = VERSION.to_le_bytes().to_vec();
    for (tag, id, perms) in entries {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&perms.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    }
    Ok(Some(out))
}

fn permissions(text: &str) -> Result<u16, AclError> {
    if let [octal @ b'0'..=b'7'] = text.as_bytes() {
        return Ok(u16::from(octal - b'0'));
    }
    text.bytes().try_fold(0, |perms, byte| match byte {
        b'r' => Ok(perms | 4),
        b'w' => Ok(perms | 2),
        b'x' => Ok(perms | 1),
        b'-' => Ok(perms),
        _ => Err(AclError::Malformed),
    })
}

/// Turns an attribute's value into text with numeric ids; `None` when it is not in the form this knows.
pub(crate) fn to_text(value: &[u8]) -> Option<String> {
    let (version, entries) = value.split_at_checked(4)?;
    if u32::from_le_bytes(version.try_into().ok()?) != VERSION
        || entries.len() % 8 != 0
        || entries.is_empty()
    {
        return None;
    }
    let mut parts = Vec::new();
    for entry in entries.chunks_exact(8) {
        let word = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let who = match word(0) {
            USER_OBJ => "user:".to_owned(),
            USER => format!("user:{id}"),
            GROUP_OBJ => "group:".to_owned(),
            GROUP => format!("group:{id}"),
            MASK => "mask:".to_owned(),
            OTHER => "other:".to_owned(),
            _ => return None,
        };
        let perms = word(2);
        if perms > 7 {
            return None;
        }
        let bit = |mask, letter| if perms & mask != 0 { letter } else { '-' };
        parts.push(format!(
            "{who}:{}{}{}",
            bit(4, 'r'),
            bit(2, 'w'),
            bit(1, 'x')
        ));
    }
    Some(parts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody(_: bool, _: &[u8]) -> Option<u32> {
        None
    }

    #[test]
    fn every_spelling_gives_the_same_attribute() {
        let lookup = |user: bool, name: &[u8]| (user && name == b"lisa").then_some(1000);
        let want = to_binary(
            b"user::rw-,user:1000:r-x,group::r--,mask::rwx,other::---",
            false,
            &nobody,
        );
        assert!(
            matches!(&want, Ok(Some(value)) if value.len() == 4 + 5 * 8),
            "{want:?}"
        );
        for text in [
            "user::rw-\nuser:lisa:r-x\ngroup::r--\nmask::rwx\nother::---\n",
            "user::rw-,group::r--,other::---,mask::rwx,user:lisa:r-x:1000",
            "u::6,u:1000:5,g::4,m:7,o:0",
            "user::rw-\nuser:lisa:r-x\t#effective:r-x\ngroup::r--\nmask::rwx\nother::---",
            "user::rw-,user:someone:r-x:1000,group::r--,mask::rwx,other::",
        ] {
            assert_eq!(to_binary(text.as_bytes(), false, &lookup), want, "{text}");
        }
        let value = want.unwrap().unwrap();
        assert_eq!(
            to_text(&value).unwrap(),
            "user::rw-,user:1000:r-x,group::r--,mask::rwx,other::---"
        );
    }

    #[test]
    fn the_plain_three_entries_are_the_mode() {
        let text = b"user::rw-,group::r--,other::r--";
        assert_eq!(to_binary(text, false, &nobody), Ok(None));
        assert!(matches!(to_binary(text, true, &nobody), Ok(Some(_))));
        assert_eq!(to_binary(b"", true, &nobody), Ok(None));
    }

    #[test]
    fn what_is_no_acl_is_refused() {
        for text in [
            "user::rw-",
            "user::rw-,group::r--",
            "user::rw-,user:5:r--,group::r--,other::r--",
            "user::q,group::r,other::r",
            "user::rw-,user::rw-,group::r--,other::r--,mask::r",
            "x::r,group::r,other::r",
            "user,group,other",
            "\u{fffd}",
            "user::8,group::r,other::r",
        ] {
            assert_eq!(
                to_binary(text.as_bytes(), false, &nobody),
                Err(AclError::Malformed),
                "{text}"
            );
        }
        let unknown = to_binary(
            b"user::rw-,user:lisa:r--,group::r--,mask::r--,other::r--",
            false,
            &nobody,
        );
        assert_eq!(unknown, Err(AclError::UnknownName("lisa".to_owned())));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            let _ = to_binary(&bytes, true, &nobody);
            let _ = to_text(&bytes);
        }

        #[test]
        fn attributes_survive_as_text(users in proptest::collection::btree_map(0u32..u32::MAX, 0u16..8, 1..20)) {
            let mut text = "user::rwx,group::r-x,mask::rwx,other::--x".to_owned();
            for (id, perms) in &users {
                text.extend([",user:", &id.to_string(), ":", &perms.to_string()]);
            }
            let value = to_binary(text.as_bytes(), false, &nobody).unwrap().unwrap();
            let again = to_binary(to_text(&value).unwrap().as_bytes(), false, &nobody).unwrap().unwrap();
            proptest::prop_assert_eq!(value, again);
        }
    }
}
