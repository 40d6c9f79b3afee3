//! One step: its command, executor, conditions and outputs.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Artifact, Callback, EndSignal, ExecutorKind, Output, Place, PullPolicy, Scalar, SecretUse,
    VARIABLE, Vars,
};
use crate::id::StepName;
use crate::quantity::Span;
use crate::status::Cause;

/// One step of a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Step {
    /// The name, unique in the pipeline. An unnamed Bob step gets its position.
    pub name: StepName,
    /// The command, unless `script` is given. A step with neither groups the steps that it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Cmd>,
    /// Shell programs, run one after the other. They share variables and functions. Each starts in
    /// the step's working directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub script: Vec<String>,
    /// The shell that runs `script`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Shell>,
    /// Words before the command of a container; `[]` for none. If missing, a `cmd` uses the image's
    /// entrypoint, and a `script` uses none because the shell replaces it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Scalar>>")]
    pub entrypoint: Option<Vec<String>>,
    /// The template syntax of `script`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
    /// Environment variables of this step. They override the pipeline's.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    #[schemars(with = "IndexMap<String, Scalar>", extend("propertyNames" = { "pattern": VARIABLE }))]
    pub vars: Vars,
    /// A resource of the pipeline that must be mounted, by name.
    #[serde(default, rename = "needs_resource", skip_serializing_if = "Option::is_none")]
    pub needs_resource: Option<String>,
    /// The artifact that the step uploads for others.
    #[serde(default, rename = "produces_artifact", skip_serializing_if = "Option::is_none")]
    pub produces_artifact: Option<Artifact>,
    /// The network of the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// When to pull the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// Time limit of one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// The signal that stops the step. `TERM` if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<EndSignal>,
    /// Time between that signal and SIGKILL, at most an hour. The worker's default if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_grace: Option<Span>,
    /// Whether and how to retry a failed step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// The steps that must have passed before. The preceding step if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<Vec<StepName>>,
    /// The required outcome of those steps.
    #[serde(default, skip_serializing_if = "When::is_usual")]
    pub when: When,
    /// Whether the run continues if the step fails. The rest of its `script` still runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_failure: bool,
    /// What to do if the step's output reaches the worker's limit (`BOB_LOG_LIMIT_BYTES`).
    #[serde(default, skip_serializing_if = "OnLogLimit::is_usual")]
    pub on_log_limit: OnLogLimit,
    /// The step whose image this step starts on, if it needs several steps with images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<StepName>,
    /// The executor that runs the step.
    #[serde(default)]
    pub executor: ExecutorKind,
    /// The secrets that the step needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretUse>,
    /// A second name of the step, used for its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Further settings for the executor. The keys depend on the executor.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub with: Map<String, Value>,
    /// Files that are kept with the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Output>,
    /// An address that is notified when the step starts and when it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<Callback>,
}

/// A command: a list of words, or a line that is split as by a shell but not expanded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Cmd {
    /// Split by [`crate::shell::split`].
    Line(#[schemars(regex(pattern = r"\S"))] String),
    /// Taken as it is.
    Words(#[schemars(with = "Vec<Scalar>", length(min = 1))] Vec<String>),
}

impl Cmd {
    /// The words of the command.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Line(line) => crate::shell::split(line),
            Self::Words(words) => words.clone(),
        }
    }

    /// The command as displayed to people.
    #[must_use]
    pub fn display(&self) -> String {
        match self {
            Self::Line(line) => line.clone(),
            Self::Words(words) => crate::shell::join(words),
        }
    }
}

/// The shell that runs a `script`.
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
    /// The name of the program.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Sh => "sh",
            Self::Bash => "bash",
        }
    }
}

/// The template syntax of a `script`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Template {
    /// Go's `text/template`: `{{ .name }}`.
    Go,
    /// The syntax of job files: `${PREVIOUS_JOB_ID}`, `${id.path}`. Other text stays unchanged.
    Dollar,
}

/// The required outcome of the steps that a step needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// All have passed.
    #[default]
    Passed,
    /// All have ended or will never start.
    Ended,
}

impl When {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// What to do with a step whose output reaches the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnLogLimit {
    /// Let the step continue and discard the rest of its output.
    #[default]
    Discard,
    /// Stop the step as failed.
    Fail,
}

impl OnLogLimit {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl Step {
    /// Makes a step without a command.
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

    /// Whether the step has nothing to run.
    #[must_use]
    pub fn is_join(&self) -> bool {
        let calls = self.executor.capabilities().is_call() && !self.with.is_empty();
        self.cmd.is_none() && self.script.is_empty() && !calls
    }

    /// Whether the step starts on an image of its run and commits a new one.
    #[must_use]
    pub fn is_on_image(&self) -> bool {
        let place = self.executor.capabilities().place;
        place == Place::Engine && !self.is_join() && !self.has_own_image()
    }

    /// Whether the step names an image of its own. It neither uses nor extends the run's images.
    #[must_use]
    pub fn has_own_image(&self) -> bool {
        self.executor.capabilities().has_own_images && self.with.contains_key("image")
    }

    /// Whether the step's results exist only on the worker's host.
    #[must_use]
    pub fn is_on_host(&self) -> bool {
        self.executor.capabilities().place == Place::Host && !self.is_join()
    }

    /// Whether the run tolerates a failure with `cause`. A failed script template is always fatal.
    #[must_use]
    pub fn allows(&self, cause: Cause) -> bool {
        self.allow_failure && cause != Cause::Template
    }

    /// Whether the step can run again even though an earlier attempt might have taken effect.
    #[must_use]
    pub fn may_repeat(&self) -> bool {
        self.executor.capabilities().is_on_this_host()
            || self.is_join()
            || self.with.get("idempotent").and_then(Value::as_bool).unwrap_or(false)
    }

    /// The step's command as displayed to people.
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

/// Whether and how a step is retried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Retry {
    /// The maximum number of attempts.
    #[schemars(range(min = 1, max = 100))]
    pub attempts: u32,
    /// The reasons for a retry. Only `failure` if missing.
    #[serde(default = "RetryOn::defaults", skip_serializing_if = "RetryOn::is_usual")]
    #[schemars(length(min = 1))]
    pub on: Vec<RetryOn>,
    /// Delay before the second attempt. It doubles with each further attempt, unless `backoff` is
    /// `constant`. 1 s if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Span>,
    /// How the delay changes with each attempt.
    #[serde(default, skip_serializing_if = "Backoff::is_usual")]
    pub backoff: Backoff,
}

/// How the delay between attempts changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Backoff {
    /// It doubles, up to 10 minutes, plus up to 10 % of jitter so that steps that failed together
    /// do not retry together.
    #[default]
    Exponential,
    /// It stays the same, without jitter.
    Constant,
}

impl Backoff {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// A reason to retry a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// The command failed or exceeded its timeout.
    Failure,
    /// The worker was lost. The step is retried at most `attempts` times, whatever the pipeline's
    /// `on-lost` says. Without this reason, `on-lost` alone decides.
    Lost,
}

impl RetryOn {
    /// The default reasons.
    #[must_use]
    pub fn defaults() -> Vec<Self> {
        vec![Self::Failure]
    }

    fn is_usual(on: &[Self]) -> bool {
        on == [Self::Failure]
    }
}
