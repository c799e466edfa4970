//! Connections into the guest (`Agent.Connect`).

use hostel_model::{ErrorCode, Token};
use hostel_proto::v1;
use hostel_testkit::{Need, Space, require};
use std::net::{TcpListener, UdpSocket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::host::{Host, LIMIT, eventually, in_space};

async fn agent(test: &str) -> Option<(Space, Host)> {
    require(test, Need::Program("ip"))?;
    require(test, Need::Program("unshare"))?;
    let space = Space::new(test)?;
    space.sh("ip link set lo up").unwrap();
    let host = in_space(&space).await;
    Some((space, host))
}

async fn connect(
    host: &Host,
    protocol: &str,
    address: &str,
    port: u16,
) -> Result<UnixStream, tonic::Status> {
    let token = Token::new_random();
    let request = v1::ConnectRequest {
        room: String::new(),
        protocol: protocol.into(),
        address: address.into(),
        port: port.into(),
        token: token.as_bytes().to_vec().into(),
    };
    let mut client = host.client.clone();
    let call = tokio::spawn(async move { client.connect(request).await });
    let taken = async {
        tokio::select! {
            (stream, shown) = host.stream() => Some((stream, shown)),
            () = async { while !call.is_finished() { tokio::task::yield_now().await } } => None,
        }
    };
    let taken = timeout(LIMIT, taken).await.unwrap();
    timeout(LIMIT, call).await.unwrap().unwrap()?;
    let (stream, shown) = match taken {
        Some(taken) => taken,
        None => host.stream().await,
    };
    assert_eq!(shown, token.as_bytes());
    Ok(stream)
}

/// A server in the guest, on threads: it sends back what it gets, until the end of it.
fn echo(space: &Space, address: &'static str) -> u16 {
    let listener = space.run(move || TcpListener::bind(address).unwrap());
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut &stream, &mut &stream);
                let _ = stream.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    port
}

/// Past REL-6: a half that has ended does not cut the other.
#[tokio::test]
async fn a_connection_carries_everything_and_each_half_ends_by_itself() {
    let test = "a_connection_carries_everything_and_each_half_ends_by_itself";
    let Some((space, host)) = agent(test).await else {
        return;
    };
    let mut addresses = vec!["127.0.0.1"];
    // ::1 is what the host cannot reach in any other way.
    if space.run(|| TcpListener::bind("[::1]:0").is_ok()) {
        addresses.push("::1");
    }
    for address in addresses {
        let bind = if address == "::1" {
            "[::1]:0"
        } else {
            "127.0.0.1:0"
        };
        let port = echo(&space, bind);
        let stream = connect(&host, "tcp", address, port).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let sent: Vec<u8> = (0..3 << 20).map(|i: u32| (i ^ (i >> 9)) as u8).collect();
        let bytes = sent.clone();
        let writing = tokio::spawn(async move {
            write.write_all(&bytes).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        timeout(LIMIT, read.read_to_end(&mut received))
            .await
            .unwrap()
            .unwrap();
        writing.await.unwrap();
        assert!(received == sent, "{address}");
    }
}

#[tokio::test]
async fn what_cannot_be_reached_has_a_code() {
    let Some((space, host)) = agent("what_cannot_be_reached_has_a_code").await else {
        return;
    };
    let refused = space.run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    });
    for (protocol, address, port, code) in [
        ("tcp", "127.0.0.1", refused, ErrorCode::Refused),
        // There is no route at all.
        ("tcp", "203.0.113.1", 80, ErrorCode::Unreachable),
        ("udp", "203.0.113.1", 80, ErrorCode::Unreachable),
        ("sctp", "127.0.0.1", 80, ErrorCode::Protocol),
        ("tcp", "localhost", 80, ErrorCode::Protocol),
    ] {
        let status = connect(&host, protocol, address, port).await.unwrap_err();
        let failure = hostel_proto::failure_of(&status);
        assert_eq!(failure.code, code, "{protocol} {address}: {failure}");
    }
}

#[tokio::test]
async fn datagrams_go_both_ways() {
    let Some((space, host)) = agent("datagrams_go_both_ways").await else {
        return;
    };
    let server = space.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 65_535];
        while let Ok((length, from)) = server.recv_from(&mut bytes) {
            let _ = server.send_to(&bytes[..length], from);
            if &bytes[..length] == b"end" {
                return;
            }
        }
    });
    let mut stream = connect(&host, "udp", "127.0.0.1", port).await.unwrap();
    let large = vec![7; 40_000];
    for datagram in [&large[..], b"", b"end"] {
        stream
            .write_u16(datagram.len().try_into().unwrap())
            .await
            .unwrap();
        stream.write_all(datagram).await.unwrap();
        let length = timeout(LIMIT, stream.read_u16()).await.unwrap().unwrap();
        let mut received = vec![0; length.into()];
        stream.read_exact(&mut received).await.unwrap();
        assert!(received == datagram);
    }
}

/// Whichever side goes: the other learns it, and the agent keeps nothing.
#[tokio::test]
async fn nothing_is_left_of_connections() {
    let Some((space, host)) = agent("nothing_is_left_of_connections").await else {
        return;
    };
    let port = echo(&space, "127.0.0.1:0");
    let before = host.descriptors();
    let mut streams = Vec::new();
    for n in 0..100u8 {
        let mut stream = connect(&host, "tcp", "127.0.0.1", port).await.unwrap();
        stream.write_all(&[n]).await.unwrap();
        assert_eq!(timeout(LIMIT, stream.read_u8()).await.unwrap().unwrap(), n);
        streams.push(stream);
    }
    assert!(host.descriptors() >= before + 200);
    drop(streams);
    eventually("connections are closed", || host.descriptors() <= before).await;
    // The server goes first.
    let listener = space.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    let mut stream = connect(&host, "tcp", "127.0.0.1", port).await.unwrap();
    let (server, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&server, Some(std::time::Duration::ZERO)).unwrap();
    drop(server);
    let mut rest = Vec::new();
    let _ = timeout(LIMIT, stream.read_to_end(&mut rest)).await.unwrap();
    eventually("the connection is closed", || host.descriptors() <= before).await;
}
