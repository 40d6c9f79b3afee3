//! The latest changes, for watches. A watch that falls behind them gets an error.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::ports::{Change, StoreError};

/// The maximum number of changes.
const CHANGES: usize = 4096;
/// The maximum size of values in bytes. The last transaction is kept even if it exceeds the limit.
const BYTES: usize = 4 << 20;

/// The changes of one revision.
struct Step {
    revision: i64,
    changes: Vec<Change>,
    bytes: usize,
}

/// The retained changes.
struct RetainedChanges {
    steps: VecDeque<Step>,
    changes: usize,
    bytes: usize,
    /// All changes from this revision on are retained.
    oldest: i64,
}

/// The latest changes, in the order of their revisions.
pub(super) struct History {
    kept: Mutex<RetainedChanges>,
    latest: watch::Sender<i64>,
}

impl History {
    /// Creates an empty history that starts after a revision.
    pub(super) fn after(revision: i64) -> Self {
        let kept =
            RetainedChanges { steps: VecDeque::new(), changes: 0, bytes: 0, oldest: revision + 1 };
        Self { kept: Mutex::new(kept), latest: watch::Sender::new(revision) }
    }

    /// Adds the changes of the next revision.
    pub(super) fn push(&self, revision: i64, changes: Vec<Change>) {
        let bytes = changes.iter().map(bytes_of).sum();
        {
            let mut kept = self.kept.lock();
            kept.changes += changes.len();
            kept.bytes += bytes;
            kept.steps.push_back(Step { revision, changes, bytes });
            while kept.steps.len() > 1 && (kept.changes > CHANGES || kept.bytes > BYTES) {
                kept.forget_first();
            }
        }
        self.latest.send_replace(revision);
    }

    /// Drops the changes before a revision.
    pub(super) fn compact(&self, revision: i64) {
        let mut kept = self.kept.lock();
        while kept.steps.front().is_some_and(|step| step.revision < revision) {
            kept.forget_first();
        }
    }

    /// Returns a receiver that is notified of new changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<i64> {
        self.latest.subscribe()
    }

    /// Returns the changes under a prefix from a revision on, and the revision to continue from.
    pub(super) fn since(&self, from: i64, prefix: &str) -> Result<(Vec<Change>, i64), StoreError> {
        let kept = self.kept.lock();
        if from < kept.oldest {
            return Err(StoreError::Compacted { asked: from, oldest: kept.oldest });
        }
        let first = kept.steps.partition_point(|step| step.revision < from);
        let changes = kept
            .steps
            .range(first..)
            .flat_map(|step| &step.changes)
            .filter(|change| key_of(change).starts_with(prefix))
            .cloned()
            .collect();
        let last = kept.steps.back().map_or(0, |step| step.revision);
        Ok((changes, from.max(last + 1)))
    }
}

impl RetainedChanges {
    fn forget_first(&mut self) {
        if let Some(step) = self.steps.pop_front() {
            self.changes -= step.changes.len();
            self.bytes -= step.bytes;
            self.oldest = step.revision + 1;
        }
    }
}

fn key_of(change: &Change) -> &str {
    match change {
        Change::Put(entry) => &entry.key,
        Change::Deleted { key, .. } => key,
    }
}

fn bytes_of(change: &Change) -> usize {
    match change {
        Change::Put(entry) => entry.key.len() + entry.value.len(),
        Change::Deleted { key, .. } => key.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deletion(key: &str, revision: i64) -> Change {
        Change::Deleted { key: key.into(), revision }
    }

    #[test]
    fn reading_a_forgotten_revision_is_a_compaction_error() {
        let history = History::after(10);
        assert!(matches!(
            history.since(10, ""),
            Err(StoreError::Compacted { asked: 10, oldest: 11 })
        ));
        assert_eq!(history.since(11, "").unwrap(), (vec![], 11));
        assert_eq!(history.since(99, "").unwrap(), (vec![], 99), "a later one is waited for");
        for revision in 11..11 + i64::try_from(CHANGES).unwrap() + 5 {
            history.push(revision, vec![deletion("a", revision)]);
        }
        assert!(matches!(history.since(15, ""), Err(StoreError::Compacted { oldest: 16, .. })));
        assert_eq!(history.since(16, "").unwrap().0.len(), CHANGES);
        assert_eq!(history.since(16, "b").unwrap().0.len(), 0);
    }

    #[test]
    fn a_transaction_larger_than_the_limit_is_still_visible() {
        let history = History::after(0);
        history.push(1, vec![deletion(&"k".repeat(BYTES + 1), 1)]);
        assert_eq!(history.since(1, "").unwrap().0.len(), 1);
        history.push(2, vec![deletion("b", 2)]);
        assert!(history.since(1, "").is_err());
        assert_eq!(history.since(2, "").unwrap(), (vec![deletion("b", 2)], 3));
    }
}
