//! The little of DNS messages (RFC 1035) that is looked at here.

/// The fixed part of every message.
const HEADER: usize = 12;

/// In the third byte: it is an answer.
const ANSWER: u8 = 0x80;
/// In the third byte: what an answer repeats of a question, its kind and "recursion desired".
const REPEATED: u8 = 0x79;
/// The fourth byte: recursion available, server failure.
const FAILURE: u8 = 0x80 | 2;

/// The longest name, in bytes.
const MAX_NAME: usize = 255;

/// Whether a message asks something.
pub(super) fn is_question(bytes: &[u8]) -> bool {
    bytes.len() >= HEADER && is_short(bytes) && bytes[2] & ANSWER == 0
}

/// Whether TCP's two bytes can tell the length.
fn is_short(message: &[u8]) -> bool {
    u16::try_from(message.len()).is_ok()
}

/// Makes the answer "server failure" to a question, with the question in it: askers compare it.
pub(super) fn server_failure(question: &[u8]) -> Vec<u8> {
    let end = question_end(question);
    let mut answer = question[..end.unwrap_or(HEADER)].to_vec();
    answer[2] = ANSWER | question[2] & REPEATED;
    answer[3] = FAILURE;
    // One question, or none that can be read; no records.
    answer[4..HEADER].copy_from_slice(&[0, u8::from(end.is_some()), 0, 0, 0, 0, 0, 0]);
    answer
}

/// Makes what the host said the answer to this very question; `None` when it is no answer at all.
pub(super) fn answer_to(question: &[u8], mut answer: Vec<u8>) -> Option<Vec<u8>> {
    let good = answer.len() >= HEADER && is_short(&answer) && answer[2] & ANSWER != 0;
    answer.get_mut(..2)?.copy_from_slice(&question[..2]);
    good.then_some(answer)
}

/// Returns where the first question of a message ends; `None` when there is not exactly one, or it makes no sense.
fn question_end(message: &[u8]) -> Option<usize> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1 + length;
        match length {
            0 => break,
            // Names in questions are written out.
            1..64 if at - HEADER < MAX_NAME => {}
            _ => return None,
        }
    }
    // Its type and class.
    (at + 4 <= message.len()).then_some(at + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &[u8] = b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\x01\x03www\x07example\0\0\x1c\0\x01";

    fn with_opt() -> Vec<u8> {
        let mut bytes = QUESTION.to_vec();
        bytes.extend(b"\0\0\x29\x10\0\0\0\0\0\0\0");
        bytes
    }

    #[test]
    fn a_failure_repeats_the_question_and_nothing_else() {
        let failure = server_failure(&with_opt());
        assert_eq!(failure[..4], *b"\x12\x34\x81\x82");
        assert_eq!(failure[4..12], [0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(failure[12..], QUESTION[12..]);
    }

    #[test]
    fn what_cannot_be_read_is_answered_without_a_question() {
        let two = [b"\0\0\0\0\0\x02\0\0\0\0\0\0".as_slice(), b"\0\0\x01\0\x01"].concat();
        let pointer = [&QUESTION[..12], b"\xc0\x0c\0\x01\0\x01"].concat();
        let endless = [&QUESTION[..12], &[1; 300]].concat();
        for question in [&two[..], &pointer, &endless, &QUESTION[..20]] {
            let failure = server_failure(question);
            assert_eq!((failure.len(), failure[5]), (HEADER, 0));
        }
    }

    #[test]
    fn only_questions_are_passed_on_and_only_answers_back() {
        assert!(is_question(QUESTION) && !is_question(&QUESTION[..11]));
        let mut answer = QUESTION.to_vec();
        assert_eq!(answer_to(QUESTION, answer.clone()), None);
        answer[2] |= ANSWER;
        assert!(!is_question(&answer));
        answer[0] = 0;
        assert_eq!(answer_to(QUESTION, answer).unwrap()[..2], *b"\x12\x34");
        assert_eq!(answer_to(QUESTION, vec![0x80; 11]), None);
        assert_eq!(answer_to(QUESTION, vec![]), None);
        assert_eq!(answer_to(QUESTION, vec![0x80; 70_000]), None);
    }

    proptest::proptest! {
        #[test]
        fn any_question_has_a_failure(bytes in proptest::collection::vec(0u8..=255, 0..600)) {
            if is_question(&bytes) {
                let failure = server_failure(&bytes);
                proptest::prop_assert!(failure.len() >= HEADER && failure.len() <= bytes.len());
                proptest::prop_assert_eq!(&failure[..2], &bytes[..2]);
                proptest::prop_assert!(!is_question(&failure));
                let _ = answer_to(&bytes, bytes.clone());
            }
        }
    }
}
