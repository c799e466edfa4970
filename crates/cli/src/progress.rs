//! Shows how a long task goes: a bar on a terminal, a line a step elsewhere.

use std::time::{Duration, Instant};

use hostel_model::{Bytes, ErrorCode, Failure};
use hostel_proto::v1::{self, StreamToken, TaskDone, task_event::Event};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tonic::Streaming;

use crate::{printer::Printer, text::printable, trouble::Trouble};

/// Below this, a wait is not worth a word.
const WORTH_A_WORD: Duration = Duration::from_millis(700);

/// A wait without steps: a word on the terminal when it takes long, gone without a trace afterwards.
pub(crate) struct Waiting {
    bar: ProgressBar,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Waiting {
    /// Begins to wait.
    pub(crate) fn new(printer: &Printer, word: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let task = printer.shows_progress().then(|| {
            let bar = bar.clone();
            tokio::spawn(async move {
                tokio::time::sleep_until((Instant::now() + WORTH_A_WORD).into()).await;
                bar.set_style(spinner_style());
                bar.set_message(word);
                bar.set_draw_target(ProgressDrawTarget::stderr());
                bar.enable_steady_tick(Duration::from_millis(100));
            })
        });
        Self { bar, task }
    }

    /// Does something with the word out of the way.
    pub(crate) fn suspend(&self, f: impl FnOnce()) {
        self.bar.suspend(f);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.bar.finish_and_clear();
    }
}

/// Follows a task to its end and returns what came of it. `claim` is called with the token of an archive.
pub(crate) async fn follow(
    printer: &Printer,
    mut events: Streaming<v1::TaskEvent>,
    mut claim: impl FnMut(StreamToken) -> Result<(), Trouble>,
) -> Result<TaskDone, Trouble> {
    let mut view = View::new(printer);
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Claim(token)) => claim(token)?,
            Some(Event::Progress(progress)) => view.show(&progress),
            Some(Event::Warning(text)) => view.bar.suspend(|| printer.warn(&text)),
            Some(Event::Done(done)) => return Ok(done),
            // A newer daemon tells something that this client does not know.
            None => {}
        }
    }
    Err(Failure::new(
        ErrorCode::Daemon,
        "the daemon ended the task without a word",
    )
    .hint("run `hostel logs daemon` to see why")
    .into())
}

struct View<'a> {
    printer: &'a Printer,
    bar: ProgressBar,
    step: String,
}

impl<'a> View<'a> {
    fn new(printer: &'a Printer) -> Self {
        Self {
            printer,
            bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
            step: String::new(),
        }
    }

    fn show(&mut self, progress: &v1::Progress) {
        let moves = self.printer.shows_progress();
        if progress.step != self.step {
            self.step.clone_from(&progress.step);
            if moves {
                self.bar.finish_and_clear();
                self.bar = ProgressBar::new(progress.total).with_style(style(progress));
                self.bar.set_draw_target(ProgressDrawTarget::stderr());
                self.bar.set_message(printable(&progress.step).into_owned());
                self.bar.enable_steady_tick(Duration::from_millis(100));
            } else {
                self.printer.say(&step_line(progress));
            }
        }
        if moves {
            if progress.total != 0 {
                self.bar.set_length(progress.total);
            }
            self.bar.set_position(progress.done);
        }
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn step_line(progress: &v1::Progress) -> String {
    match (progress.total, progress.unit.as_str()) {
        (0, _) => format!("{} …", progress.step),
        (total, "bytes") => format!("{} ({}) …", progress.step, Bytes(total)),
        (total, unit) => format!("{} ({total} {unit}) …", progress.step),
    }
}

fn spinner_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg}").expect("a template of ours")
}

fn style(progress: &v1::Progress) -> ProgressStyle {
    let template = match (progress.total, progress.unit.as_str()) {
        (0, "bytes") => "{spinner} {msg} {binary_bytes} {binary_bytes_per_sec}",
        (0, "") => "{spinner} {msg}",
        (0, _) => "{spinner} {msg} {human_pos}",
        (_, "bytes") => {
            "{spinner} {msg} [{bar:24}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
        }
        (_, _) => "{spinner} {msg} [{bar:24}] {human_pos}/{human_len}",
    };
    ProgressStyle::with_template(template)
        .expect("a template of ours")
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_progress_has_a_line_and_a_bar() {
        let progress = |total, unit: &str| v1::Progress {
            step: "reading".into(),
            done: 0,
            total,
            unit: unit.into(),
        };
        for (total, unit, want) in [
            (0, "", "reading …"),
            (0, "bytes", "reading …"),
            (0, "files", "reading …"),
            (2048, "bytes", "reading (2.0 KiB) …"),
            (7, "files", "reading (7 files) …"),
        ] {
            let progress = progress(total, unit);
            assert_eq!(step_line(&progress), want);
            style(&progress);
        }
    }
}
