//! Distributions with a network of their own.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use hostel_tests::{
    home::Home,
    run::{DEADLINE, Running, host, until},
    world::{INTERNET, INTERNET_V6, UPLINK, UPLINK_V6, servers::PAGE},
};

use super::{
    Tests,
    probe::{host_fetches, serve_in_guest, serve_on_host},
};
use crate::shared::{SMALL, debian, small};

pub(crate) const TESTS: Tests = &[
    (
        "a_room_is_moved_into_and_out_of",
        a_room_is_moved_into_and_out_of,
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

/// These need the host's own way to the addresses; of two VMs of one user with the same subnet only one has it.
pub(crate) const ALONE: Tests = &[
    ("rooms_share_a_port_number", rooms_share_a_port_number),
    (
        "an_isolated_room_holds_against_its_root",
        an_isolated_room_holds_against_its_root,
    ),
    ("many_rooms_start_together", many_rooms_start_together),
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
    let vm = address(&home, "mover");
    let said = home.run(&["manage", "mover", "--network", "own"]).ok();
    assert!(
        said.contains(&first.to_string()),
        "kept for life, and told: {said}"
    );
    assert_eq!(address(&home, "mover"), vm, "what is in force is shown");
    home.run(&["restart", "mover"]).ok();
    assert_eq!(address(&home, "mover"), first);
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
    let names = home.sh("one", "nslookup three.hostel").ok();
    assert!(
        names.contains(&address(&home, "three").to_string()),
        "{names}"
    );
}

/// Asks for a page at each place, all at once; returns where there was one.
fn reached(home: &Home, distro: &str, places: &[String]) -> BTreeSet<String> {
    let line = format!(
        "for place in {}; do (timeout 3 wget -q -O /dev/null http://$place/ 2>/dev/null && echo $place) & done; wait",
        places.join(" ")
    );
    let found = home.sh(distro, &line).ok();
    found.lines().map(str::to_owned).collect()
}

/// What root in a room does to its own network: every line has to work, or nothing was attacked.
fn take_address(home: &Home, distro: &str, address: Ipv4Addr, gateway: Option<Ipv4Addr>) {
    let way = gateway.map_or_else(|| "dev eth0".to_owned(), |g| format!("via {g} dev eth0"));
    let line = format!(
        "ip addr flush dev eth0 && ip addr add {address}/20 dev eth0 && ip route add default {way}"
    );
    home.sh(distro, &line).ok();
}

fn an_isolated_room_holds_against_its_root() {
    let home = house(&[SMALL, "jail", "free", "neighbour"]);
    for (name, network) in [("jail", "isolated"), ("free", "own"), ("neighbour", "own")] {
        home.run(&["manage", name, "--network", network]).ok();
    }
    let _servers = [SMALL, "neighbour"].map(|name| serve_in_guest(&home, name, "0.0.0.0", 3000));
    let _servers6 = [SMALL, "neighbour"].map(|name| serve_in_guest(&home, name, "[::]", 3006));
    let port = serve_on_host(Ipv4Addr::UNSPECIFIED.into());
    let port6 = serve_on_host(Ipv6Addr::UNSPECIFIED.into());
    let net = home.json(&["net", "show"]);
    let status = |key: &str| -> Ipv4Addr { net["status"][key].as_str().unwrap().parse().unwrap() };
    let (vm, gateway) = (status("address"), status("gateway"));
    let neighbour = address(&home, "neighbour");
    let internet = INTERNET.to_owned();
    let places = [
        internet.clone(),
        format!("{neighbour}:3000"),
        format!("{vm}:3000"),
        format!("{gateway}:{port}"),
        // The host's own address on the internet's side: not in the VM's network at all.
        format!("{UPLINK}:{port}"),
    ];
    let all = BTreeSet::from(places.clone());
    let outside = BTreeSet::from([internet]);
    let nowhere = BTreeSet::new();
    // An ordinary room shows that there is somebody to reach.
    assert_eq!(reached(&home, "free", &places), all);
    assert_eq!(reached(&home, "jail", &places), outside);

    let six = |name, line: &str| home.sh(name, &format!("ip -6 {line}")).ok();
    let address6 = |name| {
        let shown = six(name, "addr show dev eth0 scope global");
        let (_, rest) = shown
            .split_once("inet6 ")
            .expect("the host has a global address, so it has one");
        rest.split('/').next().expect("an address").to_owned()
    };
    let way6 = six(SMALL, "route show default");
    let gateway6 = way6.split(' ').nth(2).expect("default via ADDRESS");
    let outside6 = format!("[{INTERNET_V6}]");
    let places6 = [
        outside6.clone(),
        format!("[{}]:3006", address6("neighbour")),
        format!("[{}]:3006", address6(SMALL)),
        format!("[{gateway6}]:{port6}"),
        format!("[{UPLINK_V6}]:{port6}"),
    ];
    assert_eq!(
        reached(&home, "free", &places6),
        BTreeSet::from(places6.clone())
    );
    assert_eq!(
        reached(&home, "jail", &places6),
        BTreeSet::from([outside6.clone()])
    );

    // Another way out: straight onto the wire, where everything is answered for.
    for name in ["jail", "free"] {
        let line = "ip route del default && ip route add default dev eth0";
        home.sh(name, line).ok();
    }
    assert_eq!(reached(&home, "free", &places), all);
    assert_eq!(reached(&home, "jail", &places), outside);

    // Another address beside its own.
    home.sh("jail", &format!("ip addr add {vm}/32 dev eth0"))
        .ok();
    assert_eq!(reached(&home, "jail", &places), outside);

    // Another address in the place of its own: nobody speaks for another, isolated or not.
    for (name, gets) in [("jail", &outside), ("free", &all)] {
        let own = address(&home, name);
        for false_one in [neighbour, vm, gateway] {
            take_address(&home, name, false_one, None);
            assert_eq!(
                reached(&home, name, &places),
                nowhere,
                "{name} as {false_one}"
            );
        }
        take_address(&home, name, own, Some(gateway));
        assert_eq!(reached(&home, name, &places), *gets, "{name} as itself");
    }

    // An address that the host gets while the room runs.
    let new = "192.0.2.77";
    host("ip", &["addr", "add", &format!("{new}/32"), "dev", "lo"])
        .unwrap()
        .ok();
    let place = [format!("{new}:{port}")];
    assert_eq!(reached(&home, "free", &place).len(), 1);
    until("the host's new address is closed", DEADLINE, || {
        reached(&home, "jail", &place).is_empty().then_some(())
    })
    .unwrap();
    host("ip", &["addr", "del", &format!("{new}/32"), "dev", "lo"])
        .unwrap()
        .ok();
    let found = home.sh("jail", "nslookup www.example.test 2>&1").ok();
    assert!(found.contains(INTERNET), "names still resolve: {found}");
}

/// Every one on its own :3000, all started at once.
fn many_rooms_start_together() {
    let names: Vec<String> = (1..=8).map(|n| format!("room{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let home = house(&names);
    for name in &names {
        home.run(&["manage", name, "--network", "own"]).ok();
    }
    let _servers: Vec<Running> = names
        .iter()
        .map(|name| {
            let line = format!(
                "mkdir -p /tmp/www && echo {name} >/tmp/www/index.html && exec httpd -f -p 3000 -h /tmp/www"
            );
            home.start(&["-d", name, "--", &line])
        })
        .collect();
    let mut places = BTreeSet::new();
    for name in names {
        let own = address(&home, name);
        let [_, b, c, d] = own.octets();
        for place in [own, Ipv4Addr::new(127, b, c, d)] {
            assert!(places.insert(place), "nobody else has {place}");
            until(&format!("{name} answers at {place}"), DEADLINE, || {
                host_fetches(SocketAddr::from((place, 3000))).filter(|who| who == name)
            })
            .unwrap();
        }
    }
}

/// Runs [`nft_with_everything`].
const NFT: &str = "/opt/nft/ld-linux* --library-path /opt/nft /opt/nft/nft";

/// Returns the host's `nft` with its libraries and its loader as an archive of one directory: Debian's small system has none.
fn nft_with_everything() -> Vec<u8> {
    let nft = "/usr/sbin/nft";
    let said = host("ldd", &[nft]).unwrap().ok();
    let libraries = said
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'));
    let archive = tempfile::NamedTempFile::new().unwrap();
    let mut args = vec![
        "--create",
        "--dereference",
        "--absolute-names",
        "--transform=s,.*/,opt/nft/,",
        "--file",
        archive.path().to_str().unwrap(),
        nft,
    ];
    args.extend(libraries);
    host("tar", &args).unwrap().ok();
    fs_err::read(archive.path()).unwrap()
}

/// Bridges, veth pairs, masquerade and nested namespaces, as container engines make them, in both modes.
fn engines_inside_make_networks_of_their_own() {
    let home = Home::with_kernel().unwrap();
    for name in ["sharing", "roomed"] {
        home.import(name, &debian("bookworm"));
    }
    home.run(&["manage", "roomed", "--network", "own"]).ok();
    let nft = nft_with_everything();
    let fetch =
        format!(r#"exec 3<>/dev/tcp/{INTERNET}/80; printf "GET / HTTP/1.0\r\n\r\n" >&3; cat <&3"#);
    let page = PAGE.trim();
    for (name, net) in [("sharing", "10.91.1"), ("roomed", "10.91.2")] {
        home.run_with(
            &[
                "-d",
                name,
                "-u",
                "root",
                "--",
                "tar --extract --directory / --file -",
            ],
            nft.clone(),
        )
        .ok();
        let line = format!(
            "set -e; ip netns add inner; ip link add br9 type bridge; ip addr add {net}.1/24 dev br9; ip link set br9 up; \
             ip link add v9 type veth peer name eth0 netns inner; ip link set v9 master br9 up; \
             ip -n inner addr add {net}.2/24 dev eth0; ip -n inner link set eth0 up; ip -n inner link set lo up; \
             ip -n inner route add default via {net}.1; \
             test $(cat /proc/sys/net/ipv4/ip_forward) = 1; \
             ip netns exec inner bash -c 'exec 3<>/dev/tcp/{net}.1/1' 2>&1 | grep -q refused; \
             ! ip netns exec inner timeout 2 bash -c '{fetch}'; \
             {NFT} 'add table ip engine; add chain ip engine out {{ type nat hook postrouting priority 100; }}; \
                  add rule ip engine out ip saddr {net}.0/24 oifname != \"br9\" masquerade'; \
             ip netns exec inner timeout 20 bash -c '{fetch}' | grep -qx '{page}'; \
             {NFT} delete table ip engine; \
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
    let line = format!("kill -9 {pid}");
    home.run(&["debug-shell", "--", "sh", "-c", &line]).ok();
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
