//! The look: the state that is read before a start is claimed, all of it at one revision.

use protocol::command::{Start, Target};
use protocol::id::{PipelineId, RunId};
use protocol::names;
use protocol::run::{Registered, StopEntry};

use super::records::{RunKey, RunKeys, RunTxn as _, entry};
use crate::ports::{Entry, Txn, TxnReply};
use crate::rules::run::StopWhy;

/// The state read from the store before a start is claimed, all at one revision.
#[derive(Default)]
pub(super) struct Look {
    pub(super) run: RunKeys,
    pub(super) pipeline: Option<Entry>,
    pub(super) logger: Option<Entry>,
    pub(super) parent: RunKeys,
}

impl Look {
    /// Creates a transaction that reads this state.
    pub(super) fn read(run: &RunId, start: &Start) -> Txn {
        Self::with(Txn::new(), run, start).read_keys(run, &[RunKey::Definition])
    }

    /// Adds this state to the reads of a claim. The definition can be large, and is read only if
    /// the claim fails.
    pub(super) fn claim(txn: Txn, run: &RunId, start: &Start) -> Txn {
        Self::with(txn, run, start).read_keys_otherwise(run, &[RunKey::Definition])
    }

    fn with(txn: Txn, run: &RunId, start: &Start) -> Txn {
        let keys = [RunKey::Seen, RunKey::Stop, RunKey::Owner, RunKey::Record];
        let mut txn = txn.read_keys(run, &keys);
        if let Some(id) = pipeline_id(start) {
            txn = txn.read(names::pipeline_key(&id));
        }
        if let Some(logger) = &start.logger {
            txn = txn.read(logger_key(logger));
        }
        if let Some(parent) = &start.parent {
            txn = txn.read_keys(&parent.run_id, &[RunKey::Record, RunKey::Definition]);
        }
        txn
    }

    /// Parses the reply to [`Look::read`] or [`Look::claim`].
    pub(super) fn of(reply: &TxnReply, run: &RunId, start: &Start) -> Self {
        let pipeline = pipeline_id(start).map(|id| names::pipeline_key(&id));
        let parent = start.parent.as_ref();
        Self {
            run: RunKeys::of(run, reply),
            pipeline: pipeline.and_then(|key| entry(reply, &key)),
            logger: start.logger.as_ref().and_then(|logger| entry(reply, &logger_key(logger))),
            parent: parent.map(|it| RunKeys::of(&it.run_id, reply)).unwrap_or_default(),
        }
    }

    /// Why the run is to be stopped, if a stop was recorded before its start arrived.
    pub(super) fn stop_why(&self) -> Option<StopWhy> {
        let entry = self.run.stop.as_ref()?;
        let stop = serde_json::from_slice::<StopEntry>(&entry.value);
        Some(stop.map_or(StopWhy::User { reason: None }, StopWhy::of_entry))
    }
}

/// Returns the pipeline whose key is read and compared. An inline definition can have no valid id.
pub(super) fn pipeline_id(start: &Start) -> Option<PipelineId> {
    match &start.target {
        Target::Stored(id) => Some(id.clone()),
        Target::Inline(pipeline) => pipeline.id().ok(),
    }
}

/// Returns the key of a logger.
pub(super) fn logger_key(logger: &impl std::fmt::Display) -> String {
    format!("{}{logger}", names::LOGGERS)
}

/// Returns the URL of a registered logger. `None` if the entry is missing or unreadable.
pub(super) fn logger_url(entry: Option<&Entry>) -> Option<String> {
    let registered: Registered = serde_json::from_slice(&entry?.value).ok()?;
    Some(registered.url)
}
