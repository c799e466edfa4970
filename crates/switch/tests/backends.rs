//! The backends for real, each in a network namespace that the test makes: an uplink, and the "internet" at its other end.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use hostel_switch::{Kind, NatRecord, NetdevSpec, Opened, Verdict, Wanted, open, probe};
use hostel_testkit::{Need, require, skip};
use rustix::process::{Pid, Signal};

/// What else may need time on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Set in the process that is in the test's own namespaces.
const INSIDE: &str = "SWITCH_TEST_INSIDE";
/// A host with one uplink, 10.9.0.2/24, a default route, and taps for everyone.
const HOST: &str = "ip link set lo up && ip link add up0 type veth peer name inet0 \
    && ip link set up0 up && ip link set inet0 up && ip addr add 10.9.0.2/24 dev up0 && ip route add default via 10.9.0.1 \
    && mount -t tmpfs tmpfs /mnt && mknod -m 666 /mnt/tun c 10 200 && mount --bind /mnt/tun /dev/net/tun";

/// Who runs a test.
#[derive(Clone, Copy, PartialEq, Eq)]
enum User {
    Root,
    Nobody,
}

/// Runs the test again in namespaces of its own, by itself; there it returns true. Processes are started by one thread of
/// a process, in the namespace where that began: so each test is a process.
fn inside(test: &str, user: User, before: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if require(test, Need::Root).is_none() || require(test, Need::Tun).is_none() {
        return false;
    }
    let program = std::env::current_exe().unwrap();
    let program = program.to_str().unwrap();
    let run = match user {
        User::Root => program.to_owned(),
        User::Nobody => {
            format!("setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs {program}")
        }
    };
    let line = format!("{HOST} && {before} exec {run} --exact {test} --nocapture");
    let output = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", &line])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
    false
}

/// The program of the other package, next to this test.
fn hostel_net(test: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let program = program.parent()?.parent()?.join("hostel-net");
    if program.is_file() {
        return Some(program);
    }
    skip(test, "hostel-net is not built");
    None
}

fn wanted(kind: Option<Kind>, hostel_net: &Path) -> Wanted {
    Wanted {
        record: NatRecord::choose("7f1c", "hostel", &[]).unwrap(),
        kind,
        ipv6: false,
        host_loopback: false,
        mtu: None,
        firewall: Vec::new(),
        hostel_net: hostel_net.to_owned(),
        path: "/usr/bin:/bin".into(),
    }
}

fn kill(pid: u32) {
    rustix::process::kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

/// Returns the living children of this process with such a program.
fn children(name: &str) -> Vec<u32> {
    let own = format!("PPid:\t{}\n", std::process::id());
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc").unwrap().flatten() {
        let read = |file| fs_err::read_to_string(entry.path().join(file)).unwrap_or_default();
        let status = read("status");
        if status.contains(&own) && !status.contains("State:\tZ") && read("comm").starts_with(name)
        {
            found.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|n| n.parse::<u32>().ok()),
            );
        }
    }
    found
}

fn verdict(verdicts: &[Verdict], kind: Kind) -> &Verdict {
    verdicts.iter().find(|v| v.kind == kind).unwrap()
}

/// Waits for the word that a process behind the network has died.
async fn end_of(opened: &Opened) -> String {
    tokio::time::timeout(PATIENCE, opened.backend.ended())
        .await
        .unwrap()
}

/// Names of ours while it is open, nothing afterwards, and its helper's death is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn root_holds_bridge_and_tap_until_it_is_closed() {
    let test = "root_holds_bridge_and_tap_until_it_is_closed";
    let Some(program) = hostel_net(test) else {
        return;
    };
    if !inside(test, User::Root, "") {
        return;
    }
    let wanted = wanted(None, &program);
    assert!(verdict(&probe(&wanted).await, Kind::Root).usable);
    let opened = open(&wanted).await.unwrap();
    let backend = &opened.backend;
    assert_eq!(backend.kind(), Kind::Root);
    assert!(backend.reaches_guest());
    assert_eq!(backend.guest().mtu, 1500);
    let adapters = backend.adapters();
    assert_eq!(adapters[0].kind, "bridge");
    assert_eq!(adapters[0].addresses[0], "172.19.128.1/20");
    assert_eq!(adapters[1].switch.as_ref(), Some(&adapters[0].name));
    let netdev = backend.netdev().await.unwrap();
    assert!(matches!(netdev, NetdevSpec::Tap { .. }), "{netdev:?}");
    drop(netdev);
    let (udp, tcp) = backend.gateway_dns().await.unwrap().unwrap();
    assert_eq!(udp.local_addr().unwrap().to_string(), "172.19.128.1:53");
    assert_eq!(tcp.local_addr().unwrap().to_string(), "172.19.128.1:53");
    drop((udp, tcp));
    let rule = "allow tcp 80".parse().unwrap();
    backend.set_firewall(vec![rule]).await.unwrap();

    let [helper] = children("hostel-net")[..] else {
        panic!("there is one helper");
    };
    kill(helper);
    let how = end_of(&opened).await;
    assert!(how.contains("helper has ended"), "{how}");
    backend.close().await;
    // Opened again it takes the place of what was left, and leaves nothing when it is closed.
    let again = open(&wanted).await.unwrap();
    assert_eq!(again.backend.kind(), Kind::Root);
    again.backend.close().await;
    again.backend.close().await;
    assert!(children("hostel-net").is_empty());
    let links: Vec<_> = fs_err::read_dir("/proc/self/net/dev_snmp6")
        .map(|d| d.flatten().map(|e| e.file_name()).collect())
        .unwrap_or_default();
    let ours = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("hostel");
    assert!(!links.iter().any(ours), "{links:?}");
}

/// An ordinary user gets a bridge and a tap in a namespace; the way out comes back when it dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_ordinary_user_has_a_bridge_in_a_namespace() {
    let test = "an_ordinary_user_has_a_bridge_in_a_namespace";
    let Some(program) = hostel_net(test) else {
        return;
    };
    if require(test, Need::Program("pasta")).is_none() || !inside(test, User::Nobody, "") {
        return;
    }
    let wanted = wanted(None, &program);
    let opened = open(&wanted).await.unwrap();
    let backend = &opened.backend;
    assert_eq!(backend.kind(), Kind::Rootless, "{:?}", opened.verdicts);
    let root = &verdict(&opened.verdicts, Kind::Root).reason;
    assert!(root.contains("hostel net helper install"), "{root}");
    assert_eq!(backend.guest().mtu, 65520);
    assert_eq!(backend.guest().host.unwrap().to_string(), "10.9.0.2");
    assert!(backend.gateway_dns().await.unwrap().is_some());
    assert!(matches!(
        backend.netdev().await.unwrap(),
        NetdevSpec::Tap { .. }
    ));
    assert!(
        backend
            .connect_udp("172.19.132.144:9".parse().unwrap())
            .await
            .is_ok()
    );
    // Nobody is at home yet, and no other address is served.
    assert!(
        backend
            .connect("10.9.0.1:9".parse().unwrap())
            .await
            .is_err()
    );
    let [helper, ..] = children("hostel-net")[..] else {
        panic!("there is a helper");
    };
    kill(helper);
    let how = end_of(&opened).await;
    assert!(how.contains("helper has ended"), "{how}");
    backend.close().await;
    assert!(children("hostel-net").is_empty() && children("pasta").is_empty());
}

/// Where there are no taps, the reason is told and passt is taken; each connection has a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_taps_passt_is_taken_and_its_death_is_told() {
    let test = "without_taps_passt_is_taken_and_its_death_is_told";
    let Some(program) = hostel_net(test) else {
        return;
    };
    let before = "chmod 600 /mnt/tun &&";
    if require(test, Need::Program("passt")).is_none() || !inside(test, User::Nobody, before) {
        return;
    }
    let wanted = wanted(None, &program);
    let opened = open(&wanted).await.unwrap();
    let backend = &opened.backend;
    assert_eq!(backend.kind(), Kind::Passt, "{:?}", opened.verdicts);
    let why = &verdict(&opened.verdicts, Kind::Rootless).reason;
    assert!(
        why.contains("/dev/net/tun") && why.contains("permission denied"),
        "{why}"
    );
    assert!(
        children("passt").is_empty(),
        "the one that was asked has gone"
    );

    for _ in 0..2 {
        let spec = backend.netdev().await.unwrap();
        let NetdevSpec::Stream { filter, .. } = &spec else {
            panic!("passt has a stream: {spec:?}");
        };
        assert!(filter.is_some(), "the host's loopback is closed");
        let [passt] = children("passt")[..] else {
            panic!("there is one passt");
        };
        assert!(backend.adapters()[0].place.contains(&passt.to_string()));
        kill(passt);
        let how = end_of(&opened).await;
        assert!(how.contains("passt ended with signal 9"), "{how}");
        assert!(!backend.adapters()[0].up);
    }
    let spec = backend.netdev().await.unwrap();
    backend.close().await;
    assert!(children("passt").is_empty());
    drop(spec);
}

/// Whatever is missing, something is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_programs_the_next_one_is_taken() {
    let test = "without_programs_the_next_one_is_taken";
    if !inside(test, User::Nobody, "ip route del default && ") {
        return;
    }
    let mut wanted = wanted(None, Path::new("/nonexistent/hostel-net"));
    let opened = open(&wanted).await.unwrap();
    // passt is there, perhaps, and has no way out.
    assert_eq!(opened.backend.kind(), Kind::Slirp, "{:?}", opened.verdicts);
    let why = &verdict(&opened.verdicts, Kind::Rootless).reason;
    assert!(why.contains("hostel-net") || why.contains("pasta"), "{why}");
    assert!(!verdict(&opened.verdicts, Kind::Passt).usable);
    for kind in [Kind::Root, Kind::Rootless, Kind::Passt] {
        wanted.kind = Some(kind);
        let error = open(&wanted).await.unwrap_err();
        assert_eq!(error.verdicts.len(), 1, "{error}");
    }
}
