//! One run of an operation for everyone who asks for it at the same time.

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
};

use hostel_model::{ErrorCode, Failure};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

type Outcome<T> = Option<Result<T, Failure>>;

/// An operation that is run at most once at a time; those who ask meanwhile get the result of the run under way.
#[derive(Debug)]
pub(crate) struct Flight<T> {
    current: Mutex<Option<watch::Receiver<Outcome<T>>>>,
}

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Self {
            current: Mutex::new(None),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Joins the run under way, or begins one; tells whether it began it.
    ///
    /// Cancel safe: the run belongs to `tasks` and goes on when a caller leaves.
    pub(crate) async fn run<F>(
        &self,
        tasks: &TaskTracker,
        operation: impl FnOnce() -> F,
    ) -> (Result<T, Failure>, bool)
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let (mut outcome, began) = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            let under_way = current
                .as_ref()
                .filter(|r| r.borrow().is_none() && r.has_changed().is_ok());
            if let Some(receiver) = under_way {
                (receiver.clone(), false)
            } else {
                let (sender, receiver) = watch::channel(None);
                let run = operation();
                tasks.spawn(async move {
                    let _ = sender.send(Some(run.await));
                });
                *current = Some(receiver.clone());
                (receiver, true)
            }
        };
        let result = match outcome.wait_for(Option::is_some).await {
            Ok(value) => value.clone(),
            Err(_) => None,
        };
        (
            result.unwrap_or_else(|| {
                Err(Failure::new(
                    ErrorCode::Internal,
                    "an operation ended without a result",
                ))
            }),
            began,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_together_share_one_run_and_the_next_starts_anew() {
        let flight = Arc::new(Flight::<u32>::default());
        let tasks = TaskTracker::new();
        let runs = Arc::new(AtomicU32::new(0));
        let go = Arc::new(Notify::new());
        let ask = || {
            let (flight, tasks, runs, go) =
                (flight.clone(), tasks.clone(), runs.clone(), go.clone());
            async move {
                flight
                    .run(&tasks, || async move {
                        go.notified().await;
                        Ok(runs.fetch_add(1, Ordering::SeqCst))
                    })
                    .await
            }
        };
        let (a, b, ()) = tokio::join!(ask(), ask(), async { go.notify_one() });
        assert_eq!((a.0.unwrap(), b.0.unwrap()), (0, 0));
        assert_ne!(a.1, b.1);
        go.notify_one();
        assert_eq!(ask().await, (Ok(1), true));
    }

    #[tokio::test]
    async fn a_caller_that_leaves_does_not_stop_the_run() {
        let flight = Flight::<u32>::default();
        let tasks = TaskTracker::new();
        let (done, finished) = tokio::sync::oneshot::channel();
        let go = Arc::new(Notify::new());
        let wait = go.clone();
        let asking = flight.run(&tasks, || async move {
            wait.notified().await;
            let _ = done.send(());
            Ok(1)
        });
        tokio::select! {
            biased;
            _ = asking => panic!("not started yet"),
            () = tokio::task::yield_now() => {}
        }
        go.notify_one();
        finished.await.unwrap();
    }
}
