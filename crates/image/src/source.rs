//! What can be installed by name.

use std::fmt;

use hostel_model::DistroName;

/// Debian's releases: number, code name, what else they are called, and whether updates have suites of their own.
const DEBIAN: [(&str, &str, &[&str], bool); 5] = [
    ("11", "bullseye", &["oldoldstable"], true),
    ("12", "bookworm", &["oldstable"], true),
    ("13", "trixie", &["stable"], true),
    ("14", "forky", &["testing"], false),
    ("sid", "sid", &["unstable"], false),
];

/// A source of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Debian, put together from its archive.
    Debian(Suite),
}

/// A release of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suite(usize);

/// Why a text names no source.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The part before the colon is not known.
    #[error("`{0}` is not a source that can be installed; known are {known}", known = known())]
    Unknown(String),
    /// A source without a release.
    #[error("`{0}` needs a release behind it; known are {known}", known = known())]
    NoSuite(String),
    /// Debian has no such release.
    #[error("Debian has no release `{0}` here; known are {known}", known = known())]
    UnknownSuite(String),
}

fn known() -> String {
    let suites: Vec<String> = DEBIAN
        .iter()
        .map(|(number, name, ..)| {
            if number == name {
                format!("debian:{name}")
            } else {
                format!("debian:{name} (debian:{number})")
            }
        })
        .collect();
    suites.join(", ")
}

impl Source {
    /// Reads `debian:<suite>`, where the suite is a code name, a number or a word such as `stable`, in any case.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let shown = |text: &str| {
            text.chars()
                .take(100)
                .flat_map(char::escape_debug)
                .collect::<String>()
        };
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        if !kind.eq_ignore_ascii_case("debian") {
            return Err(SourceError::Unknown(shown(text)));
        }
        if rest.is_empty() {
            return Err(SourceError::NoSuite(shown(text)));
        }
        Suite::parse(rest)
            .map(Self::Debian)
            .ok_or_else(|| SourceError::UnknownSuite(shown(rest)))
    }

    /// Returns every source, each once, in the order of release.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..DEBIAN.len()).map(|at| Self::Debian(Suite(at)))
    }

    /// Returns the name that a distribution from here gets when the user gives none, such as `Debian-13`.
    pub fn default_name(self) -> DistroName {
        let Self::Debian(Suite(at)) = self;
        DistroName::parse(&format!("Debian-{}", DEBIAN[at].0))
            .expect("the table holds letters and digits")
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Debian(suite) = self;
        write!(f, "debian:{}", suite.codename())
    }
}

impl Suite {
    /// Reads a code name, a number (with or without its point release) or a word such as `stable`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let whole = text
            .split('.')
            .next()
            .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
            .unwrap_or(&text);
        let known = |(number, name, others, _): &(&str, &str, &[&str], bool)| {
            *number == whole || *name == text || others.contains(&text.as_str())
        };
        DEBIAN.iter().position(known).map(Self)
    }

    /// Returns the code name, such as `trixie`.
    pub fn codename(self) -> &'static str {
        DEBIAN[self.0].1
    }

    /// Tells whether `<codename>-updates` and `<codename>-security` exist.
    pub fn has_updates(self) -> bool {
        DEBIAN[self.0].3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_the_same_source() {
        for (text, want, name) in [
            ("debian:trixie", "debian:trixie", "Debian-13"),
            ("Debian:13", "debian:trixie", "Debian-13"),
            ("debian:12.11", "debian:bookworm", "Debian-12"),
            ("debian:stable", "debian:trixie", "Debian-13"),
            ("debian:unstable", "debian:sid", "Debian-sid"),
        ] {
            let source = Source::parse(text).expect(text);
            assert_eq!(
                (source.to_string().as_str(), source.default_name().as_str()),
                (want, name)
            );
        }
        for source in Source::all() {
            assert_eq!(Source::parse(&source.to_string()), Ok(source));
        }
    }

    #[test]
    fn errors_list_what_is_known() {
        for bad in [
            "",
            "debian",
            "debian:",
            "debian:woody",
            "ubuntu:24.04",
            "trixie",
            "debian:13x",
            "debian:.",
        ] {
            let error = Source::parse(bad).expect_err(bad).to_string();
            assert!(error.contains("debian:trixie (debian:13)"), "{error}");
        }
    }
}
