//! Links, addresses, routes and neighbours, looked at with `ip`.

use std::os::fd::AsFd as _;

use hostel_netlink::{Bridge, LinkChange, Prefix, Route, Routing, Veth};
use hostel_testkit::{Need, Space, require};

const MAC: [u8; 6] = [0x02, 0x48, 0, 0, 0, 1];

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn pair<'a>(name: &'a str, peer: &'a str) -> Veth<'a> {
    Veth {
        name,
        mac: None,
        alias: "",
        peer,
        peer_mac: None,
        peer_netns: None,
        mtu: None,
    }
}

fn two(test: &str) -> Option<(Space, Space)> {
    require(test, Need::Program("ip"))?;
    Some((Space::new(test)?, Space::new(test)?))
}

#[test]
fn a_bridge_is_made_changed_and_removed() {
    let Some((here, _)) = two("a_bridge_is_made_changed_and_removed") else {
        return;
    };
    here.run(|| {
        let routing = Routing::connect().unwrap();
        let bridge = Bridge {
            name: "br0",
            mac: Some(MAC),
            alias: "hostel 12 34",
        };
        routing.add_bridge(&bridge).unwrap();
        assert!(routing.add_bridge(&bridge).unwrap_err().is_present());
        routing.add_veth(&pair("port", "far")).unwrap();
        let far = routing.link("far").unwrap().unwrap().index;
        routing.set_link(far, true).unwrap();
        let bridge = routing.link("br0").unwrap().unwrap();
        let port = routing.link("port").unwrap().unwrap().index;
        assert_eq!(
            (
                bridge.kind.as_str(),
                bridge.mac,
                bridge.alias.as_str(),
                bridge.up
            ),
            ("bridge", Some(MAC), "hostel 12 34", false)
        );
        let change = LinkChange {
            master: Some(bridge.index),
            mtu: Some(9000),
            up: Some(true),
            name: Some("tap0"),
            ..LinkChange::default()
        };
        routing.change_link(port, &change).unwrap();
        routing.set_link(bridge.index, true).unwrap();
    });
    let shown = here.sh("ip -d link show br0; ip link show tap0").unwrap();
    for word in [
        "stp_state 0",
        "forward_delay 0",
        "02:48:00:00:00:01",
        "mtu 9000",
        "master br0",
    ] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    here.run(|| {
        let routing = Routing::connect().unwrap();
        let tap = routing.link("tap0").unwrap().unwrap();
        assert!(tap.up && tap.carrier && tap.mtu == 9000, "{tap:?}");
        assert!(tap.master.is_some());
        let release = LinkChange {
            master: Some(0),
            ..LinkChange::default()
        };
        routing.change_link(tap.index, &release).unwrap();
        assert_eq!(routing.link("tap0").unwrap().unwrap().master, None);
        let bridge = routing.link("br0").unwrap().unwrap().index;
        routing.delete_link(bridge).unwrap();
        assert!(routing.delete_link(bridge).unwrap_err().is_missing());
        assert_eq!(routing.link("br0").unwrap(), None);
        assert_eq!(routing.link("a name that is far too long").unwrap(), None);
        let names: Vec<_> = routing
            .links()
            .unwrap()
            .into_iter()
            .map(|l| l.name)
            .collect();
        assert_eq!(names, ["lo", "far", "tap0"]);
    });
}

#[test]
fn a_pair_joins_two_namespaces_and_packets_pass_both_families() {
    let Some((here, there)) = two("a_pair_joins_two_namespaces_and_packets_pass_both_families")
    else {
        return;
    };
    let netns = there.netns();
    here.run(move || {
        let routing = Routing::connect().unwrap();
        let veth = Veth {
            peer_mac: Some(MAC),
            peer_netns: Some(netns.as_fd()),
            mtu: Some(4000),
            ..pair("out", "in")
        };
        routing.add_veth(&veth).unwrap();
        let out = routing.link("out").unwrap().unwrap().index;
        routing.set_link(out, true).unwrap();
        for text in ["10.1.0.1/24", "fd00:1::1/64"] {
            routing.add_address(out, prefix(text)).unwrap();
            routing.add_address(out, prefix(text)).unwrap();
        }
        let of_out = |a: &hostel_netlink::Address| a.index == out;
        let mut found: Vec<_> = routing
            .addresses()
            .unwrap()
            .into_iter()
            .filter(of_out)
            .collect();
        found.retain(|a| a.prefix.length != 64 || a.prefix == prefix("fd00:1::1/64"));
        let shown: Vec<_> = found.iter().map(|a| a.prefix.to_string()).collect();
        assert_eq!(shown, ["10.1.0.1/24", "fd00:1::1/64"]);
    });
    there.run(|| {
        let routing = Routing::connect().unwrap();
        let inside = routing.link("in").unwrap().unwrap();
        assert_eq!((inside.mac, inside.mtu), (Some(MAC), 4000));
        routing.set_link(inside.index, true).unwrap();
        for text in ["10.1.0.2/32", "fd00:1::2/128"] {
            routing.add_address(inside.index, prefix(text)).unwrap();
        }
        // The gateway is outside of the address's own network, as in a room.
        for (gateway, source) in [("10.1.0.1", "10.1.0.2"), ("fd00:1::1", "fd00:1::2")] {
            let gateway = Prefix::host(gateway.parse::<std::net::IpAddr>().unwrap());
            routing
                .replace_route(&Route::direct(gateway, inside.index))
                .unwrap();
            let route = Route::default_via(gateway.address, inside.index);
            let route = route.from(source.parse().unwrap());
            routing.replace_route(&route).unwrap();
            routing.replace_route(&route).unwrap();
            let found = routing.routes().unwrap();
            assert!(
                found
                    .iter()
                    .any(|r| r.gateway == Some(gateway.address) && r.destination.length == 0),
                "{found:?}"
            );
        }
    });
    for address in ["10.1.0.1", "fd00:1::1"] {
        there
            .sh(&format!("ping -c1 -W5 -s 3500 -M do {address}"))
            .unwrap();
    }
    there.run(|| {
        let routing = Routing::connect().unwrap();
        let index = routing.link("in").unwrap().unwrap().index;
        let route = Route::default_via("10.1.0.1".parse().unwrap(), index);
        routing.delete_route(&route).unwrap();
        assert!(routing.delete_route(&route).unwrap_err().is_missing());
        routing
            .delete_address(index, prefix("10.1.0.2/32"))
            .unwrap();
        assert!(
            routing
                .delete_address(index, prefix("10.1.0.2/32"))
                .unwrap_err()
                .is_missing()
        );
    });
    assert!(!there.sh("ip -4 route").unwrap().contains("default"));
}

#[test]
fn a_link_moves_and_answers_for_others() {
    let Some((here, there)) = two("a_link_moves_and_answers_for_others") else {
        return;
    };
    let netns = there.netns();
    here.run(move || {
        let routing = Routing::connect().unwrap();
        routing.add_veth(&pair("walker", "stays")).unwrap();
        let index = routing.link("walker").unwrap().unwrap().index;
        let change = LinkChange {
            netns: Some(netns.as_fd()),
            alias: Some("far"),
            mac: Some(MAC),
            ..LinkChange::default()
        };
        routing.change_link(index, &change).unwrap();
        assert_eq!(routing.link("walker").unwrap(), None);
    });
    there.run(|| {
        let routing = Routing::connect().unwrap();
        let link = routing.link("walker").unwrap().unwrap();
        assert_eq!((link.alias.as_str(), link.mac), ("far", Some(MAC)));
        let mut wanted: Vec<std::net::IpAddr> = Vec::new();
        for address in ["10.0.0.9", "fd00::9"] {
            wanted.push(address.parse().unwrap());
            routing
                .add_proxy(link.index, wanted[wanted.len() - 1])
                .unwrap();
        }
        routing.add_proxy(link.index, wanted[0]).unwrap();
        assert_eq!(routing.proxies(link.index).unwrap(), wanted);
        routing.delete_proxy(link.index, wanted[0]).unwrap();
        assert!(
            routing
                .delete_proxy(link.index, wanted[0])
                .unwrap_err()
                .is_missing()
        );
        assert_eq!(routing.proxies(link.index).unwrap(), wanted[1..]);
    });
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let Some((here, _)) = two("what_cannot_be_is_refused_in_words") else {
        return;
    };
    here.run(|| {
        let routing = Routing::connect().unwrap();
        assert!(
            routing
                .set_link(u32::MAX >> 1, true)
                .unwrap_err()
                .is_missing()
        );
        assert!(routing.add_address(7, prefix("10.0.0.1/8")).is_err());
        routing.set_link(1, true).unwrap();
        let nowhere = Route::default_via("10.99.0.1".parse().unwrap(), 1);
        let error = routing.replace_route(&nowhere).unwrap_err();
        assert!(error.to_string().contains("gateway"), "{error}");
        let change = LinkChange {
            name: Some("a name that is far too long"),
            ..LinkChange::default()
        };
        assert!(routing.change_link(1, &change).is_err());
    });
}
