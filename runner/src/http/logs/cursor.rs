//! Reads a log in order, from whichever source has it.

use std::sync::Arc;
use std::time::Duration;

use protocol::id::RunId;
use protocol::run::RunRecord;
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;
use tracing::debug;

use super::block::End;
use super::file::{Extent, LogFile};
use super::fill::fill;
use super::line::Line;
use super::shared::Shared;
use super::source::Source;
use super::stream::Step;
use crate::client::Error;

/// How long a log in which something is missing is served from the cache. Then it is read again,
/// because a worker may have published the missing part since.
const TRUST_INCOMPLETE: Duration = Duration::from_secs(60);

/// The next part of a log.
#[derive(Debug, Clone, PartialEq)]
pub enum Batch {
    /// The next lines. There is at least one.
    Lines(Vec<Line>),
    /// The log has no more lines at present. The next call waits for more. Reported at most once.
    CaughtUp,
    /// The log has no more lines.
    End(Arc<End>),
}

/// A position in the log of a run.
#[derive(Debug)]
pub struct Cursor {
    shared: Arc<Shared>,
    run: RunId,
    next: u64,
    has_caught_up: bool,
    reading: Reading,
}

#[derive(Debug)]
enum Reading {
    File(Arc<LogFile>, watch::Receiver<Extent>),
    Source(Source),
}

impl Reading {
    fn file(log: Arc<LogFile>) -> Self {
        let extent = log.extent();
        Self::File(log, extent)
    }
}

impl Cursor {
    /// Opens the log of a run at a line.
    pub(super) async fn open(shared: &Arc<Shared>, run: &RunId, next: u64) -> Result<Self, Error> {
        let reading = match shared.cached(run).await {
            Some(log) if is_trusted(&log) => Reading::file(log),
            Some(log) => {
                shared.remove(&log).await;
                filled(shared, run).await?
            }
            None => filled(shared, run).await?,
        };
        let (shared, run) = (Arc::clone(shared), run.clone());
        Ok(Self { shared, run, next: next.max(1), has_caught_up: false, reading })
    }

    /// The number of the next line.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Moves on to a line.
    pub fn skip_to(&mut self, line: u64) {
        self.next = self.next.max(line);
    }

    /// The next part of the log. Ends with an error if the node stops.
    ///
    /// # Errors
    /// Errors of the services.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Result<Batch, Error> {
        let stop = self.shared.stop.clone();
        loop {
            let step = match &mut self.reading {
                Reading::File(log, extent) => {
                    let reading = in_file(log, extent, self.next, self.has_caught_up);
                    stop.run_until_cancelled(reading).await
                }
                Reading::Source(source) => {
                    stop.run_until_cancelled(source.next()).await.map(|step| step.map(Some))
                }
            };
            let Some(step) = step.transpose()?.flatten() else {
                if stop.is_cancelled() {
                    return Err(crate::ports::EventsError::Closed.into());
                }
                // The file is gone.
                let record = known(&self.shared, &self.run).await?;
                self.reading = Reading::Source(Source::open(&self.shared, &record).await?);
                continue;
            };
            match step {
                Step::Lines(mut lines) => {
                    lines.retain(|line| line.line >= self.next);
                    if let Some(last) = lines.last() {
                        self.next = last.line + 1;
                        return Ok(Batch::Lines(lines));
                    }
                }
                Step::CaughtUp if self.has_caught_up => {}
                Step::CaughtUp => {
                    self.has_caught_up = true;
                    return Ok(Batch::CaughtUp);
                }
                Step::End(end) => return Ok(Batch::End(Arc::new(end))),
            }
        }
    }

    /// The log's file in the cache, and its number of lines, once the file is current. `None` if
    /// there is no file.
    pub(super) async fn current_file(&mut self) -> Option<(Arc<LogFile>, u64)> {
        let Reading::File(log, extent) = &mut self.reading else { return None };
        let current = extent.wait_for(|extent| extent.is_current || extent.is_gone);
        let current = self.shared.stop.run_until_cancelled(current).await?.ok()?.clone();
        (!current.is_gone).then(|| (Arc::clone(log), current.lines))
    }
}

/// Whether a log in the cache can be served.
fn is_trusted(log: &LogFile) -> bool {
    let extent = log.extent();
    let extent = extent.borrow();
    let is_whole = extent.end.as_ref().is_none_or(|end| end.missing.is_empty());
    let is_fresh = extent.ended_at.is_some_and(|at| at.elapsed() < TRUST_INCOMPLETE);
    !extent.is_gone && (is_whole || is_fresh)
}

/// Begins to fill the cache with a log. If that is not possible, the log is read directly.
async fn filled(shared: &Arc<Shared>, run: &RunId) -> Result<Reading, Error> {
    let record = known(shared, run).await?;
    let created = match Arc::clone(&shared.fills).try_acquire_owned() {
        Ok(permit) if shared.has_cache() => {
            // A task of its own, which continues if the request is cancelled.
            let (sender, created) = oneshot::channel();
            shared.tasks.spawn(fill(Arc::clone(shared), record.clone(), sender, permit));
            created.await.ok().flatten()
        }
        Ok(_) => None,
        Err(_) => {
            debug!(run.id = %run, "the log of run {run} is read without the cache: too many are being read");
            None
        }
    };
    let log = match created {
        Some(log) => Some(log),
        // Another request may have been faster.
        None => shared.cached(run).await,
    };
    Ok(match log {
        Some(log) => Reading::file(log),
        None => Reading::Source(Source::open(shared, &record).await?),
    })
}

/// The record of a run. Without one, the whole stream would be searched.
async fn known(shared: &Shared, run: &RunId) -> Result<RunRecord, Error> {
    Ok(shared.client.run(run).await?.record)
}

/// The next part of a log from its file. `None` if the file is gone.
async fn in_file(
    log: &Arc<LogFile>,
    extent: &mut watch::Receiver<Extent>,
    next: u64,
    has_caught_up: bool,
) -> Result<Option<Step>, Error> {
    loop {
        let now = extent.borrow_and_update().clone();
        if now.is_gone {
            return Ok(None);
        }
        if next <= now.lines {
            let reading = Arc::clone(log);
            let read = spawn_blocking(move || reading.read(next)).await;
            return Ok(match read.map_err(std::io::Error::other).flatten() {
                Ok(lines) if !lines.is_empty() => Some(Step::Lines(lines)),
                Ok(_) => None,
                Err(cause) => {
                    debug!(run.id = %log.run(), %cause, "a cached log cannot be read");
                    log.note_gone();
                    None
                }
            });
        }
        if let Some(end) = now.end {
            return Ok(Some(Step::End(End::clone(&end))));
        }
        if now.is_current && !has_caught_up {
            return Ok(Some(Step::CaughtUp));
        }
        if extent.changed().await.is_err() {
            return Ok(None);
        }
    }
}
