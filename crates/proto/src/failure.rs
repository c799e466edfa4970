//! A [`Failure`] inside a gRPC status: the code and the hints travel as metadata, the message as the status message.

use hostel_model::{ErrorCode, Failure, FailureKind};
use tonic::{Code, Status, metadata::MetadataValue};

const CODE: &str = "hostel-code";
const HINT: &str = "hostel-hint-bin";

/// The most hints that are taken from a peer.
const MAX_HINTS: usize = 16;

/// The longest message that is taken from a peer, in bytes.
const MAX_TEXT: usize = 64 << 10;

/// Packs a failure into a status.
pub fn status_of(failure: &Failure) -> Status {
    let code = match failure.code.kind() {
        FailureKind::User | FailureKind::Config => Code::FailedPrecondition,
        FailureKind::Unavailable => Code::Unavailable,
        FailureKind::Internal => Code::Internal,
    };
    let mut status = Status::new(code, failure.message.clone());
    let metadata = status.metadata_mut();
    metadata.insert(CODE, MetadataValue::from_static(failure.code.as_str()));
    for hint in &failure.hints {
        metadata.append_bin(HINT, MetadataValue::from_bytes(hint.as_bytes()));
    }
    status
}

/// Unpacks a failure from a status; one that did not come from us gets a code that fits.
pub fn failure_of(status: &Status) -> Failure {
    let code = status
        .metadata()
        .get(CODE)
        .and_then(|v| v.to_str().ok())
        .and_then(ErrorCode::from_text);
    let mut message = status.message().to_owned();
    if message.is_empty() {
        message = format!("the peer answered `{}`", status.code().description());
    }
    truncate(&mut message);
    let code = code.unwrap_or(match status.code() {
        Code::Unimplemented => ErrorCode::Incompatible,
        Code::InvalidArgument | Code::OutOfRange | Code::ResourceExhausted => ErrorCode::Protocol,
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => ErrorCode::Daemon,
        _ => ErrorCode::Internal,
    });
    let hints = status
        .metadata()
        .get_all_bin(HINT)
        .iter()
        .take(MAX_HINTS)
        .filter_map(|v| v.to_bytes().ok())
        .map(|b| {
            let mut text = String::from_utf8_lossy(&b).into_owned();
            truncate(&mut text);
            text
        })
        .collect();
    Failure {
        code,
        message,
        hints,
    }
}

/// Cuts a text at [`MAX_TEXT`], on a character boundary.
fn truncate(text: &mut String) {
    if text.len() > MAX_TEXT {
        let mut end = MAX_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_wire() {
        let failure = Failure::new(ErrorCode::DistroNotFound, "no distribution `é`")
            .hint("hostel list")
            .hint("ü");
        assert_eq!(failure_of(&status_of(&failure)), failure);
    }

    #[test]
    fn a_foreign_status_becomes_a_failure() {
        let failure = failure_of(&Status::unimplemented(""));
        assert_eq!(failure.code, ErrorCode::Incompatible);
        assert!(!failure.message.is_empty());
    }

    #[test]
    fn an_endless_message_is_cut() {
        let failure = failure_of(&Status::internal("é".repeat(MAX_TEXT)));
        assert!(failure.message.len() <= MAX_TEXT);
    }
}
