//! The look: the state that is read before a start is claimed, all of it at one revision.

use protocol::command::{Start, Target};
use protocol::id::{PipelineId, RunId};
use protocol::names;
use protocol::run::{Registered, StopEntry};

use crate::ports::{Entry, Txn, TxnReply};
use crate::rules::run::StopWhy;

/// The state read from the store before a start is claimed, all at one revision.
#[derive(Default)]
pub(super) struct Look {
    pub(super) seen: bool,
    pub(super) stop: Option<Entry>,
    pub(super) pipeline: Option<Entry>,
    pub(super) logger: Option<Entry>,
    pub(super) owner: Option<Entry>,
    pub(super) record: Option<Entry>,
    pub(super) definition: Option<Entry>,
    pub(super) parent: Option<Entry>,
    pub(super) parent_definition: Option<Entry>,
}

impl Look {
    /// Creates a transaction that reads this state.
    pub(super) fn read(run: &RunId, start: &Start) -> Txn {
        Self::with(Txn::new(), run, start).read(names::definition_key(run))
    }

    /// Adds this state to the reads of a claim. The definition can be large, and is read only if
    /// the claim fails.
    pub(super) fn claim(txn: Txn, run: &RunId, start: &Start) -> Txn {
        Self::with(txn, run, start).read_otherwise(names::definition_key(run))
    }

    fn with(txn: Txn, run: &RunId, start: &Start) -> Txn {
        let mut txn = txn
            .read(names::seen_key(run))
            .read(names::stop_key(run))
            .read(names::owner_key(run))
            .read(names::run_key(run));
        if let Some(id) = pipeline_id(start) {
            txn = txn.read(names::pipeline_key(&id));
        }
        if let Some(logger) = &start.logger {
            txn = txn.read(format!("{}{logger}", names::LOGGERS));
        }
        if let Some(parent) = &start.parent {
            txn = txn
                .read(names::run_key(&parent.run_id))
                .read(names::definition_key(&parent.run_id));
        }
        txn
    }

    /// Parses the reply to [`Look::read`] or [`Look::claim`].
    pub(super) fn of(reply: &TxnReply, start: &Start) -> Self {
        let stored = pipeline_id(start).is_some();
        let logger_at = if stored { 5 } else { 4 };
        let parent_at = logger_at + usize::from(start.logger.is_some());
        let definition_at = parent_at + 2 * usize::from(start.parent.is_some());
        Self {
            seen: reply.entry(0).is_some(),
            stop: reply.entry(1).cloned(),
            owner: reply.entry(2).cloned(),
            record: reply.entry(3).cloned(),
            definition: reply.entry(definition_at).cloned(),
            pipeline: if stored { reply.entry(4).cloned() } else { None },
            logger: start.logger.as_ref().and_then(|_| reply.entry(logger_at).cloned()),
            parent: start.parent.as_ref().and_then(|_| reply.entry(parent_at).cloned()),
            parent_definition: start
                .parent
                .as_ref()
                .and_then(|_| reply.entry(parent_at + 1).cloned()),
        }
    }

    /// Why the run is to be stopped, if a stop was recorded before its start arrived.
    pub(super) fn stop_why(&self) -> Option<StopWhy> {
        let entry = self.stop.as_ref()?;
        let reason =
            serde_json::from_slice::<StopEntry>(&entry.value).ok().and_then(|stop| stop.reason);
        Some(StopWhy::User { reason })
    }
}

/// Returns the pipeline whose key is read and compared. An inline definition can have no valid id.
pub(super) fn pipeline_id(start: &Start) -> Option<PipelineId> {
    match &start.target {
        Target::Stored(id) => Some(id.clone()),
        Target::Inline(pipeline) => pipeline.id().ok(),
    }
}

/// Returns the URL of a registered logger. `None` if the entry is missing or unreadable.
pub(super) fn logger_url(entry: Option<&Entry>) -> Option<String> {
    let registered: Registered = serde_json::from_slice(&entry?.value).ok()?;
    Some(registered.url)
}
