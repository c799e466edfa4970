//! The resolver's file that all distributions share (DNS-5, DNS-6).

use std::fmt::Write;
use std::net::IpAddr;

/// Where the file is, in the machine and in every distribution.
pub(crate) const PATH: &str = "/mnt/wsl/resolv.conf";

/// The resolver looks at no more servers than this.
const MAX_SERVERS: usize = 3;

/// The most domains to search.
const MAX_SEARCH: usize = 32;

/// The text of the file, and what of the input was left out and why.
pub(crate) fn text(servers: &[String], search: &[String]) -> (String, Vec<String>) {
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

    #[test]
    fn without_servers_there_is_only_the_header() {
        let (text, warnings) = text(&[], &[]);
        assert!(text.lines().all(|l| l.starts_with('#')) && warnings.is_empty());
    }
}
