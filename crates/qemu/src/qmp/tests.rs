use super::*;
use tokio::io::{AsyncReadExt as _, Lines};

/// The other end: speaks QMP as a script says.
struct Peer {
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

impl Peer {
    async fn send(&mut self, text: &str) {
        self.write.write_all(text.as_bytes()).await.unwrap();
        self.write.write_all(b"\r\n").await.unwrap();
    }

    /// Returns name and id of the next command.
    async fn command(&mut self) -> (String, u64) {
        let line = self.lines.next_line().await.unwrap().expect("a command");
        let value: Value = serde_json::from_str(&line).unwrap();
        (
            value["execute"].as_str().unwrap().to_owned(),
            value["id"].as_u64().unwrap(),
        )
    }
}

async fn pair() -> (Qmp, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (read, write) = theirs.into_split();
    let mut peer = Peer {
        lines: BufReader::new(read).lines(),
        write,
    };
    peer.send(r#"{"QMP": {"version": {}, "capabilities": []}}"#)
        .await;
    let greet = async {
        let (name, id) = peer.command().await;
        assert_eq!(name, "qmp_capabilities");
        peer.send(&format!(r#"{{"return": {{}}, "id": {id}}}"#))
            .await;
    };
    let (qmp, ()) = tokio::join!(Qmp::connect(ours, Duration::from_secs(10)), greet);
    (qmp.unwrap(), peer)
}

#[tokio::test]
async fn answers_find_their_commands_in_any_order_with_events_between() {
    let (qmp, mut peer) = pair().await;
    let mut events = qmp.events();
    let script = async {
        let (first, a) = peer.command().await;
        let (_, b) = peer.command().await;
        peer.send(r#"{"event": "STOP", "timestamp": {}}"#).await;
        peer.send(&format!(r#"{{"return": {{"n": {b}}}, "id": {b}}}"#))
            .await;
        peer.send(r#"{"return": {}, "id": 987654}"#).await;
        peer.send(r#"{"return": {}}"#).await;
        peer.send(&format!(
            r#"{{"error": {{"class": "GenericError", "desc": "no {first}"}}, "id": {a}}}"#
        ))
        .await;
        (a, b)
    };
    let (x, y, (_, b)) = tokio::join!(
        qmp.execute("one", json!({})),
        qmp.execute("two", json!({})),
        script
    );
    assert!(
        matches!(&x, Err(QmpError::Refused { desc, .. }) if desc == "no one"),
        "{x:?}"
    );
    assert_eq!(y.unwrap()["n"], b);
    assert_eq!(
        events.recv().await.unwrap(),
        Event {
            name: "STOP".into(),
            data: Value::Null
        }
    );
}

#[tokio::test]
async fn a_closed_silent_or_mad_peer_is_an_error_that_names_the_command() {
    let (qmp, peer) = pair().await;
    let silent = qmp
        .execute_within("wait", json!({}), Duration::from_millis(20))
        .await
        .unwrap_err();
    assert!(
        matches!(&silent, QmpError::Timeout { command, .. } if command == "wait"),
        "{silent}"
    );
    let (result, ()) = tokio::join!(qmp.execute("x", json!({})), async { drop(peer) });
    assert!(matches!(result, Err(QmpError::Closed(command)) if command == "x"));
    assert!(matches!(
        qmp.execute("y", json!({})).await,
        Err(QmpError::Closed(_))
    ));

    let (qmp, mut peer) = pair().await;
    let (result, ()) = tokio::join!(qmp.execute("x", json!({})), peer.send("this is not JSON"));
    assert!(matches!(result, Err(QmpError::Closed(_))));

    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"{\"hello\": 1}\n").await.unwrap();
    let error = Qmp::connect(ours, Duration::from_secs(10))
        .await
        .unwrap_err();
    assert!(matches!(error, QmpError::Strange { .. }), "{error}");
}

#[tokio::test]
async fn an_endless_line_is_cut_off() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let flood = tokio::spawn(async move {
        let (mut read, mut write) = theirs.into_split();
        let chunk = vec![b'x'; 1 << 16];
        let mut sent = 0;
        while write.write_all(&chunk).await.is_ok() {
            sent += chunk.len();
        }
        let _ = read.read(&mut [0; 1]).await;
        sent
    });
    assert!(matches!(
        Qmp::connect(ours, Duration::from_secs(30)).await,
        Err(QmpError::Closed(_))
    ));
    assert!(flood.await.unwrap() < MAX_LINE * 2);
}

#[tokio::test]
async fn a_device_is_gone_when_its_own_event_came() {
    let (qmp, mut peer) = pair().await;
    let script = async {
        let (name, id) = peer.command().await;
        assert_eq!(name, "device_del");
        peer.send(r#"{"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/d1/virtio-backend"}}"#).await;
        peer.send(r#"{"event": "DEVICE_DELETED", "data": {"device": "d2"}}"#)
            .await;
        peer.send(&format!(r#"{{"return": {{}}, "id": {id}}}"#))
            .await;
        peer.send(r#"{"event": "DEVICE_DELETED", "data": {"device": "d1", "path": "x"}}"#)
            .await;
    };
    let (result, ()) = tokio::join!(qmp.device_del("d1", Duration::from_secs(10)), script);
    result.unwrap();

    let script = async {
        let (_, id) = peer.command().await;
        let gone = r#"{"class": "DeviceNotFound", "desc": "Device 'd1' not found"}"#;
        peer.send(&format!(r#"{{"error": {gone}, "id": {id}}}"#))
            .await;
        let (_, id) = peer.command().await;
        peer.send(&format!(r#"{{"return": {{}}, "id": {id}}}"#))
            .await;
    };
    let del = async {
        qmp.device_del("d1", Duration::from_secs(10)).await.unwrap();
        let error = qmp
            .device_del("d3", Duration::from_millis(30))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("device_del d3"), "{error}");
    };
    tokio::join!(del, script);
}
