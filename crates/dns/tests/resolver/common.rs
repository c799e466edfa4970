//! Resolvers that play the host's, and the messages to talk to them.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use hostel_dns::{Resolver, Settings};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
    time::timeout,
};

pub(crate) const A: u16 = 1;
pub(crate) const SOA: u16 = 6;
pub(crate) const PTR: u16 = 12;
pub(crate) const AAAA: u16 = 28;

/// Longer than anything takes on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// What came to a resolver.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) message: Vec<u8>,
    pub(crate) tcp: bool,
    pub(crate) from: SocketAddr,
    /// How many came before it.
    pub(crate) number: usize,
}

/// What a message, by TCP or not, from somebody leads to.
type Reply = dyn Fn(Vec<u8>, bool, SocketAddr) -> Vec<Vec<u8>> + Send + Sync;

/// A resolver on an address of loopback. What its function returns is sent, message by message.
pub(crate) struct FakeResolver {
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
    _tasks: JoinSet<()>,
}

impl FakeResolver {
    /// Starts one at 127.0.0.`last`; `port` 0 finds a free one.
    pub(crate) async fn start(
        last: u8,
        port: u16,
        answer: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let address = Ipv4Addr::new(127, 0, 0, last);
        for _ in 0..200 {
            // The port may be taken: by another test for a moment, or for the other protocol for longer.
            if let Ok(udp) = UdpSocket::bind((address, port)).await {
                let found = udp.local_addr().unwrap().port();
                if let Ok(tcp) = TcpListener::bind((address, found)).await {
                    return Self::run(address, udp, Some(tcp), answer);
                }
            }
            let _ = timeout(Duration::from_millis(20), std::future::pending::<()>()).await;
        }
        panic!("port {port} is never free for both protocols");
    }

    /// Starts one without TCP.
    pub(crate) async fn udp_only(
        last: u8,
        answer: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let address = Ipv4Addr::new(127, 0, 0, last);
        let udp = UdpSocket::bind((address, 0)).await.unwrap();
        Self::run(address, udp, None, answer)
    }

    fn run(
        address: Ipv4Addr,
        udp: UdpSocket,
        tcp: Option<TcpListener>,
        answer: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let port = udp.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let reply: Arc<Reply> = {
            let asked = Arc::clone(&asked);
            Arc::new(move |message, tcp, from| {
                let mut asked = asked.lock().unwrap();
                let new = Asked {
                    message,
                    tcp,
                    from,
                    number: asked.len(),
                };
                asked.push(new.clone());
                drop(asked);
                answer(&new)
            })
        };
        let mut tasks = JoinSet::new();
        let by_udp = Arc::clone(&reply);
        tasks.spawn(async move {
            let mut buffer = vec![0; 65_535];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
                for message in by_udp(buffer[..length].to_vec(), false, from) {
                    udp.send_to(&message, from).await.unwrap();
                }
            }
        });
        if let Some(tcp) = tcp {
            tasks.spawn(async move {
                loop {
                    let (mut stream, from) = tcp.accept().await.unwrap();
                    let length = stream.read_u16().await.unwrap();
                    let mut message = vec![0; usize::from(length)];
                    stream.read_exact(&mut message).await.unwrap();
                    for message in reply(message, true, from) {
                        let _ = stream.write_all(&framed(&message)).await;
                    }
                }
            });
        }
        Self {
            address,
            port,
            asked,
            _tasks: tasks,
        }
    }

    /// Returns what came so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// The host's files, and a resolver that reads them.
pub(crate) struct House {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) resolver: Resolver,
}

impl House {
    /// `change` sets what a test wants otherwise.
    pub(crate) fn new(resolv_conf: &str, port: u16, change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs_err::write(path("resolv.conf"), resolv_conf).unwrap();
        fs_err::write(path("hosts"), "10.1.2.3 listed.example\n").unwrap();
        let mut settings = Settings {
            resolv_conf: path("resolv.conf"),
            behind_stub: vec![path("behind")],
            hosts: path("hosts"),
            port,
            budget: Duration::from_secs(20),
            ..Settings::default()
        };
        change(&mut settings);
        let resolver = Resolver::new(settings);
        Self { dir, resolver }
    }

    /// A house whose host asks these.
    pub(crate) fn behind(resolvers: &[&FakeResolver], options: &str) -> Self {
        Self::with(resolvers, options, |_| {})
    }

    pub(crate) fn with(
        resolvers: &[&FakeResolver],
        options: &str,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let mut text = format!("options {options}\n").into_bytes();
        for resolver in resolvers {
            writeln!(text, "nameserver {}", resolver.address).unwrap();
        }
        let port = resolvers.first().map_or(53, |r| r.port);
        Self::new(&String::from_utf8(text).unwrap(), port, change)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Asks and waits; the answer must come.
    pub(crate) async fn ask(&self, message: &[u8], tcp: bool) -> Vec<u8> {
        timeout(LONG, self.resolver.answer(message, tcp))
            .await
            .expect("an answer in time")
            .expect("an answer")
    }
}

/// A message with its length before it.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

/// A question, as libc asks it.
pub(crate) fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|l| !l.is_empty()) {
        out.push(label.len() as u8);
        out.extend(label.bytes());
    }
    out.push(0);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out
}

/// The same with EDNS: takes datagrams of `size`, wants signatures, and has an option that nobody knows.
pub(crate) fn query_edns(id: u16, name: &str, kind: u16, size: u16) -> Vec<u8> {
    let mut out = query(id, name, kind);
    out[11] = 1;
    out.extend([0, 0, 41]);
    out.extend(size.to_be_bytes());
    out.extend([0, 0, 0x80, 0, 0, 6, 0xfd, 0xe9, 0, 2, 0xab, 0xcd]);
    out
}

/// Answers a question with one record of its kind; also with any data.
pub(crate) fn answer(query: &[u8], data: &[u8]) -> Vec<u8> {
    let end = question_end(query);
    let mut out = query[..end].to_vec();
    out[2] |= 0x80;
    out[3] = 0x80;
    out[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    out.extend([0xc0, 12]);
    out.extend(&query[end - 4..end]);
    out.extend([0, 0, 0, 60]);
    out.extend((data.len() as u16).to_be_bytes());
    out.extend(data);
    out
}

/// Answers a question with a code and nothing else.
pub(crate) fn code(query: &[u8], code: u8) -> Vec<u8> {
    let mut out = query[..question_end(query)].to_vec();
    out[2] |= 0x80;
    out[3] = 0x80 | code;
    out[6..12].fill(0);
    out
}

pub(crate) fn question_end(message: &[u8]) -> usize {
    let mut pos = 12;
    while message[pos] != 0 {
        pos += 1 + usize::from(message[pos]);
    }
    pos + 5
}

/// The code of an answer.
pub(crate) fn rcode(message: &[u8]) -> u8 {
    message[3] & 0x0f
}

pub(crate) fn is_cut(message: &[u8]) -> bool {
    message[2] & 0x02 != 0
}

/// The data of the answers of a message whose names are all references.
pub(crate) fn records(message: &[u8]) -> Vec<Vec<u8>> {
    let mut pos = question_end(message);
    let count = u16::from_be_bytes([message[6], message[7]]);
    let mut found = Vec::new();
    for _ in 0..count {
        assert_eq!(message[pos..pos + 2], [0xc0, 12]);
        let length = u16::from_be_bytes([message[pos + 10], message[pos + 11]]);
        let data = pos + 12;
        pos = data + usize::from(length);
        found.push(message[data..pos].to_vec());
    }
    found
}
