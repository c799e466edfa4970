//! One session of the fake daemon, as a test plays it.

use std::{os::unix::net::UnixStream, time::Instant};

use hostel_model::Failure;
use hostel_proto::v1::{self, session_event};
use tonic::Status;

use super::PATIENCE;

/// One session, as the test plays it: the streams that the client claimed, and the means to end it.
pub(crate) struct Session {
    pub(crate) request: v1::ExecRequest,
    /// Connections, in the order of the tokens that were given.
    pub(crate) streams: Vec<(v1::StreamKind, UnixStream)>,
    pub(super) events: tokio::sync::mpsc::Sender<Result<v1::SessionEvent, Status>>,
}

impl Session {
    pub(crate) fn stream(&mut self, kind: v1::StreamKind) -> &mut UnixStream {
        &mut self
            .streams
            .iter_mut()
            .find(|(k, _)| *k == kind)
            .expect("the stream was claimed")
            .1
    }

    pub(crate) fn has(&self, kind: v1::StreamKind) -> bool {
        self.streams.iter().any(|(k, _)| *k == kind)
    }

    pub(crate) fn send(&self, event: session_event::Event) {
        self.events
            .blocking_send(Ok(v1::SessionEvent { event: Some(event) }))
            .expect("the client listens");
    }

    pub(crate) fn exit(&self, code: u32, signal: u32, totals: &[(v1::StreamKind, u64)]) {
        let totals = totals
            .iter()
            .map(|(kind, bytes)| v1::StreamTotal {
                kind: (*kind).into(),
                bytes: *bytes,
            })
            .collect();
        self.send(session_event::Event::Exited(v1::SessionExited {
            code,
            signal,
            core_dumped: false,
            totals,
        }));
    }

    pub(crate) fn fail(&self, failure: &Failure) {
        self.events
            .blocking_send(Err(hostel_proto::status_of(failure)))
            .expect("the client listens");
    }

    /// Waits until the client has ended the call.
    pub(crate) fn wait_hung_up(&self) {
        let deadline = Instant::now() + PATIENCE;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::time::timeout(deadline - Instant::now(), self.events.closed())
                .await
                .expect("the client hangs up");
        });
    }
}
