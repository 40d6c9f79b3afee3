//! The executor under test, and helpers that create its runs and steps.

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

use crate::conformance::{StepBuilder, soon};
use runner::ports::{
    Checkpoint, ExecError, Executor, Gate, LogSink, RunScope, StepOutcome, StepSpec, StopSignal,
    Workspace,
};

/// An action of a test step. Each executor translates it to a command.
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
    /// Starts a program that does not exist.
    Nowhere,
}

impl Act {
    /// The words of a command that performs this action in a POSIX shell.
    #[must_use]
    pub fn shell_words(&self) -> Vec<String> {
        let script = match self {
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
        vec!["sh".to_owned(), "-c".to_owned(), script]
    }
}

/// An executor under test. Other clients may use its engine at the same time.
pub struct ExecutorSubject {
    /// Part of every run ID. It consists of letters and digits, and is unique to this execution of
    /// the suite.
    pub prefix: String,
    /// The executor under test.
    pub executor: Arc<dyn Executor>,
    /// An executor for the same engine, as in another process. It can be the same object.
    pub other: Arc<dyn Executor>,
    /// The executor kind of the test steps.
    pub kind: ExecutorKind,
    /// The executor-specific settings of every step.
    pub with: serde_json::Map<String, serde_json::Value>,
    /// Whether steps have a shell.
    pub has_a_shell: bool,
    /// Whether a step starts from an image and its checkpoint is an image.
    pub on_images: bool,
    /// An existing directory in the file system of the steps.
    pub dir: String,
    /// An existing base image.
    pub image: String,
    /// An image that does not exist anywhere.
    pub missing: String,
    /// Returns the words of a step that performs the action.
    pub words: fn(&Act) -> Vec<String>,
}

impl std::fmt::Debug for ExecutorSubject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecutorSubject").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Collects the output of a step.
#[derive(Debug, Default)]
pub(super) struct RecordedOutput {
    pieces: Mutex<Vec<(LogStream, Bytes)>>,
    more: Notify,
}

#[async_trait]
impl LogSink for RecordedOutput {
    async fn write(&self, stream: LogStream, bytes: Bytes) {
        self.pieces.lock().push((stream, bytes));
        self.more.notify_one();
    }
}

impl RecordedOutput {
    /// The output written to a stream so far.
    pub(super) fn text(&self, stream: LogStream) -> String {
        let pieces = self.pieces.lock();
        let matches = pieces.iter().filter(|(source, _)| *source == stream);
        let bytes: Vec<u8> = matches.flat_map(|(_, bytes)| bytes.to_vec()).collect();
        String::from_utf8(bytes).expect("a test step writes UTF-8")
    }

    /// Waits until the step has written the line `ready`.
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
        let run: RunId = format!("r-{}.{name}", self.prefix)
            .parse()
            .expect("the prefix and the name form a run ID");
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
        let workspace = self.subject.executor.prepare(&self.scope, &self.stop);
        soon("a first workspace", workspace).await.expect("the first workspace can be prepared")
    }

    pub(super) fn start(
        &'a self,
        workspace: &'a Workspace,
        step: &'a StepSpec,
        may_start: BoxFuture<'static, bool>,
        output: &Arc<RecordedOutput>,
    ) -> BoxFuture<'a, Result<StepOutcome, ExecError>> {
        let sink = Arc::<RecordedOutput>::clone(output);
        let gate = Gate::new(may_start, || true);
        self.subject.executor.run_step(&self.scope, workspace, step, gate, sink, &self.stop)
    }

    pub(super) async fn step(
        &self,
        workspace: &Workspace,
        step: &StepSpec,
    ) -> Result<(StepOutcome, Arc<RecordedOutput>), ExecError> {
        let output = Arc::new(RecordedOutput::default());
        let outcome = self.start(workspace, step, async { true }.boxed(), &output);
        soon("the end of a step", outcome).await.map(|outcome| (outcome, output))
    }

    /// Runs a step that must pass. Returns its checkpoint and its standard output.
    pub(super) async fn pass(&self, workspace: &Workspace, step: &StepSpec) -> (Workspace, String) {
        let (outcome, output) = self.step(workspace, step).await.expect("the step can be run");
        assert_eq!(outcome.exit.code, 0, "{:?}", step.words);
        let executor = &self.subject.executor;
        let checkpoint = executor.checkpoint(&self.scope, outcome.workspace, step);
        let checkpoint = soon("a checkpoint", checkpoint).await;
        (checkpoint.expect("a passed step can be committed"), output.text(LogStream::Stdout))
    }

    /// Runs a step and discards its workspace. Returns the exit code and the output.
    pub(super) async fn run(&self, workspace: &Workspace, act: &Act) -> (i32, Arc<RecordedOutput>) {
        let step = self.subject.step(0, act);
        let (outcome, output) = self.step(workspace, &step).await.expect("the step can be run");
        self.subject.executor.discard(&self.scope, outcome.workspace).await;
        (outcome.exit.code, output)
    }

    pub(super) async fn destroy(&self) {
        let result = self.subject.executor.destroy(&self.scope.run);
        soon("the end of a run", result).await.expect("a run can be destroyed");
        assert!(!self.is_left().await, "a destroyed run has no leftovers");
    }

    /// Whether the engine lists leftovers of the run.
    pub(super) async fn is_left(&self) -> bool {
        let leftovers = soon("a list of leftovers", self.subject.other.leftovers()).await;
        let mut leftovers = leftovers.expect("leftovers can be listed");
        leftovers.retain(|entry| entry.run == self.scope.run);
        assert!(leftovers.len() <= 1, "a run is listed at most once");
        for entry in &leftovers {
            let cluster = entry.cluster.as_deref();
            assert_eq!(cluster, Some(&*self.scope.cluster), "the entry names the run's cluster");
        }
        !leftovers.is_empty()
    }
}

pub(super) fn checkpoint(image: Option<&str>, digest: Option<String>) -> Checkpoint {
    Checkpoint { image: image.expect("the checkpoint is an image").to_owned(), digest }
}
