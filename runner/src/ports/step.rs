//! One step as an executor gets it: what it is, what it begins with, when it may start, how it is asked
//! to end, and how it ended.

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
    /// Words in front of the command in a container. If there are none, a command has the image's
    /// entrypoint and a script has none.
    pub entrypoint: Option<Vec<String>>,
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

/// Takes a step's output, complete and in order; waits if it must not grow.
///
/// The bytes of one stream are not aligned to lines. With [`LogStream::Bob`], each call carries one notice
/// of the executor, for example that some output is missing.
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
