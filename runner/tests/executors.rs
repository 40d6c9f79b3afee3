//! A worker with two engines, one of which is unreachable.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use protocol::id::Epoch;
use protocol::pipeline::PullPolicy;
use runner::exec::Executors;
use runner::exec::docker::{Docker, Options};
use runner::ports::{ExecError, Images as _, RunScope, Steps as _, StopSignal};
use test_support::scripted::Scripted;

/// Executors whose second engine is unreachable, their first engine, and a run that is prepared
/// on the first engine.
async fn half_away() -> (Executors, Arc<Scripted>, RunScope) {
    let engine = Arc::new(Scripted::default());
    let lone = Docker::connect(Options::new("unix:///nowhere/docker.sock")).unwrap();
    let executors =
        Executors::new(Some(Arc::<Scripted>::clone(&engine)), Arc::new(Scripted::named("host")))
            .with_job_engine(Some(Arc::new(lone)));
    let scope = RunScope {
        run: "r-1".parse().unwrap(),
        epoch: Epoch(1),
        cluster: "c".into(),
        image: "i".into(),
        pull: PullPolicy::Missing,
        has_own_images: false,
    };
    engine.prepare(&scope, &StopSignal::default()).await.unwrap();
    (executors, engine, scope)
}

#[tokio::test]
async fn what_a_run_left_is_removed_while_the_other_engine_is_away() {
    let (executors, engine, scope) = half_away().await;
    assert!(matches!(executors.clear(&scope.run).await, Err(ExecError::Unreachable { .. })));
    assert!(matches!(executors.destroy(&scope.run).await, Err(ExecError::Unreachable { .. })));
    assert_eq!(engine.leftovers().await.unwrap(), []);
}

#[tokio::test]
async fn what_is_left_of_runs_is_found_while_the_other_engine_is_away() {
    let (executors, _, scope) = half_away().await;
    let left = executors.leftovers().await.unwrap();
    assert!(left.iter().any(|left| left.run == scope.run), "{left:?}");
}

#[tokio::test]
async fn a_worker_has_its_engine_while_the_other_one_is_away() {
    let (executors, _, _) = half_away().await;
    executors.answers().await.unwrap();
}

#[tokio::test]
async fn a_run_that_has_nothing_on_the_engine_that_is_away_is_adopted() {
    let (executors, engine, scope) = half_away().await;
    executors.adopt(&scope, None).await.unwrap();
    assert_eq!(engine.ended_up_to(&scope.run), Some(scope.epoch));
    let scope = RunScope { has_own_images: true, ..scope };
    let adopted = executors.adopt(&scope, None).await;
    assert!(matches!(adopted, Err(ExecError::Unreachable { .. })), "{adopted:?}");
}
