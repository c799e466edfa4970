//! Reads apt's sources, both forms, to learn which mirror the host uses.

use std::{io, path::Path};

use crate::Suite;

/// One archive that apt knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AptSource {
    /// Where it is.
    pub uris: Vec<String>,
    /// Its suites, such as `trixie` and `trixie-updates`.
    pub suites: Vec<String>,
    /// Its components, such as `main`.
    pub components: Vec<String>,
}

/// Reads all sources below an apt configuration directory (`/etc/apt`): `sources.list` and `sources.list.d`.
///
/// What is missing or unreadable is passed over: the mirror is a convenience.
pub fn sources_in(directory: &Path) -> Vec<AptSource> {
    let mut files = vec![directory.join("sources.list")];
    if let Ok(entries) = fs_err::read_dir(directory.join("sources.list.d")) {
        files.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
    }
    files.sort();
    let mut out = Vec::new();
    for file in files {
        let read: Option<io::Result<String>> = match file.extension().and_then(|end| end.to_str()) {
            Some("list" | "sources") => Some(fs_err::read_to_string(&file)),
            _ => None,
        };
        if let Some(Ok(text)) = read {
            let is_list = file.extension().is_some_and(|end| end == "list");
            out.extend(if is_list {
                one_line(&text)
            } else {
                deb822(&text)
            });
        }
    }
    out
}

/// Reads the form with one source a line: `deb [options] uri suite component...`.
fn one_line(text: &str) -> Vec<AptSource> {
    let mut out = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let Some(rest) = line
            .trim()
            .strip_prefix("deb")
            .filter(|rest| rest.starts_with([' ', '\t']))
        else {
            continue;
        };
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
            None => rest,
        };
        let mut words = rest.split_whitespace().map(str::to_owned);
        if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
            out.push(AptSource {
                uris: vec![uri],
                suites: vec![suite],
                components: words.collect(),
            });
        }
    }
    out
}

/// Reads the form with fields and paragraphs.
fn deb822(text: &str) -> Vec<AptSource> {
    let mut out = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            let words = |name: &str| -> Vec<String> {
                let found = fields.iter().find(|(key, _)| key == name);
                found
                    .map(|(_, value)| value.split_whitespace().map(str::to_owned).collect())
                    .unwrap_or_default()
            };
            let enabled = !matches!(
                words("enabled").first().map(String::as_str),
                Some("no" | "false" | "0")
            );
            let source = AptSource {
                uris: words("uris"),
                suites: words("suites"),
                components: words("components"),
            };
            if enabled && words("types").iter().any(|kind| kind == "deb") && !source.uris.is_empty()
            {
                out.push(source);
            }
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((key, value)) = line.split_once(':') {
            fields.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    out
}

/// Makes the sources of a new Debian out of those of the host, one `deb` line each; empty when the host's apt knows no
/// Debian archive. `mirror` replaces what the host uses, and then counts alone.
pub fn one_line_sources(
    host: &[AptSource],
    suite: Suite,
    mirror: Option<&str>,
    keyring: &Path,
) -> Vec<String> {
    let line = |uri: &str, suffix: &str| {
        format!(
            "deb [signed-by={}] {uri} {}{suffix} main",
            keyring.display(),
            suite.codename()
        )
    };
    if let Some(mirror) = mirror {
        return vec![line(mirror, "")];
    }
    // Any Debian release on the host tells where the archive is; other vendors' suites have other names.
    let find = |suffix: &str| {
        let fits = |name: &String| {
            name.strip_suffix(suffix)
                .is_some_and(|name| Suite::parse(name).is_some())
        };
        let usable = |uri: &&String| uri.starts_with("http://") || uri.starts_with("https://");
        host.iter()
            .filter(|source| {
                source.suites.iter().any(fits)
                    && source.components.iter().any(|part| part == "main")
            })
            .find_map(|source| source.uris.iter().find(usable))
    };
    let Some(main) = find("") else {
        return Vec::new();
    };
    let mut lines = vec![line(main, "")];
    if suite.has_updates() {
        lines.push(line(main, "-updates"));
        lines.extend(find("-security").map(|uri| line(uri, "-security")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb\n# c\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\
        Signed-By:\n -----BEGIN\n .\n x: y\n\nTypes: deb deb-src\nURIs: http://security.example/debian-security\n\
        Suites:\n bookworm-security\nComponents: main contrib\n\nTypes: deb\nEnabled: no\nURIs: http://off.example/\nSuites: sid\nComponents: main\n";

    fn host() -> Vec<AptSource> {
        let directory = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(directory.path().join("sources.list.d")).unwrap();
        let list = "# c\ndeb [arch=amd64 signed-by=/k] https://other.example/apt stable-x main # c\ndeb-src http://src.example x main\ndeb cdrom:[x y]/ trixie main\n";
        fs_err::write(directory.path().join("sources.list"), list).unwrap();
        fs_err::write(
            directory.path().join("sources.list.d/debian.sources"),
            DEB822,
        )
        .unwrap();
        fs_err::write(
            directory.path().join("sources.list.d/old.sources.bak"),
            "Types: deb\nURIs: x\n",
        )
        .unwrap();
        sources_in(directory.path())
    }

    #[test]
    fn both_forms_are_read() {
        let host = host();
        let uris: Vec<&str> = host
            .iter()
            .flat_map(|source| &source.uris)
            .map(String::as_str)
            .collect();
        assert_eq!(
            uris,
            [
                "https://other.example/apt",
                "cdrom:[x",
                "http://mirror.example/debian",
                "http://security.example/debian-security"
            ]
        );
        assert_eq!(host[3].suites, ["bookworm-security"]);
        assert!(sources_in(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn the_hosts_mirror_serves_every_suite() {
        let lines = |suite: &str, mirror| {
            one_line_sources(
                &host(),
                Suite::parse(suite).unwrap(),
                mirror,
                Path::new("/k.gpg"),
            )
        };
        assert_eq!(
            lines("13", None),
            [
                "deb [signed-by=/k.gpg] http://mirror.example/debian trixie main",
                "deb [signed-by=/k.gpg] http://mirror.example/debian trixie-updates main",
                "deb [signed-by=/k.gpg] http://security.example/debian-security trixie-security main",
            ]
        );
        assert_eq!(
            lines("sid", None),
            ["deb [signed-by=/k.gpg] http://mirror.example/debian sid main"]
        );
        assert_eq!(
            lines("12", Some("http://m.example")),
            ["deb [signed-by=/k.gpg] http://m.example bookworm main"]
        );
        assert!(
            one_line_sources(&[], Suite::parse("12").unwrap(), None, Path::new("/k")).is_empty()
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_judged_without_a_panic(text in "((deb|Types:|URIs:|\\[|\\]|#| |\n|[a-z:/]{1,5})){0,40}") {
            let _ = (one_line(&text), deb822(&text));
        }
    }
}
