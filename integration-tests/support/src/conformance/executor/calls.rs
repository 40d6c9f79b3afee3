//! Conformance tests for executors whose steps call a service.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use protocol::event::LogStream;
use serde_json::{Map, Value};

use super::subject::{Act, ExecutorSubject, RecordedOutput, Run};
use crate::conformance::soon;
use runner::ports::{ExecError, Gate, StepOutcome, StepSpec, StopLevel};

/// A call executor, and the service that it calls.
pub struct CallSubject {
    /// The executor. Its `with` describes a call that succeeds.
    pub of: ExecutorSubject,
    /// A call that the service rejects. The response contains the key.
    pub refused: Map<String, Value>,
    /// A call that the service never answers.
    pub hangs: Map<String, Value>,
    /// An account key. Sent with every call; must not appear in output.
    pub key: &'static str,
    /// Returns every request that the service has received, in full.
    pub seen: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// Resolves once the service has received the call that it never answers.
    pub asked: Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
}

impl std::fmt::Debug for CallSubject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallSubject").field("of", &self.of).finish_non_exhaustive()
    }
}

impl CallSubject {
    fn step(&self, with: &Map<String, Value>) -> StepSpec {
        StepSpec { with: with.clone(), ..self.of.step(0, &Act::Exit(0)) }
    }
}

fn is_success(ran: &StepOutcome) -> bool {
    let result = ran.result.as_ref().expect("a call has a result");
    assert_eq!(result["error"] == "", result["success"] == true, "one of the two: {result}");
    result["success"] == true
}

pub(super) async fn a_call_ends_as_the_service_says(subject: &CallSubject) {
    let run = subject.of.run("call");
    let base = run.prepare().await;
    let (ran, kept) = run.step(&base, &subject.step(&subject.of.with)).await.expect("a call");
    assert_eq!((ran.exit.code, is_success(&ran)), (0, true), "{ran:?}");
    let (out, err) = (kept.text(LogStream::Stdout), kept.text(LogStream::Stderr));
    assert!(out.ends_with('\n') && err.is_empty(), "each request has a line: {out:?} {err:?}");
    let (ran, kept) = run.step(&base, &subject.step(&subject.refused)).await.expect("a call");
    assert_eq!((ran.exit.code, is_success(&ran)), (1, false), "{ran:?}");
    let why = ran.result.as_ref().and_then(|result| result["error"].as_str()).expect("a sentence");
    assert!(kept.text(LogStream::Stderr).ends_with(&format!("{why}\n")), "the output says it too");
    run.destroy().await;
}

pub(super) async fn nothing_is_sent_by_a_step_that_may_not_start(subject: &CallSubject) {
    let run = subject.of.run("gate");
    let base = run.prepare().await;
    let (step, before) = (subject.step(&subject.of.with), (subject.seen)().len());
    let start = |gate: Gate| {
        let out = Arc::new(RecordedOutput::default());
        subject.of.executor.run_step(&run.scope, &base, &step, gate, out, &run.stop)
    };
    let lost = Gate::new(async { true }, || false);
    for gate in [Gate::new(async { false }, || true), lost] {
        let ran = soon("an answer", start(gate)).await;
        assert!(matches!(ran, Err(ExecError::NotStarted)), "its owner must not start it: {ran:?}");
    }
    run.stop.raise(StopLevel::Stop { grace: Duration::from_secs(600) });
    let ran = soon("an answer", start(Gate::new(futures::future::pending(), || true))).await;
    assert!(matches!(ran, Err(ExecError::NotStarted)), "it was stopped before: {ran:?}");
    assert_eq!((subject.seen)().len(), before, "nothing was sent");
    run.destroy().await;
}

/// Stops a call that the service never answers. Returns the result and the output.
async fn stopped(
    subject: &CallSubject,
    run: &Run<'_>,
    level: StopLevel,
) -> (StepOutcome, Arc<RecordedOutput>) {
    let base = run.prepare().await;
    let (kept, step) = (Arc::new(RecordedOutput::default()), subject.step(&subject.hangs));
    let running = run.start(&base, &step, async { true }.boxed(), &kept);
    let stopping = async {
        (subject.asked)().await;
        run.stop.raise(level);
    };
    let (ran, ()) = soon("a stop", async { tokio::join!(running, stopping) }).await;
    (ran.expect("a stopped call still says how it ended"), kept)
}

pub(super) async fn a_call_ends_when_it_is_told_to(subject: &CallSubject) {
    let levels = [StopLevel::Stop { grace: Duration::from_secs(600) }, StopLevel::Kill];
    for (at, level) in levels.into_iter().enumerate() {
        let run = subject.of.run(&format!("stop{at}"));
        let (ran, _) = stopped(subject, &run, level).await;
        assert_eq!((ran.exit.code, is_success(&ran)), (143, false), "{level:?}: {ran:?}");
        run.destroy().await;
    }
}

pub(super) async fn a_key_of_an_account_is_never_shown(subject: &CallSubject) {
    let run = subject.of.run("key");
    let base = run.prepare().await;
    let mut all = Vec::new();
    for with in [&subject.of.with, &subject.refused] {
        all.push(run.step(&base, &subject.step(with)).await.expect("a call"));
    }
    all.push(stopped(subject, &run, StopLevel::Kill).await);
    for (ran, kept) in all {
        let said = format!(
            "{:?}\n{}{}",
            ran.result,
            kept.text(LogStream::Stdout),
            kept.text(LogStream::Stderr)
        );
        assert!(!said.contains(subject.key), "{said}");
    }
    let sent = (subject.seen)().iter().filter(|request| request.contains(subject.key)).count();
    assert_ne!(sent, 0, "the service has had it");
    run.destroy().await;
}

pub(super) async fn the_environment_of_a_call_is_not_sent(subject: &CallSubject) {
    let run = subject.of.run("environment");
    let base = run.prepare().await;
    let mut step = subject.step(&subject.of.with);
    step.env.insert("NAME".into(), "of-the-environment".into());
    let (ran, kept) = run.step(&base, &step).await.expect("a call");
    assert_eq!(ran.exit.code, 0, "nothing of it is in its way");
    let sent = (subject.seen)().join("\n");
    assert!(!sent.contains("of-the-environment"), "{sent}");
    assert!(!kept.text(LogStream::Stdout).contains("of-the-environment"), "nor is it shown");
    run.destroy().await;
}

pub(super) async fn what_a_call_cannot_do_is_refused_before_anything_is_sent(
    subject: &CallSubject,
) {
    let run = subject.of.run("unknown");
    let base = run.prepare().await;
    let before = (subject.seen)().len();
    let mut step = subject.step(&subject.of.with);
    step.with.insert("no_such_key".into(), Value::Bool(true));
    match run.step(&base, &step).await {
        Err(ExecError::Unsupported(why)) => assert!(why.contains("no_such_key"), "{why}"),
        other => panic!("the key must be rejected: {other:?}"),
    }
    assert_eq!((subject.seen)().len(), before, "nothing was sent");
    run.destroy().await;
}
