//! Writes a requested log to the cache.

use std::sync::Arc;

use protocol::run::RunRecord;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::warn;

use super::file::LogFile;
use super::shared::Shared;
use super::source::Source;
use super::stream::Step;
use crate::client::Error;

/// Creates the log of a run in the cache and sends it to its reader, or `None` if that is not
/// possible. Then writes the log to its end, or until the file is removed from the cache or the node
/// stops.
pub(super) async fn fill(
    shared: Arc<Shared>,
    record: RunRecord,
    reader: oneshot::Sender<Option<Arc<LogFile>>>,
    _permit: OwnedSemaphorePermit,
) {
    let log = shared.create(&record.run_id).await;
    // The reader may have been cancelled. The next one finds the log.
    reader.send(log.clone()).ok();
    let Some(log) = log else { return };
    let filled = shared.stop.run_until_cancelled(copy(&shared, &log, &record)).await;
    if let Some(Err(cause)) = &filled {
        let run = log.run();
        warn!(run.id = %run, %cause, "the log of run {run} is not cached");
    }
    if !matches!(filled, Some(Ok(()))) {
        shared.remove(&log).await;
    }
}

async fn copy(shared: &Shared, log: &Arc<LogFile>, record: &RunRecord) -> Result<(), Error> {
    let mut source = Source::open(shared, record).await?;
    loop {
        match source.next().await? {
            Step::Lines(lines) => {
                if !shared.push(log, lines).await {
                    return Ok(());
                }
            }
            Step::CaughtUp => log.note_current(),
            Step::End(end) => {
                shared.finish(log, end).await;
                return Ok(());
            }
        }
    }
}
