//! What rules mean, and how they are read.

use proptest::prelude::*;

use super::*;

fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

#[test]
fn rules_are_read_and_printed() {
    for (text, printed) in [
        ("allow tcp 3000-3010 from 192.168.0.0/16", ""),
        ("deny any", ""),
        ("allow icmp", ""),
        ("allow udp 53 from 10.0.0.7", ""),
        ("allow tcp from fd00::/8", ""),
        ("allow tcp 1-65535", ""),
        ("deny any from 0.0.0.0/0", ""),
        ("  Allow  TCP\t80-80  FROM  ANY ", "allow tcp 80"),
        (
            "allow tcp 80 from 10.0.0.7/32",
            "allow tcp 80 from 10.0.0.7",
        ),
        (
            "allow tcp 80 from ::ffff:10.0.0.0/104",
            "allow tcp 80 from 10.0.0.0/8",
        ),
        (
            "allow tcp 80 from ::ffff:10.0.0.7",
            "allow tcp 80 from 10.0.0.7",
        ),
    ] {
        let want = if printed.is_empty() { text } else { printed };
        assert_eq!(rule(text).to_string(), want);
    }
}

#[test]
fn mistakes_say_what_to_write() {
    for (text, want) in [
        ("", "a rule needs an action"),
        ("allow", "a rule needs an action"),
        ("accept tcp", "`accept` is no action"),
        ("allow sctp", "`sctp` is no protocol"),
        ("allow tcp http", "`http` is no port"),
        ("allow tcp 0", "`0` is no port"),
        ("allow tcp 65536", "`65536` is no port"),
        ("allow tcp +80", "`+80` is no port"),
        ("allow tcp 80-", "`80-` is no port"),
        ("allow tcp 1-2-3", "`1-2-3` is no port"),
        ("allow tcp 90-80", "write 80-90"),
        ("allow any 80", "`any` cannot be limited to ports"),
        ("allow icmp 8", "`icmp` cannot be limited to ports"),
        ("allow tcp 80 from", "`` is no address"),
        ("allow tcp 80 from there", "`there` is no address"),
        ("allow tcp 80 from 10.0.0.0/x", "`10.0.0.0/x` is no address"),
        ("allow tcp 80 from 10.0.0.0/33", "an address has 32 bits"),
        ("allow tcp 80 from fd00::/129", "an address has 128 bits"),
        (
            "allow tcp 80 from 10.1.0.0/8",
            "for the network write 10.0.0.0/8",
        ),
        ("allow tcp 80 to 10.0.0.0/8", "`to` has no place"),
        ("allow tcp 80 from any too", "`too` has no place"),
        ("allow tcp \u{1b}[2J", "`\\u{1b}[2J` is no port"),
    ] {
        let error = text.parse::<Rule>().unwrap_err().to_string();
        assert!(error.contains(want), "{text}: {error}");
    }
}

#[test]
fn the_first_match_decides_and_nothing_is_open_by_itself() {
    let rules = [
        "deny tcp 22 from 192.168.1.0/24",
        "allow tcp 20-25 from 192.168.0.0/16",
        "allow icmp",
        "allow udp from fd00::/8",
        "deny any from 10.0.0.7",
        "allow any from 10.0.0.0/8",
    ]
    .map(rule);
    use Protocol::{Icmp, Tcp, Udp};
    for (protocol, port, source, want) in [
        (Tcp, 22, "192.168.1.9", Action::Deny),
        (Tcp, 22, "192.168.2.9", Action::Allow),
        (Tcp, 22, "::ffff:192.168.2.9", Action::Allow),
        (Tcp, 26, "192.168.2.9", Action::Deny),
        (Udp, 22, "192.168.2.9", Action::Deny),
        (Icmp, 0, "203.0.113.1", Action::Allow),
        (Udp, 53, "fd12::1", Action::Allow),
        (Tcp, 53, "fd12::1", Action::Deny),
        (Tcp, 80, "10.0.0.7", Action::Deny),
        (Tcp, 80, "10.0.0.8", Action::Allow),
        (Tcp, 80, "11.0.0.8", Action::Deny),
    ] {
        let source = source.parse().unwrap();
        assert_eq!(
            decide(&rules, protocol, port, source),
            want,
            "{protocol} {port} {source}"
        );
    }
    let any = [rule("allow any from 0.0.0.0/0")];
    assert_eq!(decide(&any, Tcp, 1, "::1".parse().unwrap()), Action::Deny);
    assert_eq!(
        decide(&[], Tcp, 1, "10.0.0.1".parse().unwrap()),
        Action::Deny
    );
}

#[test]
fn a_rule_made_by_hand_is_checked() {
    let mut made = rule("allow tcp 80 from 10.0.0.0/8");
    assert_eq!(made.validate(), Ok(()));
    made.ports = Some((0, 5));
    assert!(matches!(made.validate(), Err(RuleError::Ports(_))));
    made.ports = None;
    for (address, bits) in [("10.0.0.1", 8), ("10.0.0.0", 33), ("::ffff:10.0.0.1", 128)] {
        let address = address.parse().unwrap();
        made.source = Some(Source { address, bits });
        assert!(made.validate().is_err(), "{made}");
    }
}

#[test]
fn a_rule_from_a_file_is_checked_too() {
    let text = r#"{"action":"allow","protocol":"tcp","ports":[80,81],"source":{"address":"10.0.0.0","bits":8}}"#;
    let read: Rule = serde_json::from_str(text).unwrap();
    assert_eq!(read, rule("allow tcp 80-81 from 10.0.0.0/8"));
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
    let short = r#"{"action":"deny","protocol":"any"}"#;
    assert_eq!(
        serde_json::from_str::<Rule>(short).unwrap(),
        rule("deny any")
    );
    for (from, to) in [
        ("[80,81]", "[81,80]"),
        ("[80,81]", "[0,1]"),
        ("tcp", "any"),
        (":8}", ":33}"),
        (":8}", ":4}"),
        ("\"bits\"", "\"more\":1,\"bits\""),
        ("\"action\"", "\"more\":1,\"action\""),
    ] {
        let text = text.replace(from, to);
        assert!(serde_json::from_str::<Rule>(&text).is_err(), "{text}");
    }
}

fn sources() -> impl Strategy<Value = Source> {
    let v4 = (any::<u32>(), 0..=32u32).prop_map(|(a, b)| (IpAddr::from(a.to_be_bytes()), b));
    let v6 = (any::<u128>(), 0..=128u32).prop_map(|(a, b)| (IpAddr::from(a.to_be_bytes()), b));
    prop_oneof![v4, v6].prop_map(|(address, bits)| {
        Source::new(network(address, bits as u8), bits).expect("a network")
    })
}

fn rules() -> impl Strategy<Value = Rule> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    let with_ports = (
        prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)],
        proptest::option::of((1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| (a.min(b), a.max(b)))),
    );
    let without = (
        prop_oneof![Just(Protocol::Icmp), Just(Protocol::Any)],
        Just(None),
    );
    let what = prop_oneof![with_ports, without];
    (action, what, proptest::option::of(sources())).prop_map(
        |(action, (protocol, ports), source)| Rule {
            action,
            protocol,
            ports,
            source,
        },
    )
}

proptest! {
    #[test]
    fn what_is_printed_reads_the_same(rule in rules()) {
        prop_assert_eq!(rule.validate(), Ok(()));
        prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
    }

    #[test]
    fn any_text_is_judged_without_a_panic(text in "((allow|deny|tcp|udp|any|icmp|from|[0-9]{1,6}|-|/|[0-9a-f:.]{1,9}|\\PC{0,3}) ?){0,9}") {
        if let Ok(rule) = text.parse::<Rule>() {
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }
    }

    #[test]
    fn a_source_holds_what_shares_its_prefix(source in sources(), other in any::<u128>(), v6: bool) {
        let address = if v6 { IpAddr::from(other.to_be_bytes()) } else { IpAddr::from((other as u32).to_be_bytes()) };
        let same = address.is_ipv4() == source.address.is_ipv4() && match (address, source.address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(source.bits),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(source.bits),
            _ => false,
        };
        prop_assert_eq!(source.contains(address), same);
        prop_assert!(source.contains(source.address));
    }

    #[test]
    fn the_decision_is_that_of_the_first_match(rules in proptest::collection::vec(rules(), 0..6), port: u16, source in sources()) {
        let source = source.address;
        let first = rules.iter().position(|r| r.matches(Protocol::Tcp, port, source));
        let want = first.map_or(Action::Deny, |i| rules[i].action);
        prop_assert_eq!(decide(&rules, Protocol::Tcp, port, source), want);
        if let Some(first) = first {
            prop_assert_eq!(decide(&rules[..first], Protocol::Tcp, port, source), Action::Deny);
            prop_assert_eq!(decide(&rules[first..], Protocol::Tcp, port, source), want);
        }
    }
}
