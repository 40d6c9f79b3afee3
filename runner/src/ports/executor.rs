//! The executor: runs the steps of a run, and manages the images that they leave.

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
    BaseImage, ByteStream, Checkpoint, Disk, Gate, LeftoverRun, LogSink, RunScope, StepOutcome,
    StepSpec, StopSignal, Workspace,
};

/// Upper bound on the time between sending a start to an engine and the engine performing it.
/// Exceeds the response timeout of every adapter.
pub const STARTS_WITHIN: Duration = Duration::from_secs(150);

/// Identity and capabilities of an engine, as stored in node and run records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// A stable ID of its container store.
    pub id: String,
    /// The executor's name, for example `podman`.
    pub executor: &'static str,
    /// Whether checkpoints can be pushed to and fetched from a registry.
    pub checkpoints: bool,
    /// Why memory and CPU limits cannot be enforced, or `None` if they can.
    pub limits_refused: Option<String>,
    /// A sentence that users should read before they rely on the engine.
    pub warning: Option<String>,
}

/// Errors of an executor. A failing step is not an error: see [`StepOutcome`].
#[derive(Debug, Error)]
pub enum ExecError {
    /// The engine does not answer.
    #[error("cannot reach the container engine at {at}: {cause}")]
    Unreachable {
        /// Its address.
        at: String,
        /// The connection error.
        cause: String,
    },
    /// The image cannot be obtained.
    #[error("cannot get image {image}: {cause}")]
    Image {
        /// The image reference in the pipeline.
        image: String,
        /// The error of the engine or the registry.
        cause: String,
    },
    /// The command cannot be started in its container.
    #[error("its command cannot be started: {cause}")]
    Start {
        /// The step.
        step: StepName,
        /// The engine's error.
        cause: String,
        /// The exit code a shell would return: 127 if the program does not exist, otherwise 126.
        code: i32,
    },
    /// The process that supervises the command was killed, by the step itself.
    #[error("its process group leader was killed ({})", signal_name(*.signal))]
    Killed {
        /// The signal.
        signal: i32,
    },
    /// The path of an artifact or output does not exist.
    #[error("there is no {path} in the container of the step")]
    NoSuchPath {
        /// The path.
        path: String,
    },
    /// The gate refused the start. Nothing was started.
    #[error("the step was not started")]
    NotStarted,
    /// The disk is full.
    #[error("the container engine has no space left: {cause}")]
    NoSpace {
        /// The engine's error.
        cause: String,
    },
    /// The kernel's key quota of the engine's user is exhausted. Each container needs a key.
    #[error(
        "the kernel holds as many keys of the container engine's user as it may, and each container needs one: run fewer containers at a time, or raise kernel.keys.maxkeys ({cause})"
    )]
    KeyQuota {
        /// The engine's error.
        cause: String,
    },
    /// The host or the engine does not support what the step requests.
    #[error("{0}")]
    Unsupported(String),
    /// The engine returned an error or an unexpected response.
    #[error("the container engine failed at {doing}: {cause}")]
    Engine {
        /// The call.
        doing: String,
        /// The engine's error.
        cause: String,
    },
    /// A file that the step left contains one of its secrets. The workspace is dropped.
    #[error(
        "step {step} has left a secret in {path}: what it left is dropped; write no secret to a file that stays"
    )]
    SecretLeak {
        /// The step.
        step: StepName,
        /// The file.
        path: String,
    },
    /// The input of an import ended early.
    #[error("{0}")]
    Input(String),
    /// The connection to another host broke. The outcome of the step there is unknown.
    #[error(
        "the connection to {host} broke before the step ended, and what it did there is not known: {cause}"
    )]
    Disconnected {
        /// The host.
        host: String,
        /// The connection error.
        cause: String,
    },
}

/// The name of a signal that ends a process, such as `SIGKILL`.
fn signal_name(signal: i32) -> String {
    let known = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (6, "SIGABRT"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (15, "SIGTERM"),
    ];
    let name = known.iter().find(|(number, _)| *number == signal).map(|(_, name)| *name);
    name.map_or_else(|| format!("signal {signal}"), str::to_owned)
}

impl ExecError {
    /// Returns the cause of a run that ends with this error.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Self::Image { .. } => Cause::Image,
            Self::Start { .. } | Self::Killed { .. } => Cause::ExitCode,
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

    /// Returns true if the same call may succeed later.
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
            | Self::Disconnected { .. }
            | Self::Killed { .. } => false,
        }
    }
}

/// Runs steps that leave nothing on this host: calls, and commands on other hosts.
#[async_trait]
pub trait Remote: Send + Sync {
    /// Like [`Steps::run_step`], but the resulting workspace is [`Workspace::None`].
    ///
    /// # Errors
    /// Same as [`Steps::run_step`].
    async fn run_step(
        &self,
        run: &RunScope,
        step: &StepSpec,
        gate: Gate,
        out: Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<StepOutcome, ExecError>;
}

/// Runs steps. One value serves all runs at once.
///
/// Order of calls for a step: `run_step`, `export`*, `discard`; at the end of the run, `destroy`.
///
/// Dropping the future of `run_step` does not stop the step. `stop` does: the call then returns how
/// the step ended, and nothing of the step is still running.
///
/// `destroy` must succeed if nothing exists, if called twice, and if a previous process created the
/// resources. It finds them by the run's label, never from memory.
#[async_trait]
pub trait Steps: Send + Sync {
    /// Returns the identity and capabilities of the engine.
    async fn info(&self) -> Result<EngineInfo, ExecError>;

    /// Returns why memory and CPU limits cannot be enforced for an executor kind, if so.
    async fn limits_refused(&self, _kind: ExecutorKind) -> Result<Option<String>, ExecError> {
        Ok(self.info().await?.limits_refused)
    }

    /// Returns why this executor rejects a step. Called before any step of the run starts.
    /// `network` is the effective network: from the step, its pipeline or the settings. Checks that
    /// depend on results of earlier steps or on files of the host are made by `run_step`.
    fn rejects(&self, _step: &Step, _network: Option<&str>) -> Option<String> {
        None
    }

    /// Runs a step. Prepares everything up to the start while `gate` is still closed. Leaves
    /// resources of a later owner of the run untouched.
    async fn run_step(
        &self,
        run: &RunScope,
        on: &Workspace,
        step: &StepSpec,
        gate: Gate,
        out: Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<StepOutcome, ExecError>;

    /// Discards what a step left, if it is not committed.
    async fn discard(&self, run: &RunScope, left: Workspace);

    /// Returns a tar archive of a path, relative to the working directory of the step.
    ///
    /// Entry names start with the last component of the path. For `.`, they are relative to the
    /// working directory.
    async fn export(
        &self,
        run: &RunScope,
        left: &Workspace,
        path: &str,
    ) -> Result<ByteStream, ExecError>;

    /// Ends everything that runs for this run, under this owner or an earlier one. After it
    /// returns, nothing of the run is running or can still start.
    ///
    /// # Errors
    /// [`ExecError`] if that cannot be verified.
    async fn end(&self, run: &RunScope) -> Result<(), ExecError>;

    /// Removes the containers of the run's steps, whether running or not. Committed workspaces
    /// remain for `adopt` until `destroy`.
    async fn clear(&self, run: &RunId) -> Result<(), ExecError>;

    /// Removes everything with the run's label, whether running or not.
    async fn destroy(&self, run: &RunId) -> Result<(), ExecError>;

    /// Returns the runs that still have resources on this engine, each once.
    async fn leftovers(&self) -> Result<Vec<LeftoverRun>, ExecError>;

    /// Checks that the engine responds.
    ///
    /// # Errors
    /// [`ExecError::Unreachable`] if it does not.
    async fn answers(&self) -> Result<(), ExecError>;
}

/// The images from which steps start and that they leave, and the storage that they occupy.
///
/// Order of calls for a run: `prepare`, or `adopt` by a later owner; per step `import`*, the calls
/// of [`Steps`], and `checkpoint` instead of `discard` if the next steps start from what the step
/// left. A workspace is a value: steps that run in parallel start from the same one, and each leaves
/// its own.
#[async_trait]
pub trait Images: Send + Sync {
    /// Pulls the image if needed and returns the first workspace. Returns early if `stop` is
    /// raised.
    async fn prepare(&self, run: &RunScope, stop: &StopSignal) -> Result<Workspace, ExecError>;

    /// Takes over a run from an earlier owner. Ends what still runs of it on this engine, and keeps
    /// the checkpoint until `destroy`, even if other users remove its names.
    ///
    /// Returns `None` if neither the engine nor the checkpoint registry has the checkpoint.
    async fn adopt(
        &self,
        run: &RunScope,
        kept: Option<&Checkpoint>,
    ) -> Result<Option<Workspace>, ExecError>;

    /// Copies a checkpoint to the checkpoint registry and returns its digest. Returns `None` if no
    /// registry is configured. `destroy` deletes the copy if the registry permits it.
    ///
    /// # Cancel safety
    /// If the future is dropped, the copy may remain until `destroy`.
    async fn push(
        &self,
        run: &RunScope,
        kept: &Workspace,
        step: &StepSpec,
    ) -> Result<Option<String>, ExecError>;

    /// Commits what a step left as the workspace of its successors. Removes the step's container in
    /// the background.
    ///
    /// # Errors
    /// [`ExecError::SecretLeak`] if the workspace contains a forbidden secret. It is discarded
    /// then.
    async fn checkpoint(
        &self,
        run: &RunScope,
        left: Workspace,
        step: &StepSpec,
    ) -> Result<Workspace, ExecError>;

    /// Unpacks a tar archive into a directory and returns the resulting workspace.
    async fn import(
        &self,
        run: &RunScope,
        on: &Workspace,
        at: &str,
        tar: ByteStream,
    ) -> Result<Workspace, ExecError>;

    /// Returns the usage of the engine's disk, or `None` if it is unknown or there is no disk.
    async fn disk(&self) -> Result<Option<Disk>, ExecError>;

    /// Returns the base images that this executor pulled, least recently used first.
    ///
    /// First stores at the engine that runs have used the images with the references in `used`
    /// until `now`. Other processes see that.
    async fn bases(
        &self,
        used: &BTreeSet<String>,
        now: Millis,
    ) -> Result<Vec<BaseImage>, ExecError>;

    /// Removes a base image that this executor pulled. Returns `false` and keeps the image if it is
    /// in use by now or another user has given it a name.
    async fn remove_base(&self, image: &BaseImage) -> Result<bool, ExecError>;

    /// Returns the names of the volumes that steps created and share, least recently used first. An
    /// engine without such volumes has none.
    async fn shared_volumes(&self) -> Result<Vec<String>, ExecError> {
        Ok(Vec::new())
    }

    /// Removes a volume that steps created and share. Returns `false` and keeps it if a container
    /// uses it.
    async fn remove_shared_volume(&self, _name: &str) -> Result<bool, ExecError> {
        Ok(false)
    }
}

/// Runs steps that start from images and leave images.
pub trait Executor: Steps + Images {}

impl<T: Steps + Images + ?Sized> Executor for T {}
