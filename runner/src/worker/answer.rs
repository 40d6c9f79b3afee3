//! Processes one command, and decides how its delivery is settled.

use std::time::Duration;

use protocol::command::{self, Command, Disposition, Malformed, RunIdSource, Start};
use protocol::event::{Reason, Severity};
use protocol::id::RunId;
use protocol::names;
use protocol::run::{Cause, NodeEntry};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::claim::{self, ClaimOutcome};
use super::claimant::Claimant;
use super::control;
use super::launch::{Launch, UNNAMED};
use super::lost::Lost;
use super::retry::Retry;
use super::shared::Shared;
use super::verdict::NotNow;
use super::watchdog::Heartbeat;
use crate::ports::{Entry, Message, Route};
use crate::rules::quota;

/// A slot that a start can use.
pub(super) enum Slot {
    Free(OwnedSemaphorePermit),
    None,
}

/// What to do with a message.
pub(super) enum Answer {
    /// Settle it. The permit is returned if no run uses the slot.
    Settle(Disposition, Option<OwnedSemaphorePermit>),
    /// Something it needs is unavailable: keep it, and process it again later.
    NotYet(Option<OwnedSemaphorePermit>),
    /// Publish `message` after the delay, and settle the delivery then.
    Later { after: Duration, message: Message },
}

/// Processes a message, and repeats that in place while something it needs is unavailable.
/// Returning it to the queue instead would count towards its delivery limit, or redeliver it at
/// once if the queue has none.
///
/// Returns [`Answer::NotYet`] only if the lease is lost or `stop` is cancelled.
pub(super) async fn answer_in_place(
    claimant: Claimant<'_>,
    message: &Message,
    mut slot: Slot,
    stop: &CancellationToken,
) -> Answer {
    let Claimant { shared, held, heartbeat } = claimant;
    let (first, longest) = (Duration::from_millis(200), Duration::from_secs(2));
    let mut retry = Retry::new(&*shared.ports.host, heartbeat, first, longest);
    let fallback_id = Uuid::now_v7();
    warn_of_returns(shared, heartbeat, message).await;
    loop {
        let kept = match answer(claimant, (message, fallback_id), slot).await {
            Answer::NotYet(kept) => kept,
            answer @ (Answer::Settle(..) | Answer::Later { .. }) => return answer,
        };
        let pause = retry.pause(&held.lost);
        if stop.run_until_cancelled(pause).await.is_none_or(|waited| waited.is_break()) {
            return Answer::NotYet(kept);
        }
        slot = kept.map_or(Slot::None, Slot::Free);
    }
}

/// `fallback_id` becomes the message id of a start that has none and is passed on. It is the same at
/// each attempt, so that a publication that timed out and still arrives is no second run.
async fn answer(
    claimant: Claimant<'_>,
    (message, fallback_id): (&Message, Uuid),
    slot: Slot,
) -> Answer {
    let Claimant { shared, heartbeat, .. } = claimant;
    let keep = |slot: Slot| match slot {
        Slot::Free(slot) => Some(slot),
        Slot::None => None,
    };
    let decoded = command::decode(message.kind.as_deref(), message.id.as_deref(), &message.body);
    let (done, slot) = match decoded {
        Err(fault) => (Ok(reject(shared, heartbeat, &fault).await), keep(slot)),
        Ok(Command::Stop(stop)) => (control::stop(claimant, &stop).await, keep(slot)),
        Ok(Command::Pause(toggle)) => {
            (control::toggle(shared, heartbeat, &toggle, true).await, keep(slot))
        }
        Ok(Command::Unpause(toggle)) => {
            (control::toggle(shared, heartbeat, &toggle, false).await, keep(slot))
        }
        Ok(Command::Start(start)) => match slot {
            Slot::None => return pass_on(shared, heartbeat, message, fallback_id).await,
            Slot::Free(slot) => return answer_start(claimant, message, &start, slot).await,
        },
    };
    match done {
        Ok(disposition) => Answer::Settle(disposition, slot),
        Err(cause) if !cause.is_invalid_request() => {
            if !shared.writes.note(&cause) {
                warn!(%cause, "a command waits");
            }
            Answer::NotYet(slot)
        }
        Err(cause) => {
            let fault = Malformed { field: None, what: cause.to_string(), run_id: None };
            Answer::Settle(reject(shared, heartbeat, &fault).await, slot)
        }
    }
}

async fn answer_start(
    claimant: Claimant<'_>,
    message: &Message,
    start: &Start,
    slot: OwnedSemaphorePermit,
) -> Answer {
    let Claimant { shared, held, heartbeat } = claimant;
    let (run, named) = claim::run_of(start);
    debug!(run.id = %run, "a start of run {run} has come in");
    let definition = match &start.target {
        command::Target::Inline(pipeline) => Some(&**pipeline),
        command::Target::Stored(_) => None,
    };
    if let Some(what) = command::too_large(definition, &start.vars, &start.params) {
        let fault = Malformed { field: Some("pipeline".into()), what, run_id: Some(run) };
        return Answer::Settle(reject(shared, heartbeat, &fault).await, Some(slot));
    }
    let Some(launch) = Launch::enter(shared, &run) else {
        shared.ignored(heartbeat, Some(&run), &format!("run {run} is known already")).await;
        return Answer::Settle(Disposition::Ack, Some(slot));
    };
    let rejections = rejections_of(message);
    match claim_run(claimant, &run, start, rejections).await {
        ClaimOutcome::Claimed(owned, verdict) => {
            info!(run.id = %run, pipeline.group = %owned.record.group,
                pipeline.name = %owned.record.name, "run {run} is claimed");
            launch.drive_new(held, *owned, (verdict, named), slot);
            Answer::Settle(Disposition::Ack, None)
        }
        ClaimOutcome::Waits => {
            launch.cancel();
            report_waiting(claimant, start, &run, named).await;
            Answer::Settle(Disposition::Ack, Some(slot))
        }
        ClaimOutcome::Known => {
            launch.cancel();
            shared.ignored(heartbeat, Some(&run), &format!("run {run} is known already")).await;
            Answer::Settle(Disposition::Ack, Some(slot))
        }
        ClaimOutcome::NotNow(NotNow { why, .. }) => {
            launch.cancel();
            wait_for_worker(claimant, (message, rejections), start, &run, &why, slot).await
        }
        ClaimOutcome::LeaseLost => {
            launch.cancel();
            // The claim may have been made. This worker must end the run then.
            shared.put_lost(Lost::with_lease(run));
            Answer::Settle(Disposition::Requeue, Some(slot))
        }
        ClaimOutcome::WorkerEnds => {
            launch.cancel();
            Answer::Settle(Disposition::Requeue, Some(slot))
        }
        ClaimOutcome::Impossible(why) => {
            launch.cancel();
            let fault = Malformed { field: None, what: why, run_id: Some(run) };
            Answer::Settle(reject(shared, heartbeat, &fault).await, Some(slot))
        }
    }
}

/// Publishes that a run was accepted and waits for a place. `named`: the sender chose the run ID.
async fn report_waiting(
    Claimant { shared, heartbeat, .. }: Claimant<'_>,
    start: &Start,
    run: &RunId,
    named: bool,
) {
    let (group, name) = claim::names_of(start);
    let how = if named { "" } else { UNNAMED };
    let message =
        format!("run {run} was accepted{how}; it waits for a place of pipeline {group}:{name}");
    let mut event = shared.event(Reason::PipelineRunScheduled { waiting: true }, message);
    if !named {
        event.severity = Severity::Warning;
    }
    event.run_id = Some(run.clone());
    (event.group, event.name) = (Some(group), Some(name));
    shared.publish(heartbeat, event).await;
}

/// Claims the run of a start. Records it as failed if it needs an engine that no worker was found on.
async fn claim_run(
    claimant: Claimant<'_>,
    run: &RunId,
    start: &Start,
    rejections: u32,
) -> ClaimOutcome {
    let outcome = claim::take(claimant, run, start, None).await;
    let ClaimOutcome::NotNow(NotNow { why, engine: Some(engine) }) = &outcome else {
        return outcome;
    };
    if rejections < REJECTIONS_WITHOUT_ENGINE || !is_engine_lost(claimant.shared, engine).await {
        return outcome;
    }
    let why = format!(
        "{why}, and no worker on that engine was found in {rejections} attempts: rerun it from an \
         earlier step"
    );
    claim::take(claimant, run, start, Some(&(Cause::Lost, why))).await
}

/// After so many rejections, about eight minutes, a start whose images are on an engine without a worker
/// is no longer published again.
const REJECTIONS_WITHOUT_ENGINE: u32 = 20;

fn rejections_of(message: &Message) -> u32 {
    message.headers.get(names::HEADER_REJECTIONS).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Whether no worker is registered on an engine. `false` if the store does not answer.
async fn is_engine_lost(shared: &Shared, engine: &str) -> bool {
    let Ok(nodes) = shared.ports.store.list(names::NODES).await else { return false };
    let on_engine = |entry: &Entry| {
        // An entry of a later version might name it.
        serde_json::from_slice::<NodeEntry>(&entry.value).map_or(true, |node| node.engine == engine)
    };
    !nodes.entries.iter().any(on_engine)
}

/// Publishes a start that this worker cannot run now again after a while, for any worker.
async fn wait_for_worker(
    Claimant { shared, heartbeat, .. }: Claimant<'_>,
    (message, times): (&Message, u32),
    start: &Start,
    run: &RunId,
    why: &str,
    slot: OwnedSemaphorePermit,
) -> Answer {
    let after = quota::delay(times);
    let delay_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    let text = format!("run {run} waits {} s: {why}", after.as_secs());
    let mut event = shared.event(Reason::PipelineRunRejected { delay_ms }, text);
    event.run_id = Some(run.clone());
    let (group, name) = claim::names_of(start);
    (event.group, event.name) = (Some(group), Some(name));
    shared.publish(heartbeat, event).await;
    let mut message = message.clone();
    message.headers.insert(names::HEADER_REJECTIONS.into(), times.saturating_add(1).to_string());
    // Without an ID, the republished message would start a different run.
    message.id.get_or_insert_with(|| run.to_string());
    drop(slot);
    Answer::Later { after, message }
}

/// Publishes a start for which this worker has no slot to the shared queue.
async fn pass_on(
    shared: &Shared,
    heartbeat: &Heartbeat,
    message: &Message,
    fallback_id: Uuid,
) -> Answer {
    let mut message = message.clone();
    message.id.get_or_insert_with(|| fallback_id.to_string());
    let _waits = heartbeat.waits();
    match shared.ports.queue.publish(Route::Jobs, message).await {
        Ok(()) => Answer::Settle(Disposition::Ack, None),
        Err(cause) => {
            warn!(%cause, "a start cannot be passed on to {} yet", names::JOBS_QUEUE);
            Answer::NotYet(None)
        }
    }
}

async fn reject(shared: &Shared, heartbeat: &Heartbeat, fault: &Malformed) -> Disposition {
    let about = fault.run_id.as_ref().map(|run| format!(" for run {run}")).unwrap_or_default();
    let message = format!(
        "a command{about} cannot be understood: {fault}; it is in {}",
        names::DEAD_LETTER_QUEUE
    );
    let reason = Reason::CommandRejected { field: fault.field.clone() };
    let mut event = shared.event(reason, message);
    event.run_id.clone_from(&fault.run_id);
    warn!(run.id = fault.run_id.as_ref().map(RunId::as_str), "{}", event.message);
    shared.publish(heartbeat, event).await;
    Disposition::DeadLetter
}

/// Header in which the broker counts returns of a message to its queue.
const DELIVERIES: &str = "x-delivery-count";
/// One return is normal after a worker died. More suggest a client that does not settle messages.
const WORTH_A_WARNING: u32 = 2;

/// Warns about a message that was returned repeatedly and will soon be dead-lettered.
async fn warn_of_returns(shared: &Shared, heartbeat: &Heartbeat, message: &Message) {
    let returns = message.headers.get(DELIVERIES).and_then(|count| count.parse().ok());
    let Some(returns) = returns.filter(|returns| *returns >= WORTH_A_WARNING) else { return };
    let decoded = command::decode(message.kind.as_deref(), message.id.as_deref(), &message.body);
    let run = match decoded {
        Ok(Command::Start(start)) => match start.run_id {
            RunIdSource::Given(run) => Some(run),
            RunIdSource::Missing => None,
        },
        Ok(Command::Stop(stop)) => Some(stop.run_id),
        Ok(Command::Pause(_) | Command::Unpause(_)) | Err(_) => None,
    };
    let of = run.as_ref().map(|run| format!(" for run {run}")).unwrap_or_default();
    let text = format!(
        "{}{of} was returned to its queue {returns} times; after {} times it goes to {}: look for a \
         client or a worker that takes commands and does not acknowledge them",
        message.kind.as_deref().unwrap_or("a command"),
        names::DELIVERY_LIMIT,
        names::DEAD_LETTER_QUEUE
    );
    warn!(run.id = run.as_ref().map(RunId::as_str), returns, "{text}");
    let mut event = shared.event(Reason::CommandReturned { returns }, text);
    event.run_id = run;
    shared.publish(heartbeat, event).await;
}
