//! Distributions with a network of their own.

use std::net::{Ipv4Addr, SocketAddr};

use hostel_tests::{
    home::Home,
    run::{DEADLINE, until},
    world::{INTERNET, servers::PAGE},
};

use super::{
    Tests,
    probe::{host_fetches, serve_in_guest},
};
use crate::shared::{SMALL, debian, small};

pub(crate) const TESTS: Tests = &[
    (
        "a_room_is_moved_into_and_out_of",
        a_room_is_moved_into_and_out_of,
    ),
    ("rooms_share_a_port_number", rooms_share_a_port_number),
    (
        "an_isolated_room_holds_against_its_root",
        an_isolated_room_holds_against_its_root,
    ),
    (
        "engines_inside_make_networks_of_their_own",
        engines_inside_make_networks_of_their_own,
    ),
    (
        "addresses_of_rooms_are_checked",
        addresses_of_rooms_are_checked,
    ),
    ("a_killed_room_leaves_nothing", a_killed_room_leaves_nothing),
];

fn house(names: &[&str]) -> Home {
    let home = Home::with_kernel().unwrap();
    for name in names {
        home.import(name, &small());
    }
    home
}

fn address(home: &Home, distro: &str) -> Ipv4Addr {
    home.json(&["inspect", distro])["address"]
        .as_str()
        .and_then(|a| a.parse().ok())
        .expect("it has an address")
}

fn inode(home: &Home, distro: &str) -> String {
    home.sh(distro, "readlink /proc/self/ns/net").ok()
}

fn a_room_is_moved_into_and_out_of() {
    let home = house(&[SMALL, "mover"]);
    home.run(&["start", SMALL]).ok();
    home.run(&["start", "mover"]).ok();
    assert_eq!(inode(&home, SMALL), inode(&home, "mover"));
    let said = home.run(&["manage", "mover", "--network", "own"]);
    assert!(
        format!("{}{}", said.text(), said.stderr).contains("hostel restart mover"),
        "a running one keeps what it has, and that is said: {} {}",
        said.text(),
        said.stderr
    );
    assert_eq!(inode(&home, SMALL), inode(&home, "mover"));
    home.run(&["restart", "mover"]).ok();
    assert_ne!(inode(&home, SMALL), inode(&home, "mover"));
    let first = address(&home, "mover");
    let shown = home
        .sh("mover", "ip -4 addr show dev eth0; ls /sys/class/net")
        .ok();
    assert!(shown.contains(&format!("{first}/20")), "{shown}");
    let links: Vec<&str> = shown.lines().rev().take(2).collect();
    assert!(
        links.contains(&"eth0") && links.contains(&"lo"),
        "its own interfaces only: {shown}"
    );
    assert_eq!(
        home.sh("mover", &format!("wget -q -O - http://{INTERNET}/"))
            .ok(),
        PAGE
    );
    // The address stays.
    home.run(&["shutdown"]).ok();
    home.run(&["start", "mover"]).ok();
    assert_eq!(address(&home, "mover"), first);
    home.run(&["manage", "mover", "--network", "shared"]).ok();
    home.run(&["restart", "mover"]).ok();
    home.run(&["start", SMALL]).ok();
    assert_eq!(inode(&home, SMALL), inode(&home, "mover"));
    home.run(&["manage", "mover", "--network", "own"]).ok();
    assert_eq!(address(&home, "mover"), first, "kept for life");
}

/// #4304 of the reference, "by design" there.
fn rooms_share_a_port_number() {
    const NAMES: [&str; 3] = ["one", "two", "three"];
    let home = house(&NAMES);
    for name in &NAMES[1..] {
        home.run(&["manage", name, "--network", "own"]).ok();
    }
    let _servers = NAMES.map(|name| serve_in_guest(&home, name, "0.0.0.0", 3000));
    let local = |name| {
        let [_, b, c, d] = address(&home, name).octets();
        Ipv4Addr::new(127, b, c, d)
    };
    let places = [
        (Ipv4Addr::LOCALHOST, "one"),
        (address(&home, "two"), "two"),
        (address(&home, "three"), "three"),
        (local("two"), "two"),
        (local("three"), "three"),
    ];
    for (place, name) in places {
        until(&format!("{name} answers at {place}"), DEADLINE, || {
            host_fetches(SocketAddr::from((place, 3000))).filter(|who| who == name)
        })
        .unwrap();
    }
    // One that listens on its own loopback only is on the host's all the same, and nowhere else.
    let _server = serve_in_guest(&home, "two", "127.0.0.1", 3001);
    until("the loopback of a room is relayed", DEADLINE, || {
        host_fetches(SocketAddr::from((local("two"), 3001))).filter(|who| who == "two")
    })
    .unwrap();
    assert_eq!(
        host_fetches(SocketAddr::from((address(&home, "two"), 3001))),
        None
    );
    let names = home.sh("one", "nslookup three.hostel | tail -n 3").ok();
    assert!(
        names.contains(&address(&home, "three").to_string()),
        "{names}"
    );
}

fn an_isolated_room_holds_against_its_root() {
    let home = house(&["jail", "neighbour"]);
    home.run(&["manage", "jail", "--network", "isolated"]).ok();
    home.run(&["manage", "neighbour", "--network", "own"]).ok();
    let _server = serve_in_guest(&home, "neighbour", "0.0.0.0", 3000);
    let neighbour = address(&home, "neighbour");
    let net = home.json(&["net", "show"]);
    let vm = net["status"]["address"].as_str().unwrap().to_owned();
    let gateway = net["status"]["gateway"].as_str().unwrap().to_owned();
    let tries = |target: &str| {
        let line = format!(
            "timeout 3 wget -q -O - http://{target}/ >/dev/null && echo reached || echo no"
        );
        home.sh("jail", &line).ok()
    };
    let own = address(&home, "jail");
    for attack in [
        "true",
        // Root of the room turns everything of its own off and around.
        "ip route del default; ip route add default dev eth0",
        &format!("ip addr add {vm}/32 dev eth0"),
        &format!(
            "ip addr del {own}/20 dev eth0; ip addr add {neighbour}/20 dev eth0; ip route add default dev eth0"
        ),
    ] {
        home.sh("jail", &format!("{attack}; true")).ok();
        for target in [
            format!("{neighbour}:3000"),
            format!("{vm}:3000"),
            format!("{gateway}:80"),
        ] {
            assert_eq!(tries(&target), "no", "{target} after `{attack}`");
        }
    }
    home.run(&["restart", "jail"]).ok();
    assert_eq!(
        home.sh("jail", &format!("wget -q -O - http://{INTERNET}/"))
            .ok(),
        PAGE
    );
    let found = home.sh("jail", "nslookup www.example.test 2>&1").ok();
    assert!(found.contains(INTERNET), "names still resolve: {found}");
}

/// Bridges, veth pairs, masquerade and nested namespaces, as container engines make them, in both modes.
fn engines_inside_make_networks_of_their_own() {
    let home = Home::with_kernel().unwrap();
    for name in ["sharing", "roomed"] {
        home.import(name, &debian("bookworm"));
    }
    home.run(&["manage", "roomed", "--network", "own"]).ok();
    for (name, net) in [("sharing", "10.91.1"), ("roomed", "10.91.2")] {
        let line = format!(
            "set -e; ip netns add inner; ip link add br9 type bridge; ip addr add {net}.1/24 dev br9; ip link set br9 up; \
             ip link add v9 type veth peer name eth0 netns inner; ip link set v9 master br9 up; \
             ip -n inner addr add {net}.2/24 dev eth0; ip -n inner link set eth0 up; ip -n inner link set lo up; \
             ip -n inner route add default via {net}.1; \
             test $(cat /proc/sys/net/ipv4/ip_forward) = 1; \
             ip netns exec inner bash -c 'exec 3<>/dev/tcp/{net}.1/1' 2>&1 | grep -q refused; \
             ip netns del inner; ip link del br9; echo fine"
        );
        assert_eq!(
            home.run(&["-d", name, "-u", "root", "--", &line]).ok(),
            "fine",
            "{name}"
        );
    }
}

fn addresses_of_rooms_are_checked() {
    let home = house(&["one", "two"]);
    let net = home.json(&["net", "show"]);
    let status = &net["status"];
    let taken = status["address"].as_str().unwrap().to_owned();
    let gateway = status["gateway"].as_str().unwrap().to_owned();
    for bad in [taken.as_str(), gateway.as_str(), "192.0.2.1", "127.0.0.1"] {
        home.run(&["manage", "one", "--network", "own", "--address", bad])
            .fails(125, &[bad]);
    }
    let good = {
        let mut octets = gateway.parse::<Ipv4Addr>().unwrap().octets();
        octets[2] += 9;
        octets[3] = 77;
        Ipv4Addr::from(octets).to_string()
    };
    home.run(&["manage", "one", "--network", "own", "--address", &good])
        .ok();
    assert_eq!(address(&home, "one").to_string(), good);
    home.run(&["manage", "two", "--network", "own", "--address", &good])
        .fails(125, &[&good, "one"]);
    home.run(&["manage", "nobody", "--network", "own"])
        .fails(125, &["nobody"]);
}

fn a_killed_room_leaves_nothing() {
    let home = house(&[SMALL, "room"]);
    home.run(&["start", SMALL]).ok();
    home.run(&["manage", "room", "--network", "own"]).ok();
    let links = || home.sh(SMALL, "ls /sys/class/net").ok();
    let before = links();
    home.run(&["start", "room"]).ok();
    assert_ne!(links(), before, "the VM's end of the room's cable");
    let pid = home.json(&["inspect", "room"])["distro"]["init_pid"]
        .as_u64()
        .unwrap();
    home.run(&["debug-shell", "--", &format!("kill -9 {pid}")])
        .ok();
    until("the cable goes", DEADLINE, || {
        (links() == before).then_some(())
    })
    .unwrap();
    home.run(&["start", "room"]).ok();
    assert_eq!(
        home.sh("room", &format!("wget -q -O - http://{INTERNET}/"))
            .ok(),
        PAGE
    );
}
