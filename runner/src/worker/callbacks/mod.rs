//! Posts callbacks: notifications that steps have started and how they ended. They come from an
//! outbox in the store, which is written together with the record. No run waits for them.
//!
//! The ledger passes on the entries of this worker. A scan of the outbox, page by page, finds those
//! of other workers. [`rules::outbox`](crate::rules::outbox) decides which entry is posted next.

pub(super) mod inbox;
mod post;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::FuturesUnordered;
use protocol::names;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::inbox::due_entry;
use self::post::{post_if_due, remove_exhausted};
use super::shared::Shared;
use super::watchdog::Heartbeat;
use crate::ports::{Entry, Listing, StoreError};
use crate::rules::callback::{GIVEN_UP_AFTER, Notification};
use crate::rules::outbox::{DueEntry, Outbox, Outcome};

pub(super) use self::post::value_of;

/// Interval between scans for entries of other workers.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// Delay before a failed scan is repeated.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The pause after a callback whose entry the store could not read or write; it doubles with each
/// failure in a row, up to [`RETRY_MOST`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);
/// How many entries are read at once.
const PAGE: usize = 100;
/// The maximum number of concurrent posts to all receivers.
const AT_ONCE: usize = 256;

/// A completed operation of the loop.
enum Completed {
    Told(DueEntry, Result<(Outcome, Option<Entry>), StoreError>),
    Read(Result<Listing, StoreError>),
}

/// Posts due entries until `stop` is cancelled.
pub(super) async fn run(shared: Arc<Shared>, heartbeat: Heartbeat, stop: CancellationToken) {
    // The loop only waits for receivers and the store.
    let _waits = heartbeat.waits();
    let mut desk = Deliveries {
        shared: &shared,
        heartbeat: &heartbeat,
        outbox: Outbox::default(),
        doing: FuturesUnordered::new(),
        failures: 0,
    };
    let mut look = tokio::time::Instant::now();
    let mut is_looking = false;
    loop {
        let now = shared.ports.host.now().0;
        desk.begin(now);
        if desk.outbox.take_rescan() {
            look = tokio::time::Instant::now();
        }
        if !is_looking && look <= tokio::time::Instant::now() {
            is_looking = true;
            desk.read(None);
        }
        let wake = desk.outbox.next_post().filter(|_| desk.doing.len() < AT_ONCE);
        let wake = wake.map(|at| Duration::from_millis(u64::try_from(at - now).unwrap_or(0)));
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = shared.callbacks.pushed() => {
                for entry in shared.callbacks.take() {
                    desk.outbox.add(entry);
                }
            }
            Some(done) = desk.doing.next() => match done {
                Completed::Told(entry, told) => desk.on_posted(&entry, told),
                Completed::Read(Ok(page)) => {
                    is_looking = desk.add_page(page);
                    look = tokio::time::Instant::now() + LOOK_EVERY;
                }
                Completed::Read(Err(cause)) => {
                    warn!(%cause, "the outbox of callbacks cannot be read");
                    is_looking = false;
                    look = tokio::time::Instant::now() + LOOK_AGAIN;
                }
            },
            () = tokio::time::sleep(wake.unwrap_or(LOOK_EVERY)) => {}
            () = tokio::time::sleep_until(look), if !is_looking => {}
        }
    }
}

struct Deliveries<'a> {
    shared: &'a Shared,
    heartbeat: &'a Heartbeat,
    outbox: Outbox,
    doing: FuturesUnordered<BoxFuture<'a, Completed>>,
    /// How many calls of the store have failed since the last one that succeeded.
    failures: u32,
}

impl Deliveries<'_> {
    /// Starts to post the entries that are due.
    fn begin(&mut self, now: i64) {
        while self.doing.len() < AT_ONCE {
            let Some(entry) = self.outbox.next(now) else { return };
            let (shared, heartbeat) = (self.shared, self.heartbeat);
            let telling = async move {
                let told = post_if_due(shared, heartbeat, &entry.key).await;
                Completed::Told(entry, told)
            };
            self.doing.push(telling.boxed());
        }
    }

    /// Starts to read the page of the outbox after a key.
    fn read(&mut self, after: Option<String>) {
        let store = &self.shared.ports.store;
        let reading = async move {
            Completed::Read(store.page(names::CALLBACKS, after.as_deref(), PAGE).await)
        };
        self.doing.push(reading.boxed());
    }

    /// Adds the entries of a page. Returns true if another page follows, and starts to read it.
    fn add_page(&mut self, page: Listing) -> bool {
        let now = self.shared.ports.host.now().0;
        let next = page.entries.last().map(|last| last.key.clone());
        let is_full = page.entries.len() >= PAGE;
        for entry in page.entries {
            match serde_json::from_slice::<Notification>(&entry.value) {
                Ok(news) => {
                    let known = due_entry(entry.key.clone(), &news);
                    let age = Duration::from_millis(u64::try_from(now - news.since).unwrap_or(0));
                    // It could wait for days until it is posted.
                    if age >= GIVEN_UP_AFTER && self.outbox.is_silent(&known.receiver) {
                        let (shared, heartbeat) = (self.shared, self.heartbeat);
                        let ending = async move {
                            let why = "the receiver is silent";
                            let told =
                                remove_exhausted(shared, heartbeat, &entry, &news, why).await;
                            Completed::Told(known, told.map(|outcome| (outcome, None)))
                        };
                        self.doing.push(ending.boxed());
                    } else {
                        self.outbox.add(known);
                    }
                }
                // `post_if_due` removes the entry and logs that.
                Err(_unreadable) => {
                    let receiver = entry.key.clone();
                    self.outbox.add(DueEntry { key: entry.key, receiver, due: 0 });
                }
            }
        }
        if let Some(next) = next.filter(|_| is_full) {
            self.read(Some(next));
            return true;
        }
        false
    }

    fn on_posted(&mut self, entry: &DueEntry, told: Result<(Outcome, Option<Entry>), StoreError>) {
        let now = self.shared.ports.host.now().0;
        let outcome = match told {
            Ok((outcome, before)) => {
                self.failures = 0;
                // One that goes before it, which another worker has left.
                let news = before.map(|before| {
                    let news = serde_json::from_slice::<Notification>(&before.value);
                    news.map(|news| due_entry(before.key, &news))
                });
                if let Some(Ok(before)) = news {
                    self.outbox.add(before);
                }
                outcome
            }
            Err(cause) => {
                self.failures = self.failures.saturating_add(1);
                let pause =
                    RETRY_FIRST.saturating_mul(1 << (self.failures - 1).min(10)).min(RETRY_MOST);
                warn!(%cause, "{} waits {} s", entry.key, pause.as_secs());
                let pause = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
                Outcome::Unsent(now.saturating_add(pause))
            }
        };
        self.outbox.settle(entry, &outcome, now);
    }
}
