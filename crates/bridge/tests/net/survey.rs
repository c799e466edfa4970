//! Rules of others that are in the way: found, and gone with what is advised.

use std::{net::SocketAddr, time::Duration};

use crate::world::*;
use hostel_bridge::{Mode, Obstacle, Survey};
use hostel_testkit::{DOCKER_RULES, Need, Space, require};

/// firewalld's, as its version 1.3 makes them, with the way out in another zone than what is in none.
const FIREWALLD: &str = "nft -f - <<'END'
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname \"lo\" accept
        ct state invalid drop
        ip6 daddr { ::/96, ::ffff:0.0.0.0/96 } reject with icmpv6 type addr-unreachable
        jump filter_FORWARD_ZONES
        reject with icmpx type admin-prohibited
    }
    chain filter_FORWARD_ZONES {
        iifname \"up0\" goto filter_FWD_external
        goto filter_FWD_public
    }
    chain filter_FORWARD_POLICIES_pre { }
    chain filter_FWD_public_allow { oifname \"eth9\" accept; }
    chain filter_FWD_public {
        jump filter_FORWARD_POLICIES_pre
        jump filter_FWD_public_allow
        reject with icmpx type admin-prohibited
    }
    chain filter_FWD_external {
        jump filter_FORWARD_POLICIES_pre
        oifname \"up0\" accept
        reject with icmpx type admin-prohibited
    }
    chain filter_FWD_trusted {
        jump filter_FORWARD_POLICIES_pre
        accept
    }
}
END";

/// What `firewall-cmd --zone=trusted --add-interface=hostel0` adds.
const TRUSTED: &str =
    "nft insert rule inet firewalld filter_FORWARD_ZONES iifname hostel0 goto filter_FWD_trusted";

fn obstacle(family: &str, table: &str, chain: &str) -> Obstacle {
    Obstacle {
        family: family.into(),
        table: table.into(),
        chain: chain.into(),
        docker_user: false,
    }
}

/// Whether the VM reaches the internet. An answer comes at once, or never.
fn leads_out(vm: &Space, to: SocketAddr) -> bool {
    connect(vm, to, Duration::from_secs(3)).is_ok()
}

#[test]
fn what_is_in_the_way_is_named_and_gone_with_the_rules_that_are_advised() {
    let test = "what_is_in_the_way_is_named_and_gone_with_the_rules_that_are_advised";
    for program in ["iptables-nft", "iptables-nft-restore"] {
        if require(test, Need::Program(program)).is_none() {
            return;
        }
    }
    let Some(world) = World::new(test) else {
        return;
    };
    let (client, _events) = world.start_host();
    let raised = client.up(wanted()).unwrap();
    let vm = world.vm("survey", &raised.bridge);
    let web = listen(&world.internet, (SERVER, 80));
    let to = web.local_addr().unwrap();
    talk(&vm, to, &web);
    assert_eq!(client.survey().unwrap(), Survey::default());

    let docker_rules = format!("iptables-nft-restore <<'END'\n{DOCKER_RULES}END");
    // Each row: rules of others, what is found, and the way out.
    let docker = Obstacle {
        docker_user: true,
        ..obstacle("ip", "filter", "FORWARD")
    };
    for (rules, found, way_out, remove) in [
        (
            docker_rules.as_str(),
            docker,
            "iptables-nft -I DOCKER-USER -i hostel0 -j ACCEPT; iptables-nft -I DOCKER-USER -o hostel0 -j ACCEPT",
            "delete table ip filter",
        ),
        (
            FIREWALLD,
            obstacle("inet", "firewalld", "filter_FORWARD"),
            TRUSTED,
            "delete table inet firewalld",
        ),
        (
            "nft 'add table inet own; \
                  add chain inet own through { type filter hook forward priority 5; policy drop; }; \
                  add rule inet own through ct state vmap { established : accept, invalid : drop }'",
            obstacle("inet", "own", "through"),
            "nft insert rule inet own through iifname hostel0 accept; \
             nft insert rule inet own through oifname hostel0 accept",
            "delete table inet own",
        ),
        (
            // The way out is open, and no answer comes back.
            "nft 'add table ip half; \
                  add chain ip half through { type filter hook forward priority 0; policy drop; }; \
                  add rule ip half through iifname hostel0 oifname up0 accept'",
            obstacle("ip", "half", "through"),
            "nft insert rule ip half through oifname hostel0 accept",
            "delete table ip half",
        ),
    ] {
        world.host.sh(rules).unwrap();
        assert!(!leads_out(&vm, to), "{rules}");
        let survey = client.survey().unwrap();
        assert_eq!(survey.obstacles, [found], "{rules}");
        world.host.sh(way_out).unwrap();
        talk(&vm, to, &web);
        assert_eq!(client.survey().unwrap().obstacles, [], "{way_out}");
        world.host.sh(&format!("nft {remove}")).unwrap();
    }

    // Neither of other packets nor of other hooks, and nothing of IPv6 where the VM has none.
    world
        .host
        .sh("nft 'add table ip6 six; add chain ip6 six f { type filter hook forward priority 0; policy drop; }; \
             add table ip in; add chain ip in i { type filter hook input priority 0; policy drop; }; \
             add table bridge br; add chain bridge br f { type filter hook forward priority 0; }; \
             add table ip open; add chain ip open f { type filter hook forward priority 0; }; \
             add rule ip open f iifname docker0 drop'")
        .unwrap();
    assert_eq!(client.survey().unwrap(), Survey::default());
}

#[test]
fn before_there_is_a_network_nothing_is_told() {
    let Some(world) = World::new("before_there_is_a_network_nothing_is_told") else {
        return;
    };
    let (client, _events) = world.start(&Mode::Host, As::Root);
    assert!(client.survey().is_err());
}
