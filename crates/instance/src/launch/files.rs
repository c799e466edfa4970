//! Files of a distribution that a start reads or writes.

use std::path::Path;

use super::message::StartFailure;
use crate::beneath::Beneath;
use crate::spec::OsRelease;

use hostel_wslconf::{Network, WslConf};

/// The largest of these files that is read, in bytes.
const MAX_FILE: usize = 256 * 1024;
/// The longest value taken from os-release, in bytes.
const MAX_VALUE: usize = 256;

/// Checks for what no distribution is without (ERR-5).
pub(crate) fn check_root(root: &Beneath) -> Result<(), StartFailure> {
    let missing = |what: &str| {
        Err(StartFailure::Incomplete {
            missing: what.to_owned(),
        })
    };
    if root.directory(Path::new("/etc")).is_err() {
        return missing("/etc");
    }
    let shell = root
        .at(Path::new("/bin/sh"))
        .ok()
        .and_then(|fd| rustix::fs::fstat(fd).ok());
    match shell {
        Some(status)
            if rustix::fs::FileType::from_raw_mode(status.st_mode)
                == rustix::fs::FileType::RegularFile
                && status.st_mode & 0o111 != 0 =>
        {
            Ok(())
        }
        _ => missing("/bin/sh that can be executed"),
    }
}

/// Reads a text file of the distribution for a start; one that is there but cannot be read is a warning.
pub(crate) fn read_text(root: &Beneath, path: &str, warnings: &mut Vec<String>) -> Option<String> {
    match root.read(Path::new(path), MAX_FILE) {
        Ok(text) => text.map(|t| String::from_utf8_lossy(&t).into_owned()),
        Err(error) => {
            warnings.push(format!("cannot read {path}: {error}"));
            None
        }
    }
}

/// Reads /etc/wsl.conf; what is wrong in it is a warning (ERR-4).
pub(crate) fn wsl_conf(root: &Beneath, warnings: &mut Vec<String>) -> WslConf {
    let text = read_text(root, "/etc/wsl.conf", warnings).unwrap_or_default();
    let (conf, problems) = WslConf::parse(&text);
    warnings.extend(
        problems
            .iter()
            .map(|problem| format!("/etc/wsl.conf:{problem}")),
    );
    conf
}

/// Reads os-release(5).
pub(crate) fn os_release(root: &Beneath, warnings: &mut Vec<String>) -> OsRelease {
    let text = read_text(root, "/etc/os-release", warnings)
        .or_else(|| read_text(root, "/usr/lib/os-release", warnings))
        .unwrap_or_default();
    let value = |key: &str| {
        let line = text
            .lines()
            .filter_map(|l| l.strip_prefix(key)?.strip_prefix('='))
            .next_back();
        unquote(line.unwrap_or_default())
    };
    OsRelease {
        id: value("ID"),
        version: value("VERSION_ID"),
        pretty_name: value("PRETTY_NAME"),
    }
}

/// Takes the shell's quotes off a value and what must not reach a terminal out of it.
fn unquote(value: &str) -> String {
    let value = value.trim();
    let inner = ['"', '\'']
        .iter()
        .find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
    let mut escaped = false;
    let text = inner.unwrap_or(value).chars().filter(|&c| {
        escaped = c == '\\' && !escaped;
        !escaped && !c.is_control()
    });
    let mut result = String::new();
    for c in text {
        if result.len() + c.len_utf8() > MAX_VALUE {
            break;
        }
        result.push(c);
    }
    result
}

/// Writes what a start writes into `/etc` (BOOT-28 to BOOT-31). Failures are warnings: a read-only root starts too.
pub(crate) fn write_etc(
    root: &Beneath,
    network: &Network,
    hostname: &str,
    domain: &str,
    resolv_conf: Option<&Path>,
    warnings: &mut Vec<String>,
) {
    let mut check = |path: &str, result: std::io::Result<()>| {
        if let Err(error) = result {
            warnings.push(format!("cannot write {path}: {error}"));
        }
    };
    if let Some(target) = resolv_conf {
        let path = "/etc/resolv.conf";
        if network.generate_resolv_conf {
            check(path, root.replace_link(Path::new(path), target));
        } else if root
            .link_target(Path::new(path))
            .is_some_and(|t| t == target)
        {
            // Ours from an earlier start; a user's own file stays.
            check(path, root.remove(Path::new(path)));
        }
    }
    let hostname_file = format!("{hostname}\n");
    check(
        "/etc/hostname",
        root.replace_file(Path::new("/etc/hostname"), hostname_file.as_bytes()),
    );
    if network.generate_hosts {
        let text = hostel_wslconf::hosts_text(hostname, domain, "");
        check(
            "/etc/hosts",
            root.replace_file(Path::new("/etc/hosts"), text.as_bytes()),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lose_quotes_escapes_and_control_characters() {
        for (text, value) in [
            ("debian", "debian"),
            (
                "\"Debian GNU/Linux 12 (bookworm)\"",
                "Debian GNU/Linux 12 (bookworm)",
            ),
            ("'a b'", "a b"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            ("\"\x1b[31mred\"", "[31mred"),
            ("\"open", "\"open"),
            ("", ""),
        ] {
            assert_eq!(unquote(text), value, "{text:?}");
        }
        assert_eq!(unquote(&"ü".repeat(1000)).len(), MAX_VALUE);
    }
}
