//! Reads runs and nodes from the store.

use std::collections::HashMap;

use protocol::definition;
use protocol::id::{NodeId, PipelineId, RunId, StepName};
use protocol::names;
use protocol::run::{NodeEntry, RunRecord, Status};
use protocol::time::Millis;
use protocol::wait_list::WaitList;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Client, Error, Listed, decoded};
use crate::ports::{Entry, Store, StoreError, Txn};

/// How many records are read at once. Each can have half a megabyte.
const AT_ONCE: usize = 16;

/// Selects runs.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Whether to include ended runs.
    pub ended: bool,
    /// Only runs of this pipeline.
    pub pipeline: Option<PipelineId>,
    /// Only runs with this status.
    pub status: Option<Status>,
}

impl RunFilter {
    fn matches(&self, record: &RunRecord) -> bool {
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
    /// The record and its definition as JSON, including fields that this version does not know.
    pub stored: Value,
    /// Its place on the wait list, while it waits.
    pub waits: Option<PlaceInList>,
}

/// The position of a run on the wait list of its pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlaceInList {
    /// Counted from 1.
    pub position: usize,
    /// The number of waiting runs.
    pub waiting: usize,
    /// The run starts no earlier, in milliseconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due: Option<Millis>,
}

impl PlaceInList {
    fn of(run: &RunId, list: &WaitList) -> Option<Self> {
        let before = list.position(run)?;
        let due = list.waiting.get(before)?.due;
        Some(Self { position: before + 1, waiting: list.waiting.len(), due })
    }
}

impl KnownRun {
    fn of(entry: &Entry, definition: Option<&Entry>) -> Result<Self, Error> {
        let value = definition.map(|definition| definition.value.as_slice());
        let read = definition::read(&entry.value, value).map_err(|cause| Error::Unreadable {
            key: entry.key.clone(),
            cause: cause.to_string(),
        })?;
        let mut stored: Value = decoded(&entry.key, &entry.value)?;
        if let (Some(definition), Some(stored)) = (definition, stored.as_object_mut()) {
            let parts: Map<String, Value> = decoded(&definition.key, &definition.value)?;
            for (key, part) in parts {
                stored.entry(key).or_insert(part);
            }
        }
        Ok(Self { record: read.record, stored, waits: None })
    }

    /// Whether the run can be on a wait list. Its first owner makes it the first attempt.
    fn may_wait(&self) -> bool {
        self.record.attempt == 0 && !self.record.status.is_ended()
    }

    fn pipeline(&self) -> Option<PipelineId> {
        PipelineId::new(&self.record.group, &self.record.name).ok()
    }

    /// Checks that the run's definition has the step.
    ///
    /// # Errors
    /// [`Error::NoSuchStep`] if it does not.
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
    /// Returns a run.
    ///
    /// # Errors
    /// [`Error::UnknownRun`] if it has no record.
    pub async fn run(&self, run: &RunId) -> Result<KnownRun, Error> {
        let store = self.services.store().await?;
        let found = find_run(store.as_ref(), run).await?;
        let mut found = found.ok_or_else(|| Error::UnknownRun(run.clone()))?;
        if found.may_wait()
            && let Some(pipeline) = found.pipeline()
        {
            let list = store.get(&names::wait_key(&pipeline)).await?;
            found.waits = list.and_then(|list| PlaceInList::of(run, &wait_list(&list).ok()?));
        }
        Ok(found)
    }

    /// The runs, newest first.
    ///
    /// # Errors
    /// [`Error::Store`]
    pub async fn runs(&self, filter: &RunFilter) -> Result<Listed<KnownRun>, Error> {
        let store = self.services.store().await?;
        let wants_ended = filter.ended || filter.status.is_some_and(Status::is_ended);
        let found = if wants_ended {
            all_records(store.as_ref()).await?
        } else {
            records(store.as_ref(), &open_runs(store.as_ref()).await?).await?
        };
        let runs = found.iter().map(|(record, of)| KnownRun::of(record, of.as_ref()));
        let mut runs: Listed<KnownRun> = runs.collect();
        runs.readable.retain(|run| filter.matches(&run.record));
        if runs.readable.iter().any(KnownRun::may_wait) {
            let lists = self.wait_lists().await?.readable;
            for run in runs.readable.iter_mut().filter(|run| run.may_wait()) {
                let of_run = |(id, _): &&(PipelineId, WaitList)| {
                    id.group() == run.record.group && id.name() == run.record.name
                };
                let list = lists.iter().find(of_run);
                run.waits = list.and_then(|(_, list)| PlaceInList::of(&run.record.run_id, list));
            }
        }
        runs.readable.sort_by(|one, other| {
            let age = |run: &KnownRun| (run.record.scheduled_at, run.record.run_id.clone());
            age(other).cmp(&age(one))
        });
        Ok(runs)
    }

    /// The wait lists and their pipelines.
    ///
    /// # Errors
    /// [`Error::Store`]
    pub async fn wait_lists(&self) -> Result<Listed<(PipelineId, WaitList)>, Error> {
        let store = self.services.store().await?;
        let lists = store.list(names::WAIT_LISTS).await?.entries;
        Ok(lists.iter().map(|entry| Ok((pipeline_of_list(entry)?, wait_list(entry)?))).collect())
    }

    /// The nodes of the cluster, the oldest first.
    ///
    /// # Errors
    /// [`Error::Store`]
    pub async fn nodes(&self) -> Result<Listed<(NodeId, NodeEntry)>, Error> {
        let store = self.services.store().await?;
        let entries = store.list(names::NODES).await?.entries;
        let nodes = entries.iter().map(|entry| {
            let name = entry.key.strip_prefix(names::NODES).unwrap_or(&entry.key);
            Ok((NodeId::from_stored(name), decoded::<NodeEntry>(&entry.key, &entry.value)?))
        });
        let mut nodes: Listed<(NodeId, NodeEntry)> = nodes.collect();
        nodes.readable.sort_by_key(|(_, node)| node.started_at);
        Ok(nodes)
    }
}

impl Client {
    /// The reason why the store rejects all writes, if it does. No node can record it then. A
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

fn pipeline_of_list(entry: &Entry) -> Result<PipelineId, Error> {
    let name = entry.key.strip_prefix(names::WAIT_LISTS).and_then(|name| name.split_once(':'));
    let (group, name) = name.unwrap_or_default();
    PipelineId::new(group, name)
        .map_err(|cause| Error::Unreadable { key: entry.key.clone(), cause: cause.to_string() })
}

fn wait_list(entry: &Entry) -> Result<WaitList, Error> {
    decoded(&entry.key, &entry.value)
}

/// The record of a run. `None` if there is none.
pub(super) async fn find_run(store: &dyn Store, run: &RunId) -> Result<Option<KnownRun>, Error> {
    let look = Txn::new().read(names::run_key(run)).read(names::definition_key(run));
    let look = store.txn(look).await?;
    look.entry(0).map(|record| KnownRun::of(record, look.entry(1))).transpose()
}

/// The runs with an open mark.
pub(super) async fn open_runs(store: &dyn Store) -> Result<Vec<RunId>, Error> {
    let marks = store.list(names::OPEN).await?.entries;
    let id = |entry: &Entry| entry.key.strip_prefix(names::OPEN)?.parse().ok();
    Ok(marks.iter().filter_map(id).collect())
}

/// The entry of a record, and the entry of its definition.
pub(super) type Record = (Entry, Option<Entry>);

/// The records of these runs. Runs without a record are left out.
pub(super) async fn records(store: &dyn Store, runs: &[RunId]) -> Result<Vec<Record>, Error> {
    let mut found = Vec::new();
    for some in runs.chunks(AT_ONCE) {
        let look = some.iter().fold(Txn::new(), |txn, run| {
            txn.read(names::run_key(run)).read(names::definition_key(run))
        });
        let mut reads =
            store.txn(look).await?.reads.into_iter().map(|read| read.into_iter().next());
        while let (Some(record), Some(definition)) = (reads.next(), reads.next()) {
            found.extend(record.map(|record| (record, definition)));
        }
    }
    Ok(found)
}

/// All records in the store.
async fn all_records(store: &dyn Store) -> Result<Vec<Record>, Error> {
    let records = store.list(names::RUNS).await?.entries;
    let definitions = store.list(names::DEFINITIONS).await?.entries.into_iter();
    let run =
        |definition: &Entry| definition.key.strip_prefix(names::DEFINITIONS).map(str::to_owned);
    let mut definitions: HashMap<String, Entry> =
        definitions.filter_map(|definition| Some((run(&definition)?, definition))).collect();
    let with_definition = records.into_iter().map(|record| {
        let run = record.key.strip_prefix(names::RUNS).unwrap_or_default();
        let definition = definitions.remove(run);
        (record, definition)
    });
    Ok(with_definition.collect())
}
