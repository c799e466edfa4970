//! The guest's questions for names, answered by the host's resolver (DNS-1).

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use hostel_proto::v1;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{Live, pause};
use crate::vm::Running;

/// The most questions under way; more wait in the guest, whose askers ask again.
const MAX_QUESTIONS: usize = 256;

/// The largest question, in bytes: a name has 255, everything else is small.
const MAX_QUESTION: usize = 4096;

/// How long to wait before the guest is asked again after it ended the stream.
const AGAIN: Duration = Duration::from_secs(1);

impl Live {
    /// Answers the guest until the VM ends.
    pub(super) async fn answer_names(self: Arc<Self>, running: Arc<Running>) {
        let mut agents = running.agents();
        loop {
            agents.mark_unchanged();
            let why = tokio::select! {
                () = running.gone.cancelled() => return,
                why = self.names_of(&running) => why,
            };
            tracing::debug!(why, "the guest's questions for names are not answered");
            tokio::select! {
                () = running.gone.cancelled() => return,
                _ = agents.changed() => {}
                () = pause(AGAIN) => {}
            }
        }
    }

    /// Answers one stream to its end.
    async fn names_of(&self, running: &Running) -> String {
        let (sender, answers) = mpsc::channel(MAX_QUESTIONS);
        let mut questions = match running.agent().dns(ReceiverStream::new(answers)).await {
            Ok(questions) => questions.into_inner(),
            Err(status) => return status.message().chars().take(256).collect(),
        };
        let room = Arc::new(Semaphore::new(MAX_QUESTIONS));
        // Ends with this call: what is under way is for nobody then.
        let mut work = JoinSet::new();
        loop {
            let permit = Arc::clone(&room)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            while work.try_join_next().is_some() {}
            let question = match questions.next().await {
                Some(Ok(question)) => question,
                Some(Err(status)) => return status.message().chars().take(256).collect(),
                None => return "the stream ended".to_owned(),
            };
            let (resolver, sender) = (Arc::clone(&self.resolver), sender.clone());
            work.spawn(async move {
                let message = if question.message.len() <= MAX_QUESTION {
                    resolver.answer(&question.message, question.tcp).await
                } else {
                    None
                };
                let answer = v1::DnsAnswer {
                    number: question.number,
                    message: message.unwrap_or_default().into(),
                };
                let _ = sender.send(answer).await;
                drop(permit);
            });
        }
    }
}
