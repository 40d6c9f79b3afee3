//! The executor under test, and the runs and steps that the tests make with it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use protocol::event::LogStream;
use protocol::id::{Epoch, RunId};
use protocol::pipeline::{ExecutorKind, PullPolicy};
use tokio::sync::Notify;

use crate::ports::conformance::{StepBuilder, soon};
use crate::ports::{
    Checkpoint, ExecError, Executor, Gate, LogSink, RunScope, StepOutcome, StepSpec, StopSignal,
    Workspace,
};

/// What a step of the suite does. Each executor translates it to its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Exits with a code.
    Exit(i32),
    /// Writes a line to standard output.
    Print(String),
    /// Writes a line to standard error.
    Complain(String),
    /// Writes a line (second) to the file at a path (first).
    Put(String, String),
    /// Writes the file at a path to standard output. Fails if the file does not exist.
    Show(String),
    /// Writes the value of a variable, or `unset`, as a line.
    Env(String),
    /// Writes the working directory as a line.
    Dir,
    /// Writes the line `ready` and runs until SIGTERM.
    Hang,
    /// Writes the line `ready` and runs until SIGKILL.
    Stubborn,
    /// A program that does not exist.
    Nowhere,
}

impl Act {
    /// The words of a command that performs this act in a POSIX shell.
    #[must_use]
    pub fn shell_words(&self) -> Vec<String> {
        let line = match self {
            Self::Exit(code) => format!("exit {code}"),
            Self::Print(text) => format!("echo '{text}'"),
            Self::Complain(text) => format!("echo '{text}' >&2"),
            Self::Put(path, text) => format!("echo '{text}' > '{path}'"),
            Self::Show(path) => format!("cat '{path}'"),
            Self::Env(name) => format!("echo \"${{{name}-unset}}\""),
            Self::Dir => "pwd".to_owned(),
            Self::Hang => "echo ready; exec sleep 1000".to_owned(),
            Self::Stubborn => "trap '' TERM; echo ready; while true; do sleep 0.1; done".to_owned(),
            Self::Nowhere => return vec!["no-such-program".to_owned()],
        };
        vec!["sh".to_owned(), "-c".to_owned(), line]
    }
}

/// An executor under test. Other clients may use its engine at the same time.
pub struct ExecutorSubject {
    /// Included in every run ID. Unique to this call; letters and digits only.
    pub prefix: String,
    /// The executor.
    pub executor: Arc<dyn Executor>,
    /// The same engine through another process's executor. May be the same value.
    pub other: Arc<dyn Executor>,
    /// The executor kind in the test's steps.
    pub kind: ExecutorKind,
    /// The executor's settings for every step, under its own keys.
    pub with: serde_json::Map<String, serde_json::Value>,
    /// Whether steps have a shell.
    pub has_a_shell: bool,
    /// Whether steps start from an image and leave one.
    pub on_images: bool,
    /// A directory that exists for steps.
    pub dir: String,
    /// A base image that exists.
    pub image: String,
    /// An image that does not exist anywhere.
    pub missing: String,
    /// Returns the words of a step that performs this act.
    pub words: fn(&Act) -> Vec<String>,
}

impl std::fmt::Debug for ExecutorSubject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecutorSubject").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Collects the output of a step.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pieces: Mutex<Vec<(LogStream, Bytes)>>,
    more: Notify,
}

#[async_trait]
impl LogSink for Kept {
    async fn write(&self, stream: LogStream, bytes: Bytes) {
        self.pieces.lock().push((stream, bytes));
        self.more.notify_one();
    }
}

impl Kept {
    pub(super) fn text(&self, wanted: LogStream) -> String {
        let pieces = self.pieces.lock();
        let of_stream = pieces.iter().filter(|(stream, _)| *stream == wanted);
        let bytes: Vec<u8> = of_stream.flat_map(|(_, bytes)| bytes.to_vec()).collect();
        String::from_utf8(bytes).expect("a step of the suite writes text")
    }

    pub(super) async fn ready(&self) {
        while !self.text(LogStream::Stdout).starts_with("ready\n") {
            self.more.notified().await;
        }
    }
}

/// A run that belongs to one test.
pub(super) struct Run<'a> {
    pub(super) subject: &'a ExecutorSubject,
    pub(super) scope: RunScope,
    pub(super) stop: StopSignal,
}

impl ExecutorSubject {
    pub(super) fn run(&self, name: &str) -> Run<'_> {
        let run: RunId = format!("r-{}.{name}", self.prefix).parse().expect("a plain prefix");
        let scope = RunScope {
            run,
            cluster: self.prefix.as_str().into(),
            epoch: Epoch(1),
            image: self.image.clone(),
            pull: PullPolicy::Never,
            has_own_images: true,
        };
        Run { subject: self, scope, stop: StopSignal::default() }
    }

    pub(super) fn step(&self, position: usize, act: &Act) -> StepSpec {
        let step = StepBuilder::new(position, self.kind).network("none").with(self.with.clone());
        StepSpec { words: (self.words)(act), ..step.build() }
    }
}

impl<'a> Run<'a> {
    pub(super) async fn prepare(&self) -> Workspace {
        let prepared = self.subject.executor.prepare(&self.scope, &self.stop);
        soon("a first workspace", prepared).await.expect("the base image is there")
    }

    pub(super) fn start(
        &'a self,
        on: &'a Workspace,
        step: &'a StepSpec,
        open: BoxFuture<'static, bool>,
        kept: &Arc<Kept>,
    ) -> BoxFuture<'a, Result<StepOutcome, ExecError>> {
        let out = Arc::<Kept>::clone(kept);
        let gate = Gate::new(open, || true);
        self.subject.executor.run_step(&self.scope, on, step, gate, out, &self.stop)
    }

    pub(super) async fn step(
        &self,
        on: &Workspace,
        step: &StepSpec,
    ) -> Result<(StepOutcome, Arc<Kept>), ExecError> {
        let kept = Arc::new(Kept::default());
        let ran = self.start(on, step, async { true }.boxed(), &kept);
        soon("the end of a step", ran).await.map(|ran| (ran, kept))
    }

    /// Runs a step that passes. Returns its checkpoint and its standard output.
    pub(super) async fn pass(&self, on: &Workspace, step: &StepSpec) -> (Workspace, String) {
        let (ran, kept) = self.step(on, step).await.expect("the step can be run");
        assert_eq!(ran.exit.code, 0, "{:?}", step.words);
        let executor = &self.subject.executor;
        let left = soon("a checkpoint", executor.checkpoint(&self.scope, ran.left, step)).await;
        (left.expect("what a step left can be kept"), kept.text(LogStream::Stdout))
    }

    /// Runs a step and discards its workspace. Returns the exit code and the output.
    pub(super) async fn run(&self, on: &Workspace, act: &Act) -> (i32, Arc<Kept>) {
        let step = self.subject.step(0, act);
        let (ran, kept) = self.step(on, &step).await.expect("the step can be run");
        self.subject.executor.discard(&self.scope, ran.left).await;
        (ran.exit.code, kept)
    }

    pub(super) async fn destroy(&self) {
        let destroyed = self.subject.executor.destroy(&self.scope.run);
        soon("the end of a run", destroyed).await.expect("a run can be destroyed");
        assert!(!self.is_left().await, "nothing of a destroyed run is left");
    }

    pub(super) async fn is_left(&self) -> bool {
        let left = soon("a list of what is left", self.subject.other.leftovers()).await;
        let left = left.expect("what is left can be listed");
        let of_run: Vec<_> = left.iter().filter(|left| left.run == self.scope.run).collect();
        assert!(of_run.len() <= 1, "each run is listed once");
        for left in &of_run {
            assert_eq!(left.cluster.as_deref(), Some(&*self.scope.cluster), "it says whose it is");
        }
        !of_run.is_empty()
    }
}

pub(super) fn checkpoint(image: Option<&str>, digest: Option<String>) -> Checkpoint {
    Checkpoint { image: image.expect("what was kept is an image").to_owned(), digest }
}
