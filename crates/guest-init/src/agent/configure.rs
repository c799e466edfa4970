//! Settling the machine as the host wants it. May be done again at any time; nothing here is fatal except a clock or seed that
//! cannot be set, and even these only warn (NET-3, ERR-4).

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use hostel_netlink::{Prefix, Routing};
use hostel_proto::v1;

use super::dns;
use super::network::Network;
use super::service::State;
use super::{clock, resolver};
use crate::console::chain;

/// The longest name that sethostname(2) takes.
const MAX_NAME: usize = 64;

/// The interface to the outside, which gets no answers about names.
const OUTSIDE: &str = "eth0";

/// The number of `lo`, in every network namespace.
const LOOPBACK: u32 = 1;

/// Does all that is asked for; returns what did not work, for people.
pub(crate) async fn apply(request: v1::ConfigureRequest, state: &State) -> Vec<String> {
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
        match resolver::write(Path::new(resolver::PATH), wanted) {
            Ok(left_out) => left_out
                .into_iter()
                .for_each(|warning| note("resolver", Err(warning))),
            Err(error) => note("resolver", Err(text(error))),
        }
        let applied = async {
            let network = Network::parse(wanted)?;
            let card = network.apply().await?;
            let outcome = network.apply6(card);
            state.keeper.configured(network, card);
            outcome
        };
        note("network", applied.await.map_err(|e| chain(&e)));
        // After the network: what is outside has to be known.
        note("names", names(&wanted.dns_tunnel, state).await);
    }
    warnings
}

/// Takes questions about names at an address of the machine's own; at none when it is empty.
async fn names(tunnel: &str, state: &State) -> Result<(), String> {
    let address = match tunnel {
        "" => None,
        text => match text.parse::<IpAddr>() {
            Ok(address) if !address.is_unspecified() && !address.is_multicast() => Some(address),
            _ => {
                let shown: String = text.chars().take(64).collect();
                return Err(format!("`{}` is not an address", shown.escape_debug()));
            }
        },
    };
    if let Some(address) = address {
        let added = Routing::connect().and_then(|r| r.add_address(LOOPBACK, Prefix::host(address)));
        added.map_err(|e| format!("cannot put {address} on `lo`: {}", chain(&e)))?;
    }
    let served = state.dns.serve_at(address, Some(OUTSIDE)).await;
    let before = served.map_err(|e| chain(&e))?;
    if let Some(before) = before {
        // One that is gone already is as good.
        let _ = Routing::connect().and_then(|r| r.delete_address(LOOPBACK, Prefix::host(before)));
    }
    state
        .ports
        .hide(address.map(|address| SocketAddr::new(address, dns::PORT)));
    Ok(())
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
    use crate::agent::dial::Dialer;

    #[tokio::test]
    async fn nothing_asked_for_is_nothing_done() {
        let state = State::new(Dialer::Unix("/nonexistent".into()));
        let warnings = apply(v1::ConfigureRequest::default(), &state).await;
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[tokio::test]
    async fn what_is_no_address_serves_no_names() {
        let state = State::new(Dialer::Unix("/nonexistent".into()));
        for tunnel in ["resolver", "0.0.0.0", "ff02::1", "10.0.0.1\n"] {
            assert!(names(tunnel, &state).await.is_err(), "{tunnel}");
        }
        assert!(names("", &state).await.is_ok());
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
