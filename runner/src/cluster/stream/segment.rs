//! A file of the spill, and the encoding of its events.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use protocol::id::{Epoch, RunId};

use super::buffer::Waiting;

/// The file extension of a segment.
pub(super) const SEGMENT: &str = "events";
/// The file extension of an unreadable segment, which is kept for inspection.
pub(super) const UNREADABLE: &str = "unreadable";
const HEADER: usize = 8 + 8 + 4 + 4;
/// Denotes a missing epoch.
const NO_EPOCH: i64 = i64::MIN;

#[derive(Debug)]
pub(super) struct Segment {
    path: PathBuf,
    file: File,
    written: u64,
    read: u64,
    /// The oldest unread ticket.
    oldest: Option<u64>,
    /// The newest ticket.
    newest: u64,
    /// The number of unread events by run.
    unread: BTreeMap<Option<RunId>, u64>,
}

impl Segment {
    pub(super) fn create(dir: &Path, number: u64) -> io::Result<Self> {
        let path = dir.join(format!("{number:08}.{SEGMENT}"));
        let file = private_file(&path)?;
        Ok(Self {
            path,
            file,
            written: 0,
            read: 0,
            oldest: None,
            newest: 0,
            unread: BTreeMap::new(),
        })
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) fn is_partly_read(&self) -> bool {
        self.read > 0
    }

    /// Returns the oldest unread ticket, or `None` if everything was read.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.oldest
    }

    pub(super) fn append(&mut self, batch: &[Waiting]) -> io::Result<u64> {
        let mut bytes = Vec::with_capacity(batch.iter().map(encoded_len).sum());
        for waiting in batch {
            encode(waiting, &mut bytes);
        }
        // After a partial write, the next batch overwrites it.
        self.file.write_all_at(&bytes, self.written)?;
        self.written += bytes.len() as u64;
        self.oldest = self.oldest.or_else(|| batch.first().map(|waiting| waiting.ticket));
        self.newest = batch.last().map_or(self.newest, |waiting| waiting.ticket);
        for waiting in batch {
            *self.unread.entry(waiting.run.clone()).or_default() += 1;
        }
        Ok(bytes.len() as u64)
    }

    /// Reads about `about` bytes of the oldest unread events, and returns them with their length in
    /// the file. If it fails, nothing changes.
    pub(super) fn take(&mut self, about: usize) -> io::Result<(Vec<Waiting>, u64)> {
        let left = usize::try_from(self.written - self.read).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(about.max(HEADER))];
        self.file.read_exact_at(&mut bytes, self.read)?;
        if let Some(one) = record_len(&bytes).filter(|one| *one > bytes.len()) {
            if one > left {
                return Err(io::ErrorKind::InvalidData.into());
            }
            bytes.resize(one, 0);
            self.file.read_exact_at(&mut bytes, self.read)?;
        }
        let (taken, used) = decode_all(&Bytes::from(bytes))?;
        if taken.is_empty() && left > 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let read = self.read + used as u64;
        let oldest = if read < self.written { Some(self.ticket_at(read)?) } else { None };
        (self.read, self.oldest) = (read, oldest);
        for waiting in &taken {
            if let Some(count) = self.unread.get_mut(&waiting.run) {
                *count = count.saturating_sub(1);
            }
        }
        Ok((taken, used as u64))
    }

    fn ticket_at(&self, at: u64) -> io::Result<u64> {
        let mut ticket = [0; 8];
        self.file.read_exact_at(&mut ticket, at)?;
        Ok(u64::from_le_bytes(ticket))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Renames the file, so that nobody reads it as a segment. Returns the unread events.
    pub(super) fn set_aside(self) -> UnreadableSegment {
        let bytes = self.written - self.read;
        let path = self.path.with_extension(UNREADABLE);
        let path = fs::rename(&self.path, &path).map_or(self.path, |()| path);
        let mut lost = self.unread;
        lost.retain(|_, count| *count > 0);
        let tickets = self.oldest.map(|oldest| oldest..=self.newest);
        UnreadableSegment { path, lost, bytes, tickets }
    }

    pub(super) fn remove(self) {
        if let Err(cause) = fs::remove_file(&self.path) {
            // Its events would be published twice, which readers tolerate.
            tracing::debug!(path = %self.path.display(), %cause, "a segment cannot be removed");
        }
    }

    #[cfg(test)]
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Makes every read fail.
    #[cfg(test)]
    pub(super) fn break_reads(&mut self) {
        self.file = OpenOptions::new().write(true).open(&self.path).unwrap();
    }
}

/// A segment that cannot be read.
pub(super) struct UnreadableSegment {
    pub(super) path: PathBuf,
    /// The number of lost events by run.
    pub(super) lost: BTreeMap<Option<RunId>, u64>,
    /// Their size in the file.
    pub(super) bytes: u64,
    /// Their tickets.
    pub(super) tickets: Option<RangeInclusive<u64>>,
}

/// Creates a file that only this user can access.
pub(super) fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

fn run_text(waiting: &Waiting) -> &str {
    waiting.run.as_ref().map_or("", RunId::as_str)
}

pub(super) fn encoded_len(waiting: &Waiting) -> usize {
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
