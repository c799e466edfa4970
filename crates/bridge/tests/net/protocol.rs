//! What a client may say, and what becomes of one that says something else.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
};

use hostel_bridge::{CallError, MAX_MESSAGE, Mode, RefusalCode, SpawnError, Up};
use hostel_sys::fdpass;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

use crate::world::*;

/// A server with a socket that anything can be said on.
fn raw(world: &World) -> (OwnedFd, Child) {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    sockopt::set_socket_timeout(&ours, sockopt::Timeout::Recv, Some(DEADLINE)).unwrap();
    let child = world.host.run(move || {
        Command::new(env!("CARGO_BIN_EXE_hostel-net"))
            .arg("host")
            .stdin(Stdio::from(theirs))
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    });
    assert!(hear(&ours).contains("ready"));
    (ours, child)
}

fn hear(socket: &OwnedFd) -> String {
    receive(socket).0
}

fn receive(socket: &OwnedFd) -> (String, Vec<OwnedFd>) {
    let mut buffer = vec![0; MAX_MESSAGE + 1];
    let (length, fds) = fdpass::recv(socket, &mut buffer).unwrap();
    (String::from_utf8_lossy(&buffer[..length]).into_owned(), fds)
}

/// Has a network made; its tap is there as long as the descriptor is.
fn up(socket: &OwnedFd) -> Vec<OwnedFd> {
    let up = serde_json::to_string(&wanted()).unwrap();
    let request = format!(r#"{{"id":1,"request":{{"up":{up}}}}}"#);
    fdpass::send(socket, request.as_bytes(), &[]).unwrap();
    let (answer, tap) = receive(socket);
    assert!(answer.contains("hostel0-tap"), "{answer}");
    assert_eq!(tap.len(), 1);
    tap
}

#[test]
fn requests_that_are_none_are_refused_and_the_network_stays() {
    let Some(world) = World::new("requests_that_are_none_are_refused_and_the_network_stays") else {
        return;
    };
    let (socket, mut child) = raw(&world);
    let ask = |text: &str| {
        fdpass::send(&socket, text.as_bytes(), &[]).unwrap();
        hear(&socket)
    };
    let _tap = up(&socket);
    for bad in [
        r#"{"id":2,"request":"sing"}"#,
        r#"{"id":2,"request":{"up":{}}}"#,
        r#"{"id":2,"request":{"firewall":[{"action":"allow"}]}}"#,
        r#"{"id":2,"request":{"firewall":[{"action":"allow","protocol":"icmp","ports":[1,2]}]}}"#,
        r#"{"id":2,"request":{"firewall":7}}"#,
        r#"{"id":2,"request":null}"#,
    ] {
        let answer = ask(bad);
        assert!(
            answer.contains(r#""id":2"#) && answer.contains(r#""code":"invalid""#),
            "{bad}: {answer}"
        );
    }
    assert!(!world.is_clean(), "the network is still there");
    drop(socket);
    assert!(child.wait().unwrap().success());
    assert!(world.is_clean());
}

#[test]
fn a_client_that_speaks_nonsense_loses_its_network() {
    let Some(world) = World::new("a_client_that_speaks_nonsense_loses_its_network") else {
        return;
    };
    let long = vec![b' '; MAX_MESSAGE + 1];
    for nonsense in [
        &b"{"[..],
        b"\xff\xfe",
        b"[]",
        b"{\"id\":-1,\"request\":\"status\"}",
        &long,
    ] {
        let (socket, mut child) = raw(&world);
        let _tap = up(&socket);
        fdpass::send(&socket, nonsense, &[]).unwrap();
        let last = hear(&socket);
        assert!(
            last.contains("failed") && last.contains("invalid"),
            "{last}"
        );
        assert_eq!(hear(&socket), "", "the end");
        assert!(!child.wait().unwrap().success());
        assert!(world.is_clean());
    }
}

#[test]
fn descriptors_of_a_client_are_not_kept() {
    let Some(world) = World::new("descriptors_of_a_client_are_not_kept") else {
        return;
    };
    let (socket, mut child) = raw(&world);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let fds = [std::os::fd::AsFd::as_fd(&writer)];
    fdpass::send(&socket, br#"{"id":1,"request":"status"}"#, &fds).unwrap();
    assert!(hear(&socket).contains("status"));
    drop(writer);
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut rest).unwrap();
    drop(socket);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_server_without_a_client_does_nothing() {
    let Some(world) = World::new("a_server_without_a_client_does_nothing") else {
        return;
    };
    let status = world.host.run(|| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hostel-net"));
        command.arg("host").stdin(Stdio::null()).output().unwrap()
    });
    let words = String::from_utf8(status.stderr).unwrap();
    assert!(words.contains("started by hosteld"), "{words}");
    assert!(world.is_clean());
}

#[test]
fn rights_are_asked_for_before_anything_is_done() {
    let Some(world) = World::new("rights_are_asked_for_before_anything_is_done") else {
        return;
    };
    let plain = As::User { tun: Tun::Open };
    match world.try_start(&Mode::Host, plain) {
        Err(SpawnError::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::Denied),
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_that_do_not_fit_are_told_so() {
    let Some(world) = World::new("requests_that_do_not_fit_are_told_so") else {
        return;
    };
    let (client, _events) = world.start_host();
    let refused = |outcome: Result<(), CallError>| match outcome {
        Err(CallError::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    };
    let to = SocketAddr::from((VM, 80));
    let connect = || client.connect_tcp(to).map(|_| ());
    assert_eq!(refused(client.firewall(Vec::new())), RefusalCode::NotNow);
    assert_eq!(
        refused(client.listen_dns().map(|_| ())),
        RefusalCode::NotNow
    );
    assert_eq!(refused(connect()), RefusalCode::NotNow);
    let public = Up {
        gateway: SERVER,
        ..wanted()
    };
    assert_eq!(refused(client.up(public).map(|_| ())), RefusalCode::Invalid);
    client.up(wanted()).unwrap();
    // A helper with rights lends no sockets.
    assert_eq!(refused(connect()), RefusalCode::NotNow);
    assert_eq!(refused(client.restart_uplink()), RefusalCode::NotNow);
}
