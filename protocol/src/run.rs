//! Values stored in etcd for runs, pipelines, nodes and registrations.

use std::collections::HashMap;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::event::Event;
use crate::id::{Epoch, NodeId, RegisteredName, RunId, StepName, StepPosition};
use crate::pipeline::{Params, Pipeline, Vars};
pub use crate::status::{Cause, Status, StepStatus};
use crate::time::Timestamp;

/// The run record, stored under one key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct RunRecord {
    /// The pipeline's group.
    pub group: String,
    /// The pipeline's name.
    pub name: String,
    /// The run.
    pub run_id: RunId,
    /// The status.
    pub status: Status,
    /// Why the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The cause as a sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The registered logger that receives the run's output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<RegisteredName>,
    /// The definition was a stored one and the start set only variables that it declares. Such a run
    /// can use secrets whose scope names its pipeline.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trusted: bool,
    /// Variables that override the pipeline's. Only records of older versions hold them.
    #[serde(default, skip_serializing)]
    pub vars: Vars,
    /// Template values that override the variables. Only records of older versions hold them.
    #[serde(default, skip_serializing)]
    pub params: Params,
    /// The definition, unless the pipeline was unknown. Only records of older versions hold it.
    #[serde(default, skip_serializing)]
    pub pipeline: Option<Pipeline>,
    /// The current or last owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The owner's epoch. It can lag behind the owner key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// The run that this run starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// 1, plus 1 for each new owner.
    pub attempt: u32,
    /// Owners lost since the last newly committed step.
    #[serde(default)]
    pub losses: u32,
    /// How often a worker re-claimed the run after it lost its own lease, since the last newly
    /// committed step. More than a few count as losses.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reclaims: u32,
    /// The highest number of steps that had passed at one time. A run that restarts from the top
    /// resets its losses only when it exceeds this number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub furthest: u32,
    /// The last attempts at steps that were started by an earlier owner and have no entry in `steps`,
    /// because they are yet to start again.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub attempts: IndexMap<StepName, u32>,
    /// The highest `seq` that the owner had assigned when it wrote the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<u64>,
    /// Set if the last owner handed the run over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Released>,
    /// When the run was accepted.
    pub scheduled_at: Timestamp,
    /// When an owner started to prepare the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initiated_at: Option<Timestamp>,
    /// When the image became available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initialized_at: Option<Timestamp>,
    /// When the first step started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// The steps that were started.
    #[serde(default)]
    pub steps: Vec<StepRecord>,
    /// The ending event as it is published. Present from the ending write until the stream confirms
    /// the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending_event: Option<Box<Event>>,
    /// Fields of later versions, preserved when the record is rewritten.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl RunRecord {
    /// Returns the records that a new run starting at `from` takes over: the committed steps,
    /// except `from` and the steps that depend on it. `None` takes over every committed step. Steps
    /// on a worker's host are never taken over.
    ///
    /// # Errors
    /// [`NotKept`] if no new run can start there.
    pub fn steps_to_inherit(&self, from: Option<&StepName>) -> Result<Vec<StepRecord>, NotKept> {
        let Some(pipeline) = &self.pipeline else { return Ok(Vec::new()) };
        let graph = pipeline.graph();
        let positions: HashMap<&StepName, StepPosition> =
            graph.positions().zip(&pipeline.steps).map(|(at, step)| (&step.name, at)).collect();
        let from = match from {
            None => None,
            Some(name) => {
                let position = positions.get(name).copied();
                Some(position.ok_or_else(|| NotKept::NoSuchStep(name.clone()))?)
            }
        };
        let records: HashMap<&StepName, &StepRecord> =
            self.steps.iter().map(|record| (&record.name, record)).collect();
        let mut kept = vec![false; pipeline.steps.len()];
        for position in graph.in_order().iter().copied() {
            let Some(step) = pipeline.step(position) else { continue };
            let stands = records.get(&step.name).is_some_and(|record| {
                let ended_well = record.status == StepStatus::Passed
                    || record.cause.is_some_and(|cause| step.allows(cause));
                ended_well && (record.image.is_some() || !step.is_on_image())
            });
            let all = graph.needs(position).iter().all(|needed| kept[needed.index()]);
            kept[position.index()] = stands && all && !step.is_on_host() && from != Some(position);
        }
        let needed = from.and_then(|from| graph.needs(from).iter().find(|at| !kept[at.index()]));
        if let Some(missing) = needed.and_then(|at| pipeline.step(*at)) {
            return Err(NotKept::Missing(missing.name.clone()));
        }
        if kept.iter().all(|kept| *kept) {
            return Err(NotKept::Everything);
        }
        let is_kept = |name: &StepName| positions.get(name).is_some_and(|at| kept[at.index()]);
        Ok(self.steps.iter().filter(|record| is_kept(&record.name)).cloned().collect())
    }
}

/// Why a new run cannot start from a step of an ended run.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotKept {
    /// The pipeline has no such step.
    #[error("its pipeline has no step {0}")]
    NoSuchStep(StepName),
    /// A step that must have passed was not committed.
    #[error("step {0}, which is needed for that, was not committed")]
    Missing(StepName),
    /// Every step has passed.
    #[error("all of its steps have passed; name a step with --from")]
    Everything,
}

/// The record of one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct StepRecord {
    /// The step's name.
    pub name: StepName,
    /// The status.
    pub status: StepStatus,
    /// The attempt, starting at 1.
    pub attempt: u32,
    /// Why the step failed, unless it is retried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The cause as a sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The exit code of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The result of the step, which later steps can refer to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// The committed image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The engine that holds the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// The image's digest in the checkpoint registry, once the push is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The epoch in which the step was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// Size of the standard output, in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stdout_bytes: u64,
    /// Size of the standard error, in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stderr_bytes: u64,
    /// The highest `seq` published when this entry was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<u64>,
    /// When the step started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the step ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// Fields of later versions, preserved when the record is rewritten.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

/// An ended run from which a new run starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Parent {
    /// The ended run.
    pub run_id: RunId,
    /// The step to start at. Earlier steps are taken over as committed. If missing, the first step
    /// that is not committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<StepName>,
}

/// Who handed a run over, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Released {
    /// The node that handed it over.
    pub by: NodeId,
    /// The reason.
    pub reason: String,
}

/// Value of the key that marks a run that still needs attention.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Open {
    /// The pipeline's key while the run waits in its queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_in: Option<String>,
}

/// Value of an owner key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct OwnerEntry {
    /// The owner.
    pub node: NodeId,
    /// The lease of the key, in hex as etcd's own tools print it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
}

/// Value of a stop key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct StopEntry {
    /// The reason given by the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The newer run that takes this run's place in the wait list. No user stopped it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<RunId>,
    /// The node that received the command.
    pub by: NodeId,
    /// When the stop was recorded.
    pub at: Timestamp,
}

/// Value of a pipeline's key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct StoredPipeline {
    /// The definition.
    #[serde(flatten)]
    pub pipeline: serde_json::Map<String, serde_json::Value>,
    /// Whether new runs are refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// The `at` of the newest pause or unpause that was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_at: Option<crate::time::Millis>,
    /// The file from which a worker loaded the definition. Only a change of that file changes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The set of definitions to which the file belongs. Workers that load this set keep it up to
    /// date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Value of a node's key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NodeEntry {
    /// The host's name.
    pub host: String,
    /// The process id on that host.
    pub pid: u32,
    /// The version of the worker.
    pub version: String,
    /// Whether the node accepts work.
    pub state: NodeState,
    /// How many runs the node accepts at once.
    pub slots: u32,
    /// The runs that the node owns.
    pub runs: Vec<RunId>,
    /// The available executors.
    pub executors: Vec<String>,
    /// A stable id of the container store.
    pub engine: String,
    /// The processors.
    pub cpu: NodeCpu,
    /// The memory.
    pub memory: NodeMemory,
    /// The disk of the container store, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<NodeDisk>,
    /// Whether the container engine is unreachable. Until it answers, the node accepts no runs, and
    /// other nodes can claim runs whose images it holds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub engine_away: bool,
    /// Why etcd rejects the node's writes. Until it accepts them, the node accepts no runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes_refused: Option<String>,
    /// Why the node accepts no runs, if a service that it needs is unusable. Runs in progress
    /// continue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
    /// When the worker started.
    pub started_at: Timestamp,
}

/// Whether a node accepts work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// The node accepts work.
    Ready,
    /// The node is shutting down.
    Draining,
}

/// A node's processors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NodeCpu {
    /// The number of processors.
    pub count: u32,
    /// The one-minute load average, as a share of all processors.
    pub load: f64,
}

/// A node's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NodeMemory {
    /// Memory available to a new program.
    pub free: u64,
    /// Total memory.
    pub total: u64,
}

/// The disk of a node's container store, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NodeDisk {
    /// Free space.
    pub free: u64,
    /// Total size.
    pub total: u64,
    /// Whether the disk is too full. The node accepts no runs until space is freed.
    pub full: bool,
}

/// Value of the key of a resource provider, artifact store or logger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Registered {
    /// The registered name.
    pub name: RegisteredName,
    /// The base URL of the service.
    pub url: String,
}
