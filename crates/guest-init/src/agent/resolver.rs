//! The resolver's file that all distributions share (DNS-5, DNS-6).

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use hostel_proto::v1;

/// Where the file is, in the machine and in every distribution.
pub(crate) const PATH: &str = "/mnt/wsl/resolv.conf";

/// The resolver looks at no more servers than this.
const MAX_SERVERS: usize = 3;

/// The most domains to search.
const MAX_SEARCH: usize = 32;

/// Writes what the host wants to the file; returns what of it was left out and why.
///
/// In place: distributions show this very inode (DNS-5). A file that is right already is left alone, so that no reader
/// catches it empty for nothing.
pub(crate) fn write(path: &Path, wanted: &v1::GuestNetwork) -> io::Result<Vec<String>> {
    if !wanted.generate_resolv_conf {
        return Ok(Vec::new());
    }
    // A tunnel without a list is its own list (DNS-2).
    let tunnel = [wanted.dns_tunnel.clone()];
    let servers = if wanted.dns.is_empty() && !wanted.dns_tunnel.is_empty() {
        &tunnel[..]
    } else {
        &wanted.dns
    };
    let (file, left_out) = text(servers, &wanted.search);
    if fs_err::read(path).is_ok_and(|old| old == file.as_bytes()) {
        return Ok(left_out);
    }
    fs_err::write(path, file)?;
    Ok(left_out)
}

/// The text of the file, and what of the input was left out and why.
fn text(servers: &[String], search: &[String]) -> (String, Vec<String>) {
    let mut text = String::from(
        "# Made by Hostel; changes are lost. To keep a file of your own here, put these lines into /etc/wsl.conf:\n\
         # [network]\n\
         # generateResolvConf = false\n",
    );
    let mut warnings = Vec::new();
    let mut taken = 0;
    for server in servers {
        match server.parse::<IpAddr>() {
            Ok(address) if taken < MAX_SERVERS => {
                taken += 1;
                let _ = writeln!(text, "nameserver {address}");
            }
            Ok(address) => warnings.push(format!(
                "name server {address} is left out; the resolver uses {MAX_SERVERS}"
            )),
            Err(_) => warnings.push(format!(
                "`{}` is not the address of a name server",
                shown(server)
            )),
        }
    }
    let (good, bad): (Vec<_>, Vec<_>) = search.iter().partition(|d| is_domain(d));
    warnings.extend(
        bad.into_iter()
            .map(|d| format!("`{}` is not a domain to search", shown(d))),
    );
    if !good.is_empty() {
        text.push_str("search");
        for domain in good.into_iter().take(MAX_SEARCH) {
            let _ = write!(text, " {domain}");
        }
        text.push('\n');
    }
    (text, warnings)
}

fn is_domain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

fn shown(text: &str) -> String {
    text.chars()
        .take(64)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn servers_and_domains_are_written_and_rubbish_is_told() {
        let (text, warnings) = text(
            &owned(&[
                "10.0.2.3",
                "x\nnameserver 6.6.6.6",
                "::1",
                "1.1.1.1",
                "8.8.8.8",
            ]),
            &owned(&["example.org", "bad domain", ""]),
        );
        let lines: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "nameserver 10.0.2.3",
                "nameserver ::1",
                "nameserver 1.1.1.1",
                "search example.org"
            ]
        );
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        assert!(warnings.iter().all(|w| !w.contains('\n')));
        assert!(text.contains("generateResolvConf = false"));
    }

    fn network() -> v1::GuestNetwork {
        v1::GuestNetwork {
            dns_tunnel: "10.255.255.254".into(),
            generate_resolv_conf: true,
            ..Default::default()
        }
    }

    /// DNS-2, DNS-5: what distributions have bound is the inode.
    #[test]
    fn the_file_is_changed_in_place_and_only_when_it_has_to() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let state = || {
            let status = fs_err::metadata(&path).unwrap();
            (status.ino(), status.mtime(), status.mtime_nsec())
        };
        write(&path, &network()).unwrap();
        let text = fs_err::read_to_string(&path).unwrap();
        assert!(text.ends_with("\nnameserver 10.255.255.254\n"), "{text}");
        let first = state();
        write(&path, &network()).unwrap();
        assert_eq!(state(), first);
        let search = v1::GuestNetwork {
            search: owned(&["corp.example"]),
            ..network()
        };
        write(&path, &search).unwrap();
        let text = fs_err::read_to_string(&path).unwrap();
        assert!(text.ends_with("254\nsearch corp.example\n"), "{text}");
        assert_eq!(state().0, first.0);
        // What is longer before leaves no rest.
        write(&path, &network()).unwrap();
        assert!(!fs_err::read_to_string(&path).unwrap().contains("search"));
    }

    #[test]
    fn servers_that_are_given_are_used_without_the_tunnel() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let wanted = v1::GuestNetwork {
            dns: owned(&["9.9.9.9"]),
            ..network()
        };
        write(&path, &wanted).unwrap();
        let text = fs_err::read_to_string(&path).unwrap();
        assert!(text.contains("nameserver 9.9.9.9") && !text.contains("10.255.255.254"));
    }

    /// The file is somebody else's then.
    #[test]
    fn a_file_that_is_not_wanted_is_not_touched() {
        let wanted = v1::GuestNetwork {
            generate_resolv_conf: false,
            ..network()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        write(&path, &wanted).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn without_servers_there_is_only_the_header() {
        let (text, warnings) = text(&[], &[]);
        assert!(text.lines().all(|l| l.starts_with('#')) && warnings.is_empty());
    }
}
