//! State shared by the readers and writers of logs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::id::RunId;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::archive::Archive;
use super::block::{BLOCK, End};
use super::cache::Cache;
use super::file::LogFile;
use super::line::Line;
use crate::client::Client;

/// The maximum number of logs that are filled at once.
const MAX_FILLS: usize = 64;

/// The location and size of a node's log cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The directory of the cache.
    pub dir: PathBuf,
    /// The maximum size of the cache in bytes. 0: no cache.
    pub bytes: u64,
}

/// State shared by the readers and writers of logs.
pub(super) struct Shared {
    cache: Option<Arc<Cache>>,
    pub(super) client: Client,
    pub(super) archive: Option<Archive>,
    pub(super) stop: CancellationToken,
    /// The tasks that fill the cache.
    pub(super) tasks: TaskTracker,
    /// Limits the number of these tasks.
    pub(super) fills: Arc<Semaphore>,
    /// Whether the last write failed. Warnings are not repeated.
    is_failing: AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("cache", &self.cache).finish_non_exhaustive()
    }
}

/// Opens the cache, or warns why there is none.
pub(super) async fn open_cache(options: Options) -> Option<Arc<Cache>> {
    let Options { dir, bytes } = options;
    if bytes == 0 {
        return None;
    }
    let path = dir.display().to_string();
    let opened = spawn_blocking(move || Cache::open(&dir, bytes)).await;
    match opened.map_err(io::Error::other).flatten() {
        Ok(Some(cache)) => Some(Arc::new(cache)),
        Ok(None) => {
            info!("logs are not cached: another process uses {path}");
            None
        }
        Err(cause) => {
            warn!(
                %cause,
                "logs are not cached, and reading them takes longer: cannot use {path}; make BOB_DATA_DIR writable, or set BOB_LOG_CACHE_BYTES=0"
            );
            None
        }
    }
}

impl Shared {
    pub(super) fn new(
        cache: Option<Arc<Cache>>,
        client: Client,
        archive: Option<Archive>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            cache,
            client,
            archive,
            stop,
            tasks: TaskTracker::new(),
            fills: Arc::new(Semaphore::new(MAX_FILLS)),
            is_failing: AtomicBool::new(false),
        }
    }

    /// Waits until the tasks that fill the cache have ended.
    pub(super) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Whether there is a cache.
    pub(super) fn has_cache(&self) -> bool {
        self.cache.is_some()
    }

    /// The log of a run in the cache.
    pub(super) async fn cached(&self, run: &RunId) -> Option<Arc<LogFile>> {
        let (cache, run) = (Arc::clone(self.cache.as_ref()?), run.clone());
        spawn_blocking(move || cache.get(&run)).await.ok().flatten()
    }

    /// Creates the log of a run in the cache. Returns `None` if it has one, or if there is no cache.
    pub(super) async fn create(&self, run: &RunId) -> Option<Arc<LogFile>> {
        let (cache, run) = (Arc::clone(self.cache.as_ref()?), run.clone());
        let created = spawn_blocking(move || cache.create(&run)).await;
        match created.map_err(io::Error::other).flatten() {
            Ok(log) => log,
            Err(cause) => {
                self.warn(&cause);
                None
            }
        }
    }

    /// Adds lines to a log. Returns false if the log can no longer be written.
    pub(super) async fn push(&self, log: &Arc<LogFile>, lines: Vec<Line>) -> bool {
        if log.push(lines) < BLOCK {
            return !log.is_gone();
        }
        self.flush(log).await
    }

    /// Writes the waiting lines of a log to its file. Returns false if that is not possible.
    pub(super) async fn flush(&self, log: &Arc<LogFile>) -> bool {
        self.write(log, |cache, log| cache.flush(log)).await
    }

    /// Completes a log.
    pub(super) async fn finish(&self, log: &Arc<LogFile>, end: End) {
        if self.write(log, |cache, log| cache.finish(log, end)).await {
            self.is_failing.store(false, Ordering::Relaxed);
        }
    }

    /// Removes a log from the cache.
    pub(super) async fn remove(&self, log: &Arc<LogFile>) {
        let Some(cache) = self.cache.clone() else { return };
        let log = Arc::clone(log);
        if let Err(cause) = spawn_blocking(move || cache.remove(&log)).await {
            self.warn(&io::Error::other(cause));
        }
    }

    async fn write(
        &self,
        log: &Arc<LogFile>,
        write: impl FnOnce(&Cache, &Arc<LogFile>) -> io::Result<()> + Send + 'static,
    ) -> bool {
        let Some(cache) = self.cache.clone() else { return false };
        let writing = Arc::clone(log);
        let written = spawn_blocking(move || write(&cache, &writing)).await;
        if let Err(cause) = written.map_err(io::Error::other).flatten() {
            self.warn(&cause);
            self.remove(log).await;
        }
        !log.is_gone()
    }

    fn warn(&self, cause: &io::Error) {
        if !self.is_failing.swap(true, Ordering::Relaxed) {
            warn!(%cause, "logs are not cached: cannot write the log cache in BOB_DATA_DIR; they are read from the stream");
        }
    }
}
