//! Names by way of the host: an address on the guest's `lo` takes questions, and carries them over the channel (DNS-1).
//!
//! Messages pass as they are: what they mean, and how long an answer to a datagram may be (RFC 6891), is the host's business.
//! Here is only what keeps the guest from waiting in vain and from asking too much: without the host every question is
//! answered at once, with "server failure".

mod limit;
mod message;
mod server;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hostel_proto::v1;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::Status;

use limit::Limiter;
pub(crate) use server::ServeError;
use server::Server;

/// The port of DNS.
pub(crate) const PORT: u16 = 53;

/// The most questions that wait for the host at one time.
const MAX_WAITING: usize = 1024;

/// How long the host may take to answer; it has time-outs of its own, which are shorter.
const DEADLINE: Duration = Duration::from_secs(10);

/// The carrier of questions, and the server that takes them.
pub(crate) struct Dns {
    /// The host's side; `None` while it does not listen.
    link: Mutex<Option<Link>>,
    /// The number of the next question; calls that follow each other do not share numbers.
    next: AtomicU64,
    waiting: Arc<Semaphore>,
    limiter: Mutex<Limiter>,
    server: tokio::sync::Mutex<Option<Server>>,
    tasks: TaskTracker,
}

/// A call of the host's.
struct Link {
    questions: mpsc::Sender<Result<v1::DnsQuery, Status>>,
    answers: HashMap<u64, oneshot::Sender<Vec<u8>>>,
    /// Ends what reads the answers.
    _reader: DropGuard,
}

/// What an asker gets.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Message(Vec<u8>),
    /// It is left to its time-out.
    Nothing,
}

impl Dns {
    /// Makes one that neither serves nor has a host.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            link: Mutex::default(),
            next: AtomicU64::new(1),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            limiter: Mutex::new(Limiter::new()),
            server: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// Takes the host's call; the one before, if there is one, ends.
    pub(crate) fn open(
        self: &Arc<Self>,
        answers: impl Stream<Item = Result<v1::DnsAnswer, Status>> + Send + Unpin + 'static,
    ) -> Questions {
        let (questions, receiver) = mpsc::channel(MAX_WAITING);
        let ended = CancellationToken::new();
        *self.link() = Some(Link {
            questions: questions.clone(),
            answers: HashMap::new(),
            _reader: ended.clone().drop_guard(),
        });
        let this = self.clone();
        self.tasks.spawn(async move {
            ended
                .run_until_cancelled_owned(this.read(answers, &questions))
                .await;
            this.close(&questions);
        });
        Questions(receiver)
    }

    /// Hands answers on until the host ends the call.
    async fn read(
        &self,
        mut answers: impl Stream<Item = Result<v1::DnsAnswer, Status>> + Unpin,
        questions: &mpsc::Sender<Result<v1::DnsQuery, Status>>,
    ) {
        loop {
            let answer = tokio::select! {
                answer = answers.next() => answer,
                () = questions.closed() => return,
            };
            let Some(Ok(answer)) = answer else {
                return;
            };
            let asker = self
                .link()
                .as_mut()
                .filter(|link| link.questions.same_channel(questions))
                .and_then(|link| link.answers.remove(&answer.number));
            if let Some(asker) = asker {
                // It may have given up.
                let _ = asker.send(answer.message.into());
            }
        }
    }

    /// Forgets a call, unless another took its place. Who waits is answered at once.
    fn close(&self, questions: &mpsc::Sender<Result<v1::DnsQuery, Status>>) {
        let mut link = self.link();
        if link
            .as_ref()
            .is_some_and(|l| l.questions.same_channel(questions))
        {
            *link = None;
        }
    }

    /// Asks the host. Cancel safe: a question that is dropped is forgotten.
    async fn ask(&self, question: &[u8], tcp: bool) -> Reply {
        if !message::is_question(question) {
            return Reply::Nothing;
        }
        let failure = || Reply::Message(message::server_failure(question));
        let Ok(_permit) = self.waiting.try_acquire() else {
            return failure();
        };
        let Some((number, answer)) = self.send(question, tcp) else {
            return failure();
        };
        let _forget = Forget { dns: self, number };
        match timeout(DEADLINE, answer).await {
            Ok(Ok(answer)) if answer.is_empty() => Reply::Nothing,
            Ok(Ok(answer)) => {
                message::answer_to(question, answer).map_or_else(failure, Reply::Message)
            }
            Ok(Err(_)) | Err(_) => failure(),
        }
    }

    /// Sends a question; `None` when the host does not listen, or is too slow.
    fn send(&self, question: &[u8], tcp: bool) -> Option<(u64, oneshot::Receiver<Vec<u8>>)> {
        let mut link = self.link();
        let link = link.as_mut()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let query = v1::DnsQuery {
            number,
            message: question.to_vec().into(),
            tcp,
        };
        link.questions.try_send(Ok(query)).ok()?;
        let (sender, receiver) = oneshot::channel();
        link.answers.insert(number, sender);
        Some((number, receiver))
    }

    /// Whether a source may ask now.
    fn allows(&self, source: IpAddr) -> bool {
        self.limiter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .allows(source, std::time::Instant::now())
    }

    /// Serves at an address of this machine; what arrives through the interface `outside` is not answered. `None`: nowhere.
    /// What is right already stays. Returns the address where it does not serve any more, if there is one.
    pub(crate) async fn serve_at(
        self: &Arc<Self>,
        address: Option<IpAddr>,
        outside: Option<&str>,
    ) -> Result<Option<IpAddr>, ServeError> {
        let mut server = self.server.lock().await;
        let wanted = address.map(|ip| (SocketAddr::new(ip, PORT), server::outside(outside)));
        if server.as_ref().map(Server::place) == wanted && wanted.is_some() {
            return Ok(None);
        }
        let mut left = None;
        if let Some(before) = server.take() {
            left = Some(before.place().0.ip()).filter(|ip| Some(*ip) != address);
            before.close().await;
        }
        if let Some((address, outside)) = wanted {
            *server = Some(Server::open(self, address, outside)?);
        }
        Ok(left)
    }

    fn link(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a question when its asker does not wait any more.
struct Forget<'a> {
    dns: &'a Dns,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(link) = &mut *self.dns.link() {
            link.answers.remove(&self.number);
        }
    }
}

/// The questions, as the host gets them.
pub(crate) struct Questions(mpsc::Receiver<Result<v1::DnsQuery, Status>>);

impl Stream for Questions {
    type Item = Result<v1::DnsQuery, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::wrappers::ReceiverStream;

    const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";

    fn rcode(reply: &Reply) -> Option<u8> {
        match reply {
            Reply::Message(bytes) => Some(bytes[3] & 15),
            Reply::Nothing => None,
        }
    }

    struct Host {
        questions: Questions,
        answers: mpsc::Sender<Result<v1::DnsAnswer, Status>>,
    }

    fn host(dns: &Arc<Dns>) -> Host {
        let (answers, receiver) = mpsc::channel(8);
        let questions = dns.open(ReceiverStream::new(receiver));
        Host { questions, answers }
    }

    impl Host {
        async fn answer(&mut self, bytes: &[u8]) {
            let query = self.questions.next().await.unwrap().unwrap();
            assert_eq!(query.message[2..], QUESTION[2..]);
            let answer = v1::DnsAnswer {
                number: query.number,
                message: bytes.to_vec().into(),
            };
            self.answers.send(Ok(answer)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn without_a_host_a_question_fails_at_once() {
        let dns = Dns::new();
        assert_eq!(rcode(&dns.ask(QUESTION, false).await), Some(2));
        assert_eq!(dns.ask(b"rubbish", false).await, Reply::Nothing);
    }

    #[tokio::test]
    async fn a_question_gets_its_own_answer_under_its_own_number() {
        let dns = Dns::new();
        let mut host = host(&dns);
        let mut answer = QUESTION.to_vec();
        answer[2] |= 0x80;
        // The host need not keep the asker's id.
        answer[0] = 0;
        let (reply, ()) = tokio::join!(dns.ask(QUESTION, false), host.answer(&answer));
        let Reply::Message(bytes) = reply else {
            panic!("an answer was given")
        };
        assert_eq!(bytes[..2], QUESTION[..2]);
        let (reply, ()) = tokio::join!(dns.ask(QUESTION, true), host.answer(b""));
        assert_eq!(reply, Reply::Nothing);
        let (reply, ()) = tokio::join!(dns.ask(QUESTION, true), host.answer(b"short"));
        assert_eq!(rcode(&reply), Some(2));
    }

    #[tokio::test]
    async fn a_host_that_goes_fails_who_waits_and_the_next_one_takes_over() {
        let dns = Dns::new();
        let first = host(&dns);
        let (reply, ()) = tokio::join!(dns.ask(QUESTION, false), async { drop(first) });
        assert_eq!(rcode(&reply), Some(2));
        let mut second = host(&dns);
        let mut third = host(&dns);
        assert!(second.questions.next().await.is_none(), "it was replaced");
        let mut answer = QUESTION.to_vec();
        answer[2] |= 0x80;
        let (reply, ()) = tokio::join!(dns.ask(QUESTION, false), third.answer(&answer));
        assert_eq!(rcode(&reply), Some(0));
        drop(second);
        let (reply, ()) = tokio::join!(dns.ask(QUESTION, false), third.answer(&answer));
        assert_eq!(
            rcode(&reply),
            Some(0),
            "the end of the old call is not that of the new"
        );
        assert!(dns.link().as_ref().is_some_and(|l| l.answers.is_empty()));
    }

    #[tokio::test]
    async fn too_many_questions_fail_instead_of_piling_up() {
        let dns = Dns::new();
        let _host = host(&dns);
        let mut asked: Vec<_> = (0..MAX_WAITING)
            .map(|_| Box::pin(dns.ask(QUESTION, false)))
            .collect();
        for ask in &mut asked {
            assert!(futures_util::poll!(ask).is_pending());
        }
        assert_eq!(rcode(&dns.ask(QUESTION, false).await), Some(2));
        drop(asked);
        assert!(dns.link().as_ref().is_some_and(|l| l.answers.is_empty()));
    }
}
