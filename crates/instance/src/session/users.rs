//! Users of a distribution, from its own passwd(5) and group(5): the static `/init` has no NSS.

use std::io;
use std::path::Path;

use crate::beneath::read_regular;

/// The largest passwd or group file that is read, in bytes.
const MAX_FILE: usize = 16 << 20;
/// The kernel's limit of supplementary groups (NGROUPS_MAX).
const MAX_GROUPS: usize = 65_536;

/// A user as a command needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: Vec<u8>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// All groups, the primary one first.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Vec<u8>,
    pub(crate) shell: Vec<u8>,
}

/// The text of both files; `None` where a file is missing or cannot be read.
#[derive(Debug, Default)]
pub(crate) struct Database {
    pub(crate) passwd: Option<Vec<u8>>,
    pub(crate) group: Option<Vec<u8>>,
}

impl Database {
    /// Reads both files of the calling process's root.
    pub(crate) fn read() -> Self {
        let read = |path| read_file(Path::new(path), MAX_FILE).ok();
        Self {
            passwd: read("/etc/passwd"),
            group: read("/etc/group"),
        }
    }

    /// Finds the user that was asked for, `None` when there is no such user; else the first of the defaults that exists; else
    /// root (CLI-35).
    pub(crate) fn find(&self, wanted: Option<&str>, defaults: &[String]) -> Option<User> {
        if let Some(name) = wanted {
            return self
                .by_name(name.as_bytes())
                .or_else(|| (name == "root").then(|| self.root()));
        }
        let default = defaults.iter().find_map(|name| {
            self.by_name(name.as_bytes())
                .or_else(|| self.by_uid(name.parse().ok()?))
        });
        Some(default.unwrap_or_else(|| self.root()))
    }

    fn root(&self) -> User {
        self.by_uid(0).unwrap_or_else(|| User {
            name: b"root".to_vec(),
            uid: 0,
            gid: 0,
            groups: vec![0],
            home: b"/".to_vec(),
            shell: b"/bin/sh".to_vec(),
        })
    }

    fn by_name(&self, name: &[u8]) -> Option<User> {
        self.entries()
            .find(|user| user.name == name)
            .map(|user| self.with_groups(user))
    }

    fn by_uid(&self, uid: u32) -> Option<User> {
        self.entries()
            .find(|user| user.uid == uid)
            .map(|user| self.with_groups(user))
    }

    fn entries(&self) -> impl Iterator<Item = User> {
        lines(self.passwd.as_deref()).filter_map(passwd_entry)
    }

    fn with_groups(&self, mut user: User) -> User {
        for line in lines(self.group.as_deref()) {
            let mut fields = line.split(|&b| b == b':');
            let (Some(_name), Some(_password), Some(gid), Some(members)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let Some(gid) = id(gid) else { continue };
            let member = members
                .split(|&b| b == b',')
                .any(|m| m.trim_ascii() == user.name);
            if member && !user.groups.contains(&gid) && user.groups.len() < MAX_GROUPS {
                user.groups.push(gid);
            }
        }
        user
    }
}

fn lines(text: Option<&[u8]>) -> impl Iterator<Item = &[u8]> {
    text.unwrap_or_default()
        .split(|&b| b == b'\n')
        .filter(|l| !l.is_empty() && !l.starts_with(b"#"))
}

/// Reads a decimal id; the largest number means "none" to the kernel and is refused.
fn id(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text)
        .ok()?
        .parse()
        .ok()
        .filter(|&id| id != u32::MAX)
}

fn passwd_entry(line: &[u8]) -> Option<User> {
    let mut fields = line.split(|&b| b == b':');
    let name = fields
        .next()
        .filter(|n| !n.is_empty() && !n.contains(&0))?
        .to_vec();
    let _password = fields.next()?;
    let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
    let _gecos = fields.next()?;
    let text = |field: Option<&[u8]>, otherwise: &[u8]| match field {
        Some(text) if !text.is_empty() && !text.contains(&0) => text.to_vec(),
        _ => otherwise.to_vec(),
    };
    let home = text(fields.next(), b"/");
    let shell = text(fields.next(), b"/bin/sh");
    Some(User {
        name,
        uid,
        gid,
        groups: vec![gid],
        home,
        shell,
    })
}

/// Reads a regular file of at most `limit` bytes by a path of the calling process.
pub(crate) fn read_file(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    read_regular(rustix::fs::open(path, flags, Mode::empty())?, limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
        # a comment\n+nis::::::\nbroken:x:12\nbig:x:4294967295:0::/:/bin/sh\n\
        ada:x:1000:1000:Ada,,,:/home/ada:/bin/zsh\nbare:x:1001:1001::\nshort:x:1002:1002:::\n";
    const GROUP: &[u8] = b"root:x:0:\nsudo:x:27:ada\nada:x:1000:\ndocker:x:998:bob,ada\ntwice:x:27:ada\nbad:x:y:ada\n";

    fn database() -> Database {
        Database {
            passwd: Some(PASSWD.to_vec()),
            group: Some(GROUP.to_vec()),
        }
    }

    #[test]
    fn a_user_has_home_shell_and_all_groups() {
        let user = database().find(Some("ada"), &[]).unwrap();
        assert_eq!((user.uid, user.gid), (1000, 1000));
        assert_eq!(user.groups, [1000, 27, 998]);
        assert_eq!(
            (user.home.as_slice(), user.shell.as_slice()),
            (&b"/home/ada"[..], &b"/bin/zsh"[..])
        );
    }

    #[test]
    fn missing_fields_have_defaults_and_broken_lines_are_no_users() {
        let db = database();
        assert_eq!(db.find(Some("short"), &[]).unwrap().shell, b"/bin/sh");
        assert_eq!(db.find(Some("bare"), &[]).unwrap().home, b"/");
        for name in ["broken", "big", "+nis", "nobody", "1000", ""] {
            assert_eq!(db.find(Some(name), &[]), None, "{name}");
        }
    }

    #[test]
    fn the_first_default_that_exists_is_taken() {
        let db = database();
        let find = |defaults: &[&str]| {
            let defaults: Vec<String> = defaults.iter().map(ToString::to_string).collect();
            String::from_utf8(db.find(None, &defaults).unwrap().name).unwrap()
        };
        assert_eq!(find(&["gone", "ada"]), "ada");
        assert_eq!(find(&["1000"]), "ada");
        assert_eq!(find(&["gone", "77"]), "root");
        assert_eq!(find(&[]), "root");
    }

    #[test]
    fn without_a_database_there_is_root_only() {
        let db = Database::default();
        let root = db.find(None, &["ada".to_owned()]).unwrap();
        assert_eq!(
            (root.uid, root.home.as_slice(), root.shell.as_slice()),
            (0, &b"/"[..], &b"/bin/sh"[..])
        );
        assert!(db.find(Some("root"), &[]).is_some());
        assert_eq!(db.find(Some("ada"), &[]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(passwd: Vec<u8>, group: Vec<u8>, name: String) {
            let db = Database { passwd: Some(passwd), group: Some(group) };
            let _ = db.find(Some(&name), &[]);
            prop_assert!(db.find(None, &[name]).is_some());
        }
    }
}
