//! What comes over the wire: statuses of peers, packets of control sockets.

use std::{os::fd::AsFd as _, time::Instant};

use hostel_instance::{
    ExecJob, LaunchSpec, MAX_PACKET, SessionRequest, WindowSize, WireError, read_report,
    send_request,
};
use hostel_proto::{clean, failure_of, status_of};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use tonic::{
    Status,
    codegen::http::{HeaderMap, HeaderName, HeaderValue},
};

/// What a failure may take, as `hostel-proto` promises.
const MAX_TEXT: usize = 64 << 10;
const MAX_HINTS: usize = 16;

/// Takes lines `name: value` as the headers of a status, and unpacks the failure in it.
pub fn failure(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|b| *b == b'\n') {
        let mut parts = line.splitn(2, |b| *b == b':');
        let name = parts.next().map(HeaderName::from_bytes);
        let value = parts
            .next()
            .map(<[u8]>::trim_ascii)
            .map(HeaderValue::from_bytes);
        if let (Some(Ok(name)), Some(Ok(value))) = (name, value) {
            headers.append(name, value);
        }
    }
    clean(&mut headers);
    let status = Status::from_header_map(&headers)
        .unwrap_or_else(|| Status::unknown(String::from_utf8_lossy(bytes)));
    let failure = failure_of(&status);
    assert!(!failure.message.is_empty() && failure.message.len() <= MAX_TEXT);
    assert!(failure.hints.len() <= MAX_HINTS);
    assert!(failure.hints.iter().all(|hint| hint.len() <= MAX_TEXT));
    assert_eq!(failure_of(&status_of(&failure)), failure);
}

/// Sends a packet to a session's control socket as its report, and reads jobs out of the same bytes.
pub fn instance_wire(bytes: &[u8]) {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .expect("a socket pair");
    // One that does not fit the socket's buffer was never sent, so nothing comes.
    let sent = send(&theirs, bytes, SendFlags::NOSIGNAL).is_ok();
    match read_report(ours.as_fd(), Instant::now()) {
        Ok(Some(report)) => {
            let text = serde_json::to_vec(&report).expect("a report is JSON");
            assert!(sent && text.len() <= MAX_PACKET);
        }
        // An empty packet looks like the end.
        Ok(None) => assert!(bytes.is_empty()),
        Err(WireError::TooLong { limit, .. }) => assert!(bytes.len() > limit),
        Err(WireError::Timeout) => assert!(!sent || bytes.is_empty()),
        Err(WireError::Malformed(_)) => assert!(sent),
        Err(error @ WireError::Socket(_)) => panic!("{error:?}"),
    }
    let size = bytes.first_chunk().map_or(0, |b| u16::from_le_bytes(*b));
    let resize = SessionRequest::Resize(WindowSize {
        rows: size,
        ..WindowSize::default()
    });
    send_request(ours.as_fd(), resize).expect("room for one packet");

    same_again::<ExecJob>(bytes);
    same_again::<LaunchSpec>(bytes);
    same_again::<SessionRequest>(bytes);
}

/// What is understood is written so that it is understood the same.
fn same_again<T>(bytes: &[u8])
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    if let Ok(job) = serde_json::from_slice::<T>(bytes) {
        let text = serde_json::to_vec(&job).expect("a job is JSON");
        assert_eq!(serde_json::from_slice::<T>(&text).expect("our own"), job);
    }
}
