//! A copy of the keys with one prefix: read page by page, then kept current by a watch.

use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use futures::StreamExt as _;

use crate::ports::{Change, Entry, Pauses, Store, StoreError};

/// Entries read at once. A run record can have more than a megabyte.
const PAGE: usize = 64;

/// The pause after a failed attempt to read the keys, at first and at most.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(10);

/// The form in which a mirror keeps its entries. A change that is older than what is known has no
/// effect, because pages are read at different revisions.
pub(super) trait Rows: Default + Send + Sync {
    /// Adds or replaces an entry.
    fn put(&mut self, entry: &Entry);
    /// Removes an entry that was deleted at this revision.
    fn delete(&mut self, key: &str, revision: i64);
}

/// A copy of the keys with one prefix.
pub(super) struct Mirror<R> {
    prefix: &'static str,
    rows: RwLock<R>,
    /// Notifies of each change. Holds whether the entries were read completely at least once.
    state: watch::Sender<State>,
}

/// Whether a mirror is current.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The watch is open.
    Current,
    /// The keys could not be read, or were not read yet. Holds the reason.
    Behind(String),
}

impl<R: Rows> Mirror<R> {
    pub(super) fn new(prefix: &'static str) -> Self {
        let state = State::Behind("the node has just started".to_owned());
        Self { prefix, rows: RwLock::new(R::default()), state: watch::Sender::new(state) }
    }

    /// Looks at the rows.
    pub(super) fn read<T>(&self, look: impl FnOnce(&R) -> T) -> T {
        look(&self.rows.read())
    }

    /// Why the rows are not current, if they are not.
    pub(super) fn problem(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Current => None,
            State::Behind(reason) => Some(reason.clone()),
        }
    }

    /// Waits until the rows are current and fulfil a condition.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn until(&self, condition: impl Fn(&R) -> bool) {
        let mut state = self.state.subscribe();
        loop {
            let is_current = *state.borrow_and_update() == State::Current;
            if is_current && self.read(&condition) {
                return;
            }
            if state.changed().await.is_err() {
                // The sender is a field of this mirror.
                return std::future::pending().await;
            }
        }
    }

    /// Keeps the rows current until `stop` is cancelled.
    pub(super) async fn follow(&self, store: &dyn Store, stop: &CancellationToken) {
        let mut pauses = Pauses::jittered(RETRY_FIRST, RETRY_MOST);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                cause = self.load_and_watch(store, &mut pauses) => {
                    warn!(%cause, prefix = self.prefix, "the projection reads its keys again");
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = pauses.wait() => {}
            }
        }
    }

    /// Reads all keys, then applies changes until the watch ends.
    async fn load_and_watch(&self, store: &dyn Store, pauses: &mut Pauses) -> String {
        let first = match self.load(store).await {
            Ok(first) => first,
            Err(cause) => {
                let cause = cause.to_string();
                self.state.send_replace(State::Behind(cause.clone()));
                return cause;
            }
        };
        let mut changes = match store.watch(self.prefix, first + 1).await {
            Ok(changes) => changes,
            Err(cause) => return cause.to_string(),
        };
        pauses.reset();
        self.state.send_replace(State::Current);
        while let Some(change) = changes.next().await {
            match change {
                Ok(change) => self.apply(change),
                // Such as a watch that fell behind the store's history.
                Err(cause) => return cause.to_string(),
            }
        }
        "the store has ended the watch".to_owned()
    }

    /// Replaces the rows with what the store holds. Returns the revision of the first page. A watch
    /// from the next one brings the rows of later pages to the same revision.
    async fn load(&self, store: &dyn Store) -> Result<i64, StoreError> {
        let mut rows = R::default();
        let mut first = None;
        let mut after: Option<String> = None;
        loop {
            let page = store.page(self.prefix, after.as_deref(), PAGE).await?;
            let revision = *first.get_or_insert(page.revision);
            page.entries.iter().for_each(|entry| rows.put(entry));
            match page.entries.last() {
                Some(last) if page.entries.len() >= PAGE => after = Some(last.key.clone()),
                Some(_) | None => {
                    *self.rows.write() = rows;
                    return Ok(revision);
                }
            }
        }
    }

    fn apply(&self, change: Change) {
        match change {
            Change::Put(entry) => self.rows.write().put(&entry),
            Change::Deleted { key, revision } => self.rows.write().delete(&key, revision),
        }
        self.state.send_modify(|_| {});
    }
}
