//! The network: every backend, the relay, rooms, names and the firewall, each with real packets.

mod backends;
mod bench;
mod probe;
mod reach;

/// Tests with their names.
type Tests = &'static [(&'static str, fn())];

/// The tests of this directory, by module.
pub(crate) fn tests() -> Vec<(&'static str, Tests)> {
    vec![("backends", backends::TESTS)]
}
