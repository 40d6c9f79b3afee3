//! A directory of log files, bounded in bytes. The least recently used log is removed first. All
//! calls block.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use protocol::id::RunId;
use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, flock, futimens};

use super::block::End;
use super::file::LogFile;

/// The end of the name of a complete log.
const COMPLETE: &str = ".jsonl.gz";
/// The end of the name of a log that is being written. After a restart, it is removed.
const PARTIAL: &str = ".part";
/// The file whose lock says that a process uses the directory.
const LOCK: &str = "lock";
/// Space on a disk is allocated in units of this size.
const PAGE: u64 = 4096;
/// The maximum number of complete logs with an open file and an index in memory.
const MAX_OPEN: usize = 64;

/// Log files below a directory that no other process uses.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    limit: u64,
    index: Mutex<Index>,
    /// Held while this value lives.
    _lock: File,
}

#[derive(Debug, Default)]
struct Index {
    entries: HashMap<RunId, Entry>,
    /// The runs by their last use.
    by_use: BTreeMap<u64, RunId>,
    last_use: u64,
    /// The size of all files.
    size: u64,
    /// Runs whose log was opened, the oldest first. Some may have been closed or removed since.
    opened: VecDeque<RunId>,
}

#[derive(Debug)]
struct Entry {
    used: u64,
    size: u64,
    is_complete: bool,
    log: Option<Arc<LogFile>>,
}

impl Index {
    /// Adds an entry, or notes its size and use.
    fn note(&mut self, run: &RunId, size: u64, change: impl FnOnce(&mut Entry)) {
        self.last_use += 1;
        let size = size.next_multiple_of(PAGE);
        let new = Entry { used: self.last_use, size: 0, is_complete: false, log: None };
        let entry = self.entries.entry(run.clone()).or_insert(new);
        self.by_use.remove(&entry.used);
        self.size = self.size - entry.size + size;
        (entry.used, entry.size) = (self.last_use, size);
        change(entry);
        self.by_use.insert(self.last_use, run.clone());
    }

    fn remove(&mut self, run: &RunId) -> Option<Entry> {
        let entry = self.entries.remove(run)?;
        self.by_use.remove(&entry.used);
        self.size -= entry.size;
        Some(entry)
    }

    /// Notes that a complete log is open. Closes the one that was opened first if too many are.
    fn note_open(&mut self, run: &RunId) {
        self.opened.push_back(run.clone());
        if self.opened.len() > MAX_OPEN
            && let Some(oldest) = self.opened.pop_front()
            && let Some(entry) = self.entries.get_mut(&oldest)
            && entry.is_complete
        {
            entry.log = None;
        }
    }

    fn is_of(&self, log: &Arc<LogFile>) -> bool {
        let known = self.entries.get(log.run()).and_then(|entry| entry.log.as_ref());
        known.is_some_and(|known| Arc::ptr_eq(known, log))
    }
}

impl Cache {
    /// Opens the cache in a directory, which is created if necessary. Removes logs that an earlier
    /// process did not complete. Returns `None` if another process uses the directory.
    pub(super) fn open(dir: &Path, limit: u64) -> io::Result<Option<Self>> {
        // Other users of the machine must not read the logs.
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let options = OpenOptions::new().write(true).create(true).truncate(false).clone();
        let lock = options.open(dir.join(LOCK))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(cause) => return Err(cause.into()),
        }
        let mut found: Vec<(SystemTime, RunId, u64)> = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(run) = name.strip_suffix(COMPLETE).and_then(|run| run.parse().ok()) {
                let about = entry.metadata()?;
                let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push((used, run, about.len()));
            } else if name.ends_with(PARTIAL) {
                fs::remove_file(entry.path())?;
            }
        }
        found.sort_by_key(|(used, ..)| *used);
        let mut index = Index::default();
        for (_, run, size) in found {
            index.note(&run, size, |entry| entry.is_complete = true);
        }
        let cache = Self { dir: dir.to_owned(), limit, index: Mutex::new(index), _lock: lock };
        cache.shrink(&mut cache.index.lock());
        Ok(Some(cache))
    }

    /// Returns the log of a run. A file that is incomplete or cannot be read is removed.
    pub(super) fn get(&self, run: &RunId) -> Option<Arc<LogFile>> {
        let mut index = self.index.lock();
        let entry = index.entries.get(run)?;
        let size = entry.size;
        if let Some(log) = entry.log.clone() {
            index.note(run, size, |_| {});
            return Some(log);
        }
        let opened = File::open(self.complete(run)).and_then(|file| {
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            // The order of use after a restart is not worth an error.
            futimens(&file, &Timestamps { last_access: now, last_modification: now }).ok();
            LogFile::open(run.clone(), file)
        });
        let Ok(Some(log)) = opened else {
            index.remove(run);
            fs::remove_file(self.complete(run)).ok();
            return None;
        };
        let log = Arc::new(log);
        index.note(run, size, |entry| entry.log = Some(Arc::clone(&log)));
        index.note_open(run);
        Some(log)
    }

    /// Creates the log of a run. Returns `None` if the run has a log.
    pub(super) fn create(&self, run: &RunId) -> io::Result<Option<Arc<LogFile>>> {
        let mut index = self.index.lock();
        if index.entries.contains_key(run) {
            return Ok(None);
        }
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).clone();
        let file = options.open(self.partial(run))?;
        let log = Arc::new(LogFile::new(run.clone(), file));
        index.note(run, 0, |entry| entry.log = Some(Arc::clone(&log)));
        Ok(Some(log))
    }

    /// Writes the waiting lines of a log to its file, and makes room for them.
    pub(super) fn flush(&self, log: &Arc<LogFile>) -> io::Result<()> {
        let size = log.flush()?;
        self.grew(log, size);
        Ok(())
    }

    /// Completes a log. It survives a restart if nothing is missing in it.
    pub(super) fn finish(&self, log: &Arc<LogFile>, end: End) -> io::Result<()> {
        let is_whole = end.missing.is_empty();
        let size = log.finish(end)?;
        self.grew(log, size);
        let mut index = self.index.lock();
        if is_whole && index.is_of(log) {
            fs::rename(self.partial(log.run()), self.complete(log.run()))?;
            index.note(log.run(), size, |entry| entry.is_complete = true);
            index.note_open(log.run());
        }
        Ok(())
    }

    /// Removes a log. Its readers continue with the stream.
    pub(super) fn remove(&self, log: &Arc<LogFile>) {
        log.note_gone();
        let mut index = self.index.lock();
        if index.is_of(log) {
            self.remove_run(&mut index, log.run());
        }
    }

    fn grew(&self, log: &Arc<LogFile>, size: u64) {
        let mut index = self.index.lock();
        if index.is_of(log) {
            index.note(log.run(), size, |_| {});
            self.shrink(&mut index);
        }
    }

    /// Removes logs until the rest is within the limit.
    fn shrink(&self, index: &mut Index) {
        while index.size > self.limit {
            let Some(run) = index.by_use.first_key_value().map(|(_, run)| run.clone()) else {
                break;
            };
            self.remove_run(index, &run);
        }
    }

    fn remove_run(&self, index: &mut Index, run: &RunId) {
        let Some(entry) = index.remove(run) else { return };
        let path = if entry.is_complete { self.complete(run) } else { self.partial(run) };
        if let Err(cause) = fs::remove_file(&path) {
            tracing::debug!(run.id = %run, %cause, "cannot remove the cached log of run {run}");
        }
        // A complete log can be read as long as its file is open.
        if let Some(log) = entry.log.filter(|_| !entry.is_complete) {
            log.note_gone();
        }
    }

    fn complete(&self, run: &RunId) -> PathBuf {
        self.dir.join(format!("{run}{COMPLETE}"))
    }

    fn partial(&self, run: &RunId) -> PathBuf {
        self.dir.join(format!("{run}{PARTIAL}"))
    }

    /// The size of all files.
    #[cfg(test)]
    pub(super) fn size(&self) -> u64 {
        self.index.lock().size
    }
}
