//! How the fake daemon answers calls that take a while: tasks, archives and sessions.

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    pin::Pin,
    sync::mpsc,
};

use hostel_model::Failure;
use hostel_proto::v1::{self, session_event, task_event};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use super::{PATIENCE, Session, calls::Service};

pub(super) type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
pub(super) type Answer<T> = Result<Response<T>, Status>;

impl Service {
    pub(super) fn note<T: std::fmt::Debug>(&self, name: &'static str, request: &Request<T>) {
        self.0
            .script
            .lock()
            .unwrap()
            .calls
            .push((name, format!("{:?}", request.get_ref())));
    }

    fn token(&self) -> (bytes::Bytes, mpsc::Receiver<UnixStream>) {
        let token = *hostel_model::Token::new_random().as_bytes();
        let (send, receive) = mpsc::channel();
        self.0.claims.lock().unwrap().push_back((token, send));
        (bytes::Bytes::copy_from_slice(&token), receive)
    }

    pub(super) fn done(&self, done: v1::TaskDone) -> Answer<Events<v1::TaskEvent>> {
        if let Some(failure) = &self.0.script.lock().unwrap().task_failure {
            return Err(hostel_proto::status_of(failure));
        }
        let progress = v1::Progress {
            step: "working".into(),
            done: 1,
            total: 2048,
            unit: "bytes".into(),
        };
        let events = [
            task_event::Event::Progress(progress),
            task_event::Event::Done(done),
        ];
        let events = events.map(|e| Ok(v1::TaskEvent { event: Some(e) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(events))))
    }

    /// A task that first takes an archive.
    #[expect(clippy::unnecessary_wraps, reason = "the answer of a call")]
    pub(super) fn archive_task(
        &self,
        work: impl FnOnce(OwnedFd) -> Result<v1::TaskDone, Failure> + Send + 'static,
    ) -> Answer<Events<v1::TaskEvent>> {
        let (token, archive) = self.token();
        let (send, receive) = tokio::sync::mpsc::channel(8);
        std::thread::spawn(move || {
            let event = |e| Ok(v1::TaskEvent { event: Some(e) });
            let kind = v1::StreamKind::Archive.into();
            send.blocking_send(event(task_event::Event::Claim(v1::StreamToken {
                kind,
                token,
            })))
            .unwrap();
            let Ok(archive) = archive.recv_timeout(PATIENCE) else {
                return;
            };
            let last = match work(archive.into()) {
                Ok(done) => event(task_event::Event::Done(done)),
                Err(failure) => Err(hostel_proto::status_of(&failure)),
            };
            let _ = send.blocking_send(last);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    pub(super) fn session(&self, request: v1::ExecRequest) -> Answer<Events<v1::SessionEvent>> {
        if let Some(failure) = &self.0.script.lock().unwrap().exec_failure {
            return Err(hostel_proto::status_of(failure));
        }
        let command = request.command.clone().unwrap_or_default();
        let terminal =
            [command.stdin(), command.stdout(), command.stderr()].contains(&v1::Stdio::Tty);
        let mut kinds = Vec::new();
        for (stdio, kind) in [
            (
                if terminal {
                    v1::Stdio::Pipe
                } else {
                    v1::Stdio::Null
                },
                v1::StreamKind::Tty,
            ),
            (command.stdin(), v1::StreamKind::Stdin),
            (command.stdout(), v1::StreamKind::Stdout),
            (command.stderr(), v1::StreamKind::Stderr),
        ] {
            if stdio == v1::Stdio::Pipe {
                kinds.push(kind);
            }
        }
        let (send, receive) = tokio::sync::mpsc::channel(8);
        let mut streams = Vec::new();
        let mut waiting = Vec::new();
        for kind in kinds {
            let (token, claimed) = self.token();
            streams.push(v1::StreamToken {
                kind: kind.into(),
                token,
            });
            waiting.push((kind, claimed));
        }
        let sessions = self.0.sessions.lock().unwrap().clone();
        std::thread::spawn(move || {
            let opened = v1::SessionOpened {
                session: "s1".into(),
                streams,
            };
            let event = session_event::Event::Opened(opened);
            send.blocking_send(Ok(v1::SessionEvent { event: Some(event) }))
                .unwrap();
            let streams = waiting
                .into_iter()
                .map(|(k, w)| (k, w.recv_timeout(PATIENCE).unwrap()))
                .collect();
            let _ = sessions.send(Session {
                request,
                streams,
                events: send,
            });
        });
        Ok(Response::new(Box::pin(
            ReceiverStream::new(receive).map(|e| e),
        )))
    }
}
