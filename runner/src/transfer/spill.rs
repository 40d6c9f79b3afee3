//! Text on disk that a logger has not accepted yet: a queue of unnamed files. The oldest is removed
//! once it is used up.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The maximum size of one file, in bytes. Text already read takes up space until the file is
/// removed.
const SEGMENT: u64 = 8 << 20;

/// The disk space shared by all spills.
#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    bytes: u64,
    used: AtomicU64,
}

impl Room {
    /// Up to `bytes` bytes in a directory.
    pub(super) fn new(dir: PathBuf, bytes: u64) -> Self {
        Self { dir, bytes, used: AtomicU64::new(0) }
    }

    fn reserve(&self, bytes: u64) -> bool {
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.bytes);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Creates a file that disappears when its handle is closed, even if the process is killed.
    fn file(&self) -> io::Result<File> {
        fs::create_dir_all(&self.dir)?;
        tempfile::tempfile_in(&self.dir)
    }
}

/// Why text could not be written to disk.
#[derive(Debug)]
pub(super) enum SpillError {
    /// The space is used up.
    Room,
    /// The system returned an error.
    Disk(io::Error),
}

#[derive(Debug)]
struct Segment {
    file: Arc<File>,
    written: u64,
    read: u64,
}

/// A range in a spill file.
#[derive(Debug)]
pub(super) struct Piece {
    file: Arc<File>,
    from: u64,
    bytes: usize,
}

impl Piece {
    /// Reads the range. Blocks.
    pub(super) fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.bytes];
        self.file.read_exact_at(&mut bytes, self.from)?;
        Ok(bytes)
    }
}

/// A queue of text.
#[derive(Debug)]
pub(super) struct Spill {
    room: Arc<Room>,
    segments: VecDeque<Segment>,
    bytes: u64,
}

impl Spill {
    /// Creates an empty spill.
    pub(super) fn new(room: Arc<Room>) -> Self {
        Self { room, segments: VecDeque::new(), bytes: 0 }
    }

    /// Whether it holds no text.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends text, completely or not at all.
    ///
    /// The text goes to the page cache, which takes microseconds.
    pub(super) fn push(&mut self, text: &[u8]) -> Result<(), SpillError> {
        let bytes = text.len() as u64;
        if !self.room.reserve(bytes) {
            return Err(SpillError::Room);
        }
        let written = self.write(text);
        if let Err(error) = written {
            self.room.release(bytes);
            return Err(SpillError::Disk(error));
        }
        self.bytes += bytes;
        Ok(())
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.segments.back().is_none_or(|last| last.written >= SEGMENT) {
            let file = Arc::new(self.room.file()?);
            self.segments.push_back(Segment { file, written: 0, read: 0 });
        }
        if let Some(last) = self.segments.back_mut() {
            // After a partial write, the next text overwrites the partial one.
            last.file.write_all_at(text, last.written)?;
            last.written += text.len() as u64;
        }
        Ok(())
    }

    /// The first `most` bytes, or fewer. They stay until [`Self::drop_first`].
    pub(super) fn first(&self, most: usize) -> Option<Piece> {
        let segment = self.segments.iter().find(|segment| segment.read < segment.written)?;
        let left = usize::try_from(segment.written - segment.read).unwrap_or(usize::MAX);
        let file = Arc::clone(&segment.file);
        Some(Piece { file, from: segment.read, bytes: left.min(most) })
    }

    /// Removes a piece that was read.
    pub(super) fn drop_first(&mut self, piece: &Piece) {
        let bytes = piece.bytes as u64;
        let of = |segment: &&mut Segment| Arc::ptr_eq(&segment.file, &piece.file);
        if let Some(segment) = self.segments.iter_mut().find(of) {
            segment.read += bytes;
            self.bytes -= bytes;
            self.room.release(bytes);
        }
        let used_up = |segment: &Segment| segment.read == segment.written;
        while self.segments.front().is_some_and(used_up) {
            self.segments.pop_front();
        }
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        self.room.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(bytes: u64) -> (tempfile::TempDir, Arc<Room>) {
        let dir = tempfile::tempdir().unwrap();
        let room = Arc::new(Room::new(dir.path().join("made/when/needed"), bytes));
        (dir, room)
    }

    #[test]
    fn spilled_text_returns_in_order_and_frees_its_space() {
        let (_dir, room) = room(30 << 20);
        let mut spill = Spill::new(Arc::clone(&room));
        let text: Vec<u8> = (0..20_u32 << 20).map(|at| at.to_le_bytes()[1]).collect();
        for chunk in text.chunks(100_000) {
            spill.push(chunk).unwrap();
        }
        assert!(spill.segments.len() > 1);
        let mut back = Vec::new();
        while let Some(piece) = spill.first(70_000) {
            back.extend(piece.read().unwrap());
            spill.drop_first(&piece);
        }
        assert!(back == text, "every byte comes back in its place");
        assert!(spill.is_empty() && spill.segments.is_empty());
        assert_eq!(room.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn spilled_data_has_no_file_name_that_could_outlive_the_process() {
        let (dir, room) = room(100);
        let mut spill = Spill::new(Arc::clone(&room));
        spill.push(b"text").unwrap();
        let names = fs::read_dir(dir.path().join("made/when/needed")).unwrap();
        assert_eq!(names.count(), 0, "a worker that is killed leaves nothing");
        assert_eq!(spill.first(4).unwrap().read().unwrap(), b"text");
    }

    #[test]
    fn the_spill_space_is_shared_and_bounded() {
        let (_dir, room) = room(10);
        let (mut one, mut two) = (Spill::new(Arc::clone(&room)), Spill::new(Arc::clone(&room)));
        one.push(b"123456").unwrap();
        assert!(matches!(two.push(b"12345"), Err(SpillError::Room)));
        two.push(b"1234").unwrap();
        drop(one);
        two.push(b"123456").unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_created_is_reported() {
        let (dir, _) = room(10);
        fs::write(dir.path().join("file"), "x").unwrap();
        let room = Arc::new(Room::new(dir.path().join("file/below"), 10));
        let mut spill = Spill::new(Arc::clone(&room));
        assert!(matches!(spill.push(b"x"), Err(SpillError::Disk(_))));
        assert_eq!(room.used.load(Ordering::Relaxed), 0);
    }
}
