//! Errors as they cross the wire and reach the user.

use std::fmt;

/// What kind of failure it was; decides how it is told, never what callers do (that is [`ErrorCode`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The user asked for something that cannot be.
    User,
    /// A configuration file or setting is wrong.
    Config,
    /// Something that is needed is missing or down.
    Unavailable,
    /// Hostel itself is at fault.
    Internal,
}

/// A failure that crosses the wire: a stable code, one message, and the next commands to try.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    /// The stable code; callers branch on this only.
    pub code: ErrorCode,
    /// One line for a person: names the thing, lower case, no full stop.
    pub message: String,
    /// What to do next, each a command or a short sentence.
    pub hints: Vec<String>,
}

impl Failure {
    /// Makes a failure without hints.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hints: Vec::new(),
        }
    }

    /// Adds a next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Makes a failure of an error, with its whole chain of sources in the message.
    pub fn from_error(code: ErrorCode, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            let text = inner.to_string();
            if !message.ends_with(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = inner.source();
        }
        Self::new(code, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $kind:ident;)*) => {
        /// A stable error code; the text form is what crosses the wire and what `--json` prints.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Returns the stable text form.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Returns the kind of failure the code belongs to.
            pub const fn kind(self) -> FailureKind {
                match self { $(Self::$name => FailureKind::$kind,)* }
            }
        }
    };
}

error_codes! {
    /// No distribution is registered at all.
    NoDefaultDistro = "no-default-distro", User;
    /// No distribution of that name.
    DistroNotFound = "distro-not-found", User;
    /// The name is taken.
    DistroExists = "distro-exists", User;
    /// The name is not a valid name.
    InvalidName = "invalid-name", User;
    /// The distribution is in a state that does not allow this.
    WrongState = "wrong-state", User;
    /// An argument is not valid.
    InvalidArgument = "invalid-argument", User;
    /// The user is not in the distribution's passwd file.
    UserNotFound = "user-not-found", User;
    /// The command was not found in the distribution.
    CommandNotFound = "command-not-found", User;
    /// The command was found but cannot be run.
    CommandNotExecutable = "command-not-executable", User;
    /// A file on the host cannot be read or written.
    File = "file", User;
    /// The archive is damaged or is not an archive.
    BadArchive = "bad-archive", User;
    /// The archive is whole, but is not a Linux root file system (IMG-2).
    NotALinuxDistro = "not-a-linux-distro", User;
    /// The host's disk is full.
    DiskFull = "disk-full", Unavailable;
    /// A distribution's disk is damaged.
    DiskCorrupted = "disk-corrupted", Unavailable;
    /// A disk or state file is used by someone else.
    Busy = "busy", Unavailable;
    /// A configuration file or value is wrong.
    Config = "config", Config;
    /// No kernel is installed, or it is not usable.
    KernelMissing = "kernel-missing", Unavailable;
    /// The kernel lacks a module.
    ModuleMissing = "module-missing", Unavailable;
    /// QEMU is not installed or too old.
    QemuMissing = "qemu-missing", Unavailable;
    /// Another program that is needed is not installed.
    ToolMissing = "tool-missing", Unavailable;
    /// The host has too little memory.
    OutOfMemory = "out-of-memory", Unavailable;
    /// The VM did not start.
    VmStart = "vm-start", Unavailable;
    /// The VM ended while it was in use.
    VmCrashed = "vm-crashed", Unavailable;
    /// The VM does not answer.
    VmHung = "vm-hung", Unavailable;
    /// The distribution did not start.
    DistroStart = "distro-start", Unavailable;
    /// The distribution ended while it was in use.
    DistroStopped = "distro-stopped", Unavailable;
    /// Client and daemon, or daemon and guest, do not understand each other.
    Incompatible = "incompatible", Unavailable;
    /// The daemon cannot be reached or started.
    Daemon = "daemon", Unavailable;
    /// Nothing listens at an address.
    Refused = "refused", Unavailable;
    /// An address cannot be reached, or does not answer in time.
    Unreachable = "unreachable", Unavailable;
    /// Something could not be fetched.
    Fetch = "fetch", Unavailable;
    /// A digest does not match.
    BadDigest = "bad-digest", Unavailable;
    /// Not possible on this host.
    Unsupported = "unsupported", Unavailable;
    /// The peer sent something it must not send.
    Protocol = "protocol", Internal;
    /// State on disk cannot be understood.
    State = "state", Internal;
    /// A defect of ours.
    Internal = "internal", Internal;
}

impl ErrorCode {
    /// Returns the code of a text form; `None` for a code that a newer peer made up.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|c| c.as_str() == text)
    }
}

impl serde::Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for ErrorCode {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        Ok(Self::from_text(&text).unwrap_or(Self::Internal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_distinct_texts_that_read_back() {
        for (i, code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(ErrorCode::from_text(code.as_str()), Some(*code));
            assert!(
                ErrorCode::ALL[..i]
                    .iter()
                    .all(|c| c.as_str() != code.as_str())
            );
        }
    }

    #[test]
    fn a_chain_of_sources_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open `x`")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("broken"));
        assert_eq!(
            Failure::from_error(ErrorCode::File, &error).message,
            "cannot open `x`: broken"
        );
    }
}
