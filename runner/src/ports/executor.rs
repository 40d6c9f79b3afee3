//! Where steps run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protocol::id::{RunId, StepName};
use protocol::pipeline::{ExecutorKind, Step};
use protocol::run::Cause;
use protocol::time::Millis;
use thiserror::Error;

use super::{
    BaseImage, ByteStream, Checkpoint, Disk, Gate, Left, LogSink, Ran, RunScope, StepSpec,
    StopSignal, Workspace,
};

/// How long after a start was sent an engine can still perform it: longer than any adapter waits for
/// the answer.
pub const STARTS_WITHIN: Duration = Duration::from_secs(150);

/// An engine, as nodes and records name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// A stable id of its container store.
    pub id: String,
    /// The executor's name: `podman`.
    pub executor: &'static str,
    /// Whether `push` has a place to copy to, and `adopt` one to get from.
    pub checkpoints: bool,
    /// Why limits of cpu and memory cannot be enforced, where they cannot.
    pub limits_refused: Option<String>,
    /// What users should know before they rely on the engine, as a sentence.
    pub warning: Option<String>,
}

/// What an executor could not do. That a step failed is no such thing: see [`Ran`].
#[derive(Debug, Error)]
pub enum ExecError {
    /// The engine does not answer.
    #[error("cannot reach the container engine at {at}: {cause}")]
    Unreachable {
        /// Its address.
        at: String,
        /// What the connection said.
        cause: String,
    },
    /// The image cannot be had.
    #[error("cannot get image {image}: {cause}")]
    Image {
        /// As the pipeline names it.
        image: String,
        /// What engine or registry said.
        cause: String,
    },
    /// The command cannot be started in its container.
    #[error("cannot start step {step}: {cause}")]
    Start {
        /// The step.
        step: StepName,
        /// What the engine said.
        cause: String,
        /// What a shell would answer: 127 where the program is not there, else 126.
        code: i32,
    },
    /// The file that an artifact is to be made of is not there.
    #[error("there is no {path} in the container of the step")]
    NoSuchPath {
        /// The path.
        path: String,
    },
    /// The gate said no: nothing was started.
    #[error("the step was not started")]
    NotStarted,
    /// The disk is full.
    #[error("the container engine has no space left: {cause}")]
    NoSpace {
        /// What the engine said.
        cause: String,
    },
    /// The kernel holds as many keys of the engine's user as it may, and each container needs some.
    #[error(
        "the kernel holds as many keys of the container engine's user as it may, and each container needs one: run fewer containers at a time, or raise kernel.keys.maxkeys ({cause})"
    )]
    KeyQuota {
        /// What the engine said.
        cause: String,
    },
    /// The host or the engine cannot do what the step asks for.
    #[error("{0}")]
    Unsupported(String),
    /// The engine refused, or answered what we do not understand.
    #[error("the container engine failed at {doing}: {cause}")]
    Engine {
        /// The call.
        doing: String,
        /// What it said.
        cause: String,
    },
    /// What a step left holds one of its secrets; it is not kept.
    #[error(
        "step {step} has left a secret in {path}: what it left is dropped; write no secret to a file that stays"
    )]
    SecretLeak {
        /// The step.
        step: StepName,
        /// The file.
        path: String,
    },
    /// The bytes that were to be imported broke off.
    #[error("{0}")]
    Input(String),
    /// Another host is gone: nobody knows how the step ended there.
    #[error(
        "the connection to {host} broke before the step ended, and what it did there is not known: {cause}"
    )]
    Disconnected {
        /// The host.
        host: String,
        /// What the connection said.
        cause: String,
    },
}

impl ExecError {
    /// The cause that a run ends with for it.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Self::Image { .. } => Cause::Image,
            Self::Start { .. } => Cause::ExitCode,
            Self::NoSuchPath { .. } => Cause::Artifact,
            Self::NoSpace { .. } => Cause::NoSpace,
            Self::Unsupported(_) => Cause::Rejected,
            Self::SecretLeak { .. } => Cause::SecretLeak,
            Self::Input(_) => Cause::Resource,
            Self::Disconnected { .. } => Cause::Lost,
            Self::Unreachable { .. }
            | Self::NotStarted
            | Self::KeyQuota { .. }
            | Self::Engine { .. } => Cause::Engine,
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::KeyQuota { .. } => true,
            Self::Image { .. }
            | Self::Start { .. }
            | Self::NoSuchPath { .. }
            | Self::NotStarted
            | Self::NoSpace { .. }
            | Self::Unsupported(_)
            | Self::Engine { .. }
            | Self::SecretLeak { .. }
            | Self::Input(_)
            | Self::Disconnected { .. } => false,
        }
    }
}

/// Runs steps that act somewhere else and leave nothing here: a call, a command on another host.
#[async_trait]
pub trait Remote: Send + Sync {
    /// As [`Executor::run_step`]; what the step leaves is [`Workspace::None`].
    ///
    /// # Errors
    /// As there.
    async fn run_step(
        &self,
        run: &RunScope,
        step: &StepSpec,
        gate: Gate,
        out: Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<Ran, ExecError>;
}

/// Runs steps somewhere. One value serves all runs at once.
///
/// Order per run: `prepare`, or `adopt` by a later owner; per step `import`*, `run_step`, `export`*, `checkpoint`; then `destroy`.
/// A workspace is a value: steps that run in parallel start from the same one and each leave their
/// own. Dropping the future of `run_step` does not stop the step; `stop` does, and the call still
/// returns how it ended, with nothing of it left running. `destroy` must succeed when nothing exists,
/// when called twice, and when a previous process made the things: it finds them by the run's label,
/// never by memory.
#[async_trait]
pub trait Executor: Send + Sync {
    /// The engine behind it.
    async fn info(&self) -> Result<EngineInfo, ExecError>;

    /// Why limits of cpu and memory cannot be enforced for steps of one kind, where they cannot.
    async fn limits_refused(&self, _kind: ExecutorKind) -> Result<Option<String>, ExecError> {
        Ok(self.info().await?.limits_refused)
    }

    /// Why this executor rejects a step, decided before anything of its run starts. `network` is that
    /// of the step, its pipeline or the settings. `run_step` makes the checks that depend on results
    /// of earlier steps or on files of the host.
    fn rejects(&self, _step: &Step, _network: Option<&str>) -> Option<String> {
        None
    }

    /// Makes the first workspace: the image is there afterwards. Ends early where `stop` is raised.
    async fn prepare(&self, run: &RunScope, stop: &StopSignal) -> Result<Workspace, ExecError>;

    /// Takes up a run that another owner had begun: what still runs of it on this engine is ended,
    /// and what was kept stays until `destroy`, whoever removes what it was named by. `None`: neither
    /// the engine nor the place that `push` copies to has it.
    async fn adopt(
        &self,
        run: &RunScope,
        kept: Option<&Checkpoint>,
    ) -> Result<Option<Workspace>, ExecError>;

    /// Ends what runs of a run for this owner or an earlier one. Once this has returned, nothing of it
    /// runs and nothing of it can start.
    ///
    /// # Errors
    /// [`ExecError`] if that is not proven.
    async fn end(&self, run: &RunScope) -> Result<(), ExecError> {
        self.adopt(run, None).await.map(drop)
    }

    /// Copies what `checkpoint` kept to where other engines can get it; its digest there. `None`:
    /// there is no such place. `destroy` removes it, where it may.
    ///
    /// # Cancel safety
    /// What was copied may stay until `destroy`.
    async fn push(
        &self,
        run: &RunScope,
        kept: &Workspace,
        step: &StepSpec,
    ) -> Result<Option<String>, ExecError>;

    /// Runs a step: everything up to the start is done while `gate` is still closed. What a later
    /// owner of the run has made is not touched.
    async fn run_step(
        &self,
        run: &RunScope,
        on: &Workspace,
        step: &StepSpec,
        gate: Gate,
        out: Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<Ran, ExecError>;

    /// Keeps what a step left as the workspace of its followers. What the step ran in is removed,
    /// off the critical path.
    ///
    /// # Errors
    /// [`ExecError::SecretLeak`] where the step's `forbidden` is in what it left; that is let go of.
    async fn checkpoint(
        &self,
        run: &RunScope,
        left: Workspace,
        step: &StepSpec,
    ) -> Result<Workspace, ExecError>;

    /// Lets go of what a step left, where it is not kept.
    async fn discard(&self, run: &RunScope, left: Workspace);

    /// Unpacks a tar at a directory; the answer is the workspace that holds it.
    async fn import(
        &self,
        run: &RunScope,
        on: &Workspace,
        at: &str,
        tar: ByteStream,
    ) -> Result<Workspace, ExecError>;

    /// A tar of what lies at a path, relative to the working directory of what the step left.
    ///
    /// It stands there under its last name, and what is in it below that. For `.` it is what is in the
    /// working directory, without a name for that directory.
    async fn export(
        &self,
        run: &RunScope,
        left: &Workspace,
        path: &str,
    ) -> Result<ByteStream, ExecError>;

    /// Removes what the run's steps ran in, running or not. What they left stays for `adopt`, until
    /// `destroy`.
    async fn clear(&self, run: &RunId) -> Result<(), ExecError>;

    /// Removes everything that bears the run's label, running or not.
    async fn destroy(&self, run: &RunId) -> Result<(), ExecError>;

    /// The runs of which something is left, each once.
    async fn leftovers(&self) -> Result<Vec<Left>, ExecError>;

    /// Asks the engine for a sign of life.
    ///
    /// # Errors
    /// [`ExecError::Unreachable`] where none comes.
    async fn answers(&self) -> Result<(), ExecError>;

    /// How full the engine's disk is. `None`: it cannot say, or has none.
    async fn disk(&self) -> Result<Option<Disk>, ExecError>;

    /// The base images that it has pulled itself, the least recently used first. Runs have begun on
    /// the images of these references (`used`) until `now`, which is noted at the engine: another
    /// process sees it there.
    async fn bases(
        &self,
        used: &BTreeSet<String>,
        now: Millis,
    ) -> Result<Vec<BaseImage>, ExecError>;

    /// Removes a base image that it has pulled itself. `false`: something stands on it by now, or
    /// somebody else has named it, and it stays as it is.
    async fn remove_base(&self, image: &BaseImage) -> Result<bool, ExecError>;
}
