//! One step: what is run, where, and what becomes of it.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Artifact, Callback, EndSignal, Output, PullPolicy, Scalar, SecretUse, VARIABLE, Vars};
use crate::id::StepName;
use crate::quantity::Span;
use crate::run::Cause;

/// One step of a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Step {
    /// Unique in the pipeline; a Bob step without one gets its position.
    pub name: StepName,
    /// What is run: this, or `script`. A step with neither is there for others to need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Cmd>,
    /// Programs for a shell, one after the other. They share variables and functions, and each begins
    /// in the working directory of the step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub script: Vec<String>,
    /// The shell of `script`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Shell>,
    /// The entrypoint of the step's container: words in front of its command; `[]` for none. If this is
    /// missing, a `cmd` has the image's entrypoint, and a `script` has none, because the shell replaces it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Scalar>>")]
    pub entrypoint: Option<Vec<String>>,
    /// How variables of the run are written in `script`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
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
    /// The signal that asks it to end where it is stopped; `TERM` where this is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<EndSignal>,
    /// The time between that signal and SIGKILL, an hour at most; the worker's own where this is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_grace: Option<Span>,
    /// Whether a failed step is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// The steps that must have passed before; the one before it where this is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<Vec<StepName>>,
    /// What must have become of them.
    #[serde(default, skip_serializing_if = "When::is_usual")]
    pub when: When,
    /// Where it fails, the run goes on as if it had passed, and what is left of `script` is run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_failure: bool,
    /// What happens if the output of the step reaches the limit of the worker (`BOB_LOG_LIMIT_BYTES`).
    #[serde(default, skip_serializing_if = "OnLogLimit::is_usual")]
    pub on_log_limit: OnLogLimit,
    /// Of several steps that it needs and that left an image: the one whose image it goes on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<StepName>,
    /// Where the step runs.
    #[serde(default)]
    pub executor: ExecutorKind,
    /// The secrets that the step needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretUse>,
    /// What else the step is called: its files bear that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// What its executor has to know beyond the command, by the executor's own keys.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub with: Map<String, Value>,
    /// Files that are kept with the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Output>,
    /// Who is told that the step runs, and how it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<Callback>,
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

/// What runs the programs of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Shell {
    /// `sh`.
    #[default]
    Sh,
    /// `bash`.
    Bash,
}

impl Shell {
    /// The program.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Sh => "sh",
            Self::Bash => "bash",
        }
    }
}

/// How variables are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Template {
    /// As in Go's `text/template`: `{{ .name }}`.
    Go,
    /// As the job files have it: `${PREVIOUS_JOB_ID}`, `${id.path}`; what is neither stays.
    Dollar,
}

/// What must have become of the steps that one needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// All have passed.
    #[default]
    Passed,
    /// All have ended, or will never begin.
    Ended,
}

impl When {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// What happens to a step if its output reaches the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnLogLimit {
    /// The step continues, and the rest of its output is discarded.
    #[default]
    Discard,
    /// The step is stopped and fails.
    Fail,
}

impl OnLogLimit {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl Step {
    /// A step that does nothing yet.
    #[must_use]
    pub fn new(name: StepName) -> Self {
        Self {
            name,
            cmd: None,
            script: Vec::new(),
            shell: None,
            entrypoint: None,
            template: None,
            vars: Vars::new(),
            needs_resource: None,
            produces_artifact: None,
            network: None,
            pull: None,
            timeout: None,
            stop_signal: None,
            kill_grace: None,
            retry: None,
            needs: None,
            when: When::default(),
            allow_failure: false,
            on_log_limit: OnLogLimit::default(),
            from: None,
            executor: ExecutorKind::default(),
            secrets: Vec::new(),
            label: None,
            with: Map::new(),
            outputs: Vec::new(),
            callback: None,
        }
    }

    /// Whether there is nothing to run.
    #[must_use]
    pub fn is_join(&self) -> bool {
        let calls = self.executor.is_call() && !self.with.is_empty();
        self.cmd.is_none() && self.script.is_empty() && !calls
    }

    /// Whether it begins with an image of its run, and leaves one for those that follow.
    #[must_use]
    pub fn is_on_image(&self) -> bool {
        if self.is_join() {
            return false;
        }
        match self.executor {
            ExecutorKind::Podman => true,
            // One that has an image of its own takes nothing over and leaves nothing.
            ExecutorKind::Docker => !self.with.contains_key("image"),
            ExecutorKind::Local
            | ExecutorKind::Custom
            | ExecutorKind::Ssh
            | ExecutorKind::Proxmox
            | ExecutorKind::Lexware
            | ExecutorKind::Sevdesk
            | ExecutorKind::Http => false,
        }
    }

    /// Whether what it leaves is on the worker's host alone.
    #[must_use]
    pub fn is_on_host(&self) -> bool {
        matches!(self.executor, ExecutorKind::Local | ExecutorKind::Custom) && !self.is_join()
    }

    /// Whether the run goes on where it has failed for that: a script that could not be made never may.
    #[must_use]
    pub fn allows(&self, cause: Cause) -> bool {
        self.allow_failure && cause != Cause::Template
    }

    /// Whether it may be run once more where nobody knows if it took effect, or though it did.
    #[must_use]
    pub fn may_repeat(&self) -> bool {
        let acts_elsewhere = self.executor.is_call() || self.executor == ExecutorKind::Ssh;
        !acts_elsewhere
            || self.is_join()
            || self.with.get("idempotent").and_then(Value::as_bool).unwrap_or(false)
    }

    /// What is run, as people read it.
    #[must_use]
    pub fn display(&self) -> String {
        match &self.cmd {
            Some(cmd) => cmd.display(),
            None if self.script.is_empty() => {
                let call = ["command", "action"].iter().find_map(|key| self.with.get(*key));
                call.and_then(Value::as_str).unwrap_or_default().to_owned()
            }
            None => self.script.join("\n"),
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

impl ExecutorKind {
    /// Each of them.
    pub const ALL: [Self; 9] = [
        Self::Podman,
        Self::Docker,
        Self::Local,
        Self::Custom,
        Self::Ssh,
        Self::Proxmox,
        Self::Lexware,
        Self::Sevdesk,
        Self::Http,
    ];

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
            Self::Local => "local",
            Self::Custom => "custom",
            Self::Ssh => "ssh",
            Self::Proxmox => "proxmox",
            Self::Lexware => "lexware",
            Self::Sevdesk => "sevdesk",
            Self::Http => "http",
        }
    }

    /// Whether it hands secrets to its steps.
    #[must_use]
    pub fn takes_secrets(self) -> bool {
        match self {
            Self::Podman
            | Self::Docker
            | Self::Local
            | Self::Custom
            | Self::Proxmox
            | Self::Lexware
            | Self::Sevdesk
            | Self::Http => true,
            Self::Ssh => false,
        }
    }

    /// Whether what a step of it runs can be sent a signal of its choice.
    #[must_use]
    pub fn has_signals(self) -> bool {
        match self {
            Self::Podman | Self::Docker | Self::Local | Self::Custom => true,
            Self::Ssh | Self::Proxmox | Self::Lexware | Self::Sevdesk | Self::Http => false,
        }
    }

    /// Whether a step of it leaves files that can be kept.
    #[must_use]
    pub fn has_files(self) -> bool {
        match self {
            Self::Podman | Self::Docker | Self::Local | Self::Custom => true,
            Self::Ssh | Self::Proxmox | Self::Lexware | Self::Sevdesk | Self::Http => false,
        }
    }

    /// Whether its steps run in a container of an image.
    #[must_use]
    pub fn has_images(self) -> bool {
        match self {
            Self::Podman | Self::Docker => true,
            Self::Local
            | Self::Custom
            | Self::Ssh
            | Self::Proxmox
            | Self::Lexware
            | Self::Sevdesk
            | Self::Http => false,
        }
    }

    /// Whether a step of it is one call that needs no command: all of it stands in `with`.
    #[must_use]
    pub fn is_call(self) -> bool {
        match self {
            Self::Proxmox | Self::Lexware | Self::Sevdesk | Self::Http => true,
            Self::Podman | Self::Docker | Self::Local | Self::Custom | Self::Ssh => false,
        }
    }
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
    /// The time before the second attempt; it doubles with each one after that, unless `backoff` says
    /// otherwise. 1 s where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Span>,
    /// What becomes of that time with each attempt.
    #[serde(default, skip_serializing_if = "Backoff::is_usual")]
    pub backoff: Backoff,
}

/// How the time between two attempts changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Backoff {
    /// It doubles, to 10 minutes at most, and is up to a tenth longer, so that what failed together
    /// does not come back together.
    #[default]
    Exponential,
    /// It stays as it is, exactly.
    Constant,
}

impl Backoff {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
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
