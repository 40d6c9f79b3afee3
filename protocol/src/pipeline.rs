//! The one model of a pipeline: what the user asked for, whatever it was written in. Immutable once
//! parsed.
//!
//! Its JSON form is what `plan` prints and what is stored; it is a Bob pipeline with every default
//! written out, so it can be read back by the Bob dialect.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{PipelineId, RegisteredName, StepName};
use crate::quantity::{Cpu, Memory, Span};

/// Variables in the order in which they were written.
pub type Vars = IndexMap<String, String>;

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
    /// The base image; best fully qualified.
    #[schemars(regex(pattern = r"^\S+$"))]
    pub image: String,
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
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// One step of a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Step {
    /// Unique in the pipeline; a Bob step without one gets its position.
    pub name: StepName,
    /// What is run.
    pub cmd: Cmd,
    /// Environment of this step alone, laid over the pipeline's.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    #[schemars(with = "IndexMap<String, Scalar>", extend("propertyNames" = { "pattern": VARIABLE }))]
    pub vars: Vars,
    /// The resource that must be mounted, by its name in `resources`.
    #[serde(default, rename = "needs_resource", skip_serializing_if = "Option::is_none")]
    pub needs_resource: Option<String>,
    /// What the step leaves behind for others.
    #[serde(default, rename = "produces_artifact", skip_serializing_if = "Option::is_none")]
    pub produces_artifact: Option<Artifact>,
    /// The network of this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// When the image is pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// How long the step may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Whether a failed step is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// The steps that must have passed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<Vec<StepName>>,
    /// Where the step runs.
    #[serde(default)]
    pub executor: ExecutorKind,
    /// Names of secrets that the step needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
}

/// A command: a line that is split into words as a shell would, without any expansion, or the words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Cmd {
    /// Split by [`crate::shell::split`].
    Line(#[schemars(regex(pattern = r"\S"))] String),
    /// Taken as it is.
    Words(#[schemars(with = "Vec<Scalar>", length(min = 1))] Vec<String>),
}

impl Cmd {
    /// The words that are run.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Line(line) => crate::shell::split(line),
            Self::Words(words) => words.clone(),
        }
    }

    /// The command as people read it.
    #[must_use]
    pub fn display(&self) -> String {
        match self {
            Self::Line(line) => line.clone(),
            Self::Words(words) => crate::shell::join(words),
        }
    }
}

/// Where a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExecutorKind {
    /// A rootless podman container on the image chain of its run.
    #[default]
    Podman,
    /// A Docker engine.
    Docker,
    /// A process on the worker's host.
    Local,
    /// A command of the host, as the job files know it.
    Custom,
    /// A command on another host.
    Ssh,
    /// A Proxmox VE API call.
    Proxmox,
    /// A Lexware Office API call.
    Lexware,
    /// A sevDesk API call.
    Sevdesk,
    /// An HTTP request.
    Http,
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

/// Whether and how a step is tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Retry {
    /// How often it is run at most.
    #[schemars(range(min = 1, max = 100))]
    pub attempts: u32,
    /// What it is tried again after; `failure` alone where it is not said.
    #[serde(default = "RetryOn::usual", skip_serializing_if = "RetryOn::is_usual")]
    #[schemars(length(min = 1))]
    pub on: Vec<RetryOn>,
    /// The time before the second attempt; it doubles with each one after that. 1 s where it is not
    /// said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Span>,
}

/// What a step is tried again after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// Its command failed, or took longer than it may.
    Failure,
    /// Its worker was lost. Without this the pipeline's `on-lost` alone says what comes of it; with
    /// it the step is tried again whatever that says, but no more often than `attempts`.
    Lost,
}

impl RetryOn {
    /// What holds where a pipeline does not say.
    #[must_use]
    pub fn usual() -> Vec<Self> {
        vec![Self::Failure]
    }

    fn is_usual(on: &[Self]) -> bool {
        on == [Self::Failure]
    }
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
    /// The identity. Parsing has checked it, so a definition that was built by hand and breaks the
    /// rule is the only way to an error.
    ///
    /// # Errors
    /// [`crate::id::BadId`] where group or name break their rule.
    pub fn id(&self) -> Result<PipelineId, crate::id::BadId> {
        PipelineId::new(&self.group, &self.name)
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
        for (position, step) in self.steps.iter().enumerate() {
            let mut key = |key: &str| {
                later(
                    format!("steps[{position}].{key}"),
                    &format!("`{key}` of step {:?}", step.name.as_str()),
                )
            };
            if step.needs.is_some() {
                key("needs");
            }
            if !step.secrets.is_empty() {
                key("secrets");
            }
            if step.executor != ExecutorKind::Podman {
                key("executor");
            }
        }
        found
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
