//! A step as passed to an executor: its definition, workspace, gate, stop signal and result.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use protocol::event::LogStream;
use protocol::id::{Epoch, RunId, StepName};
use protocol::pipeline::{EndSignal, ExecutorKind, Limits, PullPolicy, Shell, Vars};
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::StepSecrets;

/// The part of a run that an executor needs.
#[derive(Debug, Clone)]
pub struct RunScope {
    /// The run.
    pub run: RunId,
    /// The epoch of the owner. It labels every resource.
    pub epoch: Epoch,
    /// The identity of the store with the run's record. It labels every resource too.
    pub cluster: Arc<str>,
    /// The base image.
    pub image: String,
    /// When to pull the image.
    pub pull: PullPolicy,
    /// Whether one of its steps begins with an image of its own.
    pub has_own_images: bool,
}

/// A step that is ready to run.
#[derive(Clone)]
pub struct StepSpec {
    /// The step.
    pub name: StepName,
    /// The position in the pipeline, from 0.
    pub position: usize,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The executor that runs it.
    pub executor: ExecutorKind,
    /// The command. Not empty unless there is a script.
    pub words: Vec<String>,
    /// Programs for a shell. Replaces the command.
    pub script: Option<Script>,
    /// Overrides the image's entrypoint. If empty, a command uses the image's, and a script uses
    /// none.
    pub entrypoint: Option<Vec<String>>,
    /// The environment, merged over that of the base image.
    pub env: Vars,
    /// The working directory. Defaults to that of the base image.
    pub work_dir: Option<String>,
    /// The network. Defaults to the engine's default network.
    pub network: Option<String>,
    /// The resource limits.
    pub limits: Limits,
    /// Additional settings for the executor, under the executor's own keys.
    pub with: Map<String, Value>,
    /// The secrets of the step.
    pub secrets: StepSecrets,
    /// How the step is stopped.
    pub end: StepEnd,
}

/// How a step is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepEnd {
    /// The signal sent first.
    pub signal: EndSignal,
    /// The grace between that signal and SIGKILL, if the step sets one.
    pub grace: Option<Duration>,
}

impl StepEnd {
    /// Returns the step's grace, or `usual` if the step sets none.
    #[must_use]
    pub fn grace_or(self, usual: Duration) -> Duration {
        self.grace.unwrap_or(usual)
    }
}

// Omits secrets and `with`, which may contain sensitive data.
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

/// A step's own directory, empty at its start, for files that jobs want to keep. A container has it
/// under this path. `export` accepts the path for every executor.
pub const JOB_DIR: &str = "/runner/jobworkdir";

/// Programs for a shell, run one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// The shell.
    pub shell: Shell,
    /// The programs. They share variables and functions; each starts in the step's directory.
    pub programs: Vec<String>,
    /// Run the remaining programs after a failure. The last failure is the script's exit code.
    pub goes_on: bool,
}

/// What a step leaves to its successors. Opaque to the worker, except for the image ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Workspace {
    /// An image of an engine.
    Image {
        /// The image ID.
        id: String,
        /// The number of layers above the base image or the last squashed layer.
        depth: u32,
    },
    /// An exited container.
    Container {
        /// The container ID.
        id: String,
        /// The depth of the image from which the container was created.
        depth: u32,
    },
    /// An exited container of a step with an image of its own. Files can be exported, but it is not
    /// committed for other steps.
    Lone {
        /// The container ID.
        id: String,
    },
    /// A directory on the worker's host.
    Dir(std::path::PathBuf),
    /// No workspace.
    None,
}

impl Workspace {
    /// Returns the ID of the committed image, if there is one.
    #[must_use]
    pub fn image(&self) -> Option<&str> {
        match self {
            Self::Image { id, .. } => Some(id),
            Self::Container { .. } | Self::Lone { .. } | Self::Dir(_) | Self::None => None,
        }
    }
}

/// A run with resources left on an engine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftoverRun {
    /// The run.
    pub run: RunId,
    /// The identity of the store with its record. `None` if the resources are not labelled with it.
    pub cluster: Option<String>,
}

/// A checkpoint of an earlier owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The image ID on the engine that committed it.
    pub image: String,
    /// The digest of its copy in the checkpoint registry.
    pub digest: Option<String>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 plus the signal number if a signal killed the command.
    pub code: i32,
    /// Whether the engine reports that memory ran out.
    pub oom: bool,
}

/// The result of a step. A failing exit code is data, not an error.
#[derive(Debug)]
pub struct StepOutcome {
    /// How it ended.
    pub exit: Exit,
    /// The files after the step. `export` reads them, and `checkpoint` commits them.
    pub workspace: Workspace,
    /// The step's result, if it reported one. Later steps may refer to parts of it.
    pub result: Option<Value>,
}

impl StepOutcome {
    /// Creates the result of a step that reports no value.
    #[must_use]
    pub fn new(exit: Exit, workspace: Workspace) -> Self {
        Self { exit, workspace, result: None }
    }
}

/// How urgently a step must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopLevel {
    /// The step continues to run.
    Run,
    /// Send the step's own signal (SIGTERM by default), then SIGKILL after the grace.
    Stop {
        /// The grace for steps that do not set one.
        grace: Duration,
    },
    /// Send SIGKILL at once.
    Kill,
}

/// Requests the end of steps. The level never decreases.
#[derive(Debug, Clone)]
pub struct StopSignal {
    own: Arc<watch::Sender<StopLevel>>,
    /// Signals of enclosing scopes. Their levels apply to this one too.
    above: Vec<Arc<watch::Sender<StopLevel>>>,
}

impl Default for StopSignal {
    fn default() -> Self {
        Self { own: Arc::new(watch::Sender::new(StopLevel::Run)), above: Vec::new() }
    }
}

impl StopSignal {
    /// Creates a signal for a part of this scope.
    #[must_use]
    pub fn part(&self) -> Self {
        Self { above: self.all().cloned().collect(), ..Self::default() }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<watch::Sender<StopLevel>>> {
        self.above.iter().chain([&self.own])
    }

    /// Requests an end. Has no effect if the current level is the same or more urgent.
    pub fn raise(&self, level: StopLevel) {
        self.own.send_if_modified(|now| {
            let more = level > *now;
            if more {
                *now = level;
            }
            more
        });
    }

    /// Returns the current level.
    #[must_use]
    pub fn level(&self) -> StopLevel {
        self.all().map(|asked| *asked.borrow()).max().unwrap_or(StopLevel::Run)
    }

    /// Waits until the level exceeds `seen` and returns it.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub async fn above(&self, seen: StopLevel) -> StopLevel {
        let waits = self.all().map(|asked| {
            let mut levels = asked.subscribe();
            async move {
                let level = levels.wait_for(|level| *level > seen).await.ok().map(|level| *level);
                match level {
                    Some(level) => level,
                    // Unreachable: `self` owns the sender.
                    None => std::future::pending().await,
                }
            }
            .boxed()
        });
        let (level, _, _) = futures::future::select_all(waits).await;
        level.max(self.level())
    }
}

/// Receives the complete output of a step in order. Waits if it cannot accept more.
///
/// The bytes of one stream are not aligned to lines. With [`LogStream::Bob`], each call carries one
/// notice of the executor, for example that some output is missing.
#[async_trait]
pub trait LogSink: Send + Sync {
    /// Writes the next bytes of a stream.
    ///
    /// # Cancel safety
    /// This method is not cancel safe: bytes may be lost if the future is dropped.
    async fn write(&self, stream: LogStream, bytes: Bytes);
}

/// Holds the start of a step until the attempt is recorded, and only while its owner owns the run.
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
    /// `opens` resolves to whether the step may start; `stands` returns whether the owner still
    /// owns the run.
    pub fn new(
        opens: impl Future<Output = bool> + Send + 'static,
        stands: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { opens: Box::pin(opens), stands: Box::new(stands) }
    }

    /// Creates a gate that is always open, for callers without ownership.
    #[must_use]
    pub fn open() -> Self {
        Self::new(std::future::ready(true), || true)
    }

    /// Waits until the attempt is recorded. Preparations run in the meantime. Returns `false` if
    /// the step must never start.
    pub async fn opened(&mut self) -> bool {
        (&mut self.opens).await
    }

    /// Returns whether the owner still owns the run. Call it right before the start, after all
    /// preparations. An owner that was delayed may have lost the run. The next owner removes
    /// prepared resources before it continues.
    #[must_use]
    pub fn is_owned(&self) -> bool {
        (self.stands)()
    }
}
