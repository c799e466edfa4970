//! The relay as others see it, and the task that tries again.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use hostel_model::DistroId;
use tokio::{runtime::Handle, sync::Notify, sync::watch};

use crate::{
    Connector, Entry, GuestListener, Limits, ListenerKey, Settings,
    book::Book,
    holder,
    shared::{Shared, lock},
};

/// The first pause before a port that is taken is tried again, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// How often what the connections tell reaches the watchers.
const NOTE_PAUSE: Duration = Duration::from_millis(100);

/// What listens in the guest, and what of it is on the host. Dropped, it ends everything it began.
pub struct Relay {
    shared: Arc<Shared>,
    book: Arc<Mutex<Book>>,
    changed: watch::Sender<u64>,
    /// Something could not be had.
    unsettled: Arc<Notify>,
    runtime: Handle,
}

impl Relay {
    /// Starts with nothing to relay. Must be called in a runtime of tokio with I/O and time.
    pub fn start(connector: Arc<dyn Connector>, settings: Settings) -> Arc<Self> {
        Self::with_limits(connector, settings, Limits::default())
    }

    /// As [`Relay::start`], with other bounds.
    pub fn with_limits(
        connector: Arc<dyn Connector>,
        settings: Settings,
        limits: Limits,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared::new(connector, limits));
        let book = Arc::new(Mutex::new(Book::new(Arc::clone(&shared), settings)));
        let changed = watch::Sender::new(0);
        let unsettled = Arc::new(Notify::new());
        let keeper = Keeper {
            shared: Arc::clone(&shared),
            book: Arc::clone(&book),
            changed: changed.clone(),
            unsettled: Arc::clone(&unsettled),
        };
        shared.tasks.spawn(keeper.run());
        Arc::new(Self {
            shared,
            book,
            changed,
            unsettled,
            runtime: Handle::current(),
        })
    }

    /// Takes the whole list of what listens. What was known before and is not in it is gone; what stays keeps its sockets.
    pub fn reset(&self, listeners: Vec<GuestListener>) {
        self.edit(|book| book.reset(listeners));
    }

    /// Takes what changed. A listener that is in both lists keeps its sockets on the host.
    pub fn change(&self, added: Vec<GuestListener>, removed: &[ListenerKey]) {
        self.edit(|book| book.change(added, removed));
    }

    /// Takes other settings. What they do not concern keeps its sockets.
    pub fn set_settings(&self, settings: Settings) {
        self.edit(|book| book.set_settings(settings));
    }

    fn edit(&self, edit: impl FnOnce(&mut Book)) {
        let _runtime = self.runtime.enter();
        let mut book = lock(&self.book);
        edit(&mut book);
        if book.is_unsettled() {
            self.unsettled.notify_one();
        }
        drop(book);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Returns the ledger, in the order of owner, protocol and port.
    pub fn entries(&self) -> Vec<Entry> {
        lock(&self.book).entries()
    }

    /// Returns the distributions that have connections open; `None` in it is the VM itself. Cheap, however long the ledger is.
    pub fn connected(&self) -> HashSet<Option<DistroId>> {
        lock(&self.book).connected()
    }

    /// Returns what changes whenever the ledger does; connections that come and go are no change.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Returns what the user should be warned of, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        lock(&self.book).warnings()
    }

    /// Ends everything: listeners, connections, tasks. Returns when all of it is gone. May be called again.
    pub async fn close(&self) {
        self.end();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn end(&self) {
        self.shared.stop.cancel();
        lock(&self.book).close();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

/// The task beside: tries again what could not be had, asks who has it, and passes on what the connections tell.
struct Keeper {
    shared: Arc<Shared>,
    book: Arc<Mutex<Book>>,
    changed: watch::Sender<u64>,
    unsettled: Arc<Notify>,
}

impl Keeper {
    async fn run(self) {
        let stop = self.shared.stop.clone();
        let work = async { tokio::join!(self.keep_trying(), self.pass_on()) };
        stop.run_until_cancelled(work).await;
    }

    /// Tries again, soon after the first failure and then ever less often, but at least once a second.
    async fn keep_trying(&self) {
        loop {
            self.unsettled.notified().await;
            let mut pause = PAUSES.0;
            let mut wanted = true;
            while wanted {
                tokio::select! {
                    // Something new: it may be one of our own sockets that is just being closed.
                    () = self.unsettled.notified() => pause = PAUSES.0,
                    () = tokio::time::sleep_until((Instant::now() + pause).into()) => {}
                }
                let (changed, more) = lock(&self.book).retry();
                let news = self.ask_who().await;
                if changed || news {
                    self.tell();
                }
                wanted = more;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }

    /// Finds out who has the ports that are taken. Returns whether that is news.
    async fn ask_who(&self) -> bool {
        let now = Instant::now();
        let wanted = lock(&self.book).holders_wanted(now);
        if wanted.is_empty() {
            return false;
        }
        let search = move || (holder::find(&wanted), wanted);
        match tokio::task::spawn_blocking(search).await {
            Ok((found, wanted)) => lock(&self.book).set_holders(&wanted, &found, now),
            // The runtime ends.
            Err(_) => false,
        }
    }

    async fn pass_on(&self) {
        loop {
            self.shared.noted.notified().await;
            self.tell();
            tokio::time::sleep_until((Instant::now() + NOTE_PAUSE).into()).await;
        }
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n += 1);
    }
}
