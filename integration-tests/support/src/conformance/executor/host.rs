//! Conformance tests for executors whose steps leave no image. A later owner finds no checkpoint,
//! and the executor does not invent one.

use protocol::event::LogStream;
use protocol::id::Epoch;
use protocol::pipeline::Place;

use super::subject::{Act, ExecutorSubject, Run, checkpoint};
use crate::conformance::soon;
use runner::ports::{ExecError, RunScope, Secret, StepSecret, StepSecrets, StepSpec, StopSignal};

/// If the worker is lost, such a run starts over.
pub(super) async fn nothing_is_kept_for_a_next_owner(subject: &ExecutorSubject) {
    let run = subject.run("over");
    let base = run.prepare().await;
    let step = subject.step(0, &Act::Exit(0));
    let (left, _) = run.pass(&base, &step).await;
    assert_eq!(left.image(), None, "there is no image");
    let pushed = subject.executor.push(&run.scope, &left, &step).await;
    assert_eq!(pushed.expect("an answer"), None, "nothing is copied to anywhere");
    let later = RunScope { epoch: Epoch(2), ..run.scope.clone() };
    let later = Run { subject, scope: later, stop: StopSignal::default() };
    let gone = checkpoint(Some(&"0".repeat(64)), None);
    for kept in [None, Some(&gone)] {
        let adopted = soon("an answer", subject.other.adopt(&later.scope, kept)).await;
        assert_eq!(adopted.expect("an answer"), None, "what was not kept is not made up");
    }
    let cleared = soon("an answer", subject.other.clear(&run.scope.run)).await;
    cleared.expect("what an owner of before has left can be cleared");
    // The next owner starts from an empty workspace.
    let base = later.prepare().await;
    later.pass(&base, &step).await;
    later.destroy().await;
    later.destroy().await;
}

pub(super) async fn the_end_of_a_run_does_nothing_to_another(subject: &ExecutorSubject) {
    let (run, neighbour) = (subject.run("destroyed"), subject.run("neighbour"));
    let put = subject.step(0, &Act::Put("a".into(), "x".into()));
    run.destroy().await;
    for run in [&run, &neighbour] {
        let base = run.prepare().await;
        // The workspace is deliberately not discarded.
        let (ran, _) = run.step(&base, &put).await.expect("the step can be run");
        assert_eq!(ran.exit.code, 0);
        assert!(run.is_left().await, "what was made is listed");
    }
    let destroyed = soon("the end of a run", subject.other.destroy(&run.scope.run)).await;
    destroyed.expect("another process can destroy it");
    assert!(!run.is_left().await, "nothing of a destroyed run is left");
    run.destroy().await;
    assert!(neighbour.is_left().await, "the other's is still there");
    if subject.kind.capabilities().place == Place::Host {
        // All steps of such a run share one directory.
        let base = neighbour.prepare().await;
        let (code, shown) = neighbour.run(&base, &Act::Show("a".into())).await;
        assert_eq!((code, shown.text(LogStream::Stdout).as_str()), (0, "x\n"));
    }
    neighbour.destroy().await;
}

pub(super) async fn a_secret_that_could_not_be_kept_is_refused(subject: &ExecutorSubject) {
    let run = subject.run("secret");
    let base = run.prepare().await;
    let given =
        StepSecret { name: "token".into(), env: None, value: Secret::new("s3cret".as_bytes()) };
    let step = StepSpec {
        secrets: StepSecrets { granted: vec![given], forbidden: None },
        ..subject.step(0, &Act::Exit(0))
    };
    match run.step(&base, &step).await {
        Err(ExecError::Unsupported(why)) => assert!(!why.contains("s3cret"), "{why}"),
        other => panic!("it is not run without what it asks for: {other:?}"),
    }
    run.destroy().await;
}
