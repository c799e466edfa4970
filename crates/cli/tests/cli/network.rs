//! The verbs of the network: what they ask, what they print, how they exit.

use std::process::Stdio;

use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1;
use hostel_testkit::{Need, require};

use crate::support::{Fake, Running, Script, read_until, texts};

fn json(fake: &Fake, args: &[&str]) -> serde_json::Value {
    let (code, out, err) = texts(&fake.run(&[args, &["--json"]].concat()));
    assert_eq!((code, err.as_str()), (Some(0), ""), "{args:?}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"))
}

fn network() -> Script {
    let adapter = v1::Adapter {
        name: "hostel0".into(),
        kind: "bridge".into(),
        addresses: vec!["172.19.128.1/20".into()],
        ..Default::default()
    };
    let verdict = v1::BackendVerdict {
        name: "root".into(),
        chosen: true,
        reason: "this is root".into(),
    };
    Script {
        network: v1::NetworkReply {
            status: Some(v1::NetworkStatus {
                subnet: "172.19.128.0/20".into(),
                gateway: "172.19.128.1".into(),
                address: "172.19.132.144".into(),
                bridge: "hostel0".into(),
                ..Default::default()
            }),
            name: "hostel".into(),
            r#type: "NAT".into(),
            adapters: vec![adapter],
            backends: vec![verdict],
            ..Default::default()
        },
        ..Script::default()
    }
}

#[test]
fn net_without_a_verb_shows_the_network() {
    let fake = Fake::new(network());
    let (code, out, err) = texts(&fake.run(&["net"]));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(
        out.contains("gateway  172.19.128.1 (on hostel0)\nmachine  172.19.132.144\n"),
        "{out}"
    );
    assert_eq!(texts(&fake.run(&["net", "show"])).1, out);
    let value = json(&fake, &["net"]);
    assert_eq!(value["status"]["bridge"], "hostel0");
    assert_eq!(value["adapters"][0]["addresses"][0], "172.19.128.1/20");
    assert_eq!(json(&fake, &["net", "list"])[0]["name"], "hostel");
    assert_eq!(json(&fake, &["net", "adapters"])[0]["kind"], "bridge");
    assert_eq!(json(&fake, &["net", "backends"])[0]["chosen"], true);
    assert_eq!(
        texts(&fake.run(&["net", "backends"])).1,
        "  BACKEND  WHY\n* root     this is root\n"
    );
    let (_, out, _) = texts(&fake.run(&["net", "adapters"]));
    assert!(
        out.lines().nth(1).unwrap().starts_with("hostel0  bridge"),
        "{out}"
    );
}

/// NAT-6, NAT-9: what had to be changed is told.
#[test]
fn warnings_of_the_network_are_told() {
    let fake = Fake::new(network());
    fake.script(|s| {
        s.network.warnings = vec!["172.19.128.0/20 is taken; 172.19.144.0/20 now".into()];
        s.network.adapters.clear();
    });
    for args in [&["net"][..], &["net", "list"], &["net", "--json"]] {
        let (code, _, err) = texts(&fake.run(args));
        assert_eq!(
            (code, err.as_str()),
            (
                Some(0),
                "warning: 172.19.128.0/20 is taken; 172.19.144.0/20 now\n"
            ),
            "{args:?}"
        );
    }
    let (code, out, err) = texts(&fake.run(&["net", "adapters"]));
    assert_eq!((code, out.as_str()), (Some(0), ""));
    assert!(err.contains("there is no adapter"), "{err}");
}

/// NAT-4: the record can be set.
#[test]
fn net_set_stores_and_says_from_when_on_it_holds() {
    let fake = Fake::new(network());
    let (code, out, err) = texts(&fake.run(&["net", "set", "--subnet", "172.20.0.0/20"]));
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("subnet   172.20.0.0/20\n"), "{out}");
    assert!(
        err.starts_with("stored: subnet 172.20.0.0/20; ")
            && err.contains("until `hostel shutdown`"),
        "{err}"
    );
    fake.script(|s| s.vm_state = "off".into());
    let set = [
        "net",
        "set",
        "--address",
        "172.20.4.4",
        "--gateway",
        "172.20.0.1",
    ];
    let (_, _, err) = texts(&fake.run(&set));
    assert_eq!(
        err,
        "stored: gateway 172.20.0.1, address 172.20.4.4; it holds from the machine's next start on\n"
    );
    let value = json(&fake, &["net", "set", "--reset"]);
    assert_eq!(value["status"]["address"], "172.20.4.4");
    assert!(fake.script(|s| s.calls.iter().any(|c| c.1.contains("reset: true"))));

    let failure = Failure::new(
        ErrorCode::InvalidArgument,
        "172.20.0.0/20 is a route of this host",
    )
    .hint("choose another subnet");
    fake.script(|s| s.refusal = Some(failure));
    assert_eq!(
        texts(&fake.run(&["net", "set", "--subnet", "172.20.0.0/20"])),
        (
            Some(125),
            String::new(),
            "error: 172.20.0.0/20 is a route of this host\nhint: choose another subnet\n".into()
        )
    );
}

#[test]
fn firewall_rules_are_added_and_removed() {
    let fake = Fake::new(Script::default());
    let (code, out, err) = texts(&fake.run(&["net", "firewall"]));
    assert_eq!((code, out.as_str()), (Some(0), ""));
    assert!(err.starts_with("no rule is set: only this host"), "{err}");
    for rule in [
        &["allow", "tcp", "3000-3010", "from", "192.168.0.0/16"][..],
        &["allow icmp"],
    ] {
        let args = [&["net", "firewall", "add"], rule].concat();
        assert_eq!(texts(&fake.run(&args)).0, Some(0), "{rule:?}");
    }
    fake.script(|s| {
        s.firewall.in_force = true;
        s.firewall.advice = vec!["Docker drops what is forwarded".into()];
    });
    let (_, out, err) = texts(&fake.run(&["net", "firewall", "list"]));
    assert_eq!(
        out,
        "NR  ACTION  PROTO  PORTS      FROM\n\
         1   allow   tcp    3000-3010  192.168.0.0/16\n\
         2   allow   icmp   any        any\n    \
             deny    any    any        any\n"
    );
    assert_eq!(err, "warning: Docker drops what is forwarded\n");
    fake.script(|s| s.firewall.advice.clear());
    let value = json(&fake, &["net", "firewall", "rm", "1"]);
    assert_eq!(
        (
            value["rules"][0]["protocol"].as_str(),
            value["rules"][1].is_null(),
            value["default"].as_str()
        ),
        (Some("icmp"), true, Some("deny"))
    );
    let value = json(&fake, &["net", "firewall", "clear"]);
    assert!(value["rules"].as_array().unwrap().is_empty());
}

#[test]
fn what_is_no_rule_is_refused_before_anybody_is_asked() {
    let fake = Fake::new(Script::default());
    for (args, want) in [
        (
            &["net", "firewall", "add", "permit", "tcp"][..],
            "`permit` is no action",
        ),
        (
            &["net", "firewall", "add", "allow tcp 80 from nowhere"],
            "`nowhere` is no address",
        ),
        (&["net", "firewall", "rm", "x"], "invalid value 'x'"),
        (&["net", "set"], "--subnet"),
        (&["net", "set", "--gateway", "::1"], "invalid value '::1'"),
        (&["ports", "set", "99999", "off"], "from 1 to 65535"),
        (&["ports", "set", "80", "elsewhere"], "same, off, remap"),
        (&["manage", "x", "--network", "bridged"], "isolated"),
        (
            &["manage", "x", "--network", "shared", "--address", "1.2.3.4"],
            "room of its own",
        ),
    ] {
        let (code, out, err) = texts(&fake.run(args));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?} {err}");
        assert!(err.starts_with("error: ") && err.contains(want), "{err}");
    }
    assert_eq!(fake.calls("greet"), 0);
}

fn web(state: &str) -> v1::Port {
    v1::Port {
        distro: "trixie".into(),
        protocol: "tcp".into(),
        guest_address: "0.0.0.0".into(),
        guest_port: 80,
        pid: 17,
        process: "nginx".into(),
        state: state.into(),
        ..Default::default()
    }
}

/// REL-4: why a port is not on the host is told.
#[test]
fn the_ledger_tells_reasons_and_next_steps() {
    let fake = Fake::new(Script::default());
    assert_eq!(
        texts(&fake.run(&["ports"])),
        (Some(0), String::new(), "no port listens\n".into())
    );
    fake.set_ports(vec![v1::Port {
        reason: "port 80 of the host is used by process 4 (apache2)".into(),
        next_step: "hostel ports set 80 remap=8080".into(),
        ..web("waiting")
    }]);
    let (code, out, err) = texts(&fake.run(&["ports"]));
    assert_eq!(code, Some(0));
    assert_eq!(
        out,
        "DISTRO  PROTO  GUEST       PROCESS     HOST  STATE    REASON\n\
         trixie  tcp    0.0.0.0:80  nginx (17)        waiting  port 80 of the host is used by process 4 (apache2)\n"
    );
    assert_eq!(
        err,
        "next, for trixie tcp 80: hostel ports set 80 remap=8080\n"
    );
    let value = &json(&fake, &["ports"])["ports"][0];
    assert_eq!(
        (value["guest_port"].as_u64(), value["state"].as_str()),
        (Some(80), Some("waiting"))
    );
    // Without a daemon nothing listens, and none is started.
    let off = Fake::listening_at("real.sock", Script::default());
    assert_eq!(
        texts(&off.run(&["ports", "--json"])),
        (Some(0), "{\n  \"ports\": []\n}\n".into(), String::new())
    );
}

#[test]
fn watching_shows_every_change_until_it_is_ended() {
    let fake = Fake::new(Script::default());
    let mut client = Running::start(&mut fake.command(&["ports", "--watch", "--json"]));
    let mut out = client.child().stdout.take().unwrap();
    assert_eq!(read_until(&mut out, "\n"), "{\"ports\":[]}\n");
    for state in ["waiting", "forwarded"] {
        fake.set_ports(vec![web(state)]);
        let line = read_until(&mut out, "\n");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["ports"][0]["state"], state);
    }
    client.kill(rustix::process::Signal::INT);
    assert!(!client.wait().success());

    let mut client = Running::start(&mut fake.command(&["ports", "-w"]));
    let mut out = client.child().stdout.take().unwrap();
    read_until(&mut out, "forwarded\n");
    fake.set_ports(Vec::new());
    let mut err = client.child().stderr.take().unwrap();
    read_until(&mut err, "no port listens\n");
    fake.set_ports(vec![web("off")]);
    assert!(read_until(&mut out, "off\n").contains("DISTRO"));
    client.kill(rustix::process::Signal::TERM);
    client.wait();
}

#[test]
fn watching_ends_with_its_reader() {
    let fake = Fake::new(Script::default());
    let mut client = Running::start(&mut fake.command(&["ports", "--watch", "--json"]));
    let mut out = client.child().stdout.take().unwrap();
    read_until(&mut out, "\n");
    // No change comes that could be written: the pipe itself must wake it.
    drop(out);
    assert_eq!(client.wait().code(), Some(0));
    // A file has no reader that could go, and is written as well.
    let file = fs_err::File::create(fake.dir.path().join("out")).unwrap();
    let mut command = fake.command(&["ports", "--watch", "--json"]);
    let mut client = Running::start(command.stdout(Stdio::from(file.into_file())));
    fake.set_ports(vec![web("forwarded")]);
    let path = fake.dir.path().join("out");
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while !fs_err::read_to_string(&path).unwrap().contains("forwarded") {
        assert!(std::time::Instant::now() < deadline, "the file gets a line");
        std::thread::yield_now();
    }
    assert!(client.child().try_wait().unwrap().is_none(), "it goes on");
}

#[test]
fn rules_for_ports_are_set_and_unset() {
    let fake = Fake::new(Script::default());
    let (code, out, err) = texts(&fake.run(&["ports", "rules"]));
    assert_eq!((code, out.as_str()), (Some(0), ""));
    assert!(
        err.starts_with("no rule is set") && err.contains("listens on 127.0.0.1, ::1"),
        "{err}"
    );
    assert_eq!(
        fake.run(&["ports", "set", "80", "remap=8080"])
            .status
            .code(),
        Some(0)
    );
    let set = ["ports", "set", "-d", "trixie", "--udp", "all", "same"];
    let (_, out, _) = texts(&fake.run(&set));
    assert_eq!(
        out,
        "DISTRO  PROTO  PORT   ACTION\n(all)   tcp    80     remap=8080\ntrixie  udp    (all)  same\n"
    );
    let value = json(&fake, &["ports", "unset", "80"]);
    assert_eq!(
        (
            value["rules"][0]["distro"].as_str(),
            value["rules"][1].is_null(),
            value["forwarding"].as_bool()
        ),
        (Some("trixie"), true, Some(true))
    );
}

#[test]
fn a_distribution_gets_a_room_and_is_told_when_to_restart() {
    let fake = Fake::new(Script::default());
    fake.script(|s| s.managed.network = "shared".into());
    assert_eq!(
        texts(&fake.run(&["manage", "trixie"])),
        (Some(0), "network  shared\n".into(), String::new())
    );
    fake.script(|s| s.managed.restart_needed = true);
    let own = [
        "manage",
        "trixie",
        "--network",
        "own",
        "--address",
        "172.19.133.7",
    ];
    let (code, out, err) = texts(&fake.run(&own));
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "network  own\naddress  172.19.133.7\n")
    );
    assert_eq!(
        err,
        "it runs and keeps its present network until `hostel restart trixie`\n"
    );
    let value = json(&fake, &["manage", "trixie", "--network", "isolated"]);
    assert_eq!(
        (value["network"].as_str(), value["restart_needed"].as_bool()),
        (Some("isolated"), Some(true))
    );
    assert_eq!(fake.last_call().0, "manage");
    // The default distribution has no name here.
    let (_, _, err) = texts(&fake.run(&["manage", "--network", "shared"]));
    assert!(err.contains("until `hostel restart`"), "{err}");
}

/// Nothing is installed here: only what can be asked, and what is refused.
#[test]
fn the_helper_explains_itself() {
    let fake = Fake::new(Script::default());
    assert!(json(&fake, &["net", "helper"])["installed"].is_boolean());
    let (code, out, _) = texts(&fake.run(&["net", "helper", "status"]));
    assert!(code == Some(0) && out.starts_with("helper"), "{out}");
    let (code, _, err) = texts(&fake.run(&["net", "helper", "install"]));
    if rustix::process::geteuid().is_root() {
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains("--group NAME"), "{err}");
        let group = ["net", "helper", "install", "--group", "no-such-group"];
        let (code, _, err) = texts(&fake.run(&group));
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains("`no-such-group`"), "{err}");
    } else {
        assert_eq!(code, Some(125), "{err}");
        assert!(err.contains("hint: sudo /"), "{err}");
    }
    assert_eq!(fake.calls("greet"), 0, "it needs no daemon");
}

/// In a mount namespace with an empty /usr/local, which is all that is changed.
#[test]
fn the_helper_is_installed_and_removed() {
    let test = "the_helper_is_installed_and_removed";
    let needs = [
        Need::Root,
        Need::Program("unshare"),
        Need::Program("getcap"),
    ];
    if needs.iter().any(|need| require(test, *need).is_none()) {
        return;
    }
    let fake = Fake::new(Script::default());
    let program = fake.dir.path().join("hostel-net");
    fs_err::copy("/bin/true", &program).unwrap();
    let script = "set -e; mount --make-rprivate /; mount -t tmpfs -o mode=755 none /usr/local\n\
         SUDO_GID=27 \"$0\" net helper install\n\
         getcap /usr/local/libexec/hostel/hostel-net; stat -c '%u %g %a' /usr/local/libexec/hostel/hostel-net\n\
         \"$0\" net helper\n\
         \"$0\" net helper uninstall; \"$0\" net helper; ls /usr/local/libexec";
    let mut command = std::process::Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script])
        .arg(env!("CARGO_BIN_EXE_hostel"))
        .env("HOSTEL_NET_PROGRAM", &program)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let (code, out, err) = texts(&Running::start(&mut command).finish());
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        out.contains("hostel-net cap_net_bind_service,cap_net_admin=ep\n0 27 750\n"),
        "{out}"
    );
    assert!(out.contains("state   usable\n"), "{out}");
    assert!(out.ends_with("helper  not installed\n"), "{out}");
    assert!(
        err.contains("and nothing else")
            && err.contains("to remove it: sudo hostel net helper uninstall"),
        "{err}"
    );
}
