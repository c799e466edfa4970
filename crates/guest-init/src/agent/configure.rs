//! Settling the machine as the host wants it. May be done again at any time; nothing here is fatal except a clock or seed that
//! cannot be set, and even these only warn (NET-3, ERR-4).

use std::fmt::Display;

use hostel_proto::v1;

use super::network::Network;
use super::{clock, resolver};
use crate::console::chain;

/// The longest name that sethostname(2) takes.
const MAX_NAME: usize = 64;

/// Does all that is asked for; returns what did not work, for people.
pub(crate) async fn apply(request: v1::ConfigureRequest) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut note = |what: &str, result: Result<(), String>| {
        if let Err(error) = result {
            warnings.push(format!("{what}: {error}"));
        }
    };
    // Randomness and time first: everything after may use them.
    if !request.entropy.is_empty() {
        note(
            "random numbers",
            clock::reseed(&request.entropy).map_err(text),
        );
    }
    if request.time_unix_ns != 0 {
        note("clock", clock::set(request.time_unix_ns).map_err(text));
    }
    if !request.hostname.is_empty() {
        note(
            "host name",
            name(&request.hostname, rustix::system::sethostname),
        );
    }
    if !request.domain.is_empty() {
        note(
            "domain",
            name(&request.domain, rustix::system::setdomainname),
        );
    }
    if let Some(wanted) = &request.network {
        let (file, left_out) = resolver::text(&wanted.dns, &wanted.search);
        // In place: distributions show this very inode (DNS-5).
        note(
            "resolver",
            fs_err::write(resolver::PATH, file).map_err(text),
        );
        for warning in left_out {
            note("resolver", Err(warning));
        }
        let applied = match Network::parse(wanted) {
            Ok(network) => network.apply().await,
            Err(error) => Err(error),
        };
        note("network", applied.map_err(|e| chain(&e)));
    }
    warnings
}

fn name(name: &str, set: impl FnOnce(&[u8]) -> rustix::io::Result<()>) -> Result<(), String> {
    if name.len() > MAX_NAME || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("not a name of at most 64 characters without spaces".to_owned());
    }
    set(name.as_bytes()).map_err(text)
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_asked_for_is_nothing_done() {
        assert!(apply(v1::ConfigureRequest::default()).await.is_empty());
    }

    #[test]
    fn names_are_checked_before_they_are_set() {
        let never = |_: &[u8]| panic!("must not be set");
        assert!(name("a b", never).is_err());
        assert!(name("a\0b", never).is_err());
        assert!(name(&"x".repeat(65), never).is_err());
        assert!(
            name("fine", |n| {
                assert_eq!(n, b"fine");
                Ok(())
            })
            .is_ok()
        );
    }
}
