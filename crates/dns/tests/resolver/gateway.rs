//! The gateway's sockets: served to the house, closed to all others, bounded.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use crate::common::{
    A, AAAA, FakeResolver, House, LONG, PTR, answer, framed, query, query_edns, rcode, records,
};
use hostel_dns::{Gateway, Names};
use hostel_model::{DistroName, firewall::Source};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Long enough for an answer that should not come.
const SILENCE: Duration = Duration::from_millis(300);

struct Served {
    house: House,
    _upstream: FakeResolver,
    udp: SocketAddr,
    tcp: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Serves 127.0.0.0/28 and nobody else.
async fn serve(last: u8) -> Served {
    let upstream = FakeResolver::start(last, 0, |a| {
        vec![answer(&a.message, &vec![7; if a.tcp { 40_000 } else { 4 }])]
    })
    .await;
    let house = House::behind(&[&upstream], "");
    house.resolver.set_names(&names());
    let address = Ipv4Addr::new(127, 0, 0, last);
    let udp = UdpSocket::bind((address, 0)).await.unwrap();
    let tcp = TcpListener::bind((address, 0)).await.unwrap();
    let stop = CancellationToken::new();
    let (at_udp, at_tcp) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    let gateway = Gateway {
        udp,
        tcp,
        sources: vec!["127.0.0.0/28".parse::<Source>().unwrap()],
    };
    let (resolver, token) = (house.resolver.clone(), stop.clone());
    Served {
        house,
        _upstream: upstream,
        udp: at_udp,
        tcp: at_tcp,
        stop,
        task: tokio::spawn(async move { resolver.serve(gateway, token).await }),
    }
}

fn names() -> Names {
    let name = |text: &str| DistroName::parse(text).unwrap();
    Names {
        host: vec!["172.19.128.1".parse().unwrap()],
        vm: vec!["172.19.132.144".parse().unwrap()],
        distros: [
            (name("Debian"), vec!["172.19.132.144".parse().unwrap()]),
            (
                name("room"),
                vec!["172.19.133.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            ),
        ]
        .into(),
    }
}

async fn asker(last: u8, to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), 0))
        .await
        .unwrap();
    socket.connect(to).await.unwrap();
    socket
}

async fn ask(socket: &UdpSocket, message: &[u8]) -> Option<Vec<u8>> {
    socket.send(message).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = timeout(SILENCE, socket.recv(&mut buffer))
        .await
        .ok()?
        .unwrap();
    buffer.truncate(length);
    Some(buffer)
}

async fn connect(last: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind((Ipv4Addr::new(127, 0, 0, last), 0).into())
        .unwrap();
    socket.connect(to).await.unwrap()
}

async fn read(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let read = async {
        let length = stream.read_u16().await?;
        let mut message = vec![0; usize::from(length)];
        stream.read_exact(&mut message).await?;
        Ok(message)
    };
    timeout(LONG, read).await.expect("in time")
}

#[tokio::test]
async fn names_of_the_house_and_of_the_world_are_answered() {
    let served = serve(50).await;
    let socket = asker(2, served.udp).await;
    let mut stream = connect(2, served.tcp).await;
    for (name, kind, want) in [
        ("host.hostel", A, vec![vec![172, 19, 128, 1]]),
        ("VM.Hostel", A, vec![vec![172, 19, 132, 144]]),
        ("debian.hostel", A, vec![vec![172, 19, 132, 144]]),
        (
            "room.hostel",
            AAAA,
            vec![
                "fd00::7"
                    .parse::<std::net::Ipv6Addr>()
                    .unwrap()
                    .octets()
                    .to_vec(),
            ],
        ),
        (
            "7.133.19.172.in-addr.arpa",
            PTR,
            vec![b"\x04room\x06hostel\0".to_vec()],
        ),
        (
            "144.132.19.172.in-addr.arpa",
            PTR,
            vec![b"\x02vm\x06hostel\0".to_vec()],
        ),
        ("x.example", 16, vec![vec![7; 4]]),
    ] {
        let asking = query_edns(77, name, kind, 1232);
        let got = ask(&socket, &asking).await.unwrap();
        assert_eq!(
            (records(&got), got[11]),
            (want.clone(), u8::from(kind != 16)),
            "{name}"
        );
        stream.write_all(&framed(&asking)).await.unwrap();
        let got = read(&mut stream).await.unwrap();
        let want = if kind == 16 {
            vec![vec![7; 40_000]]
        } else {
            want
        };
        assert_eq!(records(&got), want, "{name}");
    }
    for name in ["nobody.hostel", "www.room.hostel"] {
        let got = ask(&socket, &query(1, name, A)).await.unwrap();
        assert_eq!(rcode(&got), 3, "{name}");
    }

    served.stop.cancel();
    timeout(LONG, served.task).await.unwrap().unwrap();
    assert!(TcpStream::connect(served.tcp).await.is_err(), "closed");
    drop(served.house);
}

/// No open resolver: whoever is not of the house hears nothing, not even an error.
#[tokio::test]
async fn strangers_get_no_answer() {
    let served = serve(51).await;
    let stranger = asker(16, served.udp).await;
    assert_eq!(ask(&stranger, &query(1, "host.hostel", A)).await, None);
    let mut stream = connect(16, served.tcp).await;
    let _ = stream.write_all(&framed(&query(1, "host.hostel", A))).await;
    assert!(read(&mut stream).await.is_err());
    let friend = asker(15, served.udp).await;
    assert!(ask(&friend, &query(1, "host.hostel", A)).await.is_some());
}

#[tokio::test]
async fn nonsense_is_answered_once_or_not_at_all() {
    let served = serve(52).await;
    let socket = asker(3, served.udp).await;
    let good = query(0x0102, "host.hostel", A);
    let mut response = good.clone();
    response[2] |= 0x80;
    for silent in [&[][..], &good[..11], &response] {
        assert_eq!(ask(&socket, silent).await, None);
    }
    let mut notify = good.clone();
    notify[2] = 0x20;
    let mut two = good.clone();
    two[5] = 2;
    let mut pointer = good.clone();
    pointer[12] = 0xc0;
    for (message, want) in [
        (good[..12].to_vec(), 1),
        (good[..good.len() - 1].to_vec(), 1),
        (notify, 4),
        (two, 1),
        (pointer, 1),
        (query(1, "example", 252), 5),
        (query(1, "example", 251), 5),
    ] {
        let got = ask(&socket, &message).await.unwrap();
        assert_eq!(
            (rcode(&got), &got[..2]),
            (want, &message[..2]),
            "{message:?}"
        );
        assert!(got.len() <= message.len().max(12), "nothing grows");
    }
    // A stream of nonsense ends; the door stays open for others.
    let mut stream = connect(3, served.tcp).await;
    let noise = vec![0xff; 1 << 20];
    let _ = timeout(LONG, stream.write_all(&noise)).await;
    assert!(ask(&socket, &good).await.is_some());
}

#[tokio::test]
async fn one_source_cannot_take_it_all() {
    let served = serve(53).await;
    let greedy = asker(4, served.udp).await;
    let asking = query(1, "host.hostel", A);
    let mut answered = 0;
    for _ in 0..3000 {
        greedy.send(&asking).await.unwrap();
        tokio::task::yield_now().await;
        while greedy.try_recv(&mut [0; 512]).is_ok() {
            answered += 1;
        }
    }
    while timeout(SILENCE, greedy.recv(&mut [0; 512])).await.is_ok() {
        answered += 1;
    }
    // A burst of a thousand, and what the rate brought in the meantime.
    assert!((1..2900).contains(&answered), "{answered}");
    let modest = asker(5, served.udp).await;
    assert!(ask(&modest, &asking).await.is_some());

    // Connections are counted too.
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(connect(6, served.tcp).await);
    }
    let mut alive = 0;
    for stream in &mut open {
        let _ = stream.write_all(&framed(&asking)).await;
        alive += usize::from(read(stream).await.is_ok());
    }
    assert_eq!(alive, 32);
    let mut other = connect(7, served.tcp).await;
    other.write_all(&framed(&asking)).await.unwrap();
    assert!(read(&mut other).await.is_ok());
    // Who leaves makes room.
    drop(open);
    let again = timeout(LONG, async {
        loop {
            let mut stream = connect(6, served.tcp).await;
            let _ = stream.write_all(&framed(&asking)).await;
            if read(&mut stream).await.is_ok() {
                break;
            }
        }
    });
    assert!(again.await.is_ok());
}
