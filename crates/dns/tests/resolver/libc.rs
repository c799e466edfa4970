//! The host's own C library asks the gateway, in a network namespace with a `resolv.conf` of its own.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::Path,
    sync::Arc,
};

use hostel_dns::{Gateway, Names};
use hostel_model::DistroName;
use hostel_testkit::{Need, Space, require};
use tokio_util::sync::CancellationToken;

use crate::common::{A, FakeResolver, House, answer, code, question_end};

/// 200 addresses do not fit a datagram.
const MANY: u8 = 200;

/// Knows one name.
fn world(message: &[u8], tcp: bool) -> Vec<u8> {
    let end = question_end(message);
    if !message[12..].starts_with(b"\x04many\x07example\0") {
        return code(message, 3);
    }
    if message[end - 3] != A as u8 {
        return code(message, 0);
    }
    let mut out = code(message, 0);
    if !tcp {
        out[2] |= 0x02;
        return out;
    }
    let record = answer(message, &[10, 0, 0, 0])[end..].to_vec();
    out[7] = MANY;
    for number in 0..MANY {
        out.extend(&record[..record.len() - 1]);
        out.push(number);
    }
    out
}

#[tokio::test]
async fn libc_finds_names_of_the_house_and_large_answers() {
    let test = "libc::libc_finds_names_of_the_house_and_large_answers";
    let needs = [
        Need::Program("getent"),
        Need::Program("unshare"),
        Need::Program("ip"),
    ];
    if needs.into_iter().any(|need| require(test, need).is_none()) {
        return;
    }
    let Some(space) = Space::new(test) else {
        return;
    };
    let space = Arc::new(space);
    // With addresses of both kinds beyond 127.0.0.1, or getent asks for neither.
    space
        .sh("ip link set lo up && ip addr add 192.0.2.1/32 dev lo && ip addr add 2001:db8::1/128 dev lo")
        .unwrap();
    let (udp, tcp) = space.run(|| {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).unwrap();
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 53)).unwrap();
        udp.set_nonblocking(true).unwrap();
        tcp.set_nonblocking(true).unwrap();
        (udp, tcp)
    });

    let upstream = FakeResolver::start(60, 0, |a| vec![world(&a.message, a.tcp)]).await;
    let house = House::behind(&[&upstream], "");
    let room = DistroName::parse("Room-1").unwrap();
    house.resolver.set_names(&Names {
        host: vec!["172.19.128.1".parse().unwrap()],
        vm: vec!["172.19.132.144".parse().unwrap()],
        distros: [(
            room,
            vec!["172.19.133.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        )]
        .into(),
    });
    let gateway = Gateway {
        udp: udp.try_into().unwrap(),
        tcp: tcp.try_into().unwrap(),
        sources: vec!["127.0.0.0/8".parse().unwrap()],
    };
    let stop = CancellationToken::new();
    let (resolver, token) = (house.resolver.clone(), stop.clone());
    let task = tokio::spawn(async move { resolver.serve(gateway, token).await });

    let file = |name: &str, text: &str| {
        fs_err::write(house.path(name), text).unwrap();
    };
    file(
        "guest",
        "nameserver 127.0.0.1\nsearch hostel\noptions timeout:20\n",
    );
    file("nsswitch", "hosts: dns\n");
    for (options, request, want) in [
        ("", "ahostsv4 room-1.hostel", Some("172.19.133.7 STREAM")),
        ("edns0", "ahostsv6 ROOM-1", Some("fd00::7 STREAM")),
        (
            "edns0 trust-ad",
            "hosts 172.19.133.7",
            Some("room-1.hostel"),
        ),
        ("", "hosts fd00::7", Some("room-1.hostel")),
        ("", "ahosts listed.example", Some("10.1.2.3 STREAM")),
        ("", "ahostsv4 many.example", Some("10.0.0.199 STREAM")),
        ("use-vc", "ahostsv4 many.example", Some("10.0.0.199 STREAM")),
        ("", "ahosts nobody.hostel", None),
        ("", "hosts 10.0.0.77", None),
    ] {
        let found = getent(&space, house.dir.path(), options, request).await;
        let found = found.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
        match want {
            Some(want) => {
                let found = found.unwrap_or_else(|error| panic!("{request}: {error}"));
                assert!(found.contains(want), "{request}: {found}");
            }
            None => assert!(found.is_err(), "{request}: {found:?}"),
        }
    }
    stop.cancel();
    task.await.unwrap();
}

/// Asks as a program of the namespace does.
async fn getent(
    space: &Arc<Space>,
    dir: &Path,
    options: &str,
    request: &str,
) -> Result<String, String> {
    let dir = dir.display();
    let line = format!(
        "unshare --mount sh -c 'mount --bind {dir}/guest /etc/resolv.conf && \
         mount --bind {dir}/nsswitch /etc/nsswitch.conf && RES_OPTIONS=\"{options}\" exec getent {request}'"
    );
    let space = Arc::clone(space);
    tokio::task::spawn_blocking(move || space.sh(&line))
        .await
        .unwrap()
}
