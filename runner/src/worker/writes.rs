//! Tracks whether the store accepts writes. It may refuse them while reads and lease renewals work:
//! its database is full, or the user lost a permission. The worker then accepts no new work; runs
//! in progress continue.

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tracing::warn;

use crate::ports::StoreError;

/// Whether the store accepts writes, as far as this worker knows.
#[derive(Debug, Default)]
pub(super) struct Writes {
    /// Why the store refuses writes.
    refused: Mutex<Option<String>>,
    /// Wakes its waiters in order, unlike tokio's `watch`. The simulation needs one history per
    /// seed.
    changed: Notify,
}

impl Writes {
    /// Notes why a write failed. Returns true if the store refuses all writes, which is logged
    /// once.
    pub(super) fn note(&self, cause: &StoreError) -> bool {
        if !cause.refuses_writes() {
            return false;
        }
        if self.set(Some(cause.to_string())) {
            warn!(%cause, "nothing new is taken until the store accepts writes; runs in progress continue");
        }
        true
    }

    /// Returns why no work is accepted, if the store refuses writes.
    pub(super) fn refusal(&self) -> Option<String> {
        self.refused.lock().clone()
    }

    /// Waits until the store accepts writes.
    ///
    /// # Cancel safety
    /// This method is cancel safe, as are all waits of this type.
    pub(super) async fn accepted(&self) {
        self.reached(|refused| !refused).await;
    }

    /// Waits until the store refuses writes.
    pub(super) async fn refused(&self) {
        self.reached(|refused| refused).await;
    }

    /// Completes at the next change.
    pub(super) fn changes(&self) -> Notified<'_> {
        self.changed.notified()
    }

    async fn reached(&self, is: impl Fn(bool) -> bool) {
        loop {
            let changed = self.changed.notified();
            if is(self.refusal().is_some()) {
                return;
            }
            changed.await;
        }
    }

    /// Returns whether this is a change between accepting and refusing.
    pub(super) fn set(&self, refused: Option<String>) -> bool {
        let mut now = self.refused.lock();
        let changes = now.is_some() != refused.is_some();
        *now = refused;
        drop(now);
        if changes {
            self.changed.notify_waiters();
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> StoreError {
        StoreError::WritesRefused { at: "etcd".into(), cause: "its database is full".into() }
    }

    #[tokio::test]
    async fn a_refused_write_closes_what_was_open_and_says_why() {
        let writes = Writes::default();
        writes.accepted().await;
        let lost = StoreError::Unreachable { at: "etcd".into(), cause: "gone".into() };
        assert!(!writes.note(&lost), "a store that does not answer refuses nothing");
        assert_eq!(writes.refusal(), None);
        assert!(writes.note(&full()));
        writes.refused().await;
        assert!(writes.refusal().unwrap_or_default().contains("its database is full"));
        assert!(writes.set(None));
        writes.accepted().await;
    }
}
