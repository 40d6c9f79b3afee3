//! The callbacks that this worker has written to the outbox.

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::rules::callback::Notification;
use crate::rules::destination;
use crate::rules::outbox::Waiting;

/// Entries written by this worker, on their way to the loop that posts them.
#[derive(Debug, Default)]
pub(in crate::worker) struct Inbox {
    entries: Mutex<Vec<Waiting>>,
    pushed: Notify,
}

impl Inbox {
    /// Adds entries that are in the store.
    pub(in crate::worker) fn push(&self, written: impl Iterator<Item = (String, Notification)>) {
        let waiting = written.map(|(key, news)| waiting(key, &news));
        self.entries.lock().extend(waiting);
        self.pushed.notify_one();
    }

    /// Takes all entries.
    pub(super) fn take(&self) -> Vec<Waiting> {
        std::mem::take(&mut *self.entries.lock())
    }

    /// Completes when entries were added.
    pub(super) fn pushed(&self) -> Notified<'_> {
        self.pushed.notified()
    }
}

/// Returns the entry of the outbox for a notification under a key.
pub(super) fn waiting(key: String, news: &Notification) -> Waiting {
    let receiver = destination::of_url(&news.url);
    let receiver = receiver.map_or_else(|| key.clone(), |(host, port)| format!("{host}:{port}"));
    Waiting { key, receiver, due: news.due }
}
