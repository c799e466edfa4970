//! The table of `docs/networking.md` that says who reaches whom, asked of real backends.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::OnceLock,
};

use hostel_tests::{
    run::{DEADLINE, until},
    world::{UPLINK, servers},
};

use super::{
    bench::{Bench, ISOLATED, OTHER, ROOM, SECOND_ROOM},
    probe::{
        guest_asks_by_udp, guest_fetches, guest_pings, host_fetches, internet, serve_in_guest,
        serve_on_host, stranger_connects,
    },
};
use crate::shared::SMALL;

/// Asks every question of the table and compares the answers.
pub(super) fn matches_the_table(bench: &Bench) {
    let column = bench.backend;
    let promised = table();
    let promised = promised
        .get(column)
        .unwrap_or_else(|| panic!("docs/networking.md has no column `{column}`"));
    let found = ask(bench);
    let rows: Vec<&String> = promised.keys().collect();
    assert_eq!(
        rows,
        found.keys().collect::<Vec<_>>(),
        "every row is asked, and every question has a row"
    );
    let wrong: Vec<String> = found
        .iter()
        .filter(|(row, reached)| promised[*row] != **reached)
        .map(|(row, reached)| format!("{column}: {row}: {reached}, the table says otherwise"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Asks: may they reach each other?
fn ask(bench: &Bench) -> BTreeMap<String, bool> {
    let home = &bench.home;
    let port = bench.port;
    let gateway = bench.gateway();
    let uplink: Ipv4Addr = UPLINK.parse().unwrap();
    let vm = bench.vm();
    let (room, second) = (bench.address(ROOM), bench.address(SECOND_ROOM));
    let isolated = bench.address(ISOLATED);
    let _servers = [
        serve_in_guest(home, OTHER, "0.0.0.0", port),
        serve_in_guest(home, ROOM, "0.0.0.0", port),
        serve_in_guest(home, SECOND_ROOM, "0.0.0.0", port),
        serve_in_guest(home, ISOLATED, "0.0.0.0", port),
    ];
    // Of the host: open to everyone, and to itself only.
    static HOST: OnceLock<(u16, u16)> = OnceLock::new();
    let (open, closed) = *HOST.get_or_init(|| {
        (
            serve_on_host(Ipv4Addr::UNSPECIFIED.into()),
            serve_on_host(Ipv4Addr::LOCALHOST.into()),
        )
    });
    let at = |address: Ipv4Addr, port: u16| SocketAddr::from((address, port));
    let serves = |address: Ipv4Addr, name: &str| {
        host_fetches(at(address, port)).is_some_and(|who| {
            assert_eq!(who, name, "somebody else answers at {address}:{port}");
            true
        })
    };
    let local = |room: Ipv4Addr| {
        let [_, b, c, d] = room.octets();
        Ipv4Addr::new(127, b, c, d)
    };
    // The relay follows the listeners; nothing else in the table has to be waited for.
    until("the relay knows the servers", DEADLINE, || {
        let shared = host_fetches(at(Ipv4Addr::LOCALHOST, port));
        let rooms = [room, second].map(|r| host_fetches(at(local(r), port)));
        (shared.is_some() && rooms.iter().all(Option::is_some)).then_some(())
    })
    .unwrap();
    let guest_gets = |distro: &str, address: Ipv4Addr, port| {
        let line =
            format!("timeout 3 wget -q -O - http://{address}:{port}/ >/dev/null && echo yes");
        home.sh(distro, &line).text() == "yes"
    };
    let http = at(internet(), servers::HTTP);
    let rows = [
        (
            "VM → host, at the gateway",
            guest_fetches(home, SMALL, at(gateway, open)),
        ),
        (
            "VM → host, at its own address",
            guest_fetches(home, SMALL, at(uplink, open)),
        ),
        (
            "VM → host's 127.0.0.1 only",
            guest_fetches(home, SMALL, at(gateway, closed)),
        ),
        ("VM → internet, TCP", guest_fetches(home, SMALL, http)),
        (
            "VM → internet, UDP",
            guest_asks_by_udp(home, SMALL, internet()),
        ),
        (
            "VM → internet, ICMP",
            guest_pings(home, SMALL, IpAddr::V4(internet())),
        ),
        ("host → VM, at its address", serves(vm, OTHER)),
        (
            "host → VM, at 127.0.0.1",
            serves(Ipv4Addr::LOCALHOST, OTHER),
        ),
        ("room → internet", guest_fetches(home, ROOM, http)),
        (
            "room → host, at the gateway",
            guest_fetches(home, ROOM, at(gateway, open)),
        ),
        (
            "room → host, at its own address",
            guest_fetches(home, ROOM, at(uplink, open)),
        ),
        ("room → VM", guest_gets(ROOM, vm, port)),
        ("VM → room", guest_gets(SMALL, room, port)),
        ("room → room", guest_gets(ROOM, second, port)),
        (
            "isolated room → internet",
            guest_fetches(home, ISOLATED, http),
        ),
        (
            "isolated room → host, at the gateway",
            guest_fetches(home, ISOLATED, at(gateway, open)),
        ),
        (
            "isolated room → host, at its own address",
            guest_fetches(home, ISOLATED, at(uplink, open)),
        ),
        ("isolated room → VM", guest_gets(ISOLATED, vm, port)),
        ("isolated room → room", guest_gets(ISOLATED, room, port)),
        ("room → isolated room", guest_gets(ROOM, isolated, port)),
        ("host → room, at its address", serves(room, ROOM)),
        ("host → room, at 127.x", serves(local(room), ROOM)),
        ("other machines → VM", stranger_connects(at(vm, port))),
    ];
    rows.into_iter()
        .map(|(row, reached)| (row.to_owned(), reached))
        .collect()
}

/// Reads the table of the document: backend → row → yes.
fn table() -> BTreeMap<String, BTreeMap<String, bool>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/networking.md");
    let text = fs_err::read_to_string(path).unwrap();
    let (_, rest) = text
        .split_once("<!-- reach-table -->")
        .expect("docs/networking.md marks its table");
    let mut lines = rest
        .lines()
        .map(str::trim)
        .skip_while(|l| !l.starts_with('|'))
        .take_while(|l| l.starts_with('|'))
        .map(|l| {
            let cells = l.trim_matches('|').split('|');
            cells.map(|c| c.trim().to_owned()).collect::<Vec<_>>()
        });
    let head = lines.next().expect("the table has a head");
    let mut table = BTreeMap::new();
    for row in lines.skip(1) {
        for (backend, cell) in head.iter().zip(&row).skip(1) {
            let reached = match cell.as_str() {
                "yes" => true,
                "no" => false,
                other => panic!("`{other}` in the table is neither yes nor no"),
            };
            table
                .entry(backend.clone())
                .or_insert_with(BTreeMap::new)
                .insert(row[0].clone(), reached);
        }
    }
    table
}
