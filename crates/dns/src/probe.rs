//! One question from its first byte to its answer without sockets: what fuzzing and measuring need.

use std::sync::Arc;

use crate::{
    house::{House, Names},
    message::{Query, Rcode, Refusal, Reply},
    resolver::at_home,
};

/// Answers `message` as [`crate::Resolver::answer`] does, with `upstream` in place of what a resolver on the network sends.
pub fn answer(
    message: &[u8],
    tcp: bool,
    best_effort: bool,
    names: &Names,
    upstream: &[u8],
) -> Option<Vec<u8>> {
    let query = match Query::parse(message, best_effort) {
        Ok(query) => query,
        Err(Refusal::Silent) => return None,
        Err(Refusal::Answer(answer)) => return Some(answer),
    };
    let (house, _) = House::new("hostel", names);
    let answer = at_home(&query, &house, Arc::default).unwrap_or_else(|| {
        let id = upstream.first_chunk().copied().unwrap_or_default();
        query
            .judge(u16::from_be_bytes(id), upstream)
            .map_or_else(|| query.answer(Rcode::ServFail, &[]), Reply::into_message)
    });
    Some(query.deliver(answer, tcp))
}
