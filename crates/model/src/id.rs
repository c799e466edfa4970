//! Identifiers that are made by us and never typed by a user.

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// The id of a registered distribution; it never changes, also when the distribution is renamed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct DistroId(Uuid);

impl DistroId {
    /// Makes a new random id.
    pub fn new_random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Returns the SCSI serial of the distribution's disk: the first 20 hex digits of the id.
    ///
    /// Twenty because QEMU's `scsi-hd` carries at most 36 and udev-style tools cut at 20.
    pub fn disk_serial(self) -> String {
        let mut text = self.0.simple().to_string();
        text.truncate(20);
        text
    }
}

impl fmt::Display for DistroId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for DistroId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::parse_str(text).map(Self)
    }
}

/// The id of one session: one command that a client started in a distribution.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct SessionId(Uuid);

impl SessionId {
    /// Makes a new random id.
    pub fn new_random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SessionId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::parse_str(text).map(Self)
    }
}

/// A one-time token that claims a raw stream; sent as its 32 bytes at the start of the connection.
///
/// Made of two version 4 UUIDs, that is 244 random bits from the kernel. `Debug` shows only the first four bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token([u8; Token::LEN]);

impl Token {
    /// The length of a token on the wire, in bytes.
    pub const LEN: usize = 32;

    /// Makes a new random token.
    pub fn new_random() -> Self {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(Uuid::new_v4().as_bytes());
        bytes[16..].copy_from_slice(Uuid::new_v4().as_bytes());
        Self(bytes)
    }

    /// Takes a token from its bytes; `None` when the length is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Returns the bytes as they go over the wire.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Token({:02x}{:02x}{:02x}{:02x}…)",
            self.0[0], self.0[1], self.0[2], self.0[3]
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_tokens_are_their_own_text_or_bytes() {
        let id = DistroId::new_random();
        assert_eq!(id.to_string().parse::<DistroId>().unwrap(), id);
        assert_eq!(id.disk_serial().len(), 20);
        let token = Token::new_random();
        assert_eq!(Token::from_bytes(token.as_bytes()), Some(token));
        assert_eq!(Token::from_bytes(&[0; 31]), None);
        assert_ne!(Token::new_random(), token);
    }
}
