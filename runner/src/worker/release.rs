//! Gives up the ownership of a run. Before that, its steps must have ended here: a worker on another
//! engine cannot end them.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::records::RunTxn as _;
use super::retry::Retry;
use super::shared::Shared;
use super::watchdog::Heartbeat;
use crate::ports::{Claim, RunScope, STARTS_WITHIN, Txn};

/// The delay between attempts to verify that a run's steps have ended.
const AGAIN: Duration = Duration::from_secs(1);

/// Returns once the executor has proven that no step of the run is running here and none can start, or
/// after [`STARTS_WITHIN`], when no engine could still start one. Until then the run must keep its owner:
/// a worker on another engine cannot end what runs here.
pub(super) async fn prove_ended(shared: &Shared, heartbeat: &Heartbeat, scope: &RunScope) {
    let _waits = heartbeat.waits();
    let run = &scope.run;
    let began = shared.ports.host.since_boot();
    loop {
        let Err(cause) = shared.ports.executor.end(scope).await else { return };
        let elapsed = shared.ports.host.since_boot().saturating_sub(began);
        if elapsed >= STARTS_WITHIN {
            let seconds = elapsed.as_secs();
            error!(
                run.id = %run, %cause,
                "run {run} is released after {seconds} s without proof that its steps have ended: \
                 look for its containers on engine {}",
                shared.engine.id
            );
            return;
        }
        debug!(run.id = %run, %cause, "the steps of run {run} might still be running");
        tokio::time::sleep(AGAIN).await;
    }
}

/// Releases the claim, retrying until etcd answers. A worker must not own a run it is not driving.
/// If the lease is lost, the claim is too.
pub(super) async fn release(
    shared: &Shared,
    heartbeat: &Heartbeat,
    claim: &Claim,
    lost: &CancellationToken,
) {
    let run = &claim.run;
    let attempt = || async {
        let txn = claim.fenced(Txn::new().delete_owner(run));
        match shared.ports.store.txn(txn).await {
            Ok(_) => ControlFlow::Break(()),
            Err(cause) if cause.is_invalid_request() => {
                warn!(run.id = %run, %cause, "run {run} is not released");
                ControlFlow::Break(())
            }
            Err(cause) => {
                warn!(run.id = %run, %cause, "run {run} is not released yet");
                ControlFlow::Continue(())
            }
        }
    };
    Retry::of_store(&*shared.ports.host, heartbeat).until(lost, attempt).await;
}
