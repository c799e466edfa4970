//! A setting that a person may have edited badly: the rest of its file stays good, and the bad value stays where it is.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

/// A setting of a state file, or what is written in its place and cannot be understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting<T> {
    /// Understood.
    Good(T),
    /// Not understood; written back as it is.
    Bad {
        /// What is there.
        written: serde_json::Value,
        /// Why it cannot be used.
        why: String,
    },
}

impl<T: Default> Default for Setting<T> {
    fn default() -> Self {
        Self::Good(T::default())
    }
}

impl<T: Clone + Default> Setting<T> {
    /// Returns the value, the default one in place of a bad one.
    pub fn get(&self) -> T {
        match self {
            Self::Good(value) => value.clone(),
            Self::Bad { .. } => T::default(),
        }
    }
}

impl<T: Default + PartialEq> Setting<T> {
    /// Tells whether it need not be written.
    pub fn is_default(&self) -> bool {
        matches!(self, Self::Good(value) if *value == T::default())
    }
}

impl<T> Setting<T> {
    /// Returns why the value cannot be used.
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::Good(_) => None,
            Self::Bad { why, .. } => Some(why),
        }
    }
}

impl<T> From<T> for Setting<T> {
    fn from(value: T) -> Self {
        Self::Good(value)
    }
}

impl<T: Serialize> Serialize for Setting<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Good(value) => value.serialize(serializer),
            Self::Bad { written, .. } => written.serialize(serializer),
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Setting<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = serde_json::Value::deserialize(deserializer)?;
        Ok(match T::deserialize(&written) {
            Ok(value) => Self::Good(value),
            Err(error) => Self::Bad {
                why: error.to_string(),
                written,
            },
        })
    }
}
