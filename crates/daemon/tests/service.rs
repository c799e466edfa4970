//! The daemon as a process, over its real sockets, without a VM.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    io::{Read as _, Seek as _},
    os::fd::AsFd as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use hostel_model::{
    ErrorCode, Failure, GENERATION,
    tree::{DataRun, Node, NodeMeta, TreeSink},
};
use hostel_proto::{
    failure_of,
    v1::{self, hostel_client::HostelClient, task_event::Event},
};
use hostel_rootfs::{ArchiveWriter, Format, ReadOptions, read_archive};
use hostel_testkit::{Need, require};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Longer than anything here takes on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// A running daemon with directories of its own; killed when dropped.
struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hosteld"));
    command
        .env("HOSTEL_HOME", dir.join("home"))
        .env("HOSTEL_RUNTIME_DIR", dir.join("run"))
        .env("HOME", dir)
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("HOSTEL_READY_FD")
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = command(dir.path()).spawn().unwrap();
        Self { child, dir }
    }

    async fn connect(&self) -> HostelClient<Channel> {
        let path = self.dir.path().join("run/api.sock");
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        let connecting = async {
            loop {
                let to = path.clone();
                let connector = tower::service_fn(move |_| {
                    let to = to.clone();
                    async move { UnixStream::connect(to).await.map(TokioIo::new) }
                });
                match Endpoint::from_static("http://hosteld")
                    .connect_with_connector(connector)
                    .await
                {
                    Ok(channel) => return HostelClient::new(channel),
                    Err(_) => ticks.tick().await,
                };
            }
        };
        tokio::time::timeout(SOON, connecting)
            .await
            .expect("the daemon answers")
    }

    /// Claims a stream with a descriptor.
    fn hand_over(&self, token: &[u8], file: &std::fs::File) -> std::os::unix::net::UnixStream {
        let stream =
            std::os::unix::net::UnixStream::connect(self.dir.path().join("run/stream.sock"))
                .unwrap();
        hostel_sys::fdpass::send(&stream, token, &[file.as_fd()]).unwrap();
        stream
    }

    /// Follows a task that wants a file.
    async fn task(
        &self,
        mut events: tonic::Streaming<v1::TaskEvent>,
        file: &std::fs::File,
    ) -> Result<v1::TaskDone, Failure> {
        let mut claimed = Vec::new();
        loop {
            let event = tokio::time::timeout(SOON, events.message())
                .await
                .expect("an event in time");
            match event
                .map_err(|s| failure_of(&s))?
                .expect("more events")
                .event
                .unwrap()
            {
                Event::Claim(claim) => claimed.push(self.hand_over(&claim.token, file)),
                Event::Done(done) => return Ok(done),
                Event::Progress(_) | Event::Warning(_) => {}
            }
        }
    }

    async fn import(&self, name: &str, file: &std::fs::File) -> Result<v1::TaskDone, Failure> {
        let request = v1::ImportRequest {
            name: name.to_owned(),
            source_name: "x.tar".to_owned(),
            ..v1::ImportRequest::default()
        };
        let events = self
            .connect()
            .await
            .import(request)
            .await
            .map_err(|s| failure_of(&s))?;
        self.task(events.into_inner(), file).await
    }

    async fn names(&self) -> Vec<(String, bool)> {
        let list = self
            .connect()
            .await
            .list(v1::ListRequest::default())
            .await
            .unwrap()
            .into_inner();
        list.distros
            .into_iter()
            .map(|d| (d.name, d.is_default))
            .collect()
    }

    /// Returns every file below the state directory that belongs to no registered distribution.
    fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for sub in ["bases", "distros"] {
            for entry in fs_err::read_dir(self.dir.path().join("home").join(sub)).unwrap() {
                found.push(entry.unwrap().path().display().to_string());
            }
        }
        found
    }
}

fn meta(mode: u16) -> NodeMeta {
    NodeMeta {
        mode,
        uid: 7,
        gid: 8,
        mtime: 1_600_000_000,
        ..NodeMeta::default()
    }
}

fn put(sink: &mut dyn TreeSink, path: &str, meta: &NodeMeta, bytes: &[u8]) {
    let size = bytes.len() as u64;
    let node = Node::File {
        size,
        runs: &[DataRun {
            offset: 0,
            len: size,
        }],
        data: &mut &*bytes,
    };
    sink.entry(path.as_bytes(), meta, node).unwrap();
}

/// Makes a small root file system with something of every kind.
fn archive(linux: bool) -> std::fs::File {
    let mut writer = ArchiveWriter::new(tempfile::tempfile().unwrap(), Format::Tar).unwrap();
    writer.entry(b"", &meta(0o755), Node::Directory).unwrap();
    if linux {
        writer.entry(b"etc", &meta(0o755), Node::Directory).unwrap();
        put(
            &mut writer,
            "etc/os-release",
            &meta(0o644),
            b"ID=test\nVERSION_ID=1\nPRETTY_NAME=\"Test 1\"\n",
        );
    }
    let mut capable = meta(0o4755);
    capable
        .xattrs
        .push((b"user.note".to_vec(), b"kept".to_vec()));
    put(&mut writer, "ping", &capable, &[b'x'; 10_000]);
    writer
        .entry(b"link", &meta(0o777), Node::Symlink(b"ping"))
        .unwrap();
    writer
        .entry(b"hard", &capable, Node::HardLink(b"ping"))
        .unwrap();
    writer
        .entry(
            b"null",
            &meta(0o666),
            Node::CharDevice { major: 1, minor: 3 },
        )
        .unwrap();
    writer.entry(b"fifo", &meta(0o600), Node::Fifo).unwrap();
    let (mut file, _) = writer.finish().unwrap();
    file.rewind().unwrap();
    file
}

/// One line for each entry, with everything that must survive.
#[derive(Default)]
struct Listing(Vec<String>);

impl TreeSink for Listing {
    fn entry(&mut self, path: &[u8], meta: &NodeMeta, node: Node<'_>) -> std::io::Result<()> {
        let kind = match node {
            Node::Directory => "directory".to_owned(),
            Node::File { size, data, .. } => {
                let mut bytes = Vec::new();
                data.read_to_end(&mut bytes)?;
                format!(
                    "file {size} {}",
                    bytes.iter().map(|b| u64::from(*b)).sum::<u64>()
                )
            }
            Node::Symlink(to) => format!("link {}", String::from_utf8_lossy(to)),
            // Which of two names comes first is the disk's business.
            Node::HardLink(_) => "hard".to_owned(),
            Node::CharDevice { major, minor } => format!("char {major} {minor}"),
            Node::BlockDevice { major, minor } => format!("block {major} {minor}"),
            Node::Fifo => "fifo".to_owned(),
            Node::Socket => "socket".to_owned(),
        };
        let name = String::from_utf8_lossy(path).into_owned();
        let hard = matches!(name.as_str(), "ping" | "hard");
        let meta = if hard {
            String::new()
        } else {
            format!("{meta:?}")
        };
        let kind = if hard {
            "of two names".to_owned()
        } else {
            kind
        };
        self.0.push(format!("{name} {kind} {meta}"));
        Ok(())
    }
}

fn listing(mut file: &std::fs::File) -> Vec<String> {
    file.rewind().unwrap();
    let mut listing = Listing::default();
    read_archive(file, &mut listing, &ReadOptions::default(), &mut |_| {}).unwrap();
    listing.0.sort();
    listing.0
}

#[tokio::test]
async fn an_archive_goes_in_is_shared_and_comes_out_the_same() {
    let daemon = Daemon::start();
    let input = archive(true);
    let first = daemon.import("one", &input).await.unwrap();
    assert!(!first.base_shared && first.bytes > 10_000);
    let distro = first.distro.unwrap();
    assert_eq!(
        (
            distro.os_id.as_str(),
            distro.os_pretty_name.as_str(),
            distro.is_default
        ),
        ("test", "Test 1", true)
    );
    (&input).rewind().unwrap();
    assert!(daemon.import("two", &input).await.unwrap().base_shared);
    assert_eq!(
        daemon.names().await,
        [("one".to_owned(), true), ("two".to_owned(), false)]
    );

    let output = tempfile::tempfile().unwrap();
    let request = v1::ExportRequest {
        name: "ONE".to_owned(),
        format: "tar.zst".to_owned(),
    };
    let events = daemon
        .connect()
        .await
        .export(request)
        .await
        .unwrap()
        .into_inner();
    let done = daemon.task(events, &output).await.unwrap();
    assert_eq!(done.bytes, output.metadata().unwrap().len());
    assert_eq!(listing(&output), listing(&input));

    let mut client = daemon.connect().await;
    client
        .rename(v1::RenameRequest {
            name: "two".to_owned(),
            new_name: "Three".to_owned(),
        })
        .await
        .unwrap();
    client
        .set_default(v1::SetDefaultRequest {
            name: "three".to_owned(),
        })
        .await
        .unwrap();
    assert_eq!(
        daemon.names().await,
        [("Three".to_owned(), true), ("one".to_owned(), false)]
    );
    for name in ["one", "three"] {
        client
            .remove(v1::RemoveRequest {
                name: name.to_owned(),
            })
            .await
            .unwrap();
    }
    assert_eq!(daemon.leftovers(), [""; 0]);
}

#[tokio::test]
async fn what_cannot_be_imported_leaves_nothing_and_frees_its_name() {
    let daemon = Daemon::start();
    let failure = daemon.import("bad name", &archive(true)).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::InvalidName);
    let failure = daemon.import("x", &archive(false)).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::NotALinuxDistro);
    let cut = archive(true);
    cut.set_len(cut.metadata().unwrap().len() / 2).unwrap();
    let failure = daemon.import("x", &cut).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::BadArchive, "{failure}");
    let mut junk = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut junk, &vec![0x55; 100_000]).unwrap();
    junk.rewind().unwrap();
    assert_eq!(
        daemon.import("x", &junk).await.unwrap_err().code,
        ErrorCode::BadArchive
    );
    assert_eq!(daemon.leftovers(), [""; 0]);
    daemon.import("x", &archive(true)).await.unwrap();
    assert_eq!(
        daemon.import("X", &archive(true)).await.unwrap_err().code,
        ErrorCode::DistroExists
    );
}

/// IMP-2: the client dies in the middle, the name is free again and nothing is left.
#[tokio::test]
async fn a_client_that_leaves_an_import_leaves_nothing() {
    let daemon = Daemon::start();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut client = daemon.connect().await;
    let request = v1::ImportRequest {
        name: "x".to_owned(),
        ..v1::ImportRequest::default()
    };
    let mut events = client.import(request).await.unwrap().into_inner();
    let Some(Event::Claim(claim)) = events.message().await.unwrap().unwrap().event else {
        panic!("no claim")
    };
    let claimed = daemon.hand_over(
        &claim.token,
        &std::fs::File::from(std::os::fd::OwnedFd::from(reader)),
    );
    // Taken, and waiting for bytes that never come.
    let mut start = archive(true);
    let mut begin = [0; 1024];
    start.read_exact(&mut begin).unwrap();
    std::io::Write::write_all(&mut &writer, &begin).unwrap();
    assert_eq!(daemon.names().await.len(), 1);
    assert_eq!(
        daemon.import("X", &archive(true)).await.unwrap_err().code,
        ErrorCode::WrongState
    );
    drop((events, client, claimed));
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let gone = async {
        while !daemon.names().await.is_empty() || !daemon.leftovers().is_empty() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(SOON, gone)
        .await
        .expect("the import is given up");
    drop(writer);
    daemon.import("x", &archive(true)).await.unwrap();
}

#[tokio::test]
async fn a_killed_daemon_is_followed_by_one_that_sweeps_and_a_second_one_is_refused() {
    let mut daemon = Daemon::start();
    daemon.import("keep", &archive(true)).await.unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let request = v1::ImportRequest {
        name: "half".to_owned(),
        ..v1::ImportRequest::default()
    };
    let mut client = daemon.connect().await;
    let mut events = client.import(request).await.unwrap().into_inner();
    let Some(Event::Claim(claim)) = events.message().await.unwrap().unwrap().event else {
        panic!("no claim")
    };
    let _claimed = daemon.hand_over(
        &claim.token,
        &std::fs::File::from(std::os::fd::OwnedFd::from(reader)),
    );
    let mut begin = [0; 4096];
    archive(true).read_exact(&mut begin).unwrap();
    std::io::Write::write_all(&mut writer, &begin).unwrap();
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let begun = async {
        while daemon.leftovers().len() < 4 {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(SOON, begun)
        .await
        .expect("the import begins");

    let second = command(daemon.dir.path()).output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        said.contains(&format!("process {}", daemon.child.id())),
        "{said}"
    );

    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(
        daemon.dir.path().join("run/api.sock").exists(),
        "a stale socket is the point"
    );
    daemon.child = command(daemon.dir.path()).spawn().unwrap();
    assert_eq!(daemon.names().await, [("keep".to_owned(), true)]);
    // A base with its record, and one distribution.
    assert_eq!(daemon.leftovers().len(), 3, "{:?}", daemon.leftovers());
    daemon.import("half", &archive(true)).await.unwrap();
}

/// ERR-2, with a disk that fills up in the middle.
#[tokio::test]
async fn a_full_disk_is_named_and_leaves_nothing() {
    // For a small tmpfs in a mount namespace.
    if require("a_full_disk_is_named_and_leaves_nothing", Need::Root).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    fs_err::create_dir(&home).unwrap();
    let mut small = Command::new("unshare");
    small
        .args([
            "-m",
            "sh",
            "-c",
            "mount -t tmpfs -o size=24m,mode=0700 none \"$HOSTEL_HOME\" && exec \"$0\"",
        ])
        .arg(env!("CARGO_BIN_EXE_hosteld"));
    for (name, value) in command(dir.path()).get_envs() {
        match value {
            Some(value) => small.env(name, value),
            None => small.env_remove(name),
        };
    }
    let child = small
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let daemon = Daemon { child, dir };

    let mut writer = ArchiveWriter::new(tempfile::tempfile().unwrap(), Format::TarZst).unwrap();
    writer.entry(b"etc", &meta(0o755), Node::Directory).unwrap();
    // Small as an archive, too large as a disk.
    put(&mut writer, "large", &meta(0o644), &vec![b'x'; 64 << 20]);
    let (mut large, _) = writer.finish().unwrap();
    large.rewind().unwrap();
    let failure = daemon.import("x", &large).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::DiskFull, "{failure}");
    assert!(!failure.hints.is_empty());
    assert_eq!(daemon.names().await, []);
    daemon.import("x", &archive(true)).await.unwrap();

    // Known before anything is read.
    let huge = tempfile::tempfile().unwrap();
    huge.set_len(1 << 30).unwrap();
    assert_eq!(
        daemon.import("y", &huge).await.unwrap_err().code,
        ErrorCode::DiskFull
    );
}

#[tokio::test]
async fn questions_are_answered_and_the_end_is_orderly() {
    let mut daemon = Daemon::start();
    let mut client = daemon.connect().await;
    let greeting = v1::GreetRequest {
        generation: GENERATION + 5,
        version: "9".to_owned(),
    };
    assert_eq!(
        client
            .greet(greeting)
            .await
            .unwrap()
            .into_inner()
            .generation,
        GENERATION
    );
    let old = client
        .greet(v1::GreetRequest {
            generation: 0,
            version: "0".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(failure_of(&old).code, ErrorCode::Incompatible);
    let status = client
        .status(v1::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (status.vm.unwrap().state.as_str(), status.distros),
        ("off", 0)
    );
    assert!(
        status.resident_bytes > 0 && status.resident_bytes < 60 << 20,
        "{}",
        status.resident_bytes
    );
    let checks = client
        .doctor(v1::DoctorRequest {})
        .await
        .unwrap()
        .into_inner()
        .checks;
    assert!(
        checks
            .iter()
            .any(|c| c.name == "kernel" && c.verdict == "error" && !c.next_step.is_empty()),
        "{checks:?}"
    );
    let none = client.exec(v1::ExecRequest::default()).await.unwrap_err();
    assert_eq!(failure_of(&none).code, ErrorCode::NoDefaultDistro);
    let log = client
        .logs(v1::LogsRequest {
            which: "other".to_owned(),
            ..v1::LogsRequest::default()
        })
        .await;
    assert_eq!(
        failure_of(&log.unwrap_err()).code,
        ErrorCode::InvalidArgument
    );

    // A connection to the stream socket with a token that nobody gave out is closed.
    let file = tempfile::tempfile().unwrap();
    let mut stream = daemon.hand_over(&[9; 32], &file);
    stream.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);

    client.quit(v1::QuitRequest { force: false }).await.unwrap();
    drop(client);
    let waiting = tokio::task::spawn_blocking(move || daemon.child.wait().map(|s| (s, daemon)));
    let (status, daemon) = tokio::time::timeout(SOON, waiting)
        .await
        .expect("it ends")
        .unwrap()
        .unwrap();
    assert!(status.success());
    assert!(!daemon.dir.path().join("run/api.sock").exists());
}

/// The network is shown, changed and checked at the door without a VM.
#[tokio::test]
async fn the_network_is_asked_about_without_a_vm() {
    let daemon = Daemon::start();
    let mut api = daemon.connect().await;
    let reply = api
        .network(v1::NetworkRequest {})
        .await
        .unwrap()
        .into_inner();
    let status = reply.status.unwrap();
    assert_eq!(
        (status.mode.as_str(), reply.r#type.as_str()),
        ("nat", "NAT")
    );
    assert_eq!(
        (reply.stored_in.as_str(), reply.id.as_str()),
        ("", ""),
        "a record that nobody has needed yet is not stored"
    );
    assert_eq!(reply.backends.len(), 4, "{:?}", reply.backends);
    assert!(reply.backends.iter().all(|b| !b.reason.is_empty()));
    let set = |subnet: &str, address: &str| v1::NetworkSetRequest {
        subnet: subnet.to_owned(),
        address: address.to_owned(),
        ..v1::NetworkSetRequest::default()
    };
    let changed = api
        .network_set(set("10.213.0.0/20", ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(changed.status.unwrap().subnet, "10.213.0.0/20");
    assert!(changed.stored_in.ends_with("registry.json"));
    assert!(!changed.id.is_empty());
    for bad in [
        set("203.0.113.0/24", ""),
        set("", "172.19.128.1"),
        set("x", ""),
    ] {
        let failure = failure_of(&api.network_set(bad).await.unwrap_err());
        assert_eq!(failure.code, ErrorCode::InvalidArgument);
    }
    let rule = v1::FirewallRule {
        action: "allow".to_owned(),
        protocol: "tcp".to_owned(),
        first_port: 22,
        last_port: 22,
        source: "192.0.2.0/24".to_owned(),
        ..v1::FirewallRule::default()
    };
    let request = v1::FirewallRequest {
        add: vec![rule.clone()],
        ..v1::FirewallRequest::default()
    };
    let shown = api.firewall(request).await.unwrap().into_inner();
    assert!(!shown.in_force);
    assert_eq!(shown.rules, [v1::FirewallRule { number: 1, ..rule }]);
    let policy = api
        .port_policy(v1::PortPolicyRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(policy.forwarding && policy.rules.is_empty());
    let failure = failure_of(
        &api.manage(v1::ManageRequest {
            name: "nobody".to_owned(),
            network: "own".to_owned(),
            ..v1::ManageRequest::default()
        })
        .await
        .unwrap_err(),
    );
    assert_eq!(failure.code, ErrorCode::DistroNotFound);
    let checks = api.doctor(v1::DoctorRequest {}).await.unwrap().into_inner();
    assert!(checks.checks.iter().any(|c| c.name == "ports"));
    // Kept.
    let text = fs_err::read_to_string(daemon.dir.path().join("home/registry.json")).unwrap();
    assert!(text.contains("10.213.0.0/20") && text.contains("192.0.2.0"));
}

/// The ledger: once, or for as long as somebody listens; a daemon that ends ends it.
#[tokio::test]
async fn the_ledger_is_told_once_or_watched() {
    let daemon = Daemon::start();
    let mut api = daemon.connect().await;
    let mut once = api
        .ports(v1::PortsRequest { watch: false })
        .await
        .unwrap()
        .into_inner();
    assert!(once.message().await.unwrap().unwrap().ports.is_empty());
    assert!(once.message().await.unwrap().is_none());
    let mut watch = api
        .ports(v1::PortsRequest { watch: true })
        .await
        .unwrap()
        .into_inner();
    assert!(watch.message().await.unwrap().unwrap().ports.is_empty());
    api.quit(v1::QuitRequest { force: false }).await.unwrap();
    let end = tokio::time::timeout(SOON, watch.message())
        .await
        .expect("the end in time");
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
}

/// A state file that somebody broke: the rest of it is good, and `doctor` says what is not.
#[tokio::test]
async fn broken_rules_are_told_and_let_nothing_in() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::create_dir_all(dir.path().join("home")).unwrap();
    fs_err::write(
        dir.path().join("home/registry.json"),
        r#"{"format":1,"firewall":[{"action":"allow","protocol":"carrier pigeon"}],"nat":{"subnet":7}}"#,
    )
    .unwrap();
    let child = command(dir.path()).spawn().unwrap();
    let daemon = Daemon { child, dir };
    let mut api = daemon.connect().await;
    let shown = api
        .firewall(v1::FirewallRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(shown.rules.is_empty());
    let network = api
        .network(v1::NetworkRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(!network.status.unwrap().subnet.is_empty());
    assert_eq!(network.warnings.len(), 2, "{:?}", network.warnings);
    let checks = api.doctor(v1::DoctorRequest {}).await.unwrap().into_inner();
    let told = |c: &v1::Check| c.verdict != "ok" && c.found.contains("firewall");
    assert!(checks.checks.iter().any(told), "{:?}", checks.checks);
}
