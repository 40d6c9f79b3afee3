//! Ends a started step: its signal, the grace, SIGKILL, and proof that no process is left.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::api::ContainerState;
use super::call::Fault;
use super::http::Http;
use super::output::PATIENCE;
use crate::exec::deadline::Flow;
use crate::ports::{ExecError, StepEnd, StopLevel, StopSignal};

/// How long to wait for a killed container to end before it is removed by force.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// How long the engine can send nothing before the rest of a killed step's output is given up.
const LAST_OUTPUT: Duration = Duration::from_secs(60);

/// The step's container was removed by force and can no longer be inspected, or it has ended and
/// its output has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Removed;

/// Carries out stop requests. Returns only if the container was removed by force. The task that
/// follows the output sees every other end.
pub(super) async fn obey(
    http: &Arc<Http>,
    id: &str,
    end: StepEnd,
    stop: &StopSignal,
    flow: &Flow,
) -> Result<Removed, ExecError> {
    let mut level = StopLevel::Run;
    let mut kill_at = None;
    loop {
        level = tokio::select! {
            raised = stop.above(level) => raised,
            () = at(kill_at) => StopLevel::Kill,
        };
        match level {
            StopLevel::Run => {}
            StopLevel::Stop { grace } => {
                let due = Instant::now() + end.grace_or(grace);
                // The signal is sent once. A later request can only shorten the grace.
                if kill_at.is_none() {
                    signal(http, id, end.signal.name()).await?;
                }
                kill_at = Some(kill_at.map_or(due, |before: Instant| before.min(due)));
            }
            StopLevel::Kill => return kill(http, id, flow).await,
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn signal(http: &Arc<Http>, id: &str, name: &str) -> Result<(), ExecError> {
    let sent = http.link().kill(id, name, PATIENCE).await;
    match sent {
        Ok(()) => Ok(()),
        Err(fault @ Fault::Refused { .. }) => {
            // The engine rejects a signal to a step that is just ending, with various messages.
            tracing::warn!(container.id = id, %fault, "the engine did not send {name}");
            Ok(())
        }
        Err(fault) => Err(fault.at("stopping a step", http)),
    }
}

async fn kill(http: &Arc<Http>, id: &str, flow: &Flow) -> Result<Removed, ExecError> {
    signal(http, id, "SIGKILL").await?;
    sleep_until(Instant::now() + AFTER_KILL).await;
    let mut link = http.link();
    let looked = link.inspect(id, PATIENCE).await;
    let looked = looked.map_err(|fault| fault.at("looking at a killed step", http))?;
    if looked.is_some_and(|container| container.life() == ContainerState::Ended) {
        // It is dead, and its last output is still to be read.
        flow.moved();
        flow.stalled(LAST_OUTPUT).await;
        tracing::warn!(
            container.id = id,
            "the output of a killed step does not end: its rest is lost"
        );
        return Ok(Removed);
    }
    tracing::warn!(container.id = id, "a killed step is not seen to end: removing it by force");
    link.remove(id).await.map_err(|fault| fault.at("removing a killed step", http))?;
    match link.inspect(id, PATIENCE).await {
        Ok(None) => Ok(Removed),
        Ok(Some(_)) => Err(ExecError::Engine {
            doing: "removing a killed step".into(),
            cause: format!("container {id} is still there; see what holds it"),
        }),
        Err(fault) => Err(fault.at("looking at a killed step", http)),
    }
}
