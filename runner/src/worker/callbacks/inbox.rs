//! Passes the outbox entries that this worker writes to the loop that posts them.

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::rules::callback::Notification;
use crate::rules::destination;
use crate::rules::outbox::DueEntry;

/// Outbox entries that this worker has written and the posting loop has not yet taken.
#[derive(Debug, Default)]
pub(in crate::worker) struct Inbox {
    entries: Mutex<Vec<DueEntry>>,
    pushed: Notify,
}

impl Inbox {
    /// Adds entries that are already in the store.
    pub(in crate::worker) fn push(&self, entries: impl Iterator<Item = (String, Notification)>) {
        let entries = entries.map(|(key, notification)| due_entry(key, &notification));
        self.entries.lock().extend(entries);
        self.pushed.notify_one();
    }

    /// Takes all entries.
    pub(super) fn take(&self) -> Vec<DueEntry> {
        std::mem::take(&mut *self.entries.lock())
    }

    /// Completes when entries have been added.
    pub(super) fn pushed(&self) -> Notified<'_> {
        self.pushed.notified()
    }
}

/// Returns the outbox entry for the notification stored under `key`.
pub(super) fn due_entry(key: String, notification: &Notification) -> DueEntry {
    let receiver = destination::of_url(&notification.url);
    let receiver = receiver.map_or_else(|| key.clone(), |(host, port)| format!("{host}:{port}"));
    DueEntry { key, receiver, due: notification.due }
}
