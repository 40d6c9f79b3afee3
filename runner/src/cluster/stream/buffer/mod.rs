//! The events that wait for the broker, and how they are divided between memory and disk. No I/O.
//!
//! There are three parts, oldest first: events are published from `front`, followed by the spill
//! file, and new events are added to `tail`. While the file is empty, `tail` is used only if
//! `front` is full.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

use bytes::Bytes;
use indexmap::IndexMap;
use protocol::id::{Epoch, RunId};

/// The maximum size of the events that are ready to be published.
pub(super) const FRONT_BYTES: usize = 6 * 1024 * 1024;
/// The maximum size of the events that wait to be spilled, or for room in front of them.
pub(super) const TAIL_BYTES: usize = 2 * 1024 * 1024;
/// The size of one write to or read from the disk.
pub(super) const BATCH_BYTES: usize = 1024 * 1024;
/// The memory used by an event in addition to its body.
const OVERHEAD: usize = 128;
/// The number of lost runs to remember, apart from those with events on disk.
const REMEMBERED: usize = 1024;

/// A buffered event.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Waiting {
    pub(super) ticket: u64,
    pub(super) run: Option<RunId>,
    pub(super) epoch: Option<Epoch>,
    pub(super) body: Bytes,
    /// Discarded after it was sent. Its confirm is pending, but nothing waits for it.
    dropped: bool,
    /// Read from disk, where it stays until it is confirmed.
    is_stored: bool,
}

impl Waiting {
    pub(super) fn new(ticket: u64, run: Option<RunId>, epoch: Option<Epoch>, body: Bytes) -> Self {
        Self { ticket, run, epoch, body, dropped: false, is_stored: false }
    }

    fn size(&self) -> usize {
        self.body.len() + OVERHEAD
    }

    /// Returns true if it is an event of a run under this epoch or an earlier one.
    pub(super) fn belongs_to(&self, run: &RunId, up_to: Epoch) -> bool {
        self.run.as_ref() == Some(run) && self.epoch.is_some_and(|epoch| epoch <= up_to)
    }
}

/// The events in memory when the publisher ends.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    /// The events before those on disk.
    pub(super) front: Vec<Waiting>,
    /// The events after those on disk.
    pub(super) tail: Vec<Waiting>,
    /// The lost runs, each with the last epoch to discard.
    pub(super) lost: BTreeMap<RunId, Epoch>,
}

/// Events read from disk.
#[derive(Debug)]
pub(super) struct Refill {
    pub(super) read: Vec<Waiting>,
    /// The oldest ticket that remains on disk.
    pub(super) oldest: Option<u64>,
    /// The number of events that cannot be read.
    pub(super) lost: u64,
    /// Their tickets.
    pub(super) unreadable: Option<RangeInclusive<u64>>,
}

/// Where the unconfirmed events are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unconfirmed {
    /// The number of events on disk.
    pub(super) on_disk: u64,
    /// The number of events that are only in memory, by run.
    pub(super) in_memory: BTreeMap<Option<RunId>, u64>,
}

/// All buffered events.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    front: VecDeque<Waiting>,
    front_bytes: usize,
    /// The number of sent events at the start of `front`.
    sent: usize,
    sent_bytes: usize,
    /// The oldest ticket on disk.
    on_disk: Option<u64>,
    /// The oldest ticket that is being written to disk.
    in_hands: Option<u64>,
    /// The number of events that are being written to disk, by run.
    hands: BTreeMap<Option<RunId>, u64>,
    /// The number of unread events on disk.
    unread: u64,
    tail: VecDeque<Waiting>,
    tail_bytes: usize,
    last: u64,
    /// The lost runs, each with the last epoch to discard.
    lost: IndexMap<RunId, Epoch>,
    /// The tickets of events that cannot be read from disk, one range for each segment.
    unreadable: Vec<RangeInclusive<u64>>,
}

impl Buffer {
    /// Adds an event and returns its ticket, or `None` if there is no room.
    pub(super) fn push(
        &mut self,
        run: Option<RunId>,
        epoch: Option<Epoch>,
        body: &Bytes,
    ) -> Option<u64> {
        let waiting = Waiting::new(self.last + 1, run, epoch, body.clone());
        if self.is_lost(&waiting) {
            self.last += 1;
            return Some(self.last);
        }
        let size = waiting.size();
        let behind = self.on_disk.is_some() || self.in_hands.is_some() || !self.tail.is_empty();
        // An empty part accepts one event of any size.
        if !behind && (self.front.is_empty() || self.front_bytes + size <= FRONT_BYTES) {
            self.front_bytes += size;
            self.front.push_back(waiting);
        } else if self.tail.is_empty() || self.tail_bytes + size <= TAIL_BYTES {
            self.tail_bytes += size;
            self.tail.push_back(waiting);
        } else {
            return None;
        }
        self.last += 1;
        Some(self.last)
    }

    /// Returns the newest ticket that is completed together with all before it.
    pub(super) fn done(&self) -> u64 {
        let waits = |queue: &VecDeque<Waiting>| {
            queue.iter().find(|waiting| !waiting.dropped).map(|waiting| waiting.ticket)
        };
        let oldest = waits(&self.front)
            .or(self.on_disk)
            .or(self.in_hands)
            .or_else(|| self.tail.front().map(|waiting| waiting.ticket));
        oldest.map_or(self.last, |oldest| oldest - 1)
    }

    /// Returns true if the event with this ticket cannot be read from disk.
    pub(super) fn is_unreadable(&self, ticket: u64) -> bool {
        self.unreadable.iter().any(|tickets| tickets.contains(&ticket))
    }

    /// Returns the next events to publish and marks them as sent. Limits the number and size of
    /// sent events.
    pub(super) fn take(&mut self, batch: usize, window: usize, bytes: usize) -> Vec<Waiting> {
        let mut taken = Vec::new();
        while taken.len() < batch && self.sent < window {
            let Some(next) = self.front.get(self.sent) else { break };
            if self.sent > 0 && self.sent_bytes + next.size() > bytes {
                break;
            }
            self.sent += 1;
            self.sent_bytes += next.size();
            taken.push(next.clone());
        }
        taken
    }

    /// Returns true if there are events to publish.
    pub(super) fn has_unsent(&self) -> bool {
        self.front.len() > self.sent
    }

    /// Returns true if events await their confirm.
    pub(super) fn has_sent(&self) -> bool {
        self.sent > 0
    }

    /// Confirms the oldest sent event.
    pub(super) fn confirm(&mut self) {
        if self.sent == 0 {
            return;
        }
        if let Some(done) = self.front.pop_front() {
            self.sent -= 1;
            self.sent_bytes -= done.size();
            self.front_bytes -= done.size();
        }
    }

    /// Marks all sent events as unsent, because it is unknown whether they arrived.
    pub(super) fn nothing_is_sent(&mut self) {
        self.front.retain(|waiting| !waiting.dropped);
        self.front_bytes = self.front.iter().map(Waiting::size).sum();
        (self.sent, self.sent_bytes) = (0, 0);
    }

    /// Drops the events of a run up to an epoch, including those that are still to come.
    pub(super) fn discard(&mut self, run: &RunId, up_to: Epoch) {
        let lost = self.lost.entry(run.clone()).or_insert(up_to);
        *lost = (*lost).max(up_to);
        if self.on_disk.is_none() && self.in_hands.is_none() && self.lost.len() > REMEMBERED {
            self.lost.shift_remove_index(0);
        }
        let unsent = self.front.split_off(self.sent);
        self.front.extend(unsent.into_iter().filter(|waiting| !waiting.belongs_to(run, up_to)));
        for waiting in &mut self.front {
            waiting.dropped |= waiting.belongs_to(run, up_to);
        }
        self.front_bytes = self.front.iter().map(Waiting::size).sum();
        self.tail.retain(|waiting| !waiting.belongs_to(run, up_to));
        self.tail_bytes = self.tail.iter().map(Waiting::size).sum();
    }

    fn is_lost(&self, waiting: &Waiting) -> bool {
        let run = waiting.run.as_ref();
        run.and_then(|run| self.lost.get(run)).is_some_and(|lost| waiting.epoch <= Some(*lost))
            && waiting.epoch.is_some()
    }

    /// Returns true if the front has room for events from disk.
    pub(super) fn wants_refill(&self) -> bool {
        self.front_bytes <= FRONT_BYTES - BATCH_BYTES
    }

    /// Moves events from the tail to the front, if none are on disk between them.
    pub(super) fn advance(&mut self) {
        while self.on_disk.is_none() && self.in_hands.is_none() {
            let Some(next) = self.tail.front() else { return };
            if !self.front.is_empty() && self.front_bytes + next.size() > FRONT_BYTES {
                return;
            }
            let Some(next) = self.tail.pop_front() else { return };
            self.tail_bytes -= next.size();
            self.front_bytes += next.size();
            self.front.push_back(next);
        }
    }

    /// Returns true if the tail is large enough to be spilled.
    pub(super) fn wants_spill(&self) -> bool {
        self.tail_bytes >= BATCH_BYTES
    }

    /// Takes a batch from the tail to write it to disk.
    pub(super) fn take_tail(&mut self) -> Vec<Waiting> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES {
            let Some(next) = self.tail.pop_front() else { break };
            self.tail_bytes -= next.size();
            bytes += next.size();
            taken.push(next);
        }
        self.in_hands = taken.first().map(|waiting| waiting.ticket);
        self.hands = count(&taken);
        taken
    }

    /// Notes that the batch was written.
    pub(super) fn spilled(&mut self) {
        self.on_disk = self.on_disk.or(self.in_hands);
        self.in_hands = None;
        self.unread += std::mem::take(&mut self.hands).values().sum::<u64>();
    }

    /// Puts back a batch that could not be written.
    pub(super) fn not_spilled(&mut self, back: Vec<Waiting>) {
        self.in_hands = None;
        self.hands.clear();
        for waiting in back.into_iter().rev() {
            if !self.is_lost(&waiting) {
                self.tail_bytes += waiting.size();
                self.tail.push_front(waiting);
            }
        }
    }

    pub(super) fn has_on_disk(&self) -> bool {
        self.on_disk.is_some()
    }

    /// Adds events read from disk.
    pub(super) fn refill(&mut self, refill: Refill) {
        let Refill { read, oldest, lost, unreadable } = refill;
        self.unreadable.extend(unreadable);
        self.unread = self.unread.saturating_sub(read.len() as u64 + lost);
        for waiting in read {
            if !self.is_lost(&waiting) {
                self.front_bytes += waiting.size();
                self.front.push_back(Waiting { is_stored: true, ..waiting });
            }
        }
        self.on_disk = oldest;
    }

    /// Counts the unconfirmed events.
    pub(super) fn unconfirmed(&self) -> Unconfirmed {
        let waits = self.front.iter().filter(|waiting| !waiting.dropped);
        let (stored, unstored): (Vec<_>, Vec<_>) = waits.partition(|waiting| waiting.is_stored);
        let mut in_memory = self.hands.clone();
        for waiting in unstored.into_iter().chain(&self.tail) {
            *in_memory.entry(waiting.run.clone()).or_default() += 1;
        }
        Unconfirmed { on_disk: self.unread + stored.len() as u64, in_memory }
    }

    /// Takes all events in memory.
    pub(super) fn take_all(&mut self) -> Leftover {
        self.nothing_is_sent();
        let lost = std::mem::take(&mut self.lost).into_iter().collect();
        let (front, tail) = (std::mem::take(&mut self.front), std::mem::take(&mut self.tail));
        (self.front_bytes, self.tail_bytes) = (0, 0);
        Leftover { front: front.into(), tail: tail.into(), lost }
    }
}

fn count(events: &[Waiting]) -> BTreeMap<Option<RunId>, u64> {
    let mut counts = BTreeMap::new();
    for waiting in events {
        *counts.entry(waiting.run.clone()).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests;
