//! Values of keys: what each type takes, and who has been asked for.

use std::{path::PathBuf, time::Duration};

use hostel_model::Bytes;

use crate::{
    FileKind, Level, Problem, Warning,
    ini::{Document, Entry, parse},
    warning::shown,
};

/// The entries of a file, handed out key by key; what nobody asked for is unknown.
pub(crate) struct Values {
    kind: FileKind,
    entries: Vec<(Entry, bool)>,
    warnings: Vec<Warning>,
}

/// Why a value does not fit its key: what it should be.
pub(crate) type Why = String;

impl Values {
    pub(crate) fn new(text: &str, kind: FileKind) -> Self {
        let Document {
            entries, warnings, ..
        } = parse(text, kind);
        Self {
            kind,
            entries: entries.into_iter().map(|entry| (entry, false)).collect(),
            warnings,
        }
    }

    /// Returns the first entry under any of the names, which are spellings of one key; later ones are duplicates.
    pub(crate) fn entry(&mut self, names: &[&str]) -> Option<Entry> {
        let mut first: Option<Entry> = None;
        for (entry, asked) in &mut self.entries {
            if !names
                .iter()
                .any(|name| entry.name.eq_ignore_ascii_case(name))
            {
                continue;
            }
            *asked = true;
            match &first {
                None => first = Some(entry.clone()),
                Some(first) => self.warnings.push(Warning {
                    level: self.kind.level(),
                    line: entry.line,
                    column: entry.column,
                    problem: Problem::Duplicate {
                        key: entry.written.clone(),
                        first: first.line,
                    },
                }),
            }
        }
        first
    }

    pub(crate) fn warn(&mut self, entry: &Entry, level: Level, problem: Problem) {
        self.warnings.push(Warning {
            level,
            line: entry.line,
            column: entry.column,
            problem,
        });
    }

    pub(crate) fn level(&self) -> Level {
        self.kind.level()
    }

    /// Returns a key's value; `None` when it is not given or does not fit, which is noted.
    pub(crate) fn get<T>(
        &mut self,
        names: &[&str],
        parse: impl Fn(&str) -> Result<T, Why>,
    ) -> Option<T> {
        let entry = self.entry(names)?;
        match parse(&entry.value) {
            Ok(value) => Some(value),
            Err(why) => {
                let problem = Problem::BadValue {
                    key: entry.written.clone(),
                    value: shown(&entry.value),
                    why,
                };
                self.warn(&entry, self.kind.level(), problem);
                None
            }
        }
    }

    /// Puts a key's value into its place, if there is one.
    pub(crate) fn set<T>(
        &mut self,
        place: &mut T,
        name: &str,
        parse: impl Fn(&str) -> Result<T, Why>,
    ) {
        if let Some(value) = self.get(&[name], parse) {
            *place = value;
        }
    }

    /// Returns all problems in the order of the file, unknown keys among them.
    pub(crate) fn finish(mut self) -> Vec<Warning> {
        for (entry, _) in self.entries.iter().filter(|(_, asked)| !asked) {
            self.warnings.push(Warning {
                level: self.kind.level(),
                line: entry.line,
                column: entry.column,
                problem: Problem::UnknownKey(shown(&entry.written)),
            });
        }
        self.warnings
            .sort_by_key(|warning| (warning.line, warning.column));
        self.warnings
    }
}

/// CLI-27.
pub(crate) fn boolean(text: &str) -> Result<bool, Why> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("it is `true` or `false`".to_owned()),
    }
}

/// CNF-6.
pub(crate) fn integer(text: &str) -> Result<i32, Why> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let hex = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"));
    let (digits, base) = match hex {
        Some(hex) => (hex, 16),
        None if digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    let parsed = if digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        i64::from_str_radix(digits, base).ok()
    } else {
        None
    };
    parsed
        .and_then(|n| i32::try_from(if negative { -n } else { n }).ok())
        .ok_or_else(|| "it is a whole number of at most 32 bits".to_owned())
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the shape that all types of values share"
)]
pub(crate) fn string(text: &str) -> Result<String, Why> {
    Ok(text.to_owned())
}

/// A string of which an empty one means none.
#[expect(
    clippy::unnecessary_wraps,
    reason = "the shape that all types of values share"
)]
pub(crate) fn optional_string(text: &str) -> Result<Option<String>, Why> {
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

pub(crate) fn path(text: &str) -> Result<Option<PathBuf>, Why> {
    if text.contains('\0') {
        return Err("a path holds no NUL".to_owned());
    }
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

/// A path inside an image, from its root.
pub(crate) fn image_path(text: &str) -> Result<Option<PathBuf>, Why> {
    if text.split('/').any(|part| part == "..") {
        return Err("it may not contain `..`".to_owned());
    }
    path(text)
}

/// CLI-26.
pub(crate) fn size(text: &str) -> Result<Bytes, Why> {
    text.parse()
        .map_err(|_| "it is a whole number and a unit, such as `512MB` or `4GB`".to_owned())
}

/// Milliseconds that cannot be negative.
pub(crate) fn millis(text: &str) -> Result<Duration, Why> {
    let millis = integer(text)?;
    u64::try_from(millis)
        .map(Duration::from_millis)
        .map_err(|_| "it is a number of milliseconds, not negative".to_owned())
}

/// Milliseconds of which a negative number means never.
pub(crate) fn millis_or_never(text: &str) -> Result<Option<Duration>, Why> {
    Ok(u64::try_from(integer(text)?)
        .ok()
        .map(Duration::from_millis))
}

/// One of some words, in any case.
pub(crate) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, Why> {
    let found = words
        .iter()
        .find(|(word, _)| word.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        format!("it is one of {}", words.join(", "))
    })
}

/// Returns the good items of a key that holds a list; the others are noted. `None` when the key is not given, or gives
/// items but no good one.
pub(crate) fn items<T>(
    v: &mut Values,
    key: &str,
    parse: impl Fn(&str) -> Result<T, Why>,
) -> Option<Vec<T>> {
    let entry = v.entry(&[key])?;
    let mut found = Vec::new();
    let mut bad = false;
    for part in list(&entry.value) {
        match parse(part) {
            Ok(item) => found.push(item),
            Err(why) => {
                bad = true;
                let problem = Problem::BadItem {
                    key: entry.written.clone(),
                    value: shown(part),
                    why,
                };
                v.warn(&entry, v.level(), problem);
            }
        }
    }
    (!bad || !found.is_empty()).then_some(found)
}

/// Reads a port: 1 to 65535.
pub(crate) fn port(text: &str) -> Result<u16, Why> {
    let port = integer(text).ok().and_then(|port| u16::try_from(port).ok());
    port.filter(|port| *port > 0)
        .ok_or_else(|| "a port is a number from 1 to 65535".to_owned())
}

/// Returns the parts of a list: between commas, without the empty ones.
pub(crate) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CNF-6.
    #[test]
    fn integers_follow_c() {
        for (text, want) in [
            ("0", Some(0)),
            ("42", Some(42)),
            ("-42", Some(-42)),
            ("+7", Some(7)),
            ("0x1F", Some(31)),
            ("-0x10", Some(-16)),
            ("022", Some(18)),
            ("2147483647", Some(i32::MAX)),
            ("-2147483648", Some(i32::MIN)),
            ("0xffffffff", None),
            ("2147483648", None),
            ("", None),
            ("-", None),
            ("0x", None),
            ("08", None),
            ("1.5", None),
            ("12a", None),
            ("--1", None),
            ("-+1", None),
            ("0x-1", None),
            (" 1", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(integer(text).ok(), want, "{text}");
        }
    }

    /// CLI-27.
    #[test]
    fn booleans_are_four_words() {
        for (text, want) in [
            ("1", Some(true)),
            ("true", Some(true)),
            ("TRUE", Some(true)),
            ("0", Some(false)),
            ("False", Some(false)),
            ("yes", None),
            ("on", None),
            ("", None),
            ("2", None),
            ("tru", None),
        ] {
            assert_eq!(boolean(text).ok(), want, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_judged_without_a_panic(text in "\\PC{0,30}") {
            let _ = (integer(&text), boolean(&text), size(&text), millis(&text), image_path(&text));
        }

        #[test]
        fn decimal_integers_come_back(n in proptest::num::i32::ANY) {
            proptest::prop_assert_eq!(integer(&n.to_string()), Ok(n));
            proptest::prop_assert_eq!(integer(&format!("{:#x}", n.unsigned_abs() >> 1)), Ok((n.unsigned_abs() >> 1) as i32));
        }
    }
}
