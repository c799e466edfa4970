//! What can be wrong with an archive.

use std::io;

use crate::Compression;

/// Why an archive could not be read. Names in it are escaped and cut, so that they can be printed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no member in it, or not even a byte.
    #[error("the archive is empty")]
    Empty,
    /// The first bytes are those of something else.
    #[error("not a tar archive{}", .looks_like.map(|what| format!("; it looks like {what}")).unwrap_or_default())]
    NotAnArchive {
        /// What it is instead, where the first bytes tell.
        looks_like: Option<&'static str>,
    },
    /// The input itself failed.
    #[error("cannot read the archive")]
    Input(#[source] io::Error),
    /// The input ended where more had to come.
    #[error("the archive is cut short{}", place(.member.as_ref()))]
    Truncated {
        /// The member in which it ended, if any.
        member: Option<String>,
    },
    /// The compressed data is damaged, or needs more memory to unpack than is allowed.
    #[error("the {format} data is damaged or cannot be unpacked{}", place(.member.as_ref()))]
    Compression {
        /// How the archive is compressed.
        format: Compression,
        /// The member in which it happened, if any.
        member: Option<String>,
        /// What the decoder says.
        source: io::Error,
    },
    /// A header that is no header: the archive is damaged.
    #[error("the archive is damaged at byte {offset}: {what}")]
    Damaged {
        /// Where the header begins in the unpacked archive.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A member whose headers contradict themselves or exceed every reason.
    #[error("member `{member}` is damaged: {what}")]
    BadMember {
        /// Its name.
        member: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A member that must not be unpacked.
    #[error("member `{member}` is refused: {why}")]
    Refused {
        /// Its name.
        member: String,
        /// The reason.
        why: &'static str,
    },
    /// More members than the options allow.
    #[error("the archive has more than {0} members")]
    TooMany(u64),
    /// The receiver could not take an entry.
    #[error("cannot store `{path}`")]
    Sink {
        /// The entry's path.
        path: String,
        /// What the receiver says.
        source: io::Error,
    },
}

fn place(member: Option<&String>) -> String {
    match member {
        Some(name) => format!(" in member `{name}`"),
        None => String::new(),
    }
}

impl ReadError {
    pub(crate) fn bad(member: &[u8], what: &'static str) -> Self {
        Self::BadMember {
            member: shown(member),
            what,
        }
    }

    pub(crate) fn refused(member: &[u8], why: &'static str) -> Self {
        Self::Refused {
            member: shown(member),
            why,
        }
    }
}

/// Makes a name of an archive fit to print: escaped, at most 200 characters.
pub(crate) fn shown(name: &[u8]) -> String {
    const MAX: usize = 200;
    let text = String::from_utf8_lossy(&name[..name.len().min(4 * MAX)]);
    let mut out: String = text
        .chars()
        .flat_map(char::escape_debug)
        .take(MAX)
        .collect();
    if out.len() < text.len() && out.chars().count() == MAX {
        out.push('…');
    }
    out
}
