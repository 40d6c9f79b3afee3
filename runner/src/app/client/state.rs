//! Runs and nodes, as the store has them.

use protocol::id::{NodeId, PipelineId, RunId, StepName};
use protocol::names;
use protocol::run::{NodeEntry, RunRecord, Status};
use serde_json::Value;

use super::{Client, Error, decoded};
use crate::ports::{Entry, Store, StoreError, Txn};

/// How many records are asked for at a time: each may have half a megabyte.
const AT_ONCE: usize = 16;

/// Which runs are wanted.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Those that have ended too.
    pub ended: bool,
    /// Those of one pipeline.
    pub pipeline: Option<PipelineId>,
    /// Those in one state.
    pub status: Option<Status>,
}

impl RunFilter {
    fn takes(&self, record: &RunRecord) -> bool {
        let of_pipeline = |id: &PipelineId| id.group() == record.group && id.name() == record.name;
        (self.ended || self.status.is_some() || !record.status.is_ended())
            && self.status.is_none_or(|status| status == record.status)
            && self.pipeline.as_ref().is_none_or(of_pipeline)
    }
}

/// A run that has a record.
#[derive(Debug, Clone)]
pub struct KnownRun {
    /// The record.
    pub record: RunRecord,
    /// The same as it is stored, with what this version does not know of it.
    pub stored: Value,
}

impl KnownRun {
    fn of(entry: &Entry) -> Result<Self, Error> {
        let stored = decoded(&entry.key, &entry.value)?;
        Ok(Self { record: decoded(&entry.key, &entry.value)?, stored })
    }

    /// Whether the run can say anything in that step.
    ///
    /// # Errors
    /// [`Error::NoSuchStep`] where its definition has no such step.
    pub fn check_step(&self, step: &StepName) -> Result<(), Error> {
        let defined = self.record.pipeline.iter().flat_map(|pipeline| &pipeline.steps);
        let known: Vec<StepName> = defined.map(|step| step.name.clone()).collect();
        if known.contains(step) {
            return Ok(());
        }
        Err(Error::NoSuchStep { run: self.record.run_id.clone(), step: step.clone(), known })
    }
}

impl Client {
    /// A run.
    ///
    /// # Errors
    /// [`Error::UnknownRun`] where it has no record.
    pub async fn run(&self, run: &RunId) -> Result<KnownRun, Error> {
        let store = self.services.store().await?;
        find_run(store.as_ref(), run).await?.ok_or_else(|| Error::UnknownRun(run.clone()))
    }

    /// Runs, the newest first.
    ///
    /// # Errors
    /// [`Error::Store`], and [`Error::Unreadable`] for a record that is none.
    pub async fn runs(&self, filter: &RunFilter) -> Result<Vec<KnownRun>, Error> {
        let store = self.services.store().await?;
        let wants_ended = filter.ended || filter.status.is_some_and(Status::is_ended);
        let entries = if wants_ended {
            store.list(names::RUNS).await?.entries
        } else {
            records(store.as_ref(), &open_runs(store.as_ref()).await?).await?
        };
        let mut runs = Vec::new();
        for entry in entries {
            let run = KnownRun::of(&entry)?;
            if filter.takes(&run.record) {
                runs.push(run);
            }
        }
        runs.sort_by(|one, other| {
            let age = |run: &KnownRun| (run.record.scheduled_at, run.record.run_id.clone());
            age(other).cmp(&age(one))
        });
        Ok(runs)
    }

    /// The nodes of the cluster, those that have been there longest first.
    ///
    /// # Errors
    /// [`Error::Store`], and [`Error::Unreadable`] for an entry that is none.
    pub async fn nodes(&self) -> Result<Vec<(NodeId, NodeEntry)>, Error> {
        let store = self.services.store().await?;
        let mut nodes = Vec::new();
        for entry in store.list(names::NODES).await?.entries {
            let name = entry.key.strip_prefix(names::NODES).unwrap_or(&entry.key);
            nodes.push((NodeId::found(name), decoded::<NodeEntry>(&entry.key, &entry.value)?));
        }
        nodes.sort_by_key(|(_, node)| node.started_at);
        Ok(nodes)
    }
}

impl Client {
    /// The reason why the store refuses writes from everybody, if it does: no node can record it then. A
    /// missing permission of this user does not count.
    ///
    /// # Errors
    /// [`Error::Store`] if it does not answer.
    pub async fn writes_refused(&self) -> Result<Option<String>, Error> {
        match self.services.store().await?.accepts_writes().await {
            Ok(()) | Err(StoreError::Denied { .. }) => Ok(None),
            Err(cause @ StoreError::WritesRefused { .. }) => Ok(Some(cause.to_string())),
            Err(cause) => Err(cause.into()),
        }
    }
}

/// The record of a run, where there is one.
pub(super) async fn find_run(store: &dyn Store, run: &RunId) -> Result<Option<KnownRun>, Error> {
    let entry = store.get(&names::run_key(run)).await?;
    entry.as_ref().map(KnownRun::of).transpose()
}

/// The runs that somebody still has to look after.
pub(super) async fn open_runs(store: &dyn Store) -> Result<Vec<RunId>, Error> {
    let marks = store.list(names::OPEN).await?.entries;
    let id = |entry: &Entry| entry.key.strip_prefix(names::OPEN)?.parse().ok();
    Ok(marks.iter().filter_map(id).collect())
}

/// The records of these runs, without those that have none.
pub(super) async fn records(store: &dyn Store, runs: &[RunId]) -> Result<Vec<Entry>, Error> {
    let mut found = Vec::new();
    for some in runs.chunks(AT_ONCE) {
        let look = some.iter().fold(Txn::new(), |txn, run| txn.read(names::run_key(run)));
        found.extend(store.txn(look).await?.reads.into_iter().flatten());
    }
    Ok(found)
}
