//! The network: every backend, the relay, rooms, names and the firewall, each with real packets.

mod backends;
mod bench;
mod faults;
mod firewall;
mod follow;
mod names;
mod probe;
mod reach;
mod record;
mod relay;
mod rooms;
mod tour;

/// Tests with their names.
type Tests = &'static [(&'static str, fn())];

/// The tests of this directory, by module.
pub(crate) const TESTS: &[(&str, Tests)] = &[
    ("backends", backends::TESTS),
    ("relay", relay::TESTS),
    ("rooms", rooms::TESTS),
    ("names", names::TESTS),
    ("record", record::TESTS),
    ("firewall", firewall::TESTS),
    ("net_faults", faults::TESTS),
    ("tour", tour::TESTS),
];

/// Those that must not run beside others.
pub(crate) const ALONE: &[(&str, Tests)] = &[
    ("rooms", rooms::ALONE),
    ("names", names::ALONE),
    ("firewall", firewall::ALONE),
    ("net_faults", faults::ALONE),
    ("record", record::ALONE),
    ("follow", follow::ALONE),
];
