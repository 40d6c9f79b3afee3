//! What is stored of a run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::event::Event;
use crate::id::{Epoch, NodeId, RegisteredName, RunId, StepName};
use crate::pipeline::{Params, Pipeline, Vars};
use crate::time::Stamp;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Accepted.
    Pending,
    /// An owner works on it.
    Initializing,
    /// The image is there.
    Initialized,
    /// Steps run.
    Running,
    /// Every step passed.
    Passed,
    /// A step failed, or we did.
    Failed,
    /// Somebody stopped it.
    Stopped,
}

impl Status {
    /// Whether this is one of the three endings, which are written once.
    #[must_use]
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Passed | Self::Failed | Self::Stopped)
    }

    /// This, or what it has become already: no status is left for an earlier one.
    #[must_use]
    pub fn at_least(self, reached: Self) -> Self {
        let place = |status| match status {
            Self::Pending => 0,
            Self::Initializing => 1,
            Self::Initialized => 2,
            Self::Running => 3,
            Self::Passed | Self::Failed | Self::Stopped => 4,
        };
        if place(reached) > place(self) { reached } else { self }
    }

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Initializing => "initializing",
            Self::Initialized => "initialized",
            Self::Running => "running",
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a run ended as it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the words of the wire contract say it")]
pub enum Cause {
    ExitCode,
    Timeout,
    User,
    Replaced,
    Shutdown,
    Image,
    Resource,
    Artifact,
    Template,
    Lost,
    UnknownPipeline,
    Paused,
    UnknownLogger,
    Engine,
    Oom,
    NoSpace,
    SecretLeak,
    ImageLost,
    Rejected,
    RetriesExhausted,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StepStatus {
    /// Not begun.
    #[default]
    Pending,
    /// Recorded as started; not yet as ended. For a next owner it is in doubt.
    Started,
    /// Exit code 0, and committed.
    Passed,
    /// Ended otherwise.
    Failed,
    /// Stopped by us.
    Stopped,
}

/// The run record: one key, one fact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct RunRecord {
    /// The pipeline's group.
    pub group: String,
    /// The pipeline's name.
    pub name: String,
    /// The run.
    pub run_id: RunId,
    /// Where it stands.
    pub status: Status,
    /// Why it ended so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The registered logger that gets the run's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<RegisteredName>,
    /// Variables that override the pipeline's. Only records of older versions hold them; see
    /// [`crate::definition`].
    #[serde(default, skip_serializing)]
    pub vars: Vars,
    /// Values for templates that override the variables. Only records of older versions hold them.
    #[serde(default, skip_serializing)]
    pub params: Params,
    /// The definition, unless the pipeline was unknown. Only records of older versions hold it.
    #[serde(default, skip_serializing)]
    pub pipeline: Option<Pipeline>,
    /// The owner, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The owner's epoch; may lag behind the owner key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// The run that it goes on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// 1, and one more for each new owner.
    pub attempt: u32,
    /// Owners lost since the last newly committed step.
    #[serde(default)]
    pub losses: u32,
    /// How often a worker re-claimed the run after it had lost its own lease, since the last newly
    /// committed step. More than a few count as losses.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reclaims: u32,
    /// The most steps that had passed at one time: a run that starts from the top again has lost its
    /// owners all the same until it comes further than that.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub furthest: u32,
    /// The highest `seq` that the owner had given an event of the run when it wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<u64>,
    /// The last owner handed the run over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Released>,
    /// When it was accepted.
    pub scheduled_at: Stamp,
    /// When an owner began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initiated_at: Option<Stamp>,
    /// When the image was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initialized_at: Option<Stamp>,
    /// When the first step began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Stamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Stamp>,
    /// The steps that were begun.
    #[serde(default)]
    pub steps: Vec<StepRecord>,
    /// From the ending write until the stream has confirmed it: that event as it is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending_event: Option<Box<Event>>,
    /// Fields of later versions, kept when the record is rewritten.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl RunRecord {
    /// What a new run takes over that begins with a step of this one: all that was kept, but for that
    /// step and what lies behind it. `from`: none for all that was kept. What lies on a worker's host
    /// is not kept.
    ///
    /// # Errors
    /// [`NotKept`] where it cannot begin so.
    pub fn kept_before(&self, from: Option<&StepName>) -> Result<Vec<StepRecord>, NotKept> {
        let Some(pipeline) = &self.pipeline else { return Ok(Vec::new()) };
        let graph = pipeline.graph();
        let from = match from {
            None => None,
            Some(name) => {
                let position = pipeline.steps.iter().position(|step| step.name == *name);
                Some(position.ok_or_else(|| NotKept::NoSuchStep(name.clone()))?)
            }
        };
        let of = |name: &StepName| self.steps.iter().find(|record| record.name == *name);
        let mut kept = vec![false; pipeline.steps.len()];
        for position in graph.in_order() {
            let Some(step) = pipeline.steps.get(position) else { continue };
            let stands = of(&step.name).is_some_and(|record| {
                let ended_well = record.status == StepStatus::Passed
                    || record.cause.is_some_and(|cause| step.allows(cause));
                ended_well && (record.image.is_some() || !step.is_on_image())
            });
            let all = graph.needs(position).iter().all(|needed| kept[*needed]);
            kept[position] = stands && all && !step.is_on_host() && from != Some(position);
        }
        let needed = from.and_then(|from| graph.needs(from).iter().find(|at| !kept[**at]));
        if let Some(missing) = needed.and_then(|at| pipeline.steps.get(*at)) {
            return Err(NotKept::Missing(missing.name.clone()));
        }
        if kept.iter().all(|kept| *kept) {
            return Err(NotKept::Everything);
        }
        let is_kept = |name: &StepName| {
            let position = pipeline.steps.iter().position(|step| step.name == *name);
            position.is_some_and(|at| kept[at])
        };
        Ok(self.steps.iter().filter(|record| is_kept(&record.name)).cloned().collect())
    }
}

/// Why no new run can begin where one has come to.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotKept {
    /// There is no such step.
    #[error("its pipeline has no step {0}")]
    NoSuchStep(StepName),
    /// A step that would have to be done is not.
    #[error("step {0}, which is needed for that, was not committed")]
    Missing(StepName),
    /// There is nothing left to do.
    #[error("all of its steps have passed; name a step with --from")]
    Everything,
}

/// What is stored of one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct StepRecord {
    /// The step.
    pub name: StepName,
    /// Where it stands.
    pub status: StepStatus,
    /// 1 for the first.
    pub attempt: u32,
    /// Why it counts as failed, where it is not tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What its command ended with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// What it has found out, for later steps to ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// The committed image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The engine that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Its digest in the checkpoint registry, once the push is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The epoch in which it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// Bytes of its standard output.
    #[serde(default, skip_serializing_if = "is_none_said")]
    pub stdout_bytes: u64,
    /// Bytes of its standard error.
    #[serde(default, skip_serializing_if = "is_none_said")]
    pub stderr_bytes: u64,
    /// The highest `seq` published when this was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<u64>,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Stamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Stamp>,
    /// Fields of later versions, kept when the record is rewritten.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_none_said(bytes: &u64) -> bool {
    *bytes == 0
}

/// An ended run whose steps a new one begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Parent {
    /// That run.
    pub run_id: RunId,
    /// The step that the new run begins with: those before it are taken over as that run has left
    /// them. The first that it has not committed, where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<StepName>,
}

/// Who let go of a run, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Released {
    /// The node that handed it over.
    pub by: NodeId,
    /// Why.
    pub reason: String,
}

/// Value of the key that says a run still has to be looked after.
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
    /// The lease that the key stands under, in hex, as etcd's own tools show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
}

/// Value of a stop key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct StopEntry {
    /// What the user said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The node that received the command.
    pub by: NodeId,
    /// When.
    pub at: Stamp,
}

/// Value of a pipeline's key: the definition, and whether it is paused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct StoredPipeline {
    /// The definition.
    #[serde(flatten)]
    pub pipeline: serde_json::Map<String, serde_json::Value>,
    /// No new run is accepted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// The `at` of the newest pause or unpause that was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_at: Option<crate::time::Millis>,
}

/// Value of a node's key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NodeEntry {
    /// Name of its host.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Whether it takes work.
    pub state: NodeState,
    /// How many runs it takes at once.
    pub slots: u32,
    /// The runs that it owns.
    pub runs: Vec<RunId>,
    /// The executors it has.
    pub executors: Vec<String>,
    /// A stable id of its container store.
    pub engine: String,
    /// Its processors.
    pub cpu: NodeCpu,
    /// Its memory.
    pub memory: NodeMemory,
    /// The disk of its container store, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<NodeDisk>,
    /// Its container engine does not answer: until it does the node takes nothing new, and others need
    /// not leave it the runs whose images lie there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub engine_away: bool,
    /// Why etcd refuses its writes: until it accepts them the node takes nothing new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes_refused: Option<String>,
    /// Why it takes no runs, if a service that it needs is not usable. Runs in progress continue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
    /// When it started.
    pub started_at: Stamp,
}

/// Whether a node takes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It takes work.
    Ready,
    /// It ends.
    Draining,
}

/// A node's processors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NodeCpu {
    /// How many.
    pub count: u32,
    /// The load average of the last minute, as a share of all of them.
    pub load: f64,
}

/// A node's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NodeMemory {
    /// What a new program could use.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// The disk of a node's container store, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NodeDisk {
    /// What can still be written.
    pub free: u64,
    /// All of it.
    pub total: u64,
    /// The node takes nothing new until there is room.
    pub full: bool,
}

/// Value of a provider's, store's or logger's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Registered {
    /// The name under which it is registered.
    pub name: RegisteredName,
    /// Where it answers.
    pub url: String,
}
