//! The one model of a pipeline: what the user asked for, whatever it was written in. Immutable once
//! parsed.
//!
//! Its JSON form is what `plan` prints and what is stored; it is a Bob pipeline with every default
//! written out, so it can be read back by the Bob dialect.

mod call;
mod end;
mod graph;
mod handover;
mod limits;
mod mount;
mod network;
mod pattern;
mod secret;
mod step;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::end::EndSignal;
pub use self::graph::Graph;
pub(crate) use self::graph::depths;
pub use self::handover::{Callback, Layout, Missing, Output, OutputKind, SecretUse, Token};
pub use self::limits::ProcessLimits;
pub use self::mount::{BadMount, Mount, MountOption, MountSource, Propagation};
pub use self::network::{BadNetwork, BadNetworkGrant, Network, NetworkGrant, NetworkMode};
pub use self::pattern::{BadPattern, Pattern, Selection};
pub use self::secret::{is_secret_header, mask_stored_definition, mask_stored_run};
pub use self::step::{
    Backoff, Cmd, ExecutorKind, OnLogLimit, Retry, RetryOn, Shell, Step, Template, When,
};
use crate::id::{PipelineId, RegisteredName};
use crate::quantity::{Cpu, Memory, Span};

/// Variables in the order in which they were written.
pub type Vars = IndexMap<String, String>;

/// Values of a run for templates, whatever they are: text, numbers, lists, maps.
pub type Params = serde_json::Map<String, serde_json::Value>;

// Only its schema is used: the dialect reads a tree that keeps how a number was written.
/// A text, or what becomes text as it was written.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
pub(crate) enum Scalar {
    /// A text.
    Text(String),
    /// `2.50` becomes "2.50".
    Number(f64),
    /// `true` becomes "true".
    Boolean(bool),
}

/// The name of a variable, as a regular expression.
const VARIABLE: &str = r"^[^=\x00]+$";

/// A pipeline's definition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Pipeline {
    /// First half of the identity.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[^:\x00-\x1f\x7f-\x9f]*$"))]
    pub group: String,
    /// Second half of the identity.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[^\x00-\x1f\x7f-\x9f]*$"))]
    pub name: String,
    /// The base image of the steps that run on one; best fully qualified. Missing where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^\S+$"))]
    pub image: Option<String>,
    /// Environment of every step.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    #[schemars(with = "IndexMap<String, Scalar>", extend("propertyNames" = { "pattern": VARIABLE }))]
    pub vars: Vars,
    /// What steps may need to have mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<Resource>,
    /// What a run needs, and what it may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quotas: Option<Quotas>,
    /// The network of every step that names none: `none`, `host`, `private`, or what the engine knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// When the image is pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// How long a whole run may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// What becomes of a run whose owner is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_lost: Option<OnLost>,
    /// How long a run's images are kept after its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Span>,
    /// How many runs are kept at most after their end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub retention_count: Option<u32>,
    /// What becomes of the other steps where one fails.
    #[serde(default, skip_serializing_if = "FailureMode::is_usual")]
    pub failure: FailureMode,
    /// A step that is run where the run is about to fail, after all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_error: Option<Box<Step>>,
    /// How many runs go on at once, and what becomes of more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<Admission>,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// What becomes of the other steps where one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FailureMode {
    /// What runs beside it is stopped, and nothing new is begun.
    #[default]
    FailFast,
    /// Only what needs it is not begun.
    Continue,
}

impl FailureMode {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// How many runs of a pipeline go on at once, and what becomes of more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Admission {
    /// So many at once; without a limit where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub concurrency: Option<u32>,
    /// So many wait at most; without a limit where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// What a run does that finds the list full.
    #[serde(default)]
    pub strategy: Strategy,
    /// With `partitioned-replace`: so many of each partition wait at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub partition_limit: Option<u32>,
    /// Each run waits so long before it is begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_delay: Option<Span>,
}

/// What a run does that has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// It is the last one; it is refused where the list is full.
    #[default]
    Append,
    /// It takes the place of the last one where the list is full.
    Replace,
    /// The same among the runs of its partition.
    PartitionedReplace,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// At each run.
    Always,
    /// Where the engine does not hold it.
    #[default]
    Missing,
    /// Not at all: the engine holds it, or the run fails.
    Never,
}

/// What becomes of a run whose owner is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnLost {
    /// Goes on after the last committed step.
    Resume,
    /// Starts from the top.
    Restart,
    /// Ends.
    Fail,
}

/// Something that is fetched and mounted for steps that need it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Resource {
    /// Its name; it is mounted at `/root/<name>`.
    pub name: String,
    /// Where it comes from.
    #[serde(rename = "type")]
    pub kind: ResourceKind,
    /// The registered resource provider, or (internal) the registered artifact store.
    pub provider: RegisteredName,
    /// What the provider is asked for.
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

/// What a step leaves behind for others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Artifact {
    /// Its name in the store.
    pub name: String,
    /// Where it lies, relative to the step's working directory.
    pub path: String,
    /// The registered artifact store.
    pub store: RegisteredName,
}

/// What a run needs, and what it may use at most.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Quotas {
    /// What must be free for a run to be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
    /// What a step may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// What must be free for a run to be taken.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Requests {
    /// Free memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem: Option<Memory>,
}

/// What a step may use at most.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Limits {
    /// Share of all cores, 0.0 to 1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem: Option<Memory>,
}

impl Pipeline {
    /// A pipeline without steps. The names are not checked.
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

    /// The identity. Parsing has checked it, so a definition that was built by hand and breaks the
    /// rule is the only way to an error.
    ///
    /// # Errors
    /// [`crate::id::BadId`] where group or name break their rule.
    pub fn id(&self) -> Result<PipelineId, crate::id::BadId> {
        PipelineId::new(&self.group, &self.name)
    }

    /// The step at a position; that of `on-error` stands behind the last.
    #[must_use]
    pub fn step(&self, position: usize) -> Option<&Step> {
        let last = || self.on_error.as_deref().filter(|_| position == self.steps.len());
        self.steps.get(position).or_else(last)
    }

    /// Every step, with the on-error step last.
    pub fn all_steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().chain(self.on_error.as_deref())
    }

    /// The resource of that name.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.name == name)
    }

    /// Everything in it that this version knows and does not do yet, a sentence each. A run of such
    /// a pipeline is refused, never run without it.
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
            let asked = [
                ("secrets", !step.secrets.is_empty() && !step.executor.takes_secrets()),
                (
                    "outputs",
                    step.outputs.iter().any(|it| it.is_of_files()) && !step.executor.has_files(),
                ),
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

    /// What it says of its runs among each other, and this version does not do yet. One run by itself
    /// has no use for it.
    #[must_use]
    pub fn unsupported_among_runs(&self) -> Vec<Unsupported> {
        let asked = [
            ("admission", self.admission.is_some()),
            ("retention-count", self.retention_count.is_some()),
        ];
        let asked = asked.into_iter().filter(|(_, asked)| *asked);
        let found = asked.map(|(key, _)| Unsupported {
            path: key.to_owned(),
            what: format!("`{key}` is not supported by this version"),
        });
        found.collect()
    }
}

/// Something that is known and not done yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// Where it stands: `steps[2].needs`.
    pub path: String,
    /// The sentence.
    pub what: String,
}
