//! Events on disk, while the broker does not take them: files that nobody else sees, each of them
//! removed the moment it is made, so that none outlives the process.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use protocol::id::{Epoch, RunId};

use super::buffer::Waiting;

/// A file is let go when it is read, so that what is confirmed does not stay for long.
const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
const HEADER: usize = 8 + 8 + 4 + 4;
/// Stands for "no epoch".
const NO_EPOCH: i64 = i64::MIN;

/// The files, oldest first.
#[derive(Debug)]
pub(super) struct Spill {
    dir: PathBuf,
    segments: VecDeque<Segment>,
    /// Written and not read yet.
    bytes: u64,
    limit: u64,
}

#[derive(Debug)]
struct Segment {
    file: File,
    written: u64,
    read: u64,
}

impl Spill {
    /// Makes the directory, and tries whether a file can be made in it.
    pub(super) fn open(dir: &Path, limit: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        private_file(dir)?;
        Ok(Self { dir: dir.to_owned(), segments: VecDeque::new(), bytes: 0, limit })
    }

    /// Where the files are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether so many more bytes may be written.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.bytes.saturating_add(bytes as u64) <= self.limit
    }

    /// Writes all of them or none.
    pub(super) fn append(&mut self, batch: &[Waiting]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(batch.iter().map(encoded_len).sum());
        for waiting in batch {
            encode(waiting, &mut bytes);
        }
        if self.segments.back().is_none_or(|last| last.written >= SEGMENT_BYTES) {
            let file = private_file(&self.dir)?;
            self.segments.push_back(Segment { file, written: 0, read: 0 });
        }
        let Some(last) = self.segments.back_mut() else { return Ok(()) };
        last.file.write_all_at(&bytes, last.written)?;
        last.written += bytes.len() as u64;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Reads the oldest events, about so many bytes of them, and forgets them; with the ticket that is
    /// the oldest then. Nothing is forgotten where it fails.
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
        if emptied {
            self.segments.pop_front();
        } else if let Some(first) = self.segments.front_mut() {
            first.read = read;
        }
        Ok((taken, next))
    }
}

impl Segment {
    fn ticket_at(&self, at: u64) -> io::Result<u64> {
        let mut ticket = [0; 8];
        self.file.read_exact_at(&mut ticket, at)?;
        Ok(u64::from_le_bytes(ticket))
    }
}

/// A file without a name, for us alone.
fn private_file(dir: &Path) -> io::Result<File> {
    let file = tempfile::tempfile_in(dir)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

fn run_text(waiting: &Waiting) -> &str {
    waiting.run.as_ref().map_or("", RunId::as_str)
}

fn encoded_len(waiting: &Waiting) -> usize {
    HEADER + run_text(waiting).len() + waiting.body.len()
}

/// Ticket, epoch, the lengths of run and body, run, body.
fn encode(waiting: &Waiting, to: &mut Vec<u8>) {
    let run = run_text(waiting);
    to.extend(waiting.ticket.to_le_bytes());
    to.extend(waiting.epoch.map_or(NO_EPOCH, |epoch| epoch.0).to_le_bytes());
    // No event comes near 4 GiB: the broker's own limit is 128 MiB.
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

/// How long the first record is; `None` where not even its header is there.
fn record_len(bytes: &[u8]) -> Option<usize> {
    let (run, body) = lengths(bytes)?;
    Some(HEADER + run + body)
}

/// All whole records, and how long they are together.
fn decode_all(bytes: &Bytes) -> io::Result<(Vec<Waiting>, usize)> {
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
    // A copy: a slice would keep the whole batch in memory until its last event is confirmed.
    let body = Bytes::copy_from_slice(record.get(HEADER + run..)?);
    Some(Waiting::new(ticket, named, epoch, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(ticket: u64, size: usize) -> Waiting {
        let run = ticket.is_multiple_of(2).then(|| "r-a".parse().unwrap());
        let epoch = ticket.is_multiple_of(3).then_some(Epoch(7));
        let byte = u8::try_from(ticket % 251).unwrap();
        Waiting::new(ticket, run, epoch, Bytes::from(vec![byte; size]))
    }

    #[test]
    fn events_come_back_as_they_were_and_leave_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(dir.path(), 1 << 30).unwrap();
        let all: Vec<Waiting> = (1..=400).map(|ticket| waiting(ticket, 40_000)).collect();
        for batch in all.chunks(7) {
            spill.append(batch).unwrap();
        }
        assert!(spill.segments.len() > 2);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "its files have no name");
        let mut back = Vec::new();
        loop {
            let (read, oldest) = spill.take(1 << 20).unwrap();
            back.extend(read);
            let Some(oldest) = oldest else { break };
            assert_eq!(oldest, back.len() as u64 + 1);
        }
        assert!(back == all);
        assert_eq!((spill.bytes, spill.segments.len()), (0, 0));
    }

    #[test]
    fn an_event_larger_than_what_is_read_at_once_comes_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(dir.path(), 1 << 30).unwrap();
        let all = [waiting(1, 100_000), waiting(2, 0), waiting(3, 5)];
        spill.append(&all).unwrap();
        assert_eq!(spill.take(1_000).unwrap(), (all[..1].to_vec(), Some(2)));
        assert_eq!(spill.take(1_000).unwrap(), (all[1..].to_vec(), None));
        assert_eq!(spill.take(1_000).unwrap(), (Vec::new(), None));
    }

    #[test]
    fn what_is_read_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(dir.path(), 100_000).unwrap();
        spill.append(&[waiting(1, 60_000)]).unwrap();
        assert!(!spill.has_room(60_000));
        spill.take(1 << 20).unwrap();
        assert!(spill.has_room(60_000));
    }

    #[test]
    fn its_directory_and_files_are_for_us_alone() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("state/spill");
        let mut spill = Spill::open(&inner, 1 << 20).unwrap();
        spill.append(&[waiting(1, 1)]).unwrap();
        let mode = |metadata: std::fs::Metadata| metadata.permissions().mode() & 0o777;
        assert_eq!(mode(inner.metadata().unwrap()), 0o700);
        assert_eq!(mode(spill.segments[0].file.metadata().unwrap()), 0o600);
    }
}
