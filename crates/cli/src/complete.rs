//! Names of distributions for the shell's completion, without starting anything.

use std::{io::Read, path::Path};

use clap_complete::CompletionCandidate;
use hostel_model::{DistroName, Paths};
use serde_json::Value;

use crate::surroundings;

/// The largest state file that is looked at, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The most distributions that are offered.
const MAX_NAMES: usize = 1000;

/// Returns the names of the registered distributions; nothing when the state cannot be read.
pub(crate) fn distros() -> Vec<CompletionCandidate> {
    names(&surroundings::paths())
        .into_iter()
        .map(CompletionCandidate::new)
        .collect()
}

/// Returns the words of a rule of the firewall.
pub(crate) fn rule_words() -> Vec<CompletionCandidate> {
    [
        ("allow", "let it in"),
        ("deny", "drop it"),
        ("tcp", "TCP"),
        ("udp", "UDP"),
        ("icmp", "ICMP and ICMPv6"),
        ("any", "every protocol"),
        ("from", "an address or a network follows"),
    ]
    .map(|(word, help)| CompletionCandidate::new(word).help(Some(help.into())))
    .into()
}

/// Returns what a rule can do with a port.
pub(crate) fn port_actions() -> Vec<CompletionCandidate> {
    [
        ("same", "the same number on the host"),
        ("off", "not on the host"),
        ("remap", "the next free number on the host"),
        ("remap=", "that number on the host"),
    ]
    .map(|(word, help)| CompletionCandidate::new(word).help(Some(help.into())))
    .into()
}

/// Reads the names leniently: whatever has a `name` that is a valid one, in the registry or in a distribution's own file.
fn names(paths: &Paths) -> Vec<String> {
    let mut found = Vec::new();
    collect(&read(&paths.home.join("registry.json")), &mut found);
    if let Ok(entries) = fs_err::read_dir(paths.home.join("distros")) {
        for entry in entries.flatten().take(MAX_NAMES) {
            if let Some(Value::String(name)) = read(&entry.path().join("distro.json")).get("name") {
                found.push(name.clone());
            }
        }
    }
    found.retain(|name| DistroName::parse(name).is_ok());
    found.sort_unstable();
    found.dedup();
    found
}

/// Takes every `name` of every object that lies in an array or object called `distros`.
fn collect(value: &Value, found: &mut Vec<String>) {
    let Some(distros) = value.get("distros") else {
        return;
    };
    let entries: Box<dyn Iterator<Item = &Value>> = match distros {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(items) => Box::new(items.values()),
        _ => return,
    };
    found.extend(
        entries
            .filter_map(|e| e.get("name")?.as_str())
            .take(MAX_NAMES)
            .map(str::to_owned),
    );
}

fn read(path: &Path) -> Value {
    let mut text = String::new();
    match fs_err::File::open(path).and_then(|f| f.take(MAX_FILE).read_to_string(&mut text)) {
        Ok(_) => serde_json::from_str(&text).unwrap_or(Value::Null),
        Err(_) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_whatever_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path();
        let paths = Paths {
            home: home.to_owned(),
            runtime: home.to_owned(),
            config_files: Vec::new(),
        };
        assert!(names(&paths).is_empty());
        fs_err::write(
            home.join("registry.json"),
            r#"{"distros":[{"name":"b"},{"name":"-bad"},7],"default":"x"}"#,
        )
        .unwrap();
        fs_err::create_dir_all(home.join("distros/1")).unwrap();
        fs_err::create_dir_all(home.join("distros/2")).unwrap();
        fs_err::write(home.join("distros/1/distro.json"), r#"{"name":"a"}"#).unwrap();
        fs_err::write(home.join("distros/2/distro.json"), r#"{"name":"#).unwrap();
        assert_eq!(names(&paths), ["a", "b"]);
    }
}
