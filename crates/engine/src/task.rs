//! What a long task tells its client while it runs.

use hostel_proto::v1::{self, task_event::Event};
use tokio::sync::mpsc;

/// How many events wait for a slow client before progress is skipped.
const QUEUE: usize = 32;

/// The sending end: given to every long task.
#[derive(Clone, Debug)]
pub struct TaskSink(mpsc::Sender<v1::TaskEvent>);

impl TaskSink {
    /// Makes a sink and the stream of its events.
    pub fn channel() -> (Self, mpsc::Receiver<v1::TaskEvent>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Tells how far it is; skipped when the client is slow.
    pub fn progress(&self, step: &str, done: u64, total: u64, unit: &str) {
        let progress = v1::Progress {
            step: step.to_owned(),
            done,
            total,
            unit: unit.to_owned(),
        };
        let _ = self.0.try_send(v1::TaskEvent {
            event: Some(Event::Progress(progress)),
        });
    }

    /// Tells something odd that does not stop the task.
    pub async fn warn(&self, text: String) {
        self.send(Event::Warning(text)).await;
    }

    /// Tells which stream to claim.
    pub async fn claim(&self, kind: v1::StreamKind, token: hostel_model::Token) {
        let token = v1::StreamToken {
            kind: kind.into(),
            token: token.as_bytes().to_vec().into(),
        };
        self.send(Event::Claim(token)).await;
    }

    /// Tells that it is done.
    pub async fn done(&self, done: v1::TaskDone) {
        self.send(Event::Done(done)).await;
    }

    /// Tells whether the client is gone; a task that makes something then gives up.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Waits until the client is gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }

    async fn send(&self, event: Event) {
        let _ = self.0.send(v1::TaskEvent { event: Some(event) }).await;
    }
}
