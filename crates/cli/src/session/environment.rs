//! What of the client's environment goes along: the terminal's kind, and what WSLENV lists (ENV-2, ENV-5 to ENV-7).

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use hostel_proto::v1::EnvVar;

/// Looks a variable up.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Variables that tell programs what the terminal can do; they go along when the session has a terminal.
const TERMINAL: [&str; 2] = ["TERM", "COLORTERM"];

/// Collects the variables that go along, later ones win.
pub(super) fn collect(lookup: Lookup<'_>, terminal: bool) -> Vec<EnvVar> {
    let mut vars = Vec::new();
    if terminal {
        vars.extend(
            TERMINAL
                .iter()
                .filter_map(|name| lookup(name).map(|value| var(name, value.into_vec()))),
        );
    }
    let list = lookup("WSLENV").unwrap_or_default().into_vec();
    vars.extend(listed(&list, lookup));
    vars.push(var("WSLENV", list));
    vars
}

/// Takes the variables that a WSLENV lists for this direction.
///
/// `NAME[/flags]`: `p` and `l` are paths, which on a Linux host are the same on both sides; `u` means only this direction,
/// `w` only the other. An unknown flag drops the variable. One that is not set arrives set and empty.
fn listed(list: &[u8], lookup: Lookup<'_>) -> Vec<EnvVar> {
    let mut vars = Vec::new();
    for entry in list.trim_ascii_end().split(|b| *b == b':') {
        let (name, flags) = match entry.iter().position(|b| *b == b'/') {
            Some(at) => (&entry[..at], &entry[at + 1..]),
            None => (entry, &[][..]),
        };
        let other_way_only = flags.contains(&b'w') && !flags.contains(&b'u');
        let understood = flags.iter().all(|f| matches!(f, b'p' | b'l' | b'u' | b'w'));
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        if name.is_empty()
            || name.contains('=')
            || name == "WSLENV"
            || other_way_only
            || !understood
        {
            continue;
        }
        vars.push(var(name, lookup(name).unwrap_or_default().into_vec()));
    }
    vars
}

fn var(name: &str, value: Vec<u8>) -> EnvVar {
    EnvVar {
        name: name.as_bytes().to_vec().into(),
        value: value.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(vars: &[(&str, &str)], terminal: bool) -> Vec<(String, String)> {
        let lookup = |name: &str| {
            vars.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| OsString::from(v))
        };
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        collect(&lookup, terminal)
            .iter()
            .map(|v| (text(&v.name), text(&v.value)))
            .collect()
    }

    #[test]
    fn only_the_terminal_s_kind_goes_along_unasked() {
        let host = [
            ("TERM", "xterm"),
            ("LANG", "de_DE"),
            ("HOME", "/h"),
            ("COLORTERM", "truecolor"),
        ];
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        assert_eq!(
            collected(&host, true),
            [
                pair("TERM", "xterm"),
                pair("COLORTERM", "truecolor"),
                pair("WSLENV", "")
            ]
        );
        assert_eq!(collected(&host, false), [pair("WSLENV", "")]);
    }

    /// ENV-5, ENV-6, ENV-7.
    #[test]
    fn wslenv_lists_more() {
        for (list, want) in [
            ("A", "A=1"),
            ("A/u", "A=1"),
            ("A/w", ""),
            ("A/uw", "A=1"),
            ("A/p:B/l", "A=1 B=2"),
            ("A/lp", "A=1"),
            ("A/x:B", "B=2"),
            ("UNSET", "UNSET="),
            ("A  ", "A=1"),
            ("::A:", "A=1"),
            ("WSLENV", ""),
        ] {
            let got = collected(&[("A", "1"), ("B", "2"), ("WSLENV", list)], false);
            let (last, got) = got.split_last().unwrap();
            assert_eq!(last, &("WSLENV".to_owned(), list.to_owned()));
            let got: Vec<_> = got.iter().map(|(n, v)| format!("{n}={v}")).collect();
            assert_eq!(got.join(" "), want, "{list}");
        }
    }
}
