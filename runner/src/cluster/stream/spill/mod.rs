//! Keeps events on disk while the broker does not accept them.
//!
//! Each worker has its own directory below `BOB_SPILL_DIR`, with the segments of its events and a
//! file that it locks while it is alive. If the worker ends before the broker has confirmed its
//! events, the directory remains. The next worker of the same cluster publishes it (see `left`).

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::id::{Epoch, RunId};
use tracing::warn;

use super::buffer::{Leftover, Refill, Waiting};
use super::segment::{Segment, UnreadableSegment, encoded_len, private_file};

/// A segment is removed once all its events are confirmed, so small segments free space early.
const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
/// The number of failures in a row after which an unreadable segment is set aside.
const READ_TRIES: u32 = 10;

/// The file locked by the worker that writes the directory.
pub(super) const LOCK: &str = "lock";
/// The file with the runs whose events must not be published, because their worker had lost them.
pub(super) const LOST: &str = "lost.json";

/// The directory in which the workers of one cluster keep their events.
#[derive(Debug, Clone)]
pub(super) struct SpillRoot {
    dir: PathBuf,
    /// The name prefix of this cluster's directories.
    prefix: String,
    limit: u64,
    /// The size of the events left by earlier workers. It counts towards the limit.
    left: Arc<AtomicU64>,
}

impl SpillRoot {
    pub(super) fn new(dir: &Path, prefix: String, limit: u64) -> Self {
        Self { dir: dir.to_owned(), prefix, limit, left: Arc::default() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn is_of_this_cluster(&self, name: &str) -> bool {
        name.starts_with(&self.prefix)
    }

    /// Sets the size of the events left by earlier workers.
    pub(super) fn set_leftover_size(&self, bytes: u64) {
        self.left.store(bytes, Ordering::Relaxed);
    }

    /// Creates a directory that is locked before it gets its final name.
    fn make(&self) -> io::Result<Own> {
        let id = uuid::Uuid::new_v4();
        let (hidden, path) =
            (self.dir.join(format!(".new-{id}")), self.dir.join(format!("{}{id}", self.prefix)));
        make_private(&hidden)?;
        let lock = private_file(&hidden.join(LOCK))?;
        lock.try_lock()?;
        fs::rename(&hidden, &path)?;
        Ok(Own { path, _lock: lock })
    }
}

/// The directory of this worker.
#[derive(Debug)]
struct Own {
    path: PathBuf,
    _lock: File,
}

/// The events that were saved when the worker ended, and those that were lost.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SpillOutcome {
    /// The number of events saved for the next worker.
    pub events: u64,
    /// Their size in bytes. `None` if saving them has failed.
    pub bytes: Option<u64>,
    /// Their directory, if there are any.
    pub dir: Option<PathBuf>,
    /// The number of lost events by run. `None` stands for events of the worker itself.
    pub dropped: BTreeMap<Option<RunId>, u64>,
}

/// The segments, oldest first.
#[derive(Debug)]
pub(super) struct Spill {
    place: SpillRoot,
    /// Created with the first segment.
    own: Option<Own>,
    segments: VecDeque<Segment>,
    /// Fully read segments with their last ticket. They are kept until it is confirmed.
    unconfirmed: VecDeque<(u64, Segment)>,
    /// The number of the last segment.
    last: u64,
    /// The size of the events that were written and not yet read.
    bytes: u64,
    events: u64,
    /// The number of reads that have failed in a row.
    failures: u32,
    /// Whether a segment of this directory was set aside.
    has_aside: bool,
}

impl Spill {
    /// Creates the directory and checks that files can be created in it.
    pub(super) fn open(place: SpillRoot) -> io::Result<Self> {
        make_private(&place.dir)?;
        tempfile::tempfile_in(&place.dir)?;
        let (segments, unconfirmed) = (VecDeque::new(), VecDeque::new());
        Ok(Self {
            place,
            own: None,
            segments,
            unconfirmed,
            last: 0,
            bytes: 0,
            events: 0,
            failures: 0,
            has_aside: false,
        })
    }

    /// Returns this worker's directory, if it has events.
    pub(super) fn own_dir(&self) -> Option<PathBuf> {
        let is_empty = self.segments.is_empty() && self.unconfirmed.is_empty();
        self.own.as_ref().filter(|_| !is_empty).map(|own| own.path.clone())
    }

    /// Returns the common directory of all workers.
    pub(super) fn dir(&self) -> &Path {
        self.place.dir()
    }

    /// Returns true if `bytes` more bytes may be written.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let left = self.place.left.load(Ordering::Relaxed);
        self.bytes.saturating_add(left).saturating_add(bytes as u64) <= self.place.limit
    }

    /// Writes all events of a batch, or none.
    pub(super) fn append(&mut self, batch: &[Waiting]) -> io::Result<()> {
        if self.segments.back().is_none_or(|last| last.written() >= SEGMENT_BYTES) {
            let segment = self.segment(self.last + 1)?;
            self.last += 1;
            self.segments.push_back(segment);
        }
        let Some(last) = self.segments.back_mut() else { return Ok(()) };
        let bytes = last.append(batch)?;
        self.bytes += bytes;
        self.events += batch.len() as u64;
        Ok(())
    }

    fn segment(&mut self, number: u64) -> io::Result<Segment> {
        let own = match &mut self.own {
            Some(own) => own,
            none => none.insert(self.place.make()?),
        };
        Segment::create(&own.path, number)
    }

    /// Reads about `about` bytes of the oldest events. Also returns the oldest ticket that remains.
    /// If it fails, nothing changes.
    pub(super) fn take(&mut self, about: usize) -> io::Result<(Vec<Waiting>, Option<u64>)> {
        let Some(first) = self.segments.front_mut() else { return Ok((Vec::new(), None)) };
        let (taken, used) = first.take(about)?;
        self.bytes -= used;
        self.events -= taken.len() as u64;
        if first.oldest().is_none() {
            let last = taken.last().map_or(0, |waiting| waiting.ticket);
            self.unconfirmed.extend(self.segments.pop_front().map(|segment| (last, segment)));
        }
        Ok((taken, self.oldest()))
    }

    fn oldest(&self) -> Option<u64> {
        self.segments.front().and_then(Segment::oldest)
    }

    /// Reads the next events to publish. After several failures in a row, sets the oldest segment
    /// aside, so that the events behind it can be published.
    pub(super) fn refill(&mut self, about: usize) -> io::Result<Refill> {
        match self.take(about) {
            Ok((read, oldest)) => {
                self.failures = 0;
                Ok(Refill { read, oldest, lost: 0, unreadable: None })
            }
            Err(cause) => {
                self.failures += 1;
                if self.failures < READ_TRIES {
                    return Err(cause);
                }
                self.failures = 0;
                let (lost, unreadable) = self.set_aside(&cause);
                let lost = lost.values().sum();
                Ok(Refill { read: Vec::new(), oldest: self.oldest(), lost, unreadable })
            }
        }
    }

    /// Sets the oldest segment aside, because it cannot be read. Returns the number of lost events
    /// by run.
    fn set_aside(
        &mut self,
        cause: &io::Error,
    ) -> (BTreeMap<Option<RunId>, u64>, Option<RangeInclusive<u64>>) {
        let Some(segment) = self.segments.pop_front() else { return (BTreeMap::new(), None) };
        let UnreadableSegment { path, lost, bytes, tickets } = segment.set_aside();
        self.has_aside = true;
        self.bytes -= bytes;
        self.events -= lost.values().sum::<u64>();
        for (run, events) in &lost {
            let of = owner_of(run.as_ref());
            warn!(
                run.id = run.as_ref().map(RunId::as_str), events, path = %path.display(), %cause,
                "{events} events of {of} are lost: they cannot be read from disk"
            );
        }
        (lost, tickets)
    }

    /// Removes the segments whose events are all confirmed up to this ticket.
    pub(super) fn confirmed(&mut self, done: u64) {
        while self.unconfirmed.front().is_some_and(|(last, _)| *last <= done) {
            if let Some((_, segment)) = self.unconfirmed.pop_front() {
                segment.remove();
            }
        }
    }

    /// Ends the spill: saves the events in memory before and after those on disk.
    pub(super) fn keep(mut self, leftover: Leftover) -> io::Result<SpillOutcome> {
        let Leftover { mut front, tail, lost } = leftover;
        let mut unreadable = BTreeMap::new();
        while self.segments.front().is_some_and(Segment::is_partly_read) {
            match self.take(usize::MAX) {
                Ok((read, _)) => front.extend(read),
                Err(cause) => add(&mut unreadable, self.set_aside(&cause).0),
            }
        }
        let is_lost =
            |waiting: &Waiting| lost.iter().any(|(run, up_to)| waiting.belongs_to(run, *up_to));
        front.retain(|waiting| !is_lost(waiting));
        let mut dropped = BTreeMap::new();
        let front = self.within_limit(front, &mut dropped);
        if !front.is_empty() {
            // Sorts before all others, whose numbers start at 1.
            let mut segment = self.segment(0)?;
            self.bytes += segment.append(&front)?;
            self.events += front.len() as u64;
            self.segments.push_front(segment);
        }
        for (_, segment) in std::mem::take(&mut self.unconfirmed) {
            segment.remove();
        }
        let tail = self.within_limit(tail, &mut dropped);
        if !tail.is_empty() {
            self.append(&tail)?;
        }
        add(&mut dropped, unreadable);
        let Some(own) = self.own.as_ref().filter(|_| !self.segments.is_empty()) else {
            return Ok(SpillOutcome { dropped, ..SpillOutcome::default() });
        };
        if !lost.is_empty() {
            write_lost(&own.path, &lost)?;
        }
        for segment in &self.segments {
            segment.sync()?;
        }
        File::open(&own.path)?.sync_all()?;
        File::open(&self.place.dir)?.sync_all()?;
        let dir = Some(own.path.clone());
        Ok(SpillOutcome { events: self.events, bytes: Some(self.bytes), dir, dropped })
    }

    /// Returns the first events that fit into the limit, and counts the others as dropped.
    fn within_limit(
        &self,
        mut events: Vec<Waiting>,
        dropped: &mut BTreeMap<Option<RunId>, u64>,
    ) -> Vec<Waiting> {
        let mut bytes = 0;
        let fit = events.iter().take_while(|waiting| {
            bytes += encoded_len(waiting);
            dropped.is_empty() && self.has_room(bytes)
        });
        let fit = fit.count();
        for waiting in events.drain(fit..) {
            *dropped.entry(waiting.run).or_default() += 1;
        }
        events
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        if !self.segments.is_empty() || !self.unconfirmed.is_empty() || self.has_aside {
            return;
        }
        if let Some(own) = &self.own {
            // The directory only contains the lock. If this fails, the next worker finds it empty.
            fs::remove_dir_all(&own.path).ok();
        }
    }
}

/// Writes the lost runs. A file that is cut off by a kill would hide which events are lost.
fn write_lost(dir: &Path, lost: &BTreeMap<RunId, Epoch>) -> io::Result<()> {
    let incomplete = dir.join(format!("{LOST}.new"));
    let file = private_file(&incomplete)?;
    serde_json::to_writer(&file, lost)?;
    file.sync_all()?;
    fs::rename(&incomplete, dir.join(LOST))
}

fn add(to: &mut BTreeMap<Option<RunId>, u64>, more: BTreeMap<Option<RunId>, u64>) {
    for (run, events) in more {
        *to.entry(run).or_default() += events;
    }
}

/// Returns the owner of events, for a sentence.
pub(super) fn owner_of(run: Option<&RunId>) -> String {
    run.map_or_else(|| "this worker".to_owned(), |run| format!("run {run}"))
}

fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests;
