//! Sizes in bytes, written as WSL writes them (CLI-26).

use std::{fmt, str::FromStr};

/// A number of bytes.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Why a text is not a size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseBytesError {
    /// Not digits followed by an optional unit.
    #[error("`{0}` is not a size; write a whole number and a unit, such as 512MB or 4GB")]
    Malformed(String),
    /// More than 64 bits can hold.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

impl Bytes {
    /// Returns `n` kibibytes.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// Returns `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// Returns `n` gibibytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// Returns the size in whole mebibytes, rounded down.
    pub const fn whole_mib(self) -> u64 {
        self.0 >> 20
    }
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    /// Parses a decimal integer with an optional `B`, `K`, `KB`, `M`, `MB`, `G`, `GB`, `T` or `TB`; powers of 1024,
    /// upper case, no space and no fraction (CLI-26). Unlike the reference, overflow is an error.
    fn from_str(text: &str) -> Result<Self, ParseBytesError> {
        let malformed = || ParseBytesError::Malformed(text.to_owned());
        let end = text
            .bytes()
            .position(|b| !b.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        if digits.is_empty() || (digits.len() > 1 && digits.bytes().all(|b| b == b'0')) {
            return Err(malformed());
        }
        let shift = match unit {
            "" | "B" => 0,
            "K" | "KB" => 10,
            "M" | "MB" => 20,
            "G" | "GB" => 30,
            "T" | "TB" => 40,
            _ => return Err(malformed()),
        };
        digits
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| ParseBytesError::TooLarge(text.to_owned()))
    }
}

impl fmt::Display for Bytes {
    /// Writes the size with the largest unit that keeps at least one whole digit, one decimal below 100.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let decimals = usize::from(value < 100.0);
        write!(f, "{value:.decimals$} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CLI-26.
    #[test]
    fn sizes_parse_as_the_reference_parses_them() {
        for (text, want) in [
            ("0", Some(0)),
            ("0GB", Some(0)),
            ("1", Some(1)),
            ("7B", Some(7)),
            ("2K", Some(2048)),
            ("2KB", Some(2048)),
            ("3M", Some(3 << 20)),
            ("4GB", Some(4 << 30)),
            ("1T", Some(1 << 40)),
            ("00", None),
            ("", None),
            ("GB", None),
            ("1gb", None),
            ("1 GB", None),
            ("1.5GB", None),
            ("-1", None),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("99999999TB", None),
        ] {
            assert_eq!(text.parse::<Bytes>().ok().map(|b| b.0), want, "{text}");
        }
    }

    #[test]
    fn sizes_print_with_a_fitting_unit() {
        for (n, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (200 << 20, "200 MiB"),
            (1 << 40, "1.0 TiB"),
        ] {
            assert_eq!(Bytes(n).to_string(), want);
        }
    }
}
