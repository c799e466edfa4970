//! A home with one backend and a full house: distributions that share, and rooms.

use std::net::Ipv4Addr;

use hostel_tests::{home::Home, run::host};
use serde_json::Value;

use crate::shared::{SMALL, small};

/// Shares the network with [`SMALL`].
pub(super) const OTHER: &str = "other";
/// Has a network of its own.
pub(super) const ROOM: &str = "room";
/// Another one.
pub(super) const SECOND_ROOM: &str = "second-room";
/// Has one that nobody else gets into.
pub(super) const ISOLATED: &str = "isolated";

/// The house.
pub(super) struct Bench {
    pub(super) home: Home,
    pub(super) backend: &'static str,
    /// Where its servers listen, and on the host's localhost too: one of its own, for another house may be there.
    pub(super) port: u16,
    net: Value,
}

impl Bench {
    /// Makes the house and starts everyone in it.
    pub(super) fn new(backend: &'static str) -> Self {
        let home = empty(backend);
        for name in [SMALL, OTHER, ROOM, SECOND_ROOM, ISOLATED] {
            home.import(name, &small());
        }
        for (name, network) in [(ROOM, "own"), (SECOND_ROOM, "own"), (ISOLATED, "isolated")] {
            home.run(&["manage", name, "--network", network]).ok();
        }
        for name in [SMALL, OTHER, ROOM, SECOND_ROOM, ISOLATED] {
            home.run(&["start", name]).ok();
        }
        let net = home.json(&["net", "show"]);
        assert_eq!(
            net["status"]["backend"], backend,
            "the backend that was asked for: {net:#}"
        );
        let port = match backend {
            "root" => 3000,
            "rootless" => 3010,
            "passt" => 3020,
            _ => 3030,
        };
        Self {
            home,
            backend,
            port,
            net,
        }
    }

    pub(super) fn gateway(&self) -> Ipv4Addr {
        self.net["status"]["gateway"]
            .as_str()
            .and_then(|a| a.parse().ok())
            .expect("an address")
    }

    pub(super) fn vm(&self) -> Ipv4Addr {
        self.net["status"]["address"]
            .as_str()
            .and_then(|a| a.parse().ok())
            .expect("an address")
    }

    /// Returns the address of a distribution with a network of its own.
    pub(super) fn address(&self, distro: &str) -> Ipv4Addr {
        let guests = self.net["guests"].as_array().expect("guests");
        let guest = guests.iter().find(|g| g["distro"] == distro);
        guest.expect("it is on the network")["address"]
            .as_str()
            .and_then(|a| a.parse().ok())
            .expect("an address")
    }
}

/// Makes a home without distributions whose VM gets one backend. All but `root` belong to an ordinary user.
pub(super) fn empty(backend: &str) -> Home {
    let home = Home::with_kernel().unwrap();
    home.configure("hostel", &format!("network={backend}"));
    if backend == "root" {
        return home;
    }
    // Without this an ordinary user's backend cannot send pings; most systems allow it.
    host("sysctl", &["-qw", "net.ipv4.ping_group_range=0 2147483647"])
        .unwrap()
        .ok();
    home.owned_by_a_user().unwrap()
}
