//! A client of QEMU's machine protocol: JSON lines, commands answered by id, events in between.

mod commands;

pub use self::commands::Status;

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hostel_sys::fdpass;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{broadcast, mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

/// The longest line QEMU may send; the longest real ones, a schema, have a few hundred KiB.
const MAX_LINE: usize = 4 << 20;
/// How many commands may be on their way at once.
const MAX_COMMANDS: usize = 64;
/// How many events are kept for a listener that is slow; older ones are lost to it.
const MAX_EVENTS: usize = 256;
/// How long an ordinary command may take, also under TCG on a busy host.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU ended, or closed the monitor.
    #[error("QEMU's monitor is closed; `{0}` was not answered")]
    Closed(String),
    /// No answer in time.
    #[error("QEMU did not answer `{command}` within {} s", .after.as_secs())]
    Timeout {
        /// The command.
        command: String,
        /// How long was waited.
        after: Duration,
    },
    /// QEMU refused.
    #[error("QEMU refused `{command}`: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// The answer is not what the command promises.
    #[error("QEMU's answer to `{command}` cannot be understood: {answer}")]
    Strange {
        /// The command.
        command: String,
        /// The beginning of the answer.
        answer: String,
    },
}

/// Something that happened in QEMU.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// `DEVICE_DELETED`, `SHUTDOWN`, `STOP`, …
    pub name: String,
    /// Its data, an object or null.
    pub data: Value,
}

/// A line for QEMU, and the descriptor that goes with it.
type Line = (Vec<u8>, Option<OwnedFd>);
type Answer = Result<Value, (String, String)>;
/// Who waits for which answer; nothing once the monitor is closed, so that nobody waits in vain.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>>;

/// A connection to QEMU's monitor. Commands may be given from several tasks at once; a command whose future is dropped has
/// been given all the same, and its answer is thrown away.
#[derive(Debug)]
pub struct Qmp {
    lines: mpsc::Sender<Line>,
    waiting: Waiting,
    events: broadcast::Sender<Event>,
    next_id: AtomicU64,
    /// The tasks that read and write; they end with this value.
    _tasks: JoinSet<()>,
}

impl Qmp {
    /// Greets QEMU on a connected stream and leaves negotiation mode.
    pub async fn connect(stream: UnixStream, patience: Duration) -> Result<Self, QmpError> {
        let (read, write) = stream.into_split();
        let mut read = BufReader::new(read);
        let greeting = "greeting".to_owned();
        let line = match timeout(patience, read_line(&mut read)).await {
            Err(_) => {
                return Err(QmpError::Timeout {
                    command: greeting,
                    after: patience,
                });
            }
            Ok(Err(_) | Ok(None)) => return Err(QmpError::Closed(greeting)),
            Ok(Ok(Some(line))) => line,
        };
        let hello: Value = serde_json::from_slice(&line).unwrap_or_default();
        if hello.get("QMP").is_none() {
            return Err(QmpError::Strange {
                command: greeting,
                answer: beginning(&line),
            });
        }
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let (events, _) = broadcast::channel(MAX_EVENTS);
        let (lines, queue) = mpsc::channel(MAX_COMMANDS);
        let mut tasks = JoinSet::new();
        tasks.spawn(write_lines(write, queue));
        tasks.spawn(read_answers(read, Arc::clone(&waiting), events.clone()));
        let qmp = Self {
            lines,
            waiting,
            events,
            next_id: AtomicU64::new(1),
            _tasks: tasks,
        };
        qmp.execute_within("qmp_capabilities", json!({}), patience)
            .await?;
        Ok(qmp)
    }

    /// Gives a command and returns its result; waits at most [`COMMAND_TIMEOUT`].
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_within(command, arguments, COMMAND_TIMEOUT)
            .await
    }

    /// Gives a command and returns its result; waits at most `patience`.
    pub async fn execute_within(
        &self,
        command: &str,
        arguments: Value,
        patience: Duration,
    ) -> Result<Value, QmpError> {
        self.give(command, arguments, None, patience).await
    }

    /// Gives a command, with a descriptor for QEMU, and returns its result.
    async fn give(
        &self,
        command: &str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
        patience: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id })
            .to_string()
            .into_bytes();
        line.push(b'\n');
        let (sender, answer) = oneshot::channel();
        let _forget = Forget {
            waiting: &self.waiting,
            id,
        };
        let closed = || QmpError::Closed(command.to_owned());
        lock(&self.waiting)
            .as_mut()
            .ok_or_else(closed)?
            .insert(id, sender);
        let talk = async {
            self.lines
                .send((line, descriptor))
                .await
                .map_err(|_| closed())?;
            answer.await.map_err(|_| closed())
        };
        match timeout(patience, talk).await {
            Err(_) => Err(QmpError::Timeout {
                command: command.to_owned(),
                after: patience,
            }),
            Ok(Err(error)) => Err(error),
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err((class, desc)))) => Err(QmpError::Refused {
                command: command.to_owned(),
                class,
                desc,
            }),
        }
    }

    /// Listens to events from now on. The stream ends when the monitor closes.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

/// Takes back the wish for an answer when nobody waits any more.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = lock(self.waiting).as_mut() {
            waiting.remove(&self.id);
        }
    }
}

fn lock(
    waiting: &Waiting,
) -> std::sync::MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write_lines(mut write: OwnedWriteHalf, mut queue: mpsc::Receiver<Line>) {
    while let Some((line, descriptor)) = queue.recv().await {
        let rest = match &descriptor {
            None => &line[..],
            // One byte goes whole or not at all, and the descriptor with it.
            Some(fd) => {
                let (first, rest) = line.split_at(1);
                if send_with(&write, first, fd).await.is_err() {
                    return;
                }
                rest
            }
        };
        if write.write_all(rest).await.is_err() {
            return;
        }
    }
}

async fn send_with(write: &OwnedWriteHalf, bytes: &[u8], fd: &OwnedFd) -> io::Result<()> {
    let stream: &UnixStream = write.as_ref();
    stream
        .async_io(Interest::WRITABLE, || {
            fdpass::send(stream, bytes, &[fd.as_fd()])
        })
        .await
}

async fn read_answers(
    mut read: BufReader<OwnedReadHalf>,
    waiting: Waiting,
    events: broadcast::Sender<Event>,
) {
    // On the way out nobody is left waiting: a dropped sender is a closed monitor to its command.
    while let Ok(Some(line)) = read_line(&mut read).await {
        let Ok(Value::Object(mut message)) = serde_json::from_slice(&line) else {
            tracing::debug!(
                line = beginning(&line),
                "a line of the monitor is not an object"
            );
            break;
        };
        if let Some(Value::String(name)) = message.remove("event") {
            let data = message.remove("data").unwrap_or(Value::Null);
            // Nobody listening is fine.
            let _ = events.send(Event { name, data });
            continue;
        }
        let Some(id) = message.get("id").and_then(Value::as_u64) else {
            continue;
        };
        let Some(sender) = lock(&waiting).as_mut().and_then(|w| w.remove(&id)) else {
            continue;
        };
        let answer = match (message.remove("return"), message.remove("error")) {
            (Some(value), _) => Ok(value),
            (None, Some(error)) => {
                let text = |key: &str| {
                    error
                        .get(key)
                        .and_then(Value::as_str)
                        .unwrap_or("unknown")
                        .to_owned()
                };
                Err((text("class"), text("desc")))
            }
            (None, None) => Err(("GenericError".into(), "an answer without result".into())),
        };
        let _ = sender.send(answer);
    }
    *lock(&waiting) = None;
}

/// Reads one line without its end; `None` at the end of the stream.
async fn read_line(read: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let chunk = read.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(None);
        }
        let end = chunk.iter().position(|b| *b == b'\n');
        let take = end.map_or(chunk.len(), |i| i + 1);
        line.extend_from_slice(&chunk[..take]);
        read.consume(take);
        if line.len() > MAX_LINE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a line of the monitor is too long",
            ));
        }
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

fn beginning(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)])
        .trim()
        .escape_debug()
        .to_string()
}

#[cfg(test)]
mod tests;
