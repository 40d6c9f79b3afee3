//! Keeps events on disk while the broker does not accept them.
//!
//! Each worker has its own directory below `BOB_SPILL_DIR`, with the segments of its events and a
//! file that it locks while it is alive. If the worker ends before the broker has confirmed its
//! events, the directory remains. The next worker of the same cluster publishes it (see `left`).

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use protocol::id::{Epoch, RunId};

use super::buffer::{Leftover, Waiting};

/// A segment is removed once all its events are confirmed, so small segments free space early.
const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
const HEADER: usize = 8 + 8 + 4 + 4;
/// Denotes a missing epoch.
const NO_EPOCH: i64 = i64::MIN;

/// The file locked by the worker that writes the directory.
pub(super) const LOCK: &str = "lock";
/// The file with the runs whose events must not be published, because their worker had lost them.
pub(super) const LOST: &str = "lost.json";
/// The file extension of a segment.
pub(super) const SEGMENT: &str = "events";

/// The directory in which the workers of one cluster keep their events.
#[derive(Debug, Clone)]
pub(super) struct Place {
    dir: PathBuf,
    /// The name prefix of this cluster's directories.
    prefix: String,
    limit: u64,
    /// The size of the events left by earlier workers. It counts towards the limit.
    left: Arc<AtomicU64>,
}

impl Place {
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
    pub(super) fn note_left(&self, bytes: u64) {
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
pub struct Kept {
    /// The number of events saved for the next worker.
    pub events: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Their directory, if there are any.
    pub dir: Option<PathBuf>,
    /// The number of lost events by run. `None` stands for events of the worker itself.
    pub dropped: BTreeMap<Option<RunId>, u64>,
}

/// The segments, oldest first.
#[derive(Debug)]
pub(super) struct Spill {
    place: Place,
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
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    file: File,
    written: u64,
    read: u64,
}

impl Spill {
    /// Creates the directory and checks that files can be created in it.
    pub(super) fn open(place: Place) -> io::Result<Self> {
        make_private(&place.dir)?;
        tempfile::tempfile_in(&place.dir)?;
        let (segments, unconfirmed) = (VecDeque::new(), VecDeque::new());
        Ok(Self { place, own: None, segments, unconfirmed, last: 0, bytes: 0, events: 0 })
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
        if self.segments.back().is_none_or(|last| last.written >= SEGMENT_BYTES) {
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
        let path = own.path.join(format!("{number:08}.{SEGMENT}"));
        Ok(Segment { file: private_file(&path)?, path, written: 0, read: 0 })
    }

    /// Reads about `about` bytes of the oldest events. Also returns the oldest ticket that remains.
    /// If it fails, nothing changes.
    pub(super) fn take(&mut self, about: usize) -> io::Result<(Vec<Waiting>, Option<u64>)> {
        let Some(first) = self.segments.front() else { return Ok((Vec::new(), None)) };
        let left = first.written - first.read;
        let mut bytes = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(about.max(HEADER))];
        first.file.read_exact_at(&mut bytes, first.read)?;
        if let Some(one) = record_len(&bytes).filter(|one| *one > bytes.len()) {
            bytes.resize(one, 0);
            first.file.read_exact_at(&mut bytes, first.read)?;
        }
        let (taken, used) = decode_all(&Bytes::from(bytes))?;
        let read = first.read + used as u64;
        let emptied = read == first.written;
        let next = if emptied {
            self.segments.get(1).map(|next| next.ticket_at(next.read)).transpose()?
        } else {
            Some(first.ticket_at(read)?)
        };
        self.bytes -= used as u64;
        self.events -= taken.len() as u64;
        if emptied {
            let last = taken.last().map_or(0, |waiting| waiting.ticket);
            self.unconfirmed.extend(self.segments.pop_front().map(|segment| (last, segment)));
        } else if let Some(first) = self.segments.front_mut() {
            first.read = read;
        }
        Ok((taken, next))
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
    pub(super) fn keep(mut self, leftover: Leftover) -> io::Result<Kept> {
        let Leftover { mut front, tail, lost } = leftover;
        while self.segments.front().is_some_and(|first| first.read > 0) {
            front.extend(self.take(usize::MAX)?.0);
        }
        let is_lost =
            |waiting: &Waiting| lost.iter().any(|(run, up_to)| waiting.is_of(run, *up_to));
        front.retain(|waiting| !is_lost(waiting));
        let mut dropped = BTreeMap::new();
        let front = self.that_fit(front, &mut dropped);
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
        let tail = self.that_fit(tail, &mut dropped);
        if !tail.is_empty() {
            self.append(&tail)?;
        }
        let Some(own) = self.own.as_ref().filter(|_| !self.segments.is_empty()) else {
            return Ok(Kept { dropped, ..Kept::default() });
        };
        if !lost.is_empty() {
            serde_json::to_writer(private_file(&own.path.join(LOST))?, &lost)?;
        }
        for segment in &self.segments {
            segment.file.sync_all()?;
        }
        File::open(&own.path)?.sync_all()?;
        File::open(&self.place.dir)?.sync_all()?;
        let dir = Some(own.path.clone());
        Ok(Kept { events: self.events, bytes: self.bytes, dir, dropped })
    }

    /// Returns the first events that fit into the limit, and counts the others as dropped.
    fn that_fit(
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
        if !self.segments.is_empty() || !self.unconfirmed.is_empty() {
            return;
        }
        if let Some(own) = &self.own {
            // The directory only contains the lock. If this fails, the next worker finds it empty.
            fs::remove_dir_all(&own.path).ok();
        }
    }
}

impl Segment {
    fn append(&mut self, batch: &[Waiting]) -> io::Result<u64> {
        let mut bytes = Vec::with_capacity(batch.iter().map(encoded_len).sum());
        for waiting in batch {
            encode(waiting, &mut bytes);
        }
        // After a partial write, the next batch overwrites it.
        self.file.write_all_at(&bytes, self.written)?;
        self.written += bytes.len() as u64;
        Ok(bytes.len() as u64)
    }

    fn ticket_at(&self, at: u64) -> io::Result<u64> {
        let mut ticket = [0; 8];
        self.file.read_exact_at(&mut ticket, at)?;
        Ok(u64::from_le_bytes(ticket))
    }

    fn remove(self) {
        if let Err(cause) = fs::remove_file(&self.path) {
            // Its events would be published twice, which readers tolerate.
            tracing::debug!(path = %self.path.display(), %cause, "a segment cannot be removed");
        }
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Creates a file that only this user can access.
fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

fn run_text(waiting: &Waiting) -> &str {
    waiting.run.as_ref().map_or("", RunId::as_str)
}

fn encoded_len(waiting: &Waiting) -> usize {
    HEADER + run_text(waiting).len() + waiting.body.len()
}

/// Layout: ticket, epoch, length of run, length of body, run, body.
fn encode(waiting: &Waiting, to: &mut Vec<u8>) {
    let run = run_text(waiting);
    to.extend(waiting.ticket.to_le_bytes());
    to.extend(waiting.epoch.map_or(NO_EPOCH, |epoch| epoch.0).to_le_bytes());
    // No event approaches 4 GiB: the broker's own limit is 128 MiB.
    to.extend(u32::try_from(run.len()).unwrap_or(u32::MAX).to_le_bytes());
    to.extend(u32::try_from(waiting.body.len()).unwrap_or(u32::MAX).to_le_bytes());
    to.extend(run.as_bytes());
    to.extend(&waiting.body);
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn lengths(bytes: &[u8]) -> Option<(usize, usize)> {
    let length =
        |at| number(bytes, at).and_then(|field| usize::try_from(u32::from_le_bytes(field)).ok());
    Some((length(16)?, length(20)?))
}

/// Returns the length of the first record, or `None` if its header is incomplete.
fn record_len(bytes: &[u8]) -> Option<usize> {
    let (run, body) = lengths(bytes)?;
    Some(HEADER + run + body)
}

/// Returns all complete records and their total length.
pub(super) fn decode_all(bytes: &Bytes) -> io::Result<(Vec<Waiting>, usize)> {
    let (mut all, mut used) = (Vec::new(), 0);
    while let Some(length) =
        record_len(&bytes[used..]).filter(|length| used + length <= bytes.len())
    {
        let waiting = decode(&bytes.slice(used..used + length));
        all.push(waiting.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?);
        used += length;
    }
    Ok((all, used))
}

fn decode(record: &Bytes) -> Option<Waiting> {
    let ticket = u64::from_le_bytes(number(record, 0)?);
    let epoch = i64::from_le_bytes(number(record, 8)?);
    let epoch = (epoch != NO_EPOCH).then_some(Epoch(epoch));
    let (run, _) = lengths(record)?;
    let text = std::str::from_utf8(record.get(HEADER..HEADER + run)?).ok()?;
    let named = if text.is_empty() { None } else { Some(text.parse().ok()?) };
    // Copied, because a slice would keep the batch in memory until its last event is confirmed.
    let body = Bytes::copy_from_slice(record.get(HEADER + run..)?);
    Some(Waiting::new(ticket, named, epoch, body))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn waiting(ticket: u64, size: usize) -> Waiting {
        let run = ticket.is_multiple_of(2).then(|| "r-a".parse().unwrap());
        let epoch = ticket.is_multiple_of(3).then_some(Epoch(7));
        let byte = u8::try_from(ticket % 251).unwrap();
        Waiting::new(ticket, run, epoch, Bytes::from(vec![byte; size]))
    }

    fn open(dir: &Path, limit: u64) -> Spill {
        Spill::open(Place::new(dir, "events-x-".to_owned(), limit)).unwrap()
    }

    fn leftover(front: &[Waiting], tail: &[Waiting]) -> Leftover {
        Leftover { front: front.to_vec(), tail: tail.to_vec(), lost: BTreeMap::new() }
    }

    /// Returns all events in a directory, in the order of publication.
    fn events_in(dir: &Path) -> Vec<Waiting> {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<PathBuf> =
            names.filter(|path| path.extension().is_some_and(|end| end == SEGMENT)).collect();
        names.sort();
        let read = names.iter().map(|path| decode_all(&fs::read(path).unwrap().into()).unwrap().0);
        read.flatten().collect()
    }

    #[test]
    fn events_return_unchanged_and_their_files_go_once_they_are_confirmed() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = open(dir.path(), 1 << 30);
        let all: Vec<Waiting> = (1..=400).map(|ticket| waiting(ticket, 40_000)).collect();
        for batch in all.chunks(7) {
            spill.append(batch).unwrap();
        }
        assert!(spill.segments.len() > 2);
        let mut back = Vec::new();
        loop {
            let (read, oldest) = spill.take(1 << 20).unwrap();
            back.extend(read);
            let Some(oldest) = oldest else { break };
            assert_eq!(oldest, back.len() as u64 + 1);
        }
        assert!(back == all);
        assert_eq!((spill.bytes, spill.events, spill.segments.len()), (0, 0, 0));
        let own = spill.own.as_ref().unwrap().path.clone();
        assert!(events_in(&own) == all, "a worker that is killed now leaves them");
        spill.confirmed(200);
        assert!(events_in(&own).len() > 200);
        spill.confirmed(400);
        assert_eq!(events_in(&own), []);
        drop(spill);
        assert!(!own.exists());
    }

    #[test]
    fn an_event_larger_than_what_is_read_at_once_comes_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = open(dir.path(), 1 << 30);
        let all = [waiting(1, 100_000), waiting(2, 0), waiting(3, 5)];
        spill.append(&all).unwrap();
        assert_eq!(spill.take(1_000).unwrap(), (all[..1].to_vec(), Some(2)));
        assert_eq!(spill.take(1_000).unwrap(), (all[1..].to_vec(), None));
        assert_eq!(spill.take(1_000).unwrap(), (Vec::new(), None));
    }

    #[test]
    fn events_that_were_read_make_room_and_events_of_earlier_workers_take_some() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = open(dir.path(), 100_000);
        spill.append(&[waiting(1, 60_000)]).unwrap();
        assert!(!spill.has_room(60_000));
        spill.take(1 << 20).unwrap();
        assert!(spill.has_room(60_000));
        spill.place.note_left(60_000);
        assert!(!spill.has_room(60_000));
    }

    #[test]
    fn the_directory_and_its_files_belong_to_this_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("state/spill");
        let mut spill = open(&inner, 1 << 20);
        spill.append(&[waiting(1, 1)]).unwrap();
        let mode = |metadata: std::fs::Metadata| metadata.permissions().mode() & 0o777;
        assert_eq!(mode(inner.metadata().unwrap()), 0o700);
        assert_eq!(mode(spill.own.as_ref().unwrap().path.metadata().unwrap()), 0o700);
        assert_eq!(mode(spill.segments[0].file.metadata().unwrap()), 0o600);
    }

    #[test]
    fn everything_that_waits_is_kept_in_order_when_the_worker_ends() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = open(dir.path(), 1 << 30);
        let all: Vec<Waiting> = (1..=9).map(|ticket| waiting(ticket, 2 << 20)).collect();
        for one in &all[1..8] {
            spill.append(std::slice::from_ref(one)).unwrap();
        }
        // The second event was read, and none is confirmed.
        let (read, _) = spill.take(1).unwrap();
        assert_eq!(read, all[1..2]);
        let kept = spill.keep(leftover(&all[..2], &all[8..])).unwrap();
        assert_eq!((kept.events, kept.dropped.len()), (9, 0));
        assert!(events_in(&kept.dir.unwrap()) == all);
    }

    #[test]
    fn nothing_stays_on_disk_if_nothing_waits() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = open(dir.path(), 1 << 30);
        spill.append(&[waiting(1, 1)]).unwrap();
        spill.take(1).unwrap();
        assert_eq!(spill.keep(leftover(&[], &[])).unwrap(), Kept::default());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn events_that_the_limit_leaves_no_room_for_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let spill = open(dir.path(), 2_500);
        let all: Vec<Waiting> = (1..=6).map(|ticket| waiting(ticket, 1_000)).collect();
        let kept = spill.keep(leftover(&all[..3], &all[3..])).unwrap();
        assert_eq!(kept.events, 2);
        let run = Some("r-a".parse().unwrap());
        assert_eq!(kept.dropped, BTreeMap::from([(None, 2), (run, 2)]));
        assert!(events_in(&kept.dir.unwrap()) == all[..2], "the oldest are kept");
    }
}
