//! Whether this user can put a Debian together, and in which way.

use std::path::Path;

use crate::BootstrapError;

/// How the bootstrap program gets the owners of files right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Root,
    Unshare,
}

impl Mode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Unshare => "unshare",
        }
    }
}

/// Chooses the mode for a user, or tells what is missing for it. `root` is `/` outside of tests.
pub(crate) fn mode(root: &Path, uid: u32) -> Result<Mode, BootstrapError> {
    if uid == 0 {
        return Ok(Mode::Root);
    }
    let missing = |what: String| Err(BootstrapError::NoUserNamespace(what));
    for program in ["newuidmap", "newgidmap"] {
        if !["usr/bin", "bin", "usr/local/bin"]
            .iter()
            .any(|dir| root.join(dir).join(program).exists())
        {
            return missing(format!(
                "the program {program} is missing; install the package uidmap"
            ));
        }
    }
    let read = |file: &str| fs_err::read_to_string(root.join(file)).unwrap_or_default();
    let passwd = read("etc/passwd");
    let number = uid.to_string();
    let name = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&number.as_str()))
        .map(|fields| fields[0].to_owned());
    for file in ["etc/subuid", "etc/subgid"] {
        let enough = read(file).lines().any(|line| {
            let mut fields = line.trim().split(':');
            let who = fields.next().unwrap_or_default();
            let count = fields
                .nth(1)
                .and_then(|count| count.parse::<u64>().ok())
                .unwrap_or(0);
            (who == number || Some(who) == name.as_deref()) && count >= 65536
        });
        if !enough {
            let who = name.as_deref().unwrap_or(&number);
            let option = if file == "etc/subuid" {
                "--add-subuids"
            } else {
                "--add-subgids"
            };
            return missing(format!(
                "/{file} gives `{who}` no range of 65536 ids; add one with `usermod {option} 100000-165535 {who}`",
            ));
        }
    }
    if read("proc/sys/kernel/unprivileged_userns_clone").trim() == "0" {
        return missing("the kernel setting kernel.unprivileged_userns_clone is 0".to_owned());
    }
    if read("proc/sys/user/max_user_namespaces").trim() == "0" {
        return missing("the kernel setting user.max_user_namespaces is 0".to_owned());
    }
    Ok(Mode::Unshare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_right_is_named() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert!(matches!(mode(root, 0), Ok(Mode::Root)));
        let told = || {
            mode(root, 1000)
                .expect_err("something is missing")
                .to_string()
        };
        assert!(told().contains("newuidmap") && told().contains("uidmap"));
        let put = |file: &str, text: &str| {
            let file = root.join(file);
            fs_err::create_dir_all(file.parent().unwrap()).unwrap();
            fs_err::write(file, text).unwrap();
        };
        put("usr/bin/newuidmap", "");
        assert!(told().contains("newgidmap"));
        put("usr/bin/newgidmap", "");
        put(
            "etc/passwd",
            "root:x:0:0::/:/bin/sh\nlisa:x:1000:1000::/:/bin/sh\n",
        );
        assert!(
            told().contains("/etc/subuid gives `lisa`")
                && told().contains("--add-subuids 100000-165535 lisa"),
            "{}",
            told()
        );
        put(
            "etc/subuid",
            "other:1:65536\nlisa:100000:10\nlisa:100000:65536\n",
        );
        assert!(told().contains("/etc/subgid") && told().contains("--add-subgids"));
        put("etc/subgid", "1000:100000:65536\n");
        assert!(matches!(mode(root, 1000), Ok(Mode::Unshare)));
        put("proc/sys/kernel/unprivileged_userns_clone", "0\n");
        assert!(told().contains("unprivileged_userns_clone"));
    }
}
