//! Archives the logs of runs that have ended on this node.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use protocol::id::RunId;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::archive::{Archive, EndedRun};
use super::block::BLOCK;
use super::file::LogFile;
use super::shared::Shared;
use super::stream::{Step, StreamLines};
use crate::client::Error;

/// The maximum time to archive a log.
const DEADLINE: Duration = Duration::from_secs(600);
/// The time that remains for it once the node stops.
const AFTER_STOP: Duration = Duration::from_secs(5);

/// Archives the log of a run that has ended. A failure is only a warning.
pub(super) async fn store(shared: Arc<Shared>, archive: Archive, ended: EndedRun) {
    let run = ended.run.clone();
    let storing = async {
        let _turn = archive.turn().await;
        let log = match shared.cached(&run).await.filter(|log| is_whole(log)) {
            Some(log) => log,
            None => read_back(&shared, &archive, &run).await.map_err(|cause| cause.to_string())?,
        };
        archive.put(&ended, log).await.map_err(|cause| cause.to_string())
    };
    let deadline = async {
        let stopped = async {
            shared.stop.cancelled().await;
            tokio::time::sleep(AFTER_STOP).await;
        };
        tokio::time::timeout(DEADLINE, stopped).await.ok();
    };
    let stored = tokio::select! {
        stored = storing => stored,
        () = deadline => Err("it took too long, or the node stopped".to_owned()),
    };
    if let Err(cause) = stored {
        let store = archive.name();
        warn!(
            run.id = %run, cause,
            "the log of run {run} is not archived in {store}: once it is past the stream's retention, it cannot be read"
        );
    }
}

fn is_whole(log: &LogFile) -> bool {
    log.end().is_some_and(|end| end.missing.is_empty())
}

/// Reads a log back from the stream into a temporary file.
async fn read_back(shared: &Shared, archive: &Archive, run: &RunId) -> Result<Arc<LogFile>, Error> {
    let failed = |cause: io::Error| Error::Unreadable {
        key: format!("the log of run {run}"),
        cause: cause.to_string(),
    };
    let file = archive.scratch_file().await.map_err(failed)?;
    let log = Arc::new(LogFile::new(run.clone(), file));
    let mut lines = StreamLines::open(&shared.client, run).await?;
    loop {
        match lines.next().await? {
            Step::Lines(lines) => {
                if log.push(lines) >= BLOCK {
                    write(&log, LogFile::flush).await.map_err(failed)?;
                }
            }
            Step::CaughtUp => {}
            Step::End(end) => {
                write(&log, |log| log.finish(end)).await.map_err(failed)?;
                return Ok(log);
            }
        }
    }
}

/// Runs a blocking operation on a log file.
async fn write(
    log: &Arc<LogFile>,
    write: impl FnOnce(&LogFile) -> io::Result<u64> + Send + 'static,
) -> io::Result<u64> {
    let log = Arc::clone(log);
    spawn_blocking(move || write(&log)).await.map_err(io::Error::other).flatten()
}
