//! The order of callbacks: by due time and receiver, so that a slow receiver does not delay others.

use std::collections::{BTreeMap, BTreeSet};

use super::callback::pause;

/// The maximum number of concurrent posts to one receiver.
const PER_RECEIVER: usize = 4;
/// The maximum number of entries kept in memory for one receiver. Later scans find the rest.
const KNOWN: usize = 1000;

/// The parts of an outbox entry that determine its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueEntry {
    /// The key. The part before the last `-` identifies the step. Entries of a step are posted in
    /// key order.
    pub key: String,
    /// The receiver's host and port.
    pub receiver: String,
    /// The due time, in ms since the epoch.
    pub due: i64,
}

/// The outcome of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The entry is done, or another worker posts it.
    Gone,
    /// The receiver answered. The entry is due again at this time, if any.
    Answered(Option<i64>),
    /// The receiver did not answer. The entry is due again at this time, if any.
    Silent(Option<i64>),
    /// Nothing was sent, for reasons unrelated to the receiver. The entry is due again then.
    Unsent(i64),
}

/// The outbox entries known to a worker.
#[derive(Debug, Default)]
pub struct Outbox {
    receivers: BTreeMap<String, Receiver>,
    /// Whether there is room again for entries that were skipped.
    has_room: bool,
}

#[derive(Debug, Default)]
struct Receiver {
    /// Due times by entry key, grouped by step.
    steps: BTreeMap<String, BTreeMap<String, i64>>,
    /// Idle steps, sorted by the due time of their first entry.
    due: BTreeSet<(i64, String)>,
    posting: BTreeSet<String>,
    known: usize,
    /// Whether entries were skipped because too many are known.
    has_more: bool,
    /// The number of consecutive attempts without an answer.
    silent: u32,
    /// Nothing is posted to the receiver before this time.
    rests_until: i64,
}

fn step_of(key: &str) -> String {
    key.rsplit_once('-').map_or(key, |(step, _)| step).to_owned()
}

impl Outbox {
    /// Adds or updates an entry.
    pub fn add(&mut self, entry: DueEntry) {
        let DueEntry { key, receiver, due } = entry;
        self.receivers.entry(receiver).or_default().learn(key, due);
    }

    /// Returns the next entry to post and marks it as in progress.
    pub fn next(&mut self, now: i64) -> Option<DueEntry> {
        let ready = |receiver: &Receiver| receiver.ready_at().filter(|at| *at <= now);
        let earliest = self.receivers.iter().filter_map(|(name, it)| Some((ready(it)?, name)));
        let name = earliest.min()?.1.clone();
        let receiver = self.receivers.get_mut(&name)?;
        let (due, step) = receiver.due.pop_first()?;
        let key = receiver.steps.get(&step)?.keys().next()?.clone();
        receiver.posting.insert(step);
        Some(DueEntry { key, receiver: name, due })
    }

    /// Applies the outcome of an entry that was in progress.
    pub fn settle(&mut self, entry: &DueEntry, outcome: &Outcome, now: i64) {
        let Some(receiver) = self.receivers.get_mut(&entry.receiver) else { return };
        match outcome {
            Outcome::Gone | Outcome::Unsent(_) => {}
            Outcome::Answered(_) => (receiver.silent, receiver.rests_until) = (0, 0),
            Outcome::Silent(_) => {
                receiver.silent = receiver.silent.saturating_add(1);
                let rest = i64::try_from(pause(receiver.silent).as_millis()).unwrap_or(i64::MAX);
                receiver.rests_until = now.saturating_add(rest);
            }
        }
        let again = match outcome {
            Outcome::Gone => None,
            Outcome::Answered(again) | Outcome::Silent(again) => *again,
            Outcome::Unsent(again) => Some(*again),
        };
        receiver.settle(&entry.key, again);
        if receiver.has_more && receiver.known < KNOWN / 2 {
            receiver.has_more = false;
            self.has_room = true;
        }
        // Keep a silent receiver as long as it has entries.
        if receiver.steps.is_empty() {
            self.receivers.remove(&entry.receiver);
        }
    }

    /// Returns the time of the next post, or `None` if nothing can be posted before one in progress
    /// is settled.
    #[must_use]
    pub fn next_post(&self) -> Option<i64> {
        self.receivers.values().filter_map(Receiver::ready_at).min()
    }

    /// Returns true, once, if entries were skipped and there is room for them: scan the outbox
    /// again.
    pub fn take_rescan(&mut self) -> bool {
        std::mem::take(&mut self.has_room)
    }

    /// Returns true if the receiver did not answer the last attempt.
    #[must_use]
    pub fn is_silent(&self, receiver: &str) -> bool {
        self.receivers.get(receiver).is_some_and(|receiver| receiver.silent > 0)
    }
}

impl Receiver {
    fn learn(&mut self, key: String, due: i64) {
        let step = step_of(&key);
        let is_known = self.steps.get(&step).is_some_and(|keys| keys.contains_key(&key));
        if !is_known && self.known >= KNOWN {
            self.has_more = true;
            return;
        }
        let is_posting = self.posting.contains(&step);
        let keys = self.steps.entry(step.clone()).or_default();
        let before = keys.first_key_value().map(|(_, due)| *due);
        if keys.insert(key, due).is_none() {
            self.known += 1;
        }
        if is_posting {
            return;
        }
        let first = keys.first_key_value().map_or(due, |(_, due)| *due);
        if let Some(before) = before {
            self.due.remove(&(before, step.clone()));
        }
        self.due.insert((first, step));
    }

    /// Returns when its next entry can be posted. `None`: the limit of concurrent posts is reached.
    fn ready_at(&self) -> Option<i64> {
        // A silent receiver gets a single request as a probe.
        let most = if self.silent > 0 { 1 } else { PER_RECEIVER };
        let (due, _) = self.due.first().filter(|_| self.posting.len() < most)?;
        Some(*due.max(&self.rests_until))
    }

    fn settle(&mut self, key: &str, again: Option<i64>) {
        let step = step_of(key);
        self.posting.remove(&step);
        let Some(keys) = self.steps.get_mut(&step) else { return };
        match again {
            Some(due) => {
                keys.insert(key.to_owned(), due);
            }
            None => {
                if keys.remove(key).is_some() {
                    self.known -= 1;
                }
            }
        }
        match keys.first_key_value() {
            Some((_, due)) => {
                self.due.insert((*due, step));
            }
            None => {
                self.steps.remove(&step);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due_entry(receiver: &str, key: &str, due: i64) -> DueEntry {
        DueEntry { key: key.to_owned(), receiver: receiver.to_owned(), due }
    }

    fn all(outbox: &mut Outbox, now: i64) -> Vec<DueEntry> {
        std::iter::from_fn(|| outbox.next(now)).collect()
    }

    fn keys(found: &[DueEntry]) -> Vec<&str> {
        found.iter().map(|entry| entry.key.as_str()).collect()
    }

    #[test]
    fn a_hanging_receiver_does_not_delay_others() {
        let mut outbox = Outbox::default();
        for run in 0..5000 {
            outbox.add(due_entry("slow", &format!("r-{run}/0-0"), 0));
        }
        let hanging = all(&mut outbox, 10);
        assert_eq!(hanging.len(), PER_RECEIVER);
        assert_eq!(outbox.next_post(), None, "only an end brings news");
        outbox.add(due_entry("healthy", "r-x/0-0", 10));
        assert_eq!(keys(&all(&mut outbox, 10)), ["r-x/0-0"], "at once");
        // The pause grows with each silence. A single request then probes the receiver.
        outbox.settle(&hanging[0], &Outcome::Silent(Some(2_000)), 30_000);
        assert!(outbox.is_silent("slow") && all(&mut outbox, 30_000).is_empty());
        for entry in &hanging[1..] {
            outbox.settle(entry, &Outcome::Silent(Some(2_000)), 30_000);
        }
        assert_eq!(outbox.next_post(), Some(38_000));
        let probe = all(&mut outbox, 38_000);
        assert_eq!(probe.len(), 1);
        outbox.settle(&probe[0], &Outcome::Answered(None), 38_001);
        assert!(!outbox.is_silent("slow"));
        assert_eq!(all(&mut outbox, 38_001).len(), PER_RECEIVER);
    }

    #[test]
    fn entries_of_a_step_are_posted_one_at_a_time_and_in_order() {
        let mut outbox = Outbox::default();
        outbox.add(due_entry("h", "r/0-1", 1));
        outbox.add(due_entry("h", "r/0-0", 5));
        outbox.add(due_entry("h", "r/1-0", 3));
        assert_eq!(outbox.next_post(), Some(3), "that it has ended comes after that it runs");
        let first = all(&mut outbox, 5);
        assert_eq!(keys(&first), ["r/1-0", "r/0-0"]);
        outbox.settle(&first[1], &Outcome::Answered(Some(100)), 6);
        assert_eq!(keys(&all(&mut outbox, 99)), [""; 0]);
        let again = all(&mut outbox, 100);
        assert_eq!(keys(&again), ["r/0-0"]);
        // New entries of the step wait for it.
        outbox.add(due_entry("h", "r/0-1", 1));
        outbox.add(due_entry("h", "r/0-0", 1));
        assert_eq!(keys(&all(&mut outbox, 100)), [""; 0]);
        outbox.settle(&again[0], &Outcome::Answered(None), 101);
        let last = all(&mut outbox, 101);
        assert_eq!(keys(&last), ["r/0-1"]);
        outbox.settle(&last[0], &Outcome::Gone, 102);
        outbox.settle(&first[0], &Outcome::Unsent(500), 102);
        assert_eq!((outbox.next_post(), outbox.is_silent("h")), (Some(500), false));
        let unsent = all(&mut outbox, 500);
        outbox.settle(&unsent[0], &Outcome::Gone, 500);
        assert!(outbox.receivers.is_empty(), "nothing is kept: {outbox:?}");
    }

    #[test]
    fn the_state_kept_for_a_receiver_is_bounded() {
        let mut outbox = Outbox::default();
        for run in 0..3 * KNOWN {
            outbox.add(due_entry("h", &format!("r-{run}/0-0"), 0));
        }
        let mut posted = 0;
        while let Some(entry) = outbox.next(0) {
            posted += 1;
            outbox.settle(&entry, &Outcome::Gone, 0);
        }
        assert_eq!(posted, KNOWN);
        assert!(outbox.take_rescan() && !outbox.take_rescan(), "a look finds the rest");
    }
}
