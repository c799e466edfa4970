//! DNS messages: questions from the guest, answers from the network.

use std::net::IpAddr;

use hostel_dns::{Names, probe};
use hostel_model::DistroName;

/// Takes a byte of options, the length of a question in two bytes, the question, and what a resolver answers to it.
pub fn dns(bytes: &[u8]) {
    let Some(([options, high, low], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let (tcp, best_effort) = (options & 1 != 0, options & 2 != 0);
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
    let (question, upstream) = rest.split_at(length);
    let address = IpAddr::from([172, 19, 132, 144]);
    let names = Names {
        host: vec![IpAddr::from([172, 19, 128, 1])],
        vm: vec![address],
        distros: [(
            DistroName::parse("Debian-12.5").expect("a name"),
            vec![address],
        )]
        .into(),
    };

    let Some(answer) = probe::answer(question, tcp, best_effort, &names, upstream) else {
        let is_answer = question.get(2).is_some_and(|flags| flags & 0x80 != 0);
        assert!(question.len() < 12 || is_answer, "a question is answered");
        return;
    };
    assert!(answer.len() >= 12 && answer.len() <= 65_535);
    assert_eq!(
        answer[..2],
        question[..2],
        "the asker knows its answer by the id"
    );
    assert!(
        answer[2] & 0x80 != 0,
        "an answer, so that nobody answers it"
    );
    assert_eq!(
        probe::answer(&answer, tcp, best_effort, &names, upstream),
        None
    );
    let most = edns_size(question).unwrap_or(512).max(512);
    assert!(tcp || answer.len() <= most, "{} > {most}", answer.len());
    // What comes of our own is as well-formed as what is asked of others.
    if !from_upstream(&answer, upstream) {
        let mut again = answer.clone();
        again[2] &= 0x07;
        let reply = probe::answer(&again, true, false, &names, &[]).expect("a question");
        let bare = again[4..6] == [0, 0];
        assert!(bare || reply[3] & 0x0f != 1, "{answer:?}");
    }
}

/// The largest size that any OPT record in there could name; an upper bound is all that is needed.
fn edns_size(question: &[u8]) -> Option<usize> {
    question
        .windows(5)
        .filter(|w| w[..3] == [0, 0, 41])
        .map(|w| usize::from(u16::from_be_bytes([w[3], w[4]])))
        .max()
}

/// Tells whether a message is the resolver's own but for its id.
fn from_upstream(answer: &[u8], upstream: &[u8]) -> bool {
    upstream.len() == answer.len() && upstream[2..] == answer[2..]
}
