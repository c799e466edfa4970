//! Names by way of the daemon (DNS-*).

use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use hostel_netlink::{Routing, Veth};
use hostel_proto::v1;
use hostel_testkit::{Need, Space, require};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::host::{Host, LIMIT, accept, in_space};

const TUNNEL: &str = "10.255.255.254";
const MAC: &str = "52:54:00:12:34:56";
const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";

/// The guest with two neighbours: the outside behind what becomes `eth0`, and a room.
struct Guest {
    space: Space,
    outside: Space,
    room: Space,
    host: Host,
}

async fn guest(test: &str) -> Option<Guest> {
    require(test, Need::Program("ip"))?;
    require(test, Need::Program("unshare"))?;
    let (space, outside, room) = (Space::new(test)?, Space::new(test)?, Space::new(test)?);
    let there = [
        ("card0", "up0", outside.netns()),
        ("room0", "eth0", room.netns()),
    ];
    space.run(move || {
        let routing = Routing::connect().unwrap();
        for (name, peer, netns) in &there {
            let veth = Veth {
                name,
                mac: (*name == "card0").then_some([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
                alias: "",
                peer,
                peer_mac: None,
                peer_netns: Some(netns.as_fd()),
                mtu: None,
            };
            routing.add_veth(&veth).unwrap();
        }
    });
    space
        .sh("ip link set lo up; ip link set room0 up; ip addr add 172.19.132.144/32 dev room0; ip route add 172.19.133.7 dev room0")
        .unwrap();
    outside
        .sh("ip link set lo up; ip link set up0 up; ip addr add 172.19.128.1/20 dev up0; ip route add 10.255.255.254 via 172.19.132.144")
        .unwrap();
    room.sh("ip link set lo up; ip link set eth0 up; ip addr add 172.19.133.7/32 dev eth0; ip route add 172.19.132.144 dev eth0; ip route add default via 172.19.132.144")
        .unwrap();
    let host = in_space(&space).await;
    Some(Guest {
        space,
        outside,
        room,
        host,
    })
}

fn network() -> v1::GuestNetwork {
    v1::GuestNetwork {
        address: "172.19.132.144".into(),
        prefix: 20,
        gateway: "172.19.128.1".into(),
        mac: MAC.into(),
        dns: vec![TUNNEL.into()],
        dns_tunnel: TUNNEL.into(),
        generate_resolv_conf: true,
        ..Default::default()
    }
}

async fn configure(host: &mut Host, network: v1::GuestNetwork) {
    let request = v1::ConfigureRequest {
        network: Some(network),
        ..Default::default()
    };
    let reply = timeout(LIMIT, host.client.configure(request)).await;
    let warnings = reply.unwrap().unwrap().into_inner().warnings;
    assert!(warnings.is_empty(), "{warnings:?}");
}

/// The daemon's resolver: answers with the question and whether it came by TCP.
struct Resolver {
    questions: Streaming<v1::DnsQuery>,
    answers: mpsc::Sender<v1::DnsAnswer>,
}

impl Resolver {
    async fn begin(host: &mut Host) -> Self {
        let (answers, receiver) = mpsc::channel(64);
        let call = host.client.dns(ReceiverStream::new(receiver));
        let questions = timeout(LIMIT, call).await.unwrap().unwrap().into_inner();
        Self { questions, answers }
    }

    /// Answers so many questions, the last one first; what was asked, in the order in which it was asked.
    async fn answer(&mut self, count: usize, length: usize) -> Vec<v1::DnsQuery> {
        let mut asked = Vec::new();
        while asked.len() < count {
            let query = timeout(LIMIT, self.questions.message()).await;
            asked.push(
                query
                    .expect("it is asked")
                    .unwrap()
                    .expect("the call goes on"),
            );
        }
        for query in asked.iter().rev() {
            let mut message = query.message.to_vec();
            message[2] |= 0x80;
            message.resize(message.len().max(length), 9);
            let answer = v1::DnsAnswer {
                number: query.number,
                message: message.into(),
            };
            self.answers.send(answer).await.unwrap();
        }
        asked
    }
}

/// Asks by UDP from a namespace; the answer, or what became of the question.
fn ask(space: &Space, wait: Duration) -> std::io::Result<Vec<u8>> {
    space.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((TUNNEL, 53))?;
        socket.set_read_timeout(Some(wait))?;
        socket.send(QUESTION)?;
        let mut bytes = vec![0; 65_535];
        let length = socket.recv(&mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    })
}

fn frame(stream: &mut impl std::io::Read) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn framed(id: u8) -> Vec<u8> {
    let mut question = QUESTION.to_vec();
    question[1] = id;
    [&(question.len() as u16).to_be_bytes()[..], &question].concat()
}

/// DNS-1, and no open resolver: the guest and its rooms are answered, what is outside is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn questions_are_carried_from_inside_and_ignored_from_outside() {
    let test = "questions_are_carried_from_inside_and_ignored_from_outside";
    let Some(mut guest) = guest(test).await else {
        return;
    };
    configure(&mut guest.host, network()).await;
    let mut resolver = Resolver::begin(&mut guest.host).await;
    for space in [&guest.space, &guest.room] {
        let asking = tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                let asking = scope.spawn(|| ask(space, LIMIT));
                let asked = tokio::runtime::Handle::current().block_on(resolver.answer(1, 1200));
                assert!(!asked[0].tcp && asked[0].message[..] == *QUESTION);
                asking.join().unwrap()
            })
        });
        let answer = asking.unwrap();
        assert_eq!((answer.len(), &answer[..2]), (1200, &QUESTION[..2]));
    }
    // The way there and back works: it is the question that is not answered.
    let reaches = guest.outside.sh("ping -n -c1 -W5 10.255.255.254");
    if require(test, Need::Program("ping")).is_some() {
        reaches.unwrap();
    }
    let silence = tokio::task::block_in_place(|| ask(&guest.outside, Duration::from_millis(500)));
    assert_eq!(
        silence.unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock,
        "no answer, and no refusal"
    );
    let silence = guest.outside.run(|| {
        use std::io::Write;
        let mut stream = TcpStream::connect((TUNNEL, 53)).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.write_all(&framed(1))?;
        frame(&mut stream)
    });
    assert!(silence.is_err());
    // Nothing of it came to the resolver: the next question is the next one from inside.
    let inside = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| ask(&guest.room, LIMIT));
            tokio::runtime::Handle::current().block_on(resolver.answer(1, 0));
            asking.join().unwrap()
        })
    });
    assert!(inside.is_ok());
}

/// Many questions on one connection, answered in another order, one of them large (RFC 7766).
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_connection_takes_questions_one_after_the_other() {
    const COUNT: u8 = 10;
    let test = "a_connection_takes_questions_one_after_the_other";
    let Some(mut guest) = guest(test).await else {
        return;
    };
    configure(&mut guest.host, network()).await;
    let mut resolver = Resolver::begin(&mut guest.host).await;
    let stream = guest.room.run(|| TcpStream::connect((TUNNEL, 53)).unwrap());
    let mut ids = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                use std::io::Write;
                let mut stream = &stream;
                let all: Vec<u8> = (0..COUNT).flat_map(framed).collect();
                // Pieces that end anywhere.
                for piece in all.chunks(7) {
                    stream.write_all(piece).unwrap();
                }
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let answers = (0..COUNT).map(|_| frame(&mut stream).unwrap());
                let ids: Vec<u8> = answers
                    .inspect(|a| assert_eq!(a.len(), 65_535))
                    .map(|a| a[1])
                    .collect();
                assert!(frame(&mut stream).is_err(), "the connection ends");
                ids
            });
            let answered = resolver.answer(COUNT.into(), 65_535);
            let asked = tokio::runtime::Handle::current().block_on(answered);
            assert!(asked.iter().all(|q| q.tcp));
            asking.join().unwrap()
        })
    });
    ids.sort_unstable();
    assert_eq!(ids, (0..COUNT).collect::<Vec<_>>());
}

/// Nobody waits for a daemon that is not there; when it is back, everything goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn without_the_daemon_questions_fail_at_once() {
    let test = "without_the_daemon_questions_fail_at_once";
    let Some(mut guest) = guest(test).await else {
        return;
    };
    configure(&mut guest.host, network()).await;
    let failed = |guest: &Guest| {
        let answer = tokio::task::block_in_place(|| ask(&guest.space, LIMIT)).unwrap();
        assert_eq!(answer[3] & 15, 2, "server failure");
        assert_eq!(answer[12..], QUESTION[12..]);
    };
    failed(&guest);
    let resolver = Resolver::begin(&mut guest.host).await;
    drop(resolver);
    // The whole connection breaks, and the daemon comes back.
    let gone = tonic::transport::Endpoint::from_static("http://gone").connect_lazy();
    guest.host.client = hostel_proto::v1::agent_client::AgentClient::new(gone);
    guest.host.client = accept(&guest.host.control).await;
    failed(&guest);
    let mut resolver = Resolver::begin(&mut guest.host).await;
    let answer = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| ask(&guest.space, LIMIT));
            tokio::runtime::Handle::current().block_on(resolver.answer(1, 0));
            asking.join().unwrap()
        })
    });
    assert_eq!(answer.unwrap()[3] & 15, 0);
}

/// DNS-2, DNS-5: what changes is changed in place, and what runs goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_network_may_be_told_again() {
    use std::os::unix::fs::MetadataExt;
    let Some(mut guest) = guest("the_network_may_be_told_again").await else {
        return;
    };
    configure(&mut guest.host, network()).await;
    let path = guest.host.file("/mnt/wsl/resolv.conf");
    let inode = fs_err::metadata(&path).unwrap().ino();
    let mut resolver = Resolver::begin(&mut guest.host).await;
    let stream = guest
        .space
        .run(|| TcpStream::connect((TUNNEL, 53)).unwrap());
    let search = v1::GuestNetwork {
        search: vec!["corp.example".into()],
        ..network()
    };
    configure(&mut guest.host, search).await;
    let text = fs_err::read_to_string(&path).unwrap();
    assert!(text.ends_with("nameserver 10.255.255.254\nsearch corp.example\n"));
    assert_eq!(fs_err::metadata(&path).unwrap().ino(), inode);
    // The connection of before is still served.
    let answer = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                use std::io::Write;
                (&stream).write_all(&framed(1)).unwrap();
                frame(&mut &stream)
            });
            tokio::runtime::Handle::current().block_on(resolver.answer(1, 0));
            asking.join().unwrap()
        })
    });
    assert_eq!(answer.unwrap()[1], 1);
    // Without a tunnel the address and its sockets are gone.
    let direct = v1::GuestNetwork {
        dns: vec!["172.19.128.1".into()],
        dns_tunnel: String::new(),
        ..network()
    };
    configure(&mut guest.host, direct).await;
    let addresses = guest.space.sh("ip addr show lo").unwrap();
    assert!(!addresses.contains(TUNNEL), "{addresses}");
    assert!(
        fs_err::read_to_string(&path)
            .unwrap()
            .contains("nameserver 172.19.128.1")
    );
}
