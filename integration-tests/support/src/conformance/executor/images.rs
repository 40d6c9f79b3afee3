//! Conformance tests for executors whose steps start from an image and leave one.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use protocol::event::LogStream;
use protocol::id::Epoch;

use super::subject::{Act, ExecutorSubject, RecordedOutput, Run, checkpoint};
use crate::conformance::soon;
use runner::ports::{ExecError, RunScope, StepSpec, StopLevel, StopSignal, Workspace};

pub(super) async fn an_image_that_nobody_has_is_named(subject: &ExecutorSubject) {
    let mut run = subject.run("missing");
    run.scope.image.clone_from(&subject.missing);
    match soon("an answer", subject.executor.prepare(&run.scope, &run.stop)).await {
        Err(ExecError::Image { image, .. }) => assert_eq!(image, subject.missing),
        other => panic!("a missing image must be an error: {other:?}"),
    }
}

pub(super) async fn what_a_step_left_is_there_for_the_next(subject: &ExecutorSubject) {
    let run = subject.run("files");
    let base = run.prepare().await;
    let put = |path: &str, text: &str| Act::Put(path.into(), text.into());
    let (one, _) = run.pass(&base, &subject.step(0, &put("/tmp/a", "first"))).await;
    let (two, _) = run.pass(&one, &subject.step(1, &put("/tmp/b", "second"))).await;
    for (path, text) in [("/tmp/a", "first\n"), ("/tmp/b", "second\n")] {
        let (code, kept) = run.run(&two, &Act::Show(path.into())).await;
        assert_eq!((code, kept.text(LogStream::Stdout).as_str()), (0, text), "{path}");
    }
    // A workspace is immutable: steps that start from it do not change it.
    let (other, _) = run.pass(&one, &subject.step(2, &put("/tmp/a", "changed"))).await;
    let (_, kept) = run.run(&one, &Act::Show("/tmp/a".into())).await;
    assert_eq!(kept.text(LogStream::Stdout), "first\n", "a workspace stays as it is");
    let (_, kept) = run.run(&other, &Act::Show("/tmp/a".into())).await;
    assert_eq!(kept.text(LogStream::Stdout), "changed\n", "the newest text holds");
    let (code, _) = run.run(&other, &Act::Show("/tmp/b".into())).await;
    assert_ne!(code, 0, "a workspace has nothing of its neighbour");
    let (code, _) = run.run(&base, &Act::Show("/tmp/a".into())).await;
    assert_ne!(code, 0, "the first workspace stays as it is");
    run.destroy().await;
}

pub(super) async fn steps_beside_each_other_each_leave_their_own(subject: &ExecutorSubject) {
    let run = subject.run("beside");
    let base = run.prepare().await;
    let put = |text: &str| Act::Put("/tmp/a".into(), text.into());
    let (first, _) = run.pass(&base, &subject.step(0, &put("first"))).await;
    let steps: Vec<StepSpec> =
        (1..4).map(|at| subject.step(at, &put(&format!("of {at}")))).collect();
    let passed = steps.iter().map(|step| run.pass(&first, step));
    let left: Vec<Workspace> =
        futures::future::join_all(passed).await.into_iter().map(|(left, _)| left).collect();
    // The next owner can adopt each of them, and the workspace they started from.
    let later = RunScope { epoch: Epoch(2), ..run.scope.clone() };
    let later = Run { subject, scope: later, stop: StopSignal::default() };
    for (at, kept) in [&first].into_iter().chain(&left).enumerate() {
        let kept = checkpoint(kept.image(), None);
        let adopted = subject.other.adopt(&later.scope, Some(&kept)).await;
        let on = adopted.expect("an image can be taken up").expect("it is there");
        let (code, shown) = later.run(&on, &Act::Show("/tmp/a".into())).await;
        let text = if at == 0 { "first\n".to_owned() } else { format!("of {at}\n") };
        assert_eq!((code, shown.text(LogStream::Stdout)), (0, text));
    }
    later.destroy().await;
}

pub(super) async fn an_owner_of_before_does_no_harm(subject: &ExecutorSubject) {
    let before = subject.run("before");
    let scope = RunScope { epoch: Epoch(2), ..before.scope.clone() };
    let run = Run { subject, scope, stop: StopSignal::default() };
    let base = before.prepare().await;
    run.prepare().await;
    let (kept, step) = (Arc::new(RecordedOutput::default()), subject.step(0, &Act::Hang));
    let running = run.start(&base, &step, async { true }.boxed(), &kept);
    let harming = async {
        kept.ready().await;
        let adopted = subject.other.adopt(&before.scope, None).await;
        adopted.expect("it finds nothing that is its own");
        match before.step(&base, &step).await {
            Err(ExecError::NotStarted) => {}
            other => panic!("a later owner has started this step: {other:?}"),
        }
        run.stop.raise(StopLevel::Stop { grace: Duration::from_secs(600) });
    };
    let (ran, ()) = soon("the end of a step", async { tokio::join!(running, harming) }).await;
    assert_eq!(ran.expect("it was not disturbed").exit.code, 143);
    run.destroy().await;
}

pub(super) async fn what_was_kept_can_be_taken_up_by_another(subject: &ExecutorSubject) {
    let run = subject.run("adopted");
    let base = run.prepare().await;
    let put = Act::Put("/tmp/a".into(), "kept".into());
    let (left, _) = run.pass(&base, &subject.step(0, &put)).await;
    let (kept, step) = (Arc::new(RecordedOutput::default()), subject.step(1, &Act::Hang));
    let running = run.start(&left, &step, async { true }.boxed(), &kept);
    let next = RunScope { epoch: Epoch(2), ..run.scope.clone() };
    let taken = async {
        kept.ready().await;
        let adopted = subject.other.adopt(&next, Some(&checkpoint(left.image(), None))).await;
        // `adopt` may have ended the first owner's step. Kill it in any case.
        run.stop.raise(StopLevel::Kill);
        adopted
    };
    let both = async { tokio::join!(taken, running) };
    let (adopted, _ran) = soon("the end of what the first owner ran", both).await;
    let on = adopted.expect("an image can be taken up").expect("it is there");
    let later = Run { subject, scope: next, stop: StopSignal::default() };
    let (code, shown) = later.run(&on, &Act::Show("/tmp/a".into())).await;
    assert_eq!((code, shown.text(LogStream::Stdout).as_str()), (0, "kept\n"));
    let gone = checkpoint(Some(&"0".repeat(64)), None);
    let missing = subject.other.adopt(&later.scope, Some(&gone)).await;
    assert_eq!(missing.expect("the engine answers"), None, "what is gone is not made up");
    later.destroy().await;
}

pub(super) async fn a_run_is_destroyed_as_often_as_one_likes(subject: &ExecutorSubject) {
    let run = subject.run("destroyed");
    run.destroy().await;
    let base = run.prepare().await;
    let put = Act::Put("/tmp/a".into(), "x".into());
    let (left, _) = run.pass(&base, &subject.step(0, &put)).await;
    run.pass(&left, &subject.step(1, &Act::Show("/tmp/a".into()))).await;
    // Leave containers of a branch and of a step without a checkpoint.
    run.pass(&left, &subject.step(2, &Act::Exit(0))).await;
    let (_ran, _) = run.step(&left, &subject.step(3, &Act::Exit(1))).await.expect("a step");
    assert!(run.is_left().await, "what was made is listed");
    let neighbour = subject.run("neighbour");
    let theirs = neighbour.prepare().await;
    let (theirs, _) = neighbour.pass(&theirs, &subject.step(0, &put)).await;
    let destroyed = subject.other.destroy(&run.scope.run);
    soon("the end of a run", destroyed).await.expect("another process can destroy it");
    assert!(!run.is_left().await, "nothing of a destroyed run is left");
    run.destroy().await;
    let (code, _) = neighbour.run(&theirs, &Act::Show("/tmp/a".into())).await;
    assert_eq!(code, 0, "a run's end does nothing to another run");
    neighbour.destroy().await;
}

pub(super) async fn what_was_kept_outlives_what_steps_ran_in(subject: &ExecutorSubject) {
    let run = subject.run("cleared");
    let base = run.prepare().await;
    let put = Act::Put("/tmp/a".into(), "kept".into());
    let (left, _) = run.pass(&base, &subject.step(0, &put)).await;
    // A step without a checkpoint or a discard.
    let (_ran, _) = run.step(&left, &subject.step(1, &Act::Exit(1))).await.expect("a step");
    for _ in 0..2 {
        let cleared = soon("an answer", subject.other.clear(&run.scope.run)).await;
        cleared.expect("what steps ran in can be removed, as often as one likes");
    }
    let next = RunScope { epoch: Epoch(2), ..run.scope.clone() };
    let adopted = subject.other.adopt(&next, Some(&checkpoint(left.image(), None))).await;
    let on = adopted.expect("an image can be taken up").expect("it is there");
    let later = Run { subject, scope: next, stop: StopSignal::default() };
    let (code, shown) = later.run(&on, &Act::Show("/tmp/a".into())).await;
    assert_eq!((code, shown.text(LogStream::Stdout).as_str()), (0, "kept\n"));
    later.destroy().await;
}
