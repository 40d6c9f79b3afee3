//! Reads a log that is not in the cache: from the stream, or from the archive.

use protocol::run::RunRecord;
use tracing::warn;

use super::archive::ArchiveLines;
use super::shared::Shared;
use super::stream::{Step, StreamLines};
use crate::client::Error;

/// The lines of a log that is not in the cache.
#[derive(Debug)]
pub(super) enum Source {
    /// From the event stream.
    Stream(Box<StreamLines>),
    /// From the archive.
    Archive(ArchiveLines),
}

impl Source {
    /// Opens the log of a run. Prefers the stream, unless its retention has removed the log's
    /// beginning and there is an archive.
    ///
    /// # Errors
    /// Errors of the services.
    pub(super) async fn open(shared: &Shared, record: &RunRecord) -> Result<Self, Error> {
        let run = &record.run_id;
        if let Some(archive) = &shared.archive
            && record.status.is_ended()
            && shared.client.past_retention(record.scheduled_at.0).await?.is_some()
        {
            match archive.open(run, &record.group, &record.name).await {
                Ok(Some(lines)) => return Ok(Self::Archive(lines)),
                Ok(None) => {}
                Err(cause) => {
                    warn!(run.id = %run, %cause, "the archived log of run {run} cannot be read");
                }
            }
        }
        Ok(Self::Stream(Box::new(StreamLines::open(&shared.client, run).await?)))
    }

    /// The next lines.
    ///
    /// # Errors
    /// Errors of the services.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Step, Error> {
        match self {
            Self::Stream(lines) => lines.next().await,
            Self::Archive(lines) => Ok(lines.next().await),
        }
    }
}
