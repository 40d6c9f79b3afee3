//! Conformance tests for the `Executor` port.
//!
//! Each row is a function named after the behavior it asserts. It runs for every executor that has
//! the feature. For the others, a row asserts that the feature is rejected.

mod calls;
mod commands;
mod files;
mod host;
mod images;

use std::panic::AssertUnwindSafe;
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

pub use self::calls::CallSubject;
use self::calls::*;
use self::commands::*;
use self::files::*;
use self::host::*;
use self::images::*;
use super::{StepBuilder, soon};
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

/// Asserts the contract of [`Executor`].
///
/// Timeouts are not part of it: the worker enforces them, and the executor receives an ordinary
/// stop with its grace (`rules::run`).
pub async fn executor(subject: ExecutorSubject) {
    let it = &subject;
    commands(it).await;
    row(it, a_dropped_wait_stops_nothing(it)).await;
    row(it, a_secret_is_there_for_its_step_alone(it)).await;
    if it.has_a_shell {
        row(it, an_artifact_is_what_the_step_has_made(it)).await;
    } else {
        row(it, an_artifact_that_cannot_be_had_is_refused(it)).await;
    }
    if it.on_images {
        row(it, an_image_that_nobody_has_is_named(it)).await;
        row(it, what_a_step_left_is_there_for_the_next(it)).await;
        row(it, steps_beside_each_other_each_leave_their_own(it)).await;
        row(it, a_resource_is_there_for_the_next_step(it)).await;
        row(it, a_resource_that_breaks_off_is_not_mounted(it)).await;
        row(it, an_owner_of_before_does_no_harm(it)).await;
        row(it, what_was_kept_can_be_taken_up_by_another(it)).await;
        row(it, what_was_kept_outlives_what_steps_ran_in(it)).await;
        row(it, a_run_is_destroyed_as_often_as_one_likes(it)).await;
    } else {
        row(it, a_resource_that_cannot_be_mounted_is_refused(it)).await;
        row(it, nothing_is_kept_for_a_next_owner(it)).await;
        row(it, the_end_of_a_run_does_nothing_to_another(it)).await;
    }
}

/// Asserts the subset of the contract for steps that run commands on another host. They leave
/// nothing on this one for `leftovers` to list.
pub async fn remote(subject: ExecutorSubject) {
    let it = &subject;
    commands(it).await;
    row(it, a_secret_that_could_not_be_kept_is_refused(it)).await;
    elsewhere(it).await;
}

/// Asserts the subset of the contract for steps that are calls.
pub async fn call(subject: CallSubject) {
    let (it, of) = (&subject, &subject.of);
    row(of, the_engine_has_one_name(of)).await;
    row(of, a_call_ends_as_the_service_says(it)).await;
    row(of, nothing_is_sent_by_a_step_that_may_not_start(it)).await;
    row(of, a_call_ends_when_it_is_told_to(it)).await;
    row(of, a_key_of_an_account_is_never_shown(it)).await;
    row(of, the_environment_of_a_call_is_not_sent(it)).await;
    row(of, what_a_call_cannot_do_is_refused_before_anything_is_sent(it)).await;
    elsewhere(of).await;
}

async fn commands(it: &ExecutorSubject) {
    row(it, the_engine_has_one_name(it)).await;
    row(it, a_step_writes_and_ends_as_its_command_does(it)).await;
    row(it, what_cannot_be_had_is_named(it)).await;
    row(it, no_step_starts_while_the_gate_is_closed(it)).await;
    row(it, nothing_of_a_steps_settings_leaks(it)).await;
    row(it, a_variable_comes_as_it_was_given(it)).await;
    row(it, a_step_ends_when_it_is_told_to(it)).await;
    row(it, nothing_starts_for_an_owner_that_may_not(it)).await;
    row(it, a_script_is_run_program_by_program(it)).await;
}

/// Asserts that steps elsewhere reject resources and artifacts, and have no checkpoints.
async fn elsewhere(it: &ExecutorSubject) {
    row(it, a_resource_that_cannot_be_mounted_is_refused(it)).await;
    row(it, an_artifact_that_cannot_be_had_is_refused(it)).await;
    row(it, nothing_is_kept_for_a_next_owner(it)).await;
}

/// Asserts one row. If it fails, the panic message names the row and the executor.
fn row<'a, F: Future<Output = ()> + 'a>(
    subject: &'a ExecutorSubject,
    row: F,
) -> impl Future<Output = ()> + 'a {
    let row = Box::pin(row);
    async move {
        let Err(panic) = AssertUnwindSafe(row).catch_unwind().await else { return };
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
        // The type name of an async function's future contains the function's name.
        let path = std::any::type_name::<F>().trim_end_matches("::{{closure}}");
        let sentence = path.rsplit("::").next().unwrap_or(path).replace('_', " ");
        panic!("executor {}: {sentence}: {said}", subject.kind.as_str());
    }
}

/// Collects the output of a step.
#[derive(Debug, Default)]
struct Kept {
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
    fn text(&self, wanted: LogStream) -> String {
        let pieces = self.pieces.lock();
        let of_stream = pieces.iter().filter(|(stream, _)| *stream == wanted);
        let bytes: Vec<u8> = of_stream.flat_map(|(_, bytes)| bytes.to_vec()).collect();
        String::from_utf8(bytes).expect("a step of the suite writes text")
    }

    async fn ready(&self) {
        while !self.text(LogStream::Stdout).starts_with("ready\n") {
            self.more.notified().await;
        }
    }
}

/// A run that belongs to one test.
struct Run<'a> {
    subject: &'a ExecutorSubject,
    scope: RunScope,
    stop: StopSignal,
}

impl ExecutorSubject {
    fn run(&self, name: &str) -> Run<'_> {
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

    fn step(&self, position: usize, act: &Act) -> StepSpec {
        let step = StepBuilder::new(position, self.kind).network("none").with(self.with.clone());
        StepSpec { words: (self.words)(act), ..step.build() }
    }
}

impl<'a> Run<'a> {
    async fn prepare(&self) -> Workspace {
        let prepared = self.subject.executor.prepare(&self.scope, &self.stop);
        soon("a first workspace", prepared).await.expect("the base image is there")
    }

    fn start(
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

    async fn step(
        &self,
        on: &Workspace,
        step: &StepSpec,
    ) -> Result<(StepOutcome, Arc<Kept>), ExecError> {
        let kept = Arc::new(Kept::default());
        let ran = self.start(on, step, async { true }.boxed(), &kept);
        soon("the end of a step", ran).await.map(|ran| (ran, kept))
    }

    /// Runs a step that passes. Returns its checkpoint and its standard output.
    async fn pass(&self, on: &Workspace, step: &StepSpec) -> (Workspace, String) {
        let (ran, kept) = self.step(on, step).await.expect("the step can be run");
        assert_eq!(ran.exit.code, 0, "{:?}", step.words);
        let executor = &self.subject.executor;
        let left = soon("a checkpoint", executor.checkpoint(&self.scope, ran.left, step)).await;
        (left.expect("what a step left can be kept"), kept.text(LogStream::Stdout))
    }

    /// Runs a step and discards its workspace. Returns the exit code and the output.
    async fn run(&self, on: &Workspace, act: &Act) -> (i32, Arc<Kept>) {
        let step = self.subject.step(0, act);
        let (ran, kept) = self.step(on, &step).await.expect("the step can be run");
        self.subject.executor.discard(&self.scope, ran.left).await;
        (ran.exit.code, kept)
    }

    async fn destroy(&self) {
        let destroyed = self.subject.executor.destroy(&self.scope.run);
        soon("the end of a run", destroyed).await.expect("a run can be destroyed");
        assert!(!self.is_left().await, "nothing of a destroyed run is left");
    }

    async fn is_left(&self) -> bool {
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

fn checkpoint(image: Option<&str>, digest: Option<String>) -> Checkpoint {
    Checkpoint { image: image.expect("what was kept is an image").to_owned(), digest }
}
