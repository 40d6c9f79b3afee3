//! Removes the records of ended runs that are past their retention.
//!
//! Everything else of a run follows its record: each [janitor](super::janitor) removes the images
//! on its engine and the outputs in its directory once the record is gone.
//!
//! One worker of the cluster is in charge: the one whose lease holds [`names::RETENTION`]. This
//! only saves reads, because each removal is a transaction that compares the record and demands
//! that the run has no owner and is not open.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use protocol::definition::{RetentionKeys, retention_of};
use protocol::id::{NodeId, PipelineId, RunId};
use protocol::names;
use protocol::quantity::Span;
use protocol::run::Status;
use protocol::time::{Millis, Timestamp};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::lease::Current;
use super::records::{RunKey, RunKeys, RunTxn as _, owner_value};
use super::shared::Shared;
use super::watchdog::Heartbeat;
use crate::ports::{Entry, Expect, LeaseId, Store, StoreError, Txn};
use crate::rules::retention::{CountSource, EndedRun, Retention, expired};

/// How many records are read at once. Each can have half a megabyte.
const PAGE: usize = 16;

/// Removes expired records periodically, as long as this worker is in charge.
pub(super) async fn run(
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
    mut lease: Current,
    stop: CancellationToken,
) {
    let default =
        Retention { period: shared.options.retention, count: shared.options.retention_count };
    let mut sweep = Sweep::new(Arc::clone(&shared.ports.store), default);
    let spread = shared.ports.host.jitter(shared.options.lease_ttl);
    let mut pause = shared.options.lease_ttl + spread;
    loop {
        let held = {
            let _waits = heartbeat.waits();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                held = lease.wait_for(Option::is_some) => match held {
                    Ok(held) => held.clone(),
                    Err(_) => return,
                },
            }
        };
        pause = shared.options.sweep;
        let Some(held) = held else { continue };
        let now = shared.ports.host.now();
        let swept = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = held.lost.cancelled() => continue,
            swept = sweep.round(&shared.options.node, held.lease, now, &heartbeat) => swept,
        };
        if let Err(cause) = swept {
            warn!(%cause, "runs past their retention are removed later");
        }
    }
}

/// An ended run with the revision of its record.
struct Candidate {
    group: String,
    name: String,
    revision: i64,
    scheduled_at: Millis,
    ended_at: Millis,
}

/// The fields of a record that its retention depends on. The other fields can be of a later
/// version.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RetentionFields {
    group: String,
    name: String,
    status: Status,
    scheduled_at: Timestamp,
    #[serde(default)]
    completed_at: Option<Timestamp>,
}

impl Candidate {
    /// `None` if the run has not ended, or if its record cannot be read or does not say when it
    /// ended.
    fn of(record: &Entry) -> Option<(RunId, Self)> {
        let run = record.key.strip_prefix(names::RUNS)?.parse().ok()?;
        let fields: RetentionFields = serde_json::from_slice(&record.value).ok()?;
        if !fields.status.is_ended() {
            return None;
        }
        let Timestamp(scheduled_at) = fields.scheduled_at;
        let Timestamp(ended_at) = fields.completed_at?;
        let (group, name, revision) = (fields.group, fields.name, record.mod_revision);
        Some((run, Self { group, name, revision, scheduled_at, ended_at }))
    }
}

/// The ended runs of one pipeline, and the revisions of their records.
#[derive(Default)]
struct OfPipeline {
    runs: Vec<EndedRun>,
    revisions: HashMap<RunId, i64>,
}

/// Removes expired records in rounds.
struct Sweep {
    store: Arc<dyn Store>,
    default: Retention,
    /// The retention keys of each ended run. A definition never changes.
    keys: HashMap<RunId, RetentionKeys>,
}

impl Sweep {
    fn new(store: Arc<dyn Store>, default: Retention) -> Self {
        Self { store, default, keys: HashMap::new() }
    }

    /// Removes what is past its retention now, if this worker is in charge.
    async fn round(
        &mut self,
        node: &NodeId,
        lease: LeaseId,
        now: Millis,
        heartbeat: &Heartbeat,
    ) -> Result<(), StoreError> {
        if !self.is_in_charge(node, lease).await? {
            self.keys.clear();
            return Ok(());
        }
        for ((group, name), found) in self.look(heartbeat).await? {
            heartbeat.beat();
            let OfPipeline { runs, revisions } = found;
            let source = self.count_source(&group, &name).await?;
            for run in expired(runs, source, &self.default, now) {
                heartbeat.beat();
                let Some(revision) = revisions.get(&run) else { continue };
                if self.remove(&run, *revision).await? {
                    self.keys.remove(&run);
                    info!(run.id = %run, "run {run} is past its retention: its record is removed");
                }
            }
        }
        Ok(())
    }

    /// Takes charge if no worker is. Returns whether this worker is in charge.
    async fn is_in_charge(&self, node: &NodeId, lease: LeaseId) -> Result<bool, StoreError> {
        let value = owner_value(node, lease);
        let txn = Txn::new()
            .when(names::RETENTION, Expect::Absent)
            .put_leased(names::RETENTION, value.clone(), lease)
            .read_otherwise(names::RETENTION);
        let reply = self.store.txn(txn).await?;
        Ok(reply.committed || reply.entry(0).is_some_and(|entry| entry.value == value))
    }

    /// Reads the ended runs, page by page, by group and name of their pipelines.
    async fn look(
        &mut self,
        heartbeat: &Heartbeat,
    ) -> Result<BTreeMap<(String, String), OfPipeline>, StoreError> {
        let mut pipelines: BTreeMap<_, OfPipeline> = BTreeMap::new();
        let mut known = HashMap::new();
        let mut after: Option<String> = None;
        loop {
            heartbeat.beat();
            let page = self.store.page(names::RUNS, after.as_deref(), PAGE).await?.entries;
            let candidates: Vec<_> = page.iter().filter_map(Candidate::of).collect();
            self.read_keys(&page, &candidates).await?;
            for (run, candidate) in candidates {
                let Candidate { group, name, revision, scheduled_at, ended_at } = candidate;
                let keys = self.keys.get(&run).copied().unwrap_or_default();
                known.insert(run.clone(), keys);
                let period = keys.period.map(Span::as_duration);
                let found = pipelines.entry((group, name)).or_default();
                found.revisions.insert(run.clone(), revision);
                found.runs.push(EndedRun {
                    run,
                    scheduled_at,
                    ended_at,
                    period,
                    count: keys.count,
                });
            }
            if page.len() < PAGE {
                // Forgets runs whose records are gone.
                self.keys = known;
                return Ok(pipelines);
            }
            after = page.into_iter().next_back().map(|last| last.key);
        }
    }

    /// Reads the retention keys of the ended runs of a page that are not known yet.
    async fn read_keys(
        &mut self,
        page: &[Entry],
        ended: &[(RunId, Candidate)],
    ) -> Result<(), StoreError> {
        let is_new = |run: &&RunId| !self.keys.contains_key(*run);
        let new: Vec<RunId> = ended.iter().map(|(run, _)| run).filter(is_new).cloned().collect();
        if new.is_empty() {
            return Ok(());
        }
        let look =
            new.iter().fold(Txn::new(), |txn, run| txn.read_keys(run, &[RunKey::Definition]));
        let reply = self.store.txn(look).await?;
        for run in new {
            let key = RunKey::Record.of(&run);
            let record = page.iter().find(|entry| entry.key == key);
            let record = record.map_or(&[][..], |record| record.value.as_slice());
            let definition = RunKeys::of(&run, &reply).definition;
            let definition = definition.as_ref().map(|definition| definition.value.as_slice());
            self.keys.insert(run, retention_of(record, definition));
        }
        Ok(())
    }

    /// Returns whose `retention-count` applies to a pipeline.
    async fn count_source(&self, group: &str, name: &str) -> Result<CountSource, StoreError> {
        // The record of a rejected start can have a name that no stored pipeline can have.
        let Ok(id) = PipelineId::new(group, name) else { return Ok(CountSource::NewestRun) };
        let stored = self.store.get(&names::pipeline_key(&id)).await?;
        Ok(stored.map_or(CountSource::NewestRun, |stored| {
            CountSource::Stored(RetentionKeys::of(&stored.value).count)
        }))
    }

    /// Removes a record, unless it has changed, or its run is open or owned. The mark of the run ID
    /// outlives it, so that a redelivered start does not run again.
    async fn remove(&self, run: &RunId, revision: i64) -> Result<bool, StoreError> {
        let txn = Txn::new()
            .require_record(run, revision)
            .require_absent(run, RunKey::Open)
            .require_absent(run, RunKey::Owner)
            .delete_ended_record(run);
        Ok(self.store.txn(txn).await?.committed)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::worker::fakes::MemoryStore;

    const DAY: i64 = 86_400_000;
    const WEEK: Retention =
        Retention { period: std::time::Duration::from_secs(7 * 86_400), count: None };

    struct Rig {
        store: Arc<MemoryStore>,
        sweep: Sweep,
    }

    impl Rig {
        fn new(default: Retention) -> Self {
            let store = Arc::new(MemoryStore::default());
            let sweep = Sweep::new(Arc::clone(&store) as Arc<dyn Store>, default);
            Self { store, sweep }
        }

        async fn write(&self, txn: Txn) {
            assert!(self.store.txn(txn).await.unwrap().committed);
        }

        /// Records a run of this pipeline that was accepted and has ended on this day.
        async fn ended(&self, id: &str, day: i64, pipeline: &Value) {
            let run = run(id);
            let at = Timestamp(Millis(day * DAY));
            let record = json!({
                "group": "dev", "name": "x", "status": "passed",
                "scheduled-at": at, "completed-at": at,
            });
            let definition = json!({ "pipeline": pipeline });
            let txn = Txn::new()
                .put(names::run_key(&run), record.to_string().into())
                .put(names::definition_key(&run), definition.to_string().into())
                .put(names::seen_key(&run), Vec::new());
            self.write(txn).await;
        }

        /// Lets the node with this lease sweep on a day.
        async fn sweep_as(&mut self, node: &str, lease: i64, day: i64) {
            let (node, now) = (NodeId::from_stored(node), Millis(day * DAY));
            let heartbeat = Heartbeat::unwatched();
            self.sweep.round(&node, LeaseId(lease), now, &heartbeat).await.unwrap();
        }

        /// The runs that still have a record.
        async fn kept(&self) -> Vec<String> {
            let records = self.store.list(names::RUNS).await.unwrap().entries;
            let id = |entry: &Entry| entry.key.strip_prefix(names::RUNS).unwrap().to_owned();
            records.iter().map(id).collect()
        }
    }

    fn run(id: &str) -> RunId {
        id.parse().unwrap()
    }

    #[tokio::test]
    async fn a_run_is_kept_for_its_own_retention_or_for_the_default_period() {
        let mut rig = Rig::new(WEEK);
        rig.ended("r-default", 0, &json!({})).await;
        rig.ended("r-long", 0, &json!({ "retention": "30d" })).await;
        rig.ended("r-short", 0, &json!({ "retention": "1d" })).await;
        rig.sweep_as("bob/runner-1", 1, 2).await;
        assert_eq!(rig.kept().await, ["r-default", "r-long"]);
        rig.sweep_as("bob/runner-1", 1, 8).await;
        assert_eq!(rig.kept().await, ["r-long"]);
        rig.sweep_as("bob/runner-1", 1, 30).await;
        assert_eq!(rig.kept().await, [""; 0]);
    }

    // Rows: D17
    #[tokio::test]
    async fn the_newest_runs_up_to_the_count_are_kept_and_open_ones_are_never_removed() {
        let mut rig = Rig::new(WEEK);
        let pipeline = json!({ "retention-count": 2 });
        // More than one page.
        for day in 0..40 {
            rig.ended(&format!("r-{day:02}"), day, &pipeline).await;
        }
        // Its ending event is not confirmed yet.
        rig.write(Txn::new().put(names::open_key(&run("r-03")), b"{}".to_vec())).await;
        rig.write(Txn::new().put(names::owner_key(&run("r-04")), b"{}".to_vec())).await;
        let running = json!({
            "group": "dev", "name": "x", "status": "running", "scheduled-at": Timestamp(Millis(0)),
        });
        let key = names::run_key(&run("r-running"));
        rig.write(Txn::new().put(key, running.to_string().into())).await;
        rig.sweep_as("bob/runner-1", 1, 40).await;
        assert_eq!(rig.kept().await, ["r-03", "r-04", "r-38", "r-39", "r-running"]);
        let definitions = rig.store.list(names::DEFINITIONS).await.unwrap().entries;
        assert_eq!(definitions.len(), 4, "definitions are removed with their records");
        let seen = rig.store.list(names::SEEN).await.unwrap().entries;
        assert_eq!(seen.len(), 40, "a redelivered start of a removed run must not run again");
    }

    #[tokio::test]
    async fn the_stored_pipeline_sets_the_count_whatever_a_message_claims() {
        let mut rig = Rig::new(WEEK);
        let id = PipelineId::new("dev", "x").unwrap();
        let stored = json!({ "group": "dev", "name": "x", "retention-count": 2 });
        rig.write(Txn::new().put(names::pipeline_key(&id), stored.to_string().into())).await;
        for day in 0..3 {
            rig.ended(&format!("r-{day}"), day, &json!({})).await;
        }
        rig.ended("r-3", 3, &json!({ "retention-count": 1 })).await;
        rig.sweep_as("bob/runner-1", 1, 4).await;
        assert_eq!(rig.kept().await, ["r-2", "r-3"]);
    }

    #[tokio::test]
    async fn the_default_count_applies_to_each_pipeline_that_sets_none() {
        let mut rig = Rig::new(Retention { count: Some(1), ..WEEK });
        rig.ended("r-1", 1, &json!({})).await;
        rig.ended("r-2", 2, &json!({})).await;
        rig.sweep_as("bob/runner-1", 1, 3).await;
        assert_eq!(rig.kept().await, ["r-2"]);
    }

    #[tokio::test]
    async fn one_worker_is_in_charge_until_its_lease_ends() {
        let mut rig = Rig::new(WEEK);
        rig.sweep_as("bob/runner-1", 1, 0).await;
        rig.ended("r-1", 0, &json!({})).await;
        rig.sweep_as("bob/runner-2", 2, 9).await;
        assert_eq!(rig.kept().await, ["r-1"], "the other worker is in charge");
        rig.store.revoke(LeaseId(1)).await.unwrap();
        rig.sweep_as("bob/runner-2", 2, 9).await;
        assert_eq!(rig.kept().await, [""; 0]);
    }

    #[tokio::test]
    async fn a_record_that_has_changed_since_it_was_read_stays() {
        let rig = Rig::new(WEEK);
        rig.ended("r-1", 0, &json!({})).await;
        let read = rig.store.get(&names::run_key(&run("r-1"))).await.unwrap().unwrap();
        rig.ended("r-1", 1, &json!({})).await;
        assert!(!rig.sweep.remove(&run("r-1"), read.mod_revision).await.unwrap());
        assert_eq!(rig.kept().await, ["r-1"]);
    }
}
