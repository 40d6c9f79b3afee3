//! The archive: complete logs in the output store, as one object for each run.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use futures::{StreamExt as _, stream};
use protocol::event::Event;
use protocol::id::{Epoch, NodeId, RunId};
use protocol::names;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::spawn_blocking;
use tokio_util::io::{StreamReader, SyncIoBridge};
use tracing::debug;

use super::block::{self, BLOCK, End, Entry};
use super::file::LogFile;
use super::line::Line;
use super::stream::Step;
use crate::ports::{ByteStream, Origin, OutputLocation, OutputStore, TransferError};

/// The number of logs that are archived at once.
const AT_ONCE: usize = 4;
/// The number of batches of lines that are read ahead.
const AHEAD: usize = 2;
/// The maximum size of a line's JSON: six bytes for each byte of the text, and the other fields.
const MAX_JSON: u64 = 1 << 20;
/// The size of the parts in which a file is sent.
const PART: usize = 64 * 1024;

/// The archive of logs in an output store.
#[derive(Clone)]
pub struct Archive {
    store: Arc<dyn OutputStore>,
    node: NodeId,
    scratch: PathBuf,
    turns: Arc<Semaphore>,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("store", &self.store.name()).finish_non_exhaustive()
    }
}

/// A run that has ended.
#[derive(Debug, Clone)]
pub(super) struct EndedRun {
    pub(super) run: RunId,
    epoch: Epoch,
    group: String,
    name: String,
}

impl EndedRun {
    /// The run that an event ends.
    pub(super) fn of(event: &Event) -> Option<Self> {
        let (run, epoch) = (event.run_id.clone()?, event.epoch?);
        let (group, name) = (event.group.clone()?, event.name.clone()?);
        event.reason.is_ending().then_some(Self { run, epoch, group, name })
    }
}

/// The place of a run's log in the output store.
fn place(group: &str, name: &str, run: &RunId) -> Result<OutputLocation, TransferError> {
    OutputLocation::new(&[group.to_owned(), name.to_owned(), run.to_string()], names::LOG_ARCHIVE)
}

impl Archive {
    /// Archives the logs of runs that end on `node` in an output store. A log that is not in the
    /// cache is written to a temporary file in `scratch` first.
    #[must_use]
    pub fn new(store: Arc<dyn OutputStore>, node: NodeId, scratch: PathBuf) -> Self {
        Self { store, node, scratch, turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Whether this node archives the log of a run that an event ends.
    pub(super) fn is_responsible(&self, event: &Event) -> bool {
        event.reason.is_ending() && event.node.as_ref() == Some(&self.node)
    }

    /// Opens the archived log of a run. Returns `None` if there is none.
    pub(super) async fn open(
        &self,
        run: &RunId,
        group: &str,
        name: &str,
    ) -> Result<Option<ArchiveLines>, TransferError> {
        let bytes = self.store.get(&place(group, name, run)?).await?;
        Ok(bytes.map(|bytes| ArchiveLines::read(run.clone(), bytes)))
    }

    /// Creates a file without a name.
    pub(super) async fn scratch_file(&self) -> io::Result<File> {
        let dir = self.scratch.clone();
        let created = spawn_blocking(move || {
            fs::create_dir_all(&dir)?;
            tempfile::tempfile_in(&dir)
        });
        created.await.map_err(io::Error::other).flatten()
    }

    /// The name of the output store.
    pub(super) fn name(&self) -> String {
        self.store.name()
    }

    /// Waits until few enough other logs are being archived.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.turns).acquire_owned().await.ok()
    }

    /// Stores the complete log of a run. Replaces an earlier one.
    pub(super) async fn put(
        &self,
        ended: &EndedRun,
        log: Arc<LogFile>,
    ) -> Result<(), TransferError> {
        let EndedRun { run, epoch, group, name } = ended;
        let origin = Origin { run: run.clone(), epoch: *epoch, attempt: 1 };
        let size = log.size();
        self.store.put(&place(group, name, run)?, size, bytes_of(log, size), &origin).await?;
        debug!(run.id = %run, bytes = size, "the log of run {run} is archived");
        Ok(())
    }
}

/// The bytes of a complete log.
fn bytes_of(log: Arc<LogFile>, size: u64) -> ByteStream {
    let parts = stream::try_unfold((log, 0), move |(log, offset)| async move {
        let left = usize::try_from(size - offset).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(None);
        }
        let reading = Arc::clone(&log);
        let part = spawn_blocking(move || reading.bytes(offset, left.min(PART))).await;
        let part = part.map_err(io::Error::other).flatten()?;
        let next = offset + part.len() as u64;
        Ok::<_, io::Error>(Some((part, (log, next))))
    });
    parts.boxed()
}

/// The lines of an archived log.
#[derive(Debug)]
pub(super) struct ArchiveLines {
    run: RunId,
    steps: mpsc::Receiver<io::Result<Step>>,
    lines: u64,
}

impl ArchiveLines {
    fn read(run: RunId, bytes: ByteStream) -> Self {
        let (sender, steps) = mpsc::channel(AHEAD);
        let reader = SyncIoBridge::new(StreamReader::new(bytes));
        // Ends with the archive, or when the receiver is dropped.
        drop(spawn_blocking(move || {
            if let Err(cause) = decompress(reader, &sender) {
                sender.blocking_send(Err(cause)).ok();
            }
        }));
        Self { run, steps, lines: 0 }
    }

    /// The next lines. If the archive is damaged, the end of the log says so.
    pub(super) async fn next(&mut self) -> Step {
        let cause = match self.steps.recv().await {
            Some(Ok(Step::Lines(lines))) => {
                self.lines += lines.len() as u64;
                return Step::Lines(lines);
            }
            Some(Ok(Step::End(end))) if end.run_id == self.run && end.lines == self.lines => {
                return Step::End(end);
            }
            Some(Ok(Step::End(_) | Step::CaughtUp)) => "it has another end".to_owned(),
            Some(Err(cause)) => cause.to_string(),
            None => "it is truncated".to_owned(),
        };
        Step::End(End {
            missing: vec![format!("the rest of its archive, which cannot be read: {cause}")],
            ..End::of(self.run.clone(), self.lines)
        })
    }
}

/// Sends the lines of an archive in batches, and then its end. Ends early if the receiver is dropped.
fn decompress(
    archive: SyncIoBridge<StreamReader<ByteStream, bytes::Bytes>>,
    steps: &mpsc::Sender<io::Result<Step>>,
) -> io::Result<()> {
    let mut json = BufReader::new(MultiGzDecoder::new(BufReader::new(archive)));
    let (mut batch, mut size, mut next) = (Vec::<Line>::new(), 0, 1);
    loop {
        let mut text = Vec::new();
        json.by_ref().take(MAX_JSON).read_until(b'\n', &mut text)?;
        match block::entry(&text)? {
            Entry::Line(line) if line.line != next => {
                return Err(io::Error::other(format!("line {next} is missing")));
            }
            Entry::Line(line) => {
                next += 1;
                size += line.size();
                batch.push(line);
                if size < BLOCK {
                    continue;
                }
                size = 0;
                if steps.blocking_send(Ok(Step::Lines(std::mem::take(&mut batch)))).is_err() {
                    return Ok(());
                }
            }
            Entry::End(end) => {
                if batch.is_empty() || steps.blocking_send(Ok(Step::Lines(batch))).is_ok() {
                    steps.blocking_send(Ok(Step::End(end))).ok();
                }
                return Ok(());
            }
        }
    }
}
