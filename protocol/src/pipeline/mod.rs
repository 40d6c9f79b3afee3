//! The single model of a pipeline, independent of the format it was written in. Immutable once
//! parsed.
//!
//! Its JSON form is stored, and printed by `plan`. It is a Bob pipeline with every default written
//! out, so the Bob dialect can parse it again.

mod end;
mod executor;
mod graph;
mod handover;
mod limits;
mod mount;
mod network;
mod pattern;
mod pull;
mod secret;
mod step;
mod vars;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::end::EndSignal;
pub use self::executor::{Capabilities, ExecutorKind, Place};
pub use self::graph::Graph;
pub(crate) use self::graph::depths;
pub use self::handover::{
    Artifact, Callback, Layout, Missing, Output, OutputKind, RelativeTo, SecretUse, Token,
};
pub use self::limits::ProcessLimits;
pub use self::mount::{BadMount, Mount, MountOption, MountSource, Propagation};
pub use self::network::{BadNetwork, BadNetworkGrant, Network, NetworkGrant, NetworkMode};
pub use self::pattern::{BadPattern, Pattern, Selection};
pub use self::pull::PullPolicy;
pub use self::secret::{
    can_name_secret, is_secret_header, mask_stored_definition, mask_stored_run,
};
pub use self::step::{Backoff, Cmd, OnLogLimit, Retry, RetryOn, Shell, Step, Template, When};
pub(crate) use self::vars::Scalar;
use self::vars::VARIABLE;
pub use self::vars::{Params, Vars, bad_variable};
use crate::id::{PipelineId, RegisteredName, StepName, StepPosition};
use crate::quantity::{Cpu, Memory, Span};

/// A pipeline's definition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Pipeline {
    /// The group, the first part of the pipeline's identity.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[^:\x00-\x1f\x7f-\x9f]*$"))]
    pub group: String,
    /// The name, the second part of the pipeline's identity.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[^\x00-\x1f\x7f-\x9f]*$"))]
    pub name: String,
    /// The base image, best fully qualified. Optional if no step runs on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^\S+$"))]
    pub image: Option<String>,
    /// Environment variables of every step.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    #[schemars(with = "IndexMap<String, Scalar>", extend("propertyNames" = { "pattern": VARIABLE }))]
    pub vars: Vars,
    /// Resources that steps can mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<Resource>,
    /// Memory that a run requests, and limits for its steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quotas: Option<Quotas>,
    /// The network of steps that name none: `none`, `host`, `private`, or a network of the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// When to pull the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// Time limit of a whole run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// What to do with a run whose owner is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_lost: Option<OnLost>,
    /// How long a run is kept after it ends: its record, its outputs in a directory, and its images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Span>,
    /// How many ended runs are kept at most. The oldest are removed first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub retention_count: Option<u32>,
    /// What to do with the other steps if one fails.
    #[serde(default, skip_serializing_if = "FailureMode::is_usual")]
    pub failure: FailureMode,
    /// A step that runs after all others if the run is about to fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_error: Option<Box<Step>>,
    /// How many runs can be active at once, and what happens to further runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<Admission>,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// What to do with the other steps if one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FailureMode {
    /// Stop concurrent steps and start no others.
    #[default]
    FailFast,
    /// Skip only the steps that need the failed step.
    Continue,
}

impl FailureMode {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// How many runs of a pipeline can be active at once, and what happens to further runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Admission {
    /// Maximum number of active runs. Unlimited if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub concurrency: Option<u32>,
    /// Maximum number of waiting runs. Unlimited if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// What to do with a new run if the wait list is full.
    #[serde(default)]
    pub strategy: Strategy,
    /// With `partitioned-replace`: maximum number of waiting runs per partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub partition_limit: Option<u32>,
    /// How long each run waits before it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_delay: Option<Span>,
}

/// What to do with a run that has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Append it to the list, or refuse it if the list is full.
    #[default]
    Append,
    /// Append it to the list, or replace the last entry if the list is full.
    Replace,
    /// Like `replace`, but within the run's partition.
    PartitionedReplace,
}

/// What to do with a run whose owner is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnLost {
    /// Resume it after the last committed step.
    Resume,
    /// Restart it from the first step.
    Restart,
    /// End it as failed.
    Fail,
}

/// A resource that is fetched and mounted for the steps that need it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Resource {
    /// The name. The resource is mounted at `/root/<name>`.
    pub name: String,
    /// Where the resource comes from.
    #[serde(rename = "type")]
    pub kind: ResourceKind,
    /// The registered resource provider. For an internal resource, the registered artifact store.
    pub provider: RegisteredName,
    /// Parameters of the request to the provider.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    #[schemars(with = "IndexMap<String, Scalar>", extend("propertyNames" = { "pattern": VARIABLE }))]
    pub params: Vars,
}

/// Where a resource comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ResourceKind {
    /// A registered resource provider.
    External,
    /// An artifact of an earlier run.
    Internal,
}

/// Memory that a run requests, and limits for its steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Quotas {
    /// What must be free before a worker accepts the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
    /// Limits for each step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// What must be free before a worker accepts the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Requests {
    /// Free memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem: Option<Memory>,
}

/// Limits for each step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Limits {
    /// Share of all processor cores, 0.0 to 1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem: Option<Memory>,
}

impl Pipeline {
    /// Makes a pipeline without steps. The names are not validated.
    #[must_use]
    pub fn new(group: &str, name: &str) -> Self {
        Self {
            group: group.to_owned(),
            name: name.to_owned(),
            image: None,
            vars: Vars::new(),
            resources: Vec::new(),
            quotas: None,
            network: None,
            pull: None,
            timeout: None,
            on_lost: None,
            retention: None,
            retention_count: None,
            failure: FailureMode::default(),
            on_error: None,
            admission: None,
            steps: Vec::new(),
        }
    }

    /// The pipeline's identity.
    ///
    /// # Errors
    /// [`crate::id::BadId`] if the group or name is malformed. This cannot happen for a parsed
    /// pipeline.
    pub fn id(&self) -> Result<PipelineId, crate::id::BadId> {
        PipelineId::new(&self.group, &self.name)
    }

    /// The step at a position. The `on-error` step follows the last one.
    #[must_use]
    pub fn step(&self, position: StepPosition) -> Option<&Step> {
        let last = || self.on_error.as_deref().filter(|_| position == self.on_error_position());
        self.steps.get(position.index()).or_else(last)
    }

    /// The position of the `on-error` step, whether or not there is one.
    #[must_use]
    pub fn on_error_position(&self) -> StepPosition {
        StepPosition::new(self.steps.len())
    }

    /// The position of a step other than the `on-error` step.
    #[must_use]
    pub fn position(&self, name: &StepName) -> Option<StepPosition> {
        self.steps.iter().position(|step| step.name == *name).map(StepPosition::new)
    }

    /// Every step, with the on-error step last.
    pub fn all_steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().chain(self.on_error.as_deref())
    }

    /// Every step and its position, with the on-error step last.
    pub fn steps_by_position(&self) -> impl Iterator<Item = (StepPosition, &Step)> {
        self.all_steps().enumerate().map(|(index, step)| (StepPosition::new(index), step))
    }

    /// Finds a resource by name.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.name == name)
    }

    /// The parts of the definition that this version does not support. Such a pipeline is refused
    /// rather than run without them.
    #[must_use]
    pub fn unsupported(&self) -> Vec<Unsupported> {
        let mut found = Vec::new();
        let mut later = |path: String, what: &str| {
            found.push(Unsupported {
                path,
                what: format!("{what} is not supported by this version"),
            });
        };
        let steps = self.steps.iter().enumerate();
        let steps = steps.map(|(position, step)| (format!("steps[{position}]"), step));
        let last = self.on_error.iter().map(|step| ("on-error".to_owned(), &**step));
        for (path, step) in steps.chain(last) {
            let can = step.executor.capabilities();
            let asked = [
                ("secrets", !step.secrets.is_empty() && !can.takes_secrets),
                ("outputs", step.outputs.iter().any(|it| it.is_of_files()) && !can.has_files),
            ];
            for (key, _) in asked.into_iter().filter(|(_, asked)| *asked) {
                later(
                    format!("{path}.{key}"),
                    &format!("`{key}` of step {:?}", step.name.as_str()),
                );
            }
        }
        found
    }
}

/// A part of a definition that this version does not support.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// Path in the definition, such as `steps[2].needs`.
    pub path: String,
    /// The message.
    pub what: String,
}
