//! Questions go to resolvers on loopback and their answers come back, whatever the resolvers do.

use std::{collections::HashSet, net::Ipv4Addr, time::Duration};

use crate::common::{
    A, Asked, FakeResolver, House, LONG, SOA, answer, code, framed, is_cut, query, query_edns,
    question_end, rcode, records,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, UdpSocket},
    time::{Instant, timeout},
};

const SERVFAIL: u8 = 2;

/// The same function for every resolver that just works.
fn works(asked: &Asked) -> Vec<Vec<u8>> {
    vec![answer(&asked.message, &[10, 0, 0, 1])]
}

#[tokio::test]
async fn messages_of_every_kind_pass_as_they_are() {
    let server =
        FakeResolver::start(2, 0, |asked| vec![answer(&asked.message, &[0xff; 100])]).await;
    let house = House::behind(&[&server], "");
    for kind in [
        1, 2, 6, 16, 28, 33, 35, 46, 64, 65, 255, 256, 257, 32_769, 65_280, 65_535,
    ] {
        for class in [1, 3, 255] {
            for tcp in [false, true] {
                let mut asking = query_edns(0x1234, "Some.Name.example", kind, 1232);
                let end = question_end(&asking);
                asking[end - 2..end].copy_from_slice(&u16::to_be_bytes(class));
                let got = house.ask(&asking, tcp).await;
                let mut seen = server.asked().pop().unwrap();
                assert_eq!(seen.tcp, tcp);
                let id = seen.message[..2].to_vec();
                seen.message[..2].copy_from_slice(&asking[..2]);
                assert_eq!(seen.message, asking, "asked as it was, but for the id");
                let mut want = answer(&asking, &[0xff; 100]);
                want[..2].copy_from_slice(&asking[..2]);
                assert_eq!(got, want, "kind {kind} class {class}, id {id:?}");
            }
        }
    }
}

#[tokio::test]
async fn names_that_are_no_host_names_pass_too() {
    let server = FakeResolver::start(3, 0, works).await;
    let house = House::behind(&[&server], "");
    for name in ["", "_sip._tcp.example", "a b.example", "\u{1}\u{2}.example"] {
        let got = house.ask(&query(7, name, A), false).await;
        assert_eq!(records(&got), [[10, 0, 0, 1]], "{name:?}");
    }
    // A dot within a label is not the same name as two labels.
    let mut dotted = query(7, "debian-hostel", A);
    dotted[12 + 7] = b'.';
    assert_eq!(rcode(&house.ask(&dotted, false).await), 0);
    assert_eq!(server.asked().len(), 5);
}

#[tokio::test]
async fn large_answers_come_whole_where_they_fit() {
    let server = FakeResolver::start(4, 0, |asked| {
        let size = if asked.tcp { 60_000 } else { 3000 };
        vec![answer(&asked.message, &vec![7; size])]
    })
    .await;
    let house = House::behind(&[&server], "");
    let whole = house
        .ask(&query_edns(1, "x.example", 16, 4096), false)
        .await;
    assert_eq!((records(&whole)[0].len(), is_cut(&whole)), (3000, false));

    // This resolver does not care for what the asker takes, so the answer is cut here.
    for (asking, most) in [
        (query_edns(2, "x.example", 16, 1232), 1232),
        (query_edns(3, "x.example", 16, 10), 512),
        (query(4, "x.example", 16), 512),
    ] {
        let cut = house.ask(&asking, false).await;
        assert!(cut.len() <= most && is_cut(&cut), "{}", cut.len());
        assert_eq!((rcode(&cut), &cut[..2]), (0, &asking[..2]));
        assert_eq!(
            cut[12..question_end(&cut)],
            asking[12..question_end(&asking)]
        );
        // Who speaks EDNS is answered in EDNS.
        assert_eq!(cut[11], asking[11]);
        let whole = house.ask(&asking, true).await;
        assert_eq!(records(&whole)[0].len(), 60_000);
    }
}

#[tokio::test]
async fn a_cut_answer_is_passed_on_and_the_asker_comes_back_by_tcp() {
    let server = FakeResolver::start(5, 0, |asked| {
        if asked.tcp {
            return vec![answer(&asked.message, &[9; 20_000])];
        }
        let mut cut = code(&asked.message, 0);
        cut[2] |= 0x02;
        vec![cut]
    })
    .await;
    let house = House::behind(&[&server], "");
    let asking = query_edns(5, "x.example", 16, 1232);
    assert!(is_cut(&house.ask(&asking, false).await));
    let whole = house.ask(&asking, true).await;
    assert_eq!((records(&whole)[0].len(), is_cut(&whole)), (20_000, false));
}

#[tokio::test]
async fn a_resolver_without_tcp_still_serves_what_fits() {
    let server = FakeResolver::udp_only(6, works).await;
    let house = House::behind(&[&server], "");
    let got = house.ask(&query(1, "x.example", A), true).await;
    assert_eq!(records(&got), [[10, 0, 0, 1]]);
}

#[tokio::test]
async fn a_query_too_long_for_a_datagram_goes_by_tcp() {
    let server = FakeResolver::start(7, 0, works).await;
    let house = House::behind(&[&server], "");
    let mut asking = query(1, "x.example", A);
    asking[11] = 1;
    asking.extend([0, 0, 41, 16, 0, 0, 0, 0, 0]);
    asking.extend(2004u16.to_be_bytes());
    asking.extend([0, 12]);
    asking.extend(2000u16.to_be_bytes());
    asking.extend([0; 2000]);
    assert_eq!(rcode(&house.ask(&asking, false).await), 0);
    assert!(server.asked()[0].tcp);
}

#[tokio::test]
async fn a_lost_datagram_is_sent_again() {
    let server = FakeResolver::start(8, 0, |asked| {
        if asked.number == 0 {
            Vec::new()
        } else {
            works(asked)
        }
    })
    .await;
    let house = House::behind(&[&server], "timeout:1");
    assert_eq!(rcode(&house.ask(&query(1, "x.example", A), false).await), 0);
    let asked = server.asked();
    assert_eq!(asked[0].message, asked[1].message);
}

#[tokio::test]
async fn a_silent_server_is_passed_over_and_then_comes_last() {
    let silent = FakeResolver::start(10, 0, |_| Vec::new()).await;
    let works = FakeResolver::start(11, silent.port, works).await;
    let house = House::behind(&[&silent, &works], "timeout:1 attempts:1");
    for number in 0..2 {
        let got = house.ask(&query(number, "x.example", A), false).await;
        assert_eq!(rcode(&got), 0);
    }
    let patience = silent.asked().len();
    assert!(patience >= 2, "it was asked first");
    for number in 0..20 {
        house.ask(&query(number, "x.example", A), false).await;
    }
    assert_eq!(silent.asked().len(), patience, "and not any more");
}

#[tokio::test]
async fn a_server_that_is_not_there_costs_no_time() {
    let works = FakeResolver::start(13, 0, works).await;
    let text = format!("nameserver 127.0.0.14\nnameserver {}\n", works.address);
    let house = House::new(&text, works.port, |s| s.budget = LONG * 10);
    for tcp in [false, true] {
        // Its share alone would be five seconds; the answer may not wait for that.
        let started = Instant::now();
        assert_eq!(rcode(&house.ask(&query(1, "x.example", A), tcp).await), 0);
        assert!(started.elapsed() < Duration::from_secs(4));
    }
}

#[tokio::test]
async fn a_server_that_cannot_answer_is_no_last_word() {
    for refuses in [2, 4, 5] {
        let bad = FakeResolver::start(15, 0, move |a| vec![code(&a.message, refuses)]).await;
        let works = FakeResolver::start(16, bad.port, works).await;
        let house = House::behind(&[&bad, &works], "");
        assert_eq!(rcode(&house.ask(&query(1, "x.example", A), false).await), 0);
        // But when nobody knows better, it is what the asker gets.
        let house = House::behind(&[&bad], "");
        assert_eq!(
            rcode(&house.ask(&query(1, "x.example", A), false).await),
            refuses
        );
    }
    // No such name is an answer like any other.
    let knows = FakeResolver::start(17, 0, |a| vec![code(&a.message, 3)]).await;
    let other = FakeResolver::start(18, knows.port, works).await;
    let house = House::behind(&[&knows, &other], "");
    assert_eq!(rcode(&house.ask(&query(1, "x.example", A), false).await), 3);
    assert!(other.asked().is_empty());
}

#[tokio::test]
async fn an_old_server_that_answers_with_a_bare_header_is_understood() {
    let server = FakeResolver::start(19, 0, |asked| {
        let mut bare = code(&asked.message, 1);
        bare.truncate(12);
        bare[5] = 0;
        vec![bare]
    })
    .await;
    let house = House::behind(&[&server], "");
    let asking = query_edns(1, "x.example", A, 1232);
    let got = house.ask(&asking, false).await;
    assert_eq!((rcode(&got), &got[..2]), (1, &asking[..2]));
}

#[tokio::test]
async fn somebody_always_answers() {
    let silent = FakeResolver::start(20, 0, |_| Vec::new()).await;
    let budget = Duration::from_millis(600);
    for (house, what) in [
        (House::with(&[&silent], "", |s| s.budget = budget), "silent"),
        (House::new("", 53, |_| {}), "no resolvers"),
        (
            House::new("nameserver 127.0.0.21\n", silent.port, |_| {}),
            "nobody there",
        ),
    ] {
        for tcp in [false, true] {
            let asking = query_edns(9, "x.example", SOA, 1232);
            let got = house.ask(&asking, tcp).await;
            assert_eq!((rcode(&got), &got[..2]), (SERVFAIL, &asking[..2]), "{what}");
            assert_eq!(
                got[12..question_end(&got)],
                asking[12..question_end(&asking)]
            );
        }
    }
}

#[tokio::test]
async fn servers_take_turns_when_the_host_says_so() {
    let one = FakeResolver::start(22, 0, works).await;
    let two = FakeResolver::start(23, one.port, works).await;
    let house = House::behind(&[&one, &two], "rotate");
    for number in 0..10 {
        house.ask(&query(number, "x.example", A), false).await;
    }
    assert_eq!((one.asked().len(), two.asked().len()), (5, 5));
}

/// A forger who sits beside the resolver, but does not see the query, or answers another one.
#[tokio::test]
async fn forged_answers_are_passed_over() {
    let forge = |asked: &Asked| {
        let real = &asked.message;
        let evil = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut message = answer(real, &[6, 6, 6, 6]);
            change(&mut message);
            message
        };
        vec![
            evil(&|m| m[0] ^= 1),
            evil(&|m| m[1] ^= 1),
            evil(&|m| m[2] &= 0x7f),
            evil(&|m| m[2] |= 0x08),
            evil(&|m| m[13] = b'y'),
            evil(&|m| {
                let end = question_end(m);
                m[end - 3] = 28;
            }),
            evil(&|m| m[5] = 2),
            evil(&|m| m[5] = 0),
            evil(&|m| m.truncate(11)),
            evil(&|m| m.truncate(20)),
            Vec::new(),
        ]
    };
    let server = FakeResolver::start(24, 0, move |asked| {
        let mut all = forge(asked);
        all.push(answer(&asked.message, &[10, 0, 0, 1]));
        all
    })
    .await;
    let house = House::behind(&[&server], "");
    let got = house.ask(&query(1, "x.example", A), false).await;
    assert_eq!(records(&got), [[10, 0, 0, 1]]);

    // Alone they are no answer, by TCP neither.
    let liar = FakeResolver::start(25, 0, forge).await;
    let house = House::with(&[&liar], "", |s| s.budget = Duration::from_millis(600));
    for tcp in [false, true] {
        assert_eq!(
            rcode(&house.ask(&query(1, "x.example", A), tcp).await),
            SERVFAIL
        );
    }
}

#[tokio::test]
async fn answers_from_elsewhere_are_passed_over() {
    // Knows the port and the id, and sends from its own address before the resolver answers.
    let forger = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 27), 0))
        .await
        .unwrap();
    let forger = forger.into_std().unwrap();
    let server = FakeResolver::udp_only(26, move |asked| {
        let forged = answer(&asked.message, &[6, 6, 6, 6]);
        forger.send_to(&forged, asked.from).unwrap();
        vec![answer(&asked.message, &[10, 0, 0, 1])]
    })
    .await;
    let house = House::behind(&[&server], "");
    for number in 0..20 {
        let got = house.ask(&query(number, "x.example", A), false).await;
        assert_eq!(records(&got), [[10, 0, 0, 1]]);
    }
    assert_eq!(server.asked().len(), 20);
}

#[tokio::test]
async fn a_flood_of_forgeries_ends_in_an_answer() {
    let server = FakeResolver::start(28, 0, |asked| {
        let mut forged = answer(&asked.message, &[6, 6, 6, 6]);
        forged[0] ^= 1;
        vec![forged; 3000]
    })
    .await;
    let house = House::with(&[&server], "", |s| s.budget = Duration::from_secs(3));
    assert_eq!(
        rcode(&house.ask(&query(1, "x.example", A), false).await),
        SERVFAIL
    );
}

#[tokio::test]
async fn ids_and_ports_cannot_be_guessed() {
    let server = FakeResolver::start(29, 0, works).await;
    let house = House::behind(&[&server], "");
    for _ in 0..64 {
        house.ask(&query(1, "x.example", A), false).await;
    }
    let asked = server.asked();
    let ids: HashSet<[u8; 2]> = asked.iter().map(|a| [a.message[0], a.message[1]]).collect();
    let ports: HashSet<u16> = asked.iter().map(|a| a.from.port()).collect();
    assert!(
        ids.len() > 60 && ports.len() > 50,
        "{} {}",
        ids.len(),
        ports.len()
    );
}

#[tokio::test]
async fn more_than_the_rate_is_refused_and_names_of_the_house_are_not() {
    let server = FakeResolver::start(30, 0, works).await;
    let house = House::with(&[&server], "", |s| s.per_second = 1);
    let mut codes = Vec::new();
    for number in 0..20 {
        codes.push(rcode(
            &house.ask(&query(number, "x.example", A), false).await,
        ));
        let home = house.ask(&query(number, "listed.example", A), false).await;
        assert_eq!(records(&home), [[10, 1, 2, 3]]);
    }
    assert_eq!(codes[..2], [0, 0]);
    assert!(codes.contains(&SERVFAIL));
    codes.retain(|code| *code == 0);
    assert_eq!(server.asked().len(), codes.len());
}

#[tokio::test]
async fn more_than_may_wait_is_refused_at_once() {
    let silent = FakeResolver::start(31, 0, |_| Vec::new()).await;
    let house = House::with(&[&silent], "", |s| s.in_flight = 2);
    let asking = query(1, "x.example", A);
    let waiting = async { tokio::join!(house.ask(&asking, false), house.ask(&asking, false)) };
    let third = async {
        timeout(LONG, async {
            while silent.asked().len() < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        house.ask(&asking, false).await
    };
    tokio::select! {
        _ = waiting => panic!("nobody answered these"),
        third = third => assert_eq!(rcode(&third), SERVFAIL),
    }
    // Those who went away leave their places.
    let works = FakeResolver::start(32, 0, works).await;
    let house = House::with(&[&works], "", |s| s.in_flight = 1);
    for number in 0..10 {
        assert_eq!(
            rcode(&house.ask(&query(number, "x.example", A), false).await),
            0
        );
    }
}

#[tokio::test]
async fn a_stream_that_never_ends_or_ends_early_is_no_answer() {
    let tcp = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 33), 0))
        .await
        .unwrap();
    let port = tcp.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        for turn in 0.. {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let _ = match turn % 3 {
                // Promises much and brings little.
                0 => stream.write_all(&[0xff, 0xff, 1, 2, 3]).await,
                // No message at all.
                1 => stream.write_all(&framed(&[])).await,
                _ => stream.write_all(&vec![0xaa; 1 << 20]).await,
            };
        }
    });
    let house = House::new("nameserver 127.0.0.33\n", port, |s| {
        s.budget = Duration::from_secs(2);
    });
    for number in 0..6 {
        let got = house.ask(&query(number, "x.example", A), true).await;
        assert_eq!(rcode(&got), SERVFAIL);
    }
    server.abort();
}
