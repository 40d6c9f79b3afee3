//! Where steps run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use protocol::event::LogStream;
use protocol::id::{Epoch, RunId, StepName};
use protocol::pipeline::{EndSignal, ExecutorKind, Limits, PullPolicy, Shell, Vars};
use protocol::run::Cause;
use protocol::time::Millis;
use serde_json::{Map, Value};
use thiserror::Error;
use tokio::sync::watch;

use super::{BaseImage, ByteStream, Disk, StepSecrets};

/// A run, as far as an executor has to know it.
#[derive(Debug, Clone)]
pub struct RunScope {
    /// The run.
    pub run: RunId,
    /// The epoch of its owner: label of everything that is made.
    pub epoch: Epoch,
    /// The store that knows it: another label.
    pub cluster: Arc<str>,
    /// The base image.
    pub image: String,
    /// When it is pulled.
    pub pull: PullPolicy,
}

/// A step, ready to be run.
#[derive(Clone)]
pub struct StepSpec {
    /// The step.
    pub name: StepName,
    /// Its place in the pipeline, from 0.
    pub position: usize,
    /// 1 for the first.
    pub attempt: u32,
    /// Where it runs.
    pub executor: ExecutorKind,
    /// What is run; not empty, where there is no script.
    pub words: Vec<String>,
    /// Programs for a shell, in the place of a command.
    pub script: Option<Script>,
    /// Its environment, over that of the base image.
    pub env: Vars,
    /// The working directory; that of the base image where there is none.
    pub work_dir: Option<String>,
    /// The network; the engine's own default where there is none.
    pub network: Option<String>,
    /// What it may use at most.
    pub limits: Limits,
    /// What its executor has to know beyond that, by the executor's own keys.
    pub with: Map<String, Value>,
    /// What it is given that nobody else may see.
    pub secrets: StepSecrets,
    /// How it is asked to end.
    pub end: StepEnd,
}

/// How a step is asked to end where it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepEnd {
    /// The signal that it gets.
    pub signal: EndSignal,
    /// The time between that and SIGKILL, where it says so.
    pub grace: Option<Duration>,
}

impl StepEnd {
    /// That time, where who stops the step would give it `usual`.
    #[must_use]
    pub fn grace_or(self, usual: Duration) -> Duration {
        self.grace.unwrap_or(usual)
    }
}

// What it is given and what its executor has to know may be secret.
impl std::fmt::Debug for StepSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepSpec")
            .field("name", &self.name)
            .field("position", &self.position)
            .field("attempt", &self.attempt)
            .field("executor", &self.executor)
            .finish_non_exhaustive()
    }
}

/// A directory of a step's own, empty at its start: where jobs leave what is to be kept. A container sees
/// it under this name; `export` knows it by this name wherever it is.
pub const JOB_DIR: &str = "/runner/jobworkdir";

/// Programs for a shell, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// The shell.
    pub shell: Shell,
    /// The programs. They share variables and functions, and each begins in the step's directory.
    pub programs: Vec<String>,
    /// Those behind one that fails are run too; the last failure is the script's.
    pub goes_on: bool,
}

/// What steps leave to their followers. Opaque to the worker, but for the image's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Workspace {
    /// An image of an engine, by its id.
    Image {
        /// The id.
        id: String,
        /// How many layers lie on the last squashed one, or on the base image.
        depth: u32,
    },
    /// A container that has ended, by its id.
    Container {
        /// The id.
        id: String,
        /// As of the image that it was made from.
        depth: u32,
    },
    /// A container that has ended, of a step that began with an image of its own: files, and no image
    /// for others.
    Lone {
        /// The id.
        id: String,
    },
    /// A directory on the worker's host.
    Dir(std::path::PathBuf),
    /// Nothing.
    None,
}

impl Workspace {
    /// The committed image, where it is one.
    #[must_use]
    pub fn image(&self) -> Option<&str> {
        match self {
            Self::Image { id, .. } => Some(id),
            Self::Container { .. } | Self::Lone { .. } | Self::Dir(_) | Self::None => None,
        }
    }
}

/// A run of which something is left on an engine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Left {
    /// The run.
    pub run: RunId,
    /// The store that knows it; none where what is left does not say.
    pub cluster: Option<String>,
}

/// What an earlier owner has kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The image's id, on the engine that made it.
    pub image: String,
    /// Its digest where `push` has copied it.
    pub digest: Option<String>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code; 128 and the signal where one killed it.
    pub code: i32,
    /// The engine says that memory ran out.
    pub oom: bool,
}

/// What came of a step: the exit is data.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub exit: Exit,
    /// What it left: read by `export`, kept by `checkpoint`.
    pub left: Workspace,
    /// What it found out, where it says so: later steps may ask for parts of it.
    pub result: Option<Value>,
}

impl Ran {
    /// A step that has found nothing out.
    #[must_use]
    pub fn new(exit: Exit, left: Workspace) -> Self {
        Self { exit, left, result: None }
    }
}

/// How urgently a step is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopLevel {
    /// Not at all.
    Run,
    /// Its signal, which is SIGTERM where it says nothing, and SIGKILL after the grace.
    Stop {
        /// The time between the two, where the step says nothing.
        grace: Duration,
    },
    /// SIGKILL now.
    Kill,
}

/// Asks steps to end. It only ever becomes more urgent.
#[derive(Debug, Clone)]
pub struct StopSignal {
    own: Arc<watch::Sender<StopLevel>>,
    /// What is asked of these is asked of this one too.
    above: Vec<Arc<watch::Sender<StopLevel>>>,
}

impl Default for StopSignal {
    fn default() -> Self {
        Self { own: Arc::new(watch::Sender::new(StopLevel::Run)), above: Vec::new() }
    }
}

impl StopSignal {
    /// One for a part of what this one is for.
    #[must_use]
    pub fn part(&self) -> Self {
        Self { above: self.all().cloned().collect(), ..Self::default() }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<watch::Sender<StopLevel>>> {
        self.above.iter().chain([&self.own])
    }

    /// Asks for an end. A gentler level than the one that was asked for before changes nothing.
    pub fn raise(&self, level: StopLevel) {
        self.own.send_if_modified(|now| {
            let more = level > *now;
            if more {
                *now = level;
            }
            more
        });
    }

    /// What is asked for now.
    #[must_use]
    pub fn level(&self) -> StopLevel {
        self.all().map(|asked| *asked.borrow()).max().unwrap_or(StopLevel::Run)
    }

    /// Returns the level once it is above `seen`.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn above(&self, seen: StopLevel) -> StopLevel {
        let waits = self.all().map(|asked| {
            let mut levels = asked.subscribe();
            async move {
                let level = levels.wait_for(|level| *level > seen).await.ok().map(|level| *level);
                match level {
                    Some(level) => level,
                    // The sender lives in `self`.
                    None => std::future::pending().await,
                }
            }
            .boxed()
        });
        let (level, _, _) = futures::future::select_all(waits).await;
        level.max(self.level())
    }
}

/// Takes a step's output, in order, whole; waits where it must not grow. The bytes of one stream are
/// not aligned to lines.
#[async_trait]
pub trait LogSink: Send + Sync {
    /// Takes the next bytes of a stream.
    ///
    /// # Cancel safety
    /// Not safe: bytes whose call was dropped may be lost.
    async fn write(&self, stream: LogStream, bytes: Bytes);
}

/// Lets a step start, once it is recorded as started and while its owner owns its run.
pub struct Gate {
    opens: BoxFuture<'static, bool>,
    stands: Box<dyn Fn() -> bool + Send + Sync>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl Gate {
    /// `opens` resolves to whether the step may start; `stands` tells whether its owner still may.
    pub fn new(
        opens: impl Future<Output = bool> + Send + 'static,
        stands: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { opens: Box::pin(opens), stands: Box::new(stands) }
    }

    /// One that is open and stays so, where there are no owners.
    #[must_use]
    pub fn open() -> Self {
        Self::new(std::future::ready(true), || true)
    }

    /// Resolves when the step's attempt is recorded, while everything is made that it needs. `false`:
    /// it never may start.
    pub async fn opened(&mut self) -> bool {
        (&mut self.opens).await
    }

    /// To be asked right before the start, with everything made: an owner who was held up while it
    /// was made may have lost the run, and the next one removes what it finds made, then goes on.
    #[must_use]
    pub fn stands(&self) -> bool {
        (self.stands)()
    }
}

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
            Self::Unreachable { .. } | Self::NotStarted | Self::Engine { .. } => Cause::Engine,
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
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
