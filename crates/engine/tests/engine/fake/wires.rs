//! The network half of the fake agent: its listeners, its questions for names, its connections.

use std::sync::{Arc, Mutex};

use hostel_engine::streams::GuestStream;
use hostel_proto::v1;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{mpsc, watch},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, Streaming};

use super::SOON;

type Sender<T> = mpsc::Sender<Result<T, Status>>;

/// What the host asked the agent for, and the streams on which the agent speaks.
#[derive(Debug)]
pub(crate) struct Wires {
    /// How often the host has asked for ports.
    pub(crate) watches: watch::Sender<u32>,
    pub(crate) udp_ports: Mutex<Vec<u32>>,
    ports: Mutex<Option<Sender<v1::PortsChanged>>>,
    questions: watch::Sender<Option<Sender<v1::DnsQuery>>>,
    answers: watch::Sender<Vec<v1::DnsAnswer>>,
    /// Connections that the host asked for.
    pub(crate) connects: Mutex<Vec<v1::ConnectRequest>>,
    /// What the host has told, in order.
    pub(crate) configures: watch::Sender<Vec<v1::ConfigureRequest>>,
    /// Starts of distributions that the host has asked for.
    pub(crate) starts: Mutex<Vec<v1::StartDistroRequest>>,
}

impl Default for Wires {
    fn default() -> Self {
        Self {
            watches: watch::channel(0).0,
            udp_ports: Mutex::default(),
            ports: Mutex::default(),
            questions: watch::channel(None).0,
            answers: watch::channel(Vec::new()).0,
            connects: Mutex::default(),
            configures: watch::channel(Vec::new()).0,
            starts: Mutex::default(),
        }
    }
}

impl Wires {
    /// Tells the host what listens.
    pub(crate) async fn ports_change(&self, change: v1::PortsChanged) {
        let mut watches = self.watches.subscribe();
        tokio::time::timeout(SOON, watches.wait_for(|n| *n > 0))
            .await
            .expect("the host asks for ports")
            .unwrap();
        let ports = self.ports.lock().unwrap().clone().unwrap();
        // A host that has had enough closes the stream.
        let _ = ports.send(Ok(change)).await;
    }

    /// Tells the host about one more TCP listener.
    pub(crate) async fn listens(&self, distro: &str, address: &str, port: u16) {
        self.ports_change(v1::PortsChanged {
            added: vec![listener(distro, address, port)],
            ..v1::PortsChanged::default()
        })
        .await;
    }

    /// Ends the stream of ports as an agent does that dies.
    pub(crate) fn ports_end(&self) {
        *self.ports.lock().unwrap() = None;
    }

    /// Asks the host for a name and waits for the answer.
    pub(crate) async fn ask(&self, query: v1::DnsQuery) -> v1::DnsAnswer {
        let number = query.number;
        self.ask_all(vec![query]).await;
        let mut answers = self.answers.subscribe();
        let all = tokio::time::timeout(
            SOON,
            answers.wait_for(|all| all.iter().any(|a| a.number == number)),
        )
        .await
        .expect("an answer in time")
        .unwrap();
        all.iter().find(|a| a.number == number).unwrap().clone()
    }

    /// Asks without waiting for answers.
    pub(crate) async fn ask_all(&self, queries: Vec<v1::DnsQuery>) {
        let mut questions = self.questions.subscribe();
        let sender = tokio::time::timeout(SOON, questions.wait_for(Option::is_some))
            .await
            .expect("the host takes questions")
            .unwrap()
            .clone()
            .unwrap();
        for query in queries {
            let _ = sender.send(Ok(query)).await;
        }
    }

    /// Returns how many answers have come.
    pub(crate) fn answered(&self) -> usize {
        self.answers.borrow().len()
    }

    /// Waits until the host has configured the machine so often, and returns the last one.
    pub(crate) async fn configured(&self, times: usize) -> v1::ConfigureRequest {
        let mut configures = self.configures.subscribe();
        let all = tokio::time::timeout(SOON, configures.wait_for(|all| all.len() >= times))
            .await
            .unwrap_or_else(|_| panic!("not configured {times} times"))
            .unwrap();
        all.last().unwrap().clone()
    }

    pub(super) fn watch_ports(
        &self,
        request: v1::WatchPortsRequest,
    ) -> ReceiverStream<Result<v1::PortsChanged, Status>> {
        let (sender, receiver) = mpsc::channel(64);
        let _ = sender.try_send(Ok(v1::PortsChanged {
            reset: true,
            ..v1::PortsChanged::default()
        }));
        *self.udp_ports.lock().unwrap() = request.udp_ports;
        *self.ports.lock().unwrap() = Some(sender);
        self.watches.send_modify(|n| *n += 1);
        ReceiverStream::new(receiver)
    }

    pub(super) fn dns(
        self: &Arc<Self>,
        mut answers: Streaming<v1::DnsAnswer>,
    ) -> ReceiverStream<Result<v1::DnsQuery, Status>> {
        let (sender, receiver) = mpsc::channel(64);
        self.questions.send_replace(Some(sender));
        let wires = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(Ok(answer)) = answers.next().await {
                wires.answers.send_modify(|all| all.push(answer));
            }
        });
        ReceiverStream::new(receiver)
    }

    /// Connects: the other end says where it is and then echoes.
    pub(super) fn connect(&self, request: v1::ConnectRequest, dials: mpsc::Sender<GuestStream>) {
        self.connects.lock().unwrap().push(request.clone());
        tokio::spawn(async move {
            let (mut near, far) = UnixStream::pair().unwrap();
            near.write_all(&request.token).await.unwrap();
            dials.send(Box::new(far)).await.unwrap();
            let name = format!("[{}]{}:{}\n", request.room, request.address, request.port);
            if near.write_all(name.as_bytes()).await.is_err() {
                return;
            }
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = near.read(&mut buffer).await {
                if near.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Describes a TCP listener.
pub(crate) fn listener(distro: &str, address: &str, port: u16) -> v1::Listener {
    v1::Listener {
        distro: distro.to_owned(),
        protocol: "tcp".to_owned(),
        address: address.to_owned(),
        port: port.into(),
        pid: 42,
        process: "server".to_owned(),
        ..v1::Listener::default()
    }
}
