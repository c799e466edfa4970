//! The daemon's side of an agent.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use hostel_model::Token;
use hostel_proto::limits::{CONTROL_PORT, STREAM_PORT};
use hostel_proto::v1::agent_client::AgentClient;
use hostel_testkit::{Need, Space, require};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The daemon's side, and the agent as a child that ends with the test.
pub(crate) struct Host {
    pub(crate) agent: Child,
    pub(crate) control: UnixListener,
    pub(crate) streams: UnixListener,
    pub(crate) client: AgentClient<Channel>,
    _dir: tempfile::TempDir,
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

/// Starts an agent; `None`, with a visible line, where sessions cannot be.
pub(crate) async fn host(test: &str) -> Option<Host> {
    require(test, Need::Root)?;
    let agent = |path: &Path| {
        Command::new(env!("CARGO_BIN_EXE_init"))
            .arg("agent")
            .arg("--connect")
            .arg(path)
            .spawn()
            .unwrap()
    };
    Some(start(agent).await)
}

/// Starts an agent whose network is a namespace of the test's, and which sees nothing but that: it has the kernel's file
/// systems and `/mnt/wsl` for itself.
pub(crate) async fn in_space(space: &Space) -> Host {
    // The agent's stays when the shell becomes the agent.
    let line = "mount -t tmpfs none /mnt && mkdir /mnt/wsl && mount -t sysfs none /sys \
        && mount -t cgroup2 none /sys/fs/cgroup && exec \"$0\" agent --connect \"$1\"";
    start(|path| {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", line, env!("CARGO_BIN_EXE_init")])
            .arg(path);
        space.run(move || command.spawn().unwrap())
    })
    .await
}

async fn start(agent: impl FnOnce(&Path) -> Child) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host");
    let socket =
        |port| UnixListener::bind(PathBuf::from(format!("{}_{port}", path.display()))).unwrap();
    let (control, streams) = (socket(CONTROL_PORT), socket(STREAM_PORT));
    let agent = agent(&path);
    let client = accept(&control).await;
    Host {
        agent,
        control,
        streams,
        client,
        _dir: dir,
    }
}

impl Host {
    /// Counts the agent's open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        fs_err::read_dir(format!("/proc/{}/fd", self.agent.id()))
            .unwrap()
            .count()
    }

    /// Returns a path as the agent sees it.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.agent.id()).into()
    }

    /// Takes the next stream that the agent dials, and the token that it shows.
    pub(crate) async fn stream(&self) -> (UnixStream, Vec<u8>) {
        let (mut stream, _) = timeout(LIMIT, self.streams.accept())
            .await
            .unwrap()
            .unwrap();
        let mut token = vec![0; Token::LEN];
        timeout(LIMIT, stream.read_exact(&mut token))
            .await
            .unwrap()
            .unwrap();
        (stream, token)
    }
}

/// Asks again and again until the answer is yes.
pub(crate) async fn eventually(what: &str, mut yes: impl FnMut() -> bool) {
    let asking = async {
        while !yes() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, asking)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {} seconds", LIMIT.as_secs()));
}

pub(crate) async fn accept(control: &UnixListener) -> AgentClient<Channel> {
    let (stream, _) = timeout(LIMIT, control.accept())
        .await
        .expect("the agent dials")
        .unwrap();
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = stream
            .take()
            .ok_or_else(|| std::io::Error::other("there is only one connection"));
        std::future::ready(stream)
    });
    AgentClient::new(
        Endpoint::from_static("http://agent")
            .connect_with_connector(connector)
            .await
            .unwrap(),
    )
}
