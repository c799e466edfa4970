//! Chains and rules that others made, with the programs that people use.

use hostel_netlink::nft::{ChainState, Family, Hook, Interface, Nft, Policy, RuleState, Verdict};
use hostel_testkit::{Need, Space, require};

fn space(test: &str, programs: &[&'static str]) -> Option<Space> {
    for program in programs {
        require(test, Need::Program(program))?;
    }
    Space::new(test)
}

fn rules(space: &Space, family: Family, table: &str, chain: &str) -> Vec<RuleState> {
    let (table, chain) = (table.to_owned(), chain.to_owned());
    space.run(move || {
        let nft = Nft::connect().unwrap();
        nft.rules(family, &table, &chain).unwrap()
    })
}

fn does(verdict: Verdict) -> RuleState {
    RuleState {
        verdict: Some(verdict),
        ..RuleState::default()
    }
}

fn from(input: &str, verdict: Verdict) -> RuleState {
    RuleState {
        input: Interface::Is(input.into()),
        ..does(verdict)
    }
}

fn to(output: &str, verdict: Verdict) -> RuleState {
    RuleState {
        output: Interface::Is(output.into()),
        ..does(verdict)
    }
}

#[test]
fn rules_of_nft_are_understood() {
    let Some(space) = space("rules_of_nft_are_understood", &["nft"]) else {
        return;
    };
    space
        .sh("nft -f - <<'END'
            table inet a {
                set lan { type ifname; elements = { \"eth0\", \"eth1\" } }
                chain through {
                    type filter hook forward priority 0; policy drop;
                    iifname \"hostel0\" counter accept
                    oifname \"host*\" log drop
                    iifname != \"lo\" reject
                    iifname @lan jump more
                    ct state established,related accept
                    ct state { established, related } accept
                    ct state vmap { established : accept, invalid : drop }
                    ct state invalid drop
                    ct state new accept
                    ct status dnat accept
                    iifname \"eth0\" tcp dport 80 accept
                    ip saddr 10.0.0.0/8 oifname \"eth0\" goto more
                    counter
                }
                chain more { return; }
            }
            table ip6 b { chain out { type filter hook output priority 0; }; }
            table bridge c { chain through { type filter hook forward priority 0; }; }\nEND")
        .unwrap();
    let chains = space.run(|| Nft::connect().unwrap().chains().unwrap());
    let chain = |family, table: &str, name: &str, base| ChainState {
        family,
        table: table.into(),
        name: name.into(),
        base,
    };
    let forward = |policy| Some((Hook::Forward, policy));
    for wanted in [
        chain(Family::Inet, "a", "through", forward(Policy::Drop)),
        chain(Family::Inet, "a", "more", None),
        chain(
            Family::Ip6,
            "b",
            "out",
            Some((Hook::Output, Policy::Accept)),
        ),
        chain(Family::Other(7), "c", "through", forward(Policy::Accept)),
    ] {
        assert!(chains.contains(&wanted), "{wanted:?} in {chains:?}");
    }
    let begins = RuleState {
        output: Interface::Begins("host".into()),
        ..does(Verdict::Drop)
    };
    let other = |verdict| RuleState {
        input: Interface::Else,
        ..does(verdict)
    };
    let more = || "more".to_owned();
    let answers = |verdict| RuleState {
        answers: true,
        ..does(verdict)
    };
    let conditional = |rule| RuleState {
        conditions: true,
        ..rule
    };
    assert_eq!(
        rules(&space, Family::Inet, "a", "through"),
        [
            from("hostel0", Verdict::Accept),
            begins,
            other(Verdict::Drop),
            other(Verdict::Jump(more())),
            answers(Verdict::Accept),
            answers(Verdict::Accept),
            answers(Verdict::Else),
            conditional(does(Verdict::Drop)),
            conditional(does(Verdict::Accept)),
            conditional(does(Verdict::Accept)),
            conditional(from("eth0", Verdict::Accept)),
            conditional(to("eth0", Verdict::Goto(more()))),
            RuleState::default(),
        ]
    );
    assert_eq!(
        rules(&space, Family::Inet, "a", "more"),
        [does(Verdict::Return)]
    );
    assert_eq!(rules(&space, Family::Ip, "there is", "no such"), []);
}

#[test]
fn rules_of_iptables_are_understood() {
    let Some(space) = space("rules_of_iptables_are_understood", &["iptables-nft"]) else {
        return;
    };
    for line in [
        "-P FORWARD DROP",
        "-N DOCKER-USER",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -i hostel0 ! -o hostel0 -j ACCEPT",
        "-A FORWARD -o hostel+ -j DROP",
        "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -i docker0 -p tcp --dport 80 -j ACCEPT",
        "-A FORWARD -m comment --comment why -j REJECT",
        "-A FORWARD -j LOG",
    ] {
        space.sh(&format!("iptables-nft {line}")).unwrap();
    }
    let chains = space.run(|| Nft::connect().unwrap().chains().unwrap());
    assert!(chains.contains(&ChainState {
        family: Family::Ip,
        table: "filter".into(),
        name: "FORWARD".into(),
        base: Some((Hook::Forward, Policy::Drop)),
    }));
    assert_eq!(
        rules(&space, Family::Ip, "filter", "FORWARD"),
        [
            does(Verdict::Jump("DOCKER-USER".into())),
            RuleState {
                output: Interface::Else,
                ..from("hostel0", Verdict::Accept)
            },
            RuleState {
                output: Interface::Begins("hostel".into()),
                ..does(Verdict::Drop)
            },
            RuleState {
                answers: true,
                ..to("docker0", Verdict::Accept)
            },
            RuleState {
                conditions: true,
                ..from("docker0", Verdict::Accept)
            },
            does(Verdict::Drop),
            RuleState::default(),
        ]
    );
}
