//! The relay into the machine, beside two relays in user space.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use hostel_tests::bench::{Row, median, peer, rate, rounds};

use crate::site::{ALL, Site};

/// How long one measurement lasts.
const TURN: f64 = 3.0;
/// First ports: of the servers on 127.0.0.1 and on ::1 in the machine, of the relay in the machine, of the one on the host.
const LOOPBACK: u16 = 7100;
const SIX: u16 = 7200;
const RELAY_INSIDE: u16 = 7300;
const RELAY_OUTSIDE: u16 = 7400;

/// Our ways into the machine, and the reference's: a relay on the host, and one in the machine that connects to the
/// listener's own address.
pub(crate) fn into_the_machine(site: &Site) -> Result<Vec<Row>> {
    let four = IpAddr::from(Ipv4Addr::LOCALHOST);
    let six = IpAddr::from(Ipv6Addr::LOCALHOST);
    let _inside = [
        site.play(&format!("serve 127.0.0.1 {LOOPBACK}")),
        site.play(&format!("serve ::1 {SIX}")),
        site.play(&format!(
            "relay 0.0.0.0 {RELAY_INSIDE} 127.0.0.1 {LOOPBACK}"
        )),
    ];
    let _outside = peer::spawn(
        &[],
        &format!(
            "relay 127.0.0.1 {RELAY_OUTSIDE} {} {RELAY_INSIDE}",
            site.address
        ),
    )?;
    let ways = [
        (four, ALL),
        (four, LOOPBACK),
        (six, SIX),
        (four, RELAY_OUTSIDE),
    ];
    for (address, first) in ways {
        peer::wait_for(&[], address, first)?;
    }
    let mut rows = Vec::new();
    for (what, verb) in [
        ("relay into the VM: bytes out of it", "download"),
        ("relay into the VM: bytes into it", "upload"),
        ("relay into the VM: connections", "connections"),
    ] {
        let mut seen = ways.map(|_| Vec::new());
        for _ in 0..rounds() {
            for ((address, first), seen) in ways.iter().zip(&mut seen) {
                let said = peer::ask(&[], &format!("{verb} {address} {first} {TURN}"))?;
                seen.push(said.parse::<f64>()?);
            }
        }
        let [all, loopback, channel, two] = seen.map(median);
        let unit = |value: f64| match verb {
            "connections" => format!("{value:.0}/s"),
            _ => rate(value),
        };
        rows.push(Row {
            what,
            promise: "≥ 2 x two relays in user space",
            seen: format!(
                "listener on all addresses {} = {:.1} x {}; on 127.0.0.1 only {} = {:.1} x; on ::1 only, by the agent, {} = {:.1} x",
                unit(all),
                all / two,
                unit(two),
                unit(loopback),
                loopback / two,
                unit(channel),
                channel / two,
            ),
            kept: all.min(loopback) / two >= 2.0,
        });
    }
    Ok(rows)
}
