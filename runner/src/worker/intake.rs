//! Takes commands from the queues, and settles them: a start once it is claimed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::command::{self, Command, Disposition, Malformed, RunIdSource, Start};
use protocol::event::Reason;
use protocol::id::RunId;
use protocol::names;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::claim::{self, Taken};
use super::control;
use super::launch::Launch;
use super::lease::{Current, Held};
use super::watchdog::{beat, waits};
use super::{Lost, Options, Shared};
use crate::ports::{Consumer, Delivery, Message, QueueError, Route, Source};
use crate::rules::quota;

/// Takes starts from the shared queue while a slot is free and the engine's disk has room. An open
/// consumer holds a slot, and the message that takes the last slot is acked only after the broker has
/// said that nothing more comes: so nothing is held back from a worker that is idle.
pub(super) async fn jobs(shared: Arc<Shared>, mut lease: Current, stop: CancellationToken) {
    let mut pause = PAUSE;
    let mut is_ready = false;
    loop {
        let slot = {
            let _waits = waits();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = shared.room.there() => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = shared.writes.accepted() => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = shared.room.gone() => continue,
                () = shared.writes.refusal() => continue,
                slot = Arc::clone(&shared.slots).acquire_owned() => slot,
            }
        };
        let Ok(slot) = slot else { return };
        let Some(held) = held(&mut lease, &stop).await else { return };
        let Some(opened) = open(&shared, Source::Jobs, &stop).await else { return };
        match opened {
            Ok(consumer) => {
                pause = PAUSE;
                if !std::mem::replace(&mut is_ready, true) {
                    report_ready(&shared);
                }
                shared.slot_is_open.store(true, Ordering::Relaxed);
                consume_jobs(&shared, &held, consumer, slot, &stop).await;
                shared.slot_is_open.store(false, Ordering::Relaxed);
            }
            Err(cause) => pause_after(&cause, &mut pause, &stop).await,
        }
    }
}

fn report_ready(shared: &Shared) {
    let Options { node, slots, executors, .. } = &shared.options;
    let executors: Vec<&str> = executors.iter().map(|executor| executor.as_str()).collect();
    let executors = executors.join(", ");
    info!(owner.id = %node, slots, executors, "{node} is ready: it takes up to {slots} runs at once");
}

async fn consume_jobs(
    shared: &Arc<Shared>,
    held: &Held,
    mut consumer: Box<dyn Consumer>,
    mut slot: OwnedSemaphorePermit,
    stop: &CancellationToken,
) {
    loop {
        let waiting = waits();
        let delivery = tokio::select! {
            biased;
            () = held.lost.cancelled() => break,
            () = stop.cancelled() => break,
            // A run without an owner goes before a new one, and so does one that was sent here.
            () = shared.slot_wanted.notified() => break,
            () = shared.room.gone() => break,
            () = shared.writes.refusal() => break,
            delivery = consumer.next() => delivery,
        };
        drop(waiting);
        let delivery = match delivery {
            Ok(delivery) => delivery,
            Err(cause) => {
                pause_after(&cause, &mut PAUSE.clone(), stop).await;
                break;
            }
        };
        match answer_in_place(shared, held, &delivery.message, Slot::Free(slot), stop).await {
            Answer::Settle(disposition, Some(kept)) => {
                slot = kept;
                settle(delivery, disposition).await;
            }
            Answer::NotYet(kept) => {
                // The subscription is about to end, and a worker that takes work gets the message.
                settle(delivery, Disposition::Requeue).await;
                let Some(kept) = kept else { break };
                slot = kept;
            }
            Answer::Settle(disposition, None) => {
                match Arc::clone(&shared.slots).try_acquire_owned() {
                    Ok(next) => {
                        slot = next;
                        settle(delivery, disposition).await;
                    }
                    Err(_) => {
                        close(consumer).await;
                        settle(delivery, disposition).await;
                        return;
                    }
                }
            }
            Answer::Later { after, message } => {
                // It waits aside, so that what fits is taken meanwhile.
                close(consumer).await;
                put_aside(shared, delivery, message, after).await;
                return;
            }
        }
    }
    close(consumer).await;
}

/// Takes stops and pauses (and passes on a start that went astray), whether a slot is free or not.
pub(super) async fn control(
    shared: Arc<Shared>,
    mut lease: Current,
    source: Source,
    stop: CancellationToken,
) {
    let mut pause = PAUSE;
    // A command that could not be answered under the lease before: it is kept, as each return to the
    // queue counts, and too many of them make a dead letter of it.
    let mut pending: Option<Delivery> = None;
    loop {
        let Some(held) = held(&mut lease, &stop).await else {
            return give_back(pending).await;
        };
        if let Some(delivery) = pending.take() {
            match take_control(&shared, &held, source, delivery, &stop).await {
                Settled::NotYet(delivery) => {
                    pending = Some(delivery);
                    continue;
                }
                Settled::Done | Settled::Requeued | Settled::Kept => {}
            }
        }
        let Some(opened) = open(&shared, source, &stop).await else { return };
        let mut consumer = match opened {
            Ok(consumer) => consumer,
            Err(cause @ QueueError::Denied { .. }) if source == Source::Node => {
                // The broker's user may not declare: what all share is there, this is not.
                warn!(%cause, "this worker has no queue of its own");
                return;
            }
            Err(cause) => {
                pause_after(&cause, &mut pause, &stop).await;
                continue;
            }
        };
        pause = PAUSE;
        loop {
            let waiting = waits();
            let delivery = tokio::select! {
                biased;
                () = held.lost.cancelled() => break,
                () = stop.cancelled() => break,
                delivery = consumer.next() => delivery,
            };
            drop(waiting);
            match delivery {
                Ok(delivery) => match take_control(&shared, &held, source, delivery, &stop).await {
                    Settled::Done | Settled::Requeued => {}
                    // Another subscription, so that a stop behind it does not wait.
                    Settled::Kept => break,
                    Settled::NotYet(delivery) => {
                        pending = Some(delivery);
                        break;
                    }
                },
                Err(cause) => {
                    pause_after(&cause, &mut pause, &stop).await;
                    break;
                }
            }
        }
        if source == Source::Node && stop.is_cancelled() {
            if let Some(delivery) = pending.take() {
                give_back(Some(delivery)).await;
            }
            move_to_jobs(&shared, &held, &mut consumer, &stop).await;
        }
        close(consumer).await;
    }
}

/// Returns what this worker could not answer to its queue.
async fn give_back(pending: Option<Delivery>) {
    if let Some(delivery) = pending {
        settle(delivery, Disposition::Requeue).await;
    }
}

/// Opens a source. `None`: nothing is taken any more.
async fn open(
    shared: &Shared,
    source: Source,
    stop: &CancellationToken,
) -> Option<Result<Box<dyn Consumer>, QueueError>> {
    let _waits = waits();
    tokio::select! {
        biased;
        opened = shared.ports.queue.open(source) => Some(opened),
        () = stop.cancelled() => None,
    }
}

async fn close(consumer: Box<dyn Consumer>) {
    let _waits = waits();
    consumer.close().await;
}

/// What became of a delivery.
#[derive(Debug)]
enum Settled {
    Done,
    Requeued,
    /// It is kept for a while; its consumer gets nothing more.
    Kept,
    /// It is to be answered under the next lease.
    NotYet(Delivery),
}

async fn take_control(
    shared: &Arc<Shared>,
    held: &Held,
    source: Source,
    delivery: Delivery,
    stop: &CancellationToken,
) -> Settled {
    let is_start = delivery.message.kind.as_deref() == Some(command::START);
    let slot = match source {
        Source::Node if is_start => shared.slot_now().await,
        Source::Node | Source::Jobs | Source::Control => None,
    };
    let slot = slot.map_or(Slot::None, Slot::Free);
    match answer_in_place(shared, held, &delivery.message, slot, stop).await {
        Answer::Settle(disposition, _slot) => {
            settle(delivery, disposition).await;
            if disposition == Disposition::Requeue { Settled::Requeued } else { Settled::Done }
        }
        Answer::NotYet(_slot) if stop.is_cancelled() => {
            settle(delivery, Disposition::Requeue).await;
            Settled::Requeued
        }
        Answer::NotYet(_slot) => Settled::NotYet(delivery),
        Answer::Later { after, message } => {
            put_aside(shared, delivery, message, after).await;
            Settled::Kept
        }
    }
}

/// How long a draining worker waits for one more message in its own queue.
const QUEUE_IS_EMPTY_AFTER: Duration = Duration::from_millis(500);

/// A draining worker's own queue ends with it: what is in it goes to the shared one.
async fn move_to_jobs(
    shared: &Arc<Shared>,
    held: &Held,
    consumer: &mut Box<dyn Consumer>,
    stop: &CancellationToken,
) {
    while let Ok(Ok(delivery)) = tokio::time::timeout(QUEUE_IS_EMPTY_AFTER, consumer.next()).await {
        // What cannot be moved would come again at once, for ever.
        let settled = take_control(shared, held, Source::Control, delivery, stop).await;
        if matches!(settled, Settled::Requeued) {
            return;
        }
    }
}

/// A slot that a start may take.
enum Slot {
    Free(OwnedSemaphorePermit),
    None,
}

/// What becomes of a message.
enum Answer {
    /// It is settled; the slot comes back where no run took it.
    Settle(Disposition, Option<OwnedSemaphorePermit>),
    /// What it needs is unavailable: it is kept, and answered again after a while.
    NotYet(Option<OwnedSemaphorePermit>),
    /// It is published again after a while, and settled then.
    Later { after: Duration, message: Message },
}

/// Answers a message, again and again while what that needs is unavailable. Each return to the queue
/// would count towards a dead letter, and in a queue without a limit would come back at once. Ends in
/// [`Answer::NotYet`] only when the lease is lost or `stop` is cancelled.
async fn answer_in_place(
    shared: &Arc<Shared>,
    held: &Held,
    message: &Message,
    mut slot: Slot,
    stop: &CancellationToken,
) -> Answer {
    let mut wait = Duration::from_millis(200);
    warn_of_returns(shared, message).await;
    loop {
        let kept = match answer(shared, held, message, slot).await {
            Answer::NotYet(kept) => kept,
            answer @ (Answer::Settle(..) | Answer::Later { .. }) => return answer,
        };
        tokio::select! {
            biased;
            () = held.lost.cancelled() => return Answer::NotYet(kept),
            () = stop.cancelled() => return Answer::NotYet(kept),
            () = tokio::time::sleep(wait) => {}
        }
        beat();
        wait = (wait * 2).min(Duration::from_secs(2));
        slot = kept.map_or(Slot::None, Slot::Free);
    }
}

async fn answer(shared: &Arc<Shared>, held: &Held, message: &Message, slot: Slot) -> Answer {
    let keep = |slot: Slot| match slot {
        Slot::Free(slot) => Some(slot),
        Slot::None => None,
    };
    let decoded = command::decode(message.kind.as_deref(), message.id.as_deref(), &message.body);
    let (done, slot) = match decoded {
        Err(fault) => (Ok(reject(shared, &fault).await), keep(slot)),
        Ok(Command::Stop(stop)) => (control::stop(shared, held, &stop).await, keep(slot)),
        Ok(Command::Pause(toggle)) => (control::toggle(shared, &toggle, true).await, keep(slot)),
        Ok(Command::Unpause(toggle)) => (control::toggle(shared, &toggle, false).await, keep(slot)),
        Ok(Command::Start(start)) => match slot {
            Slot::None => return pass_on(shared, message).await,
            Slot::Free(slot) => return answer_start(shared, held, message, &start, slot).await,
        },
    };
    match done {
        Ok(disposition) => Answer::Settle(disposition, slot),
        Err(cause) if !cause.is_of_the_request() => {
            if !shared.writes.note(&cause) {
                warn!(%cause, "a command waits");
            }
            Answer::NotYet(slot)
        }
        Err(cause) => {
            let fault = Malformed { field: None, what: cause.to_string(), run_id: None };
            Answer::Settle(reject(shared, &fault).await, slot)
        }
    }
}

async fn answer_start(
    shared: &Arc<Shared>,
    held: &Held,
    message: &Message,
    start: &Start,
    slot: OwnedSemaphorePermit,
) -> Answer {
    let (run, named) = claim::run_of(start);
    debug!(run.id = %run, "a start of run {run} has come in");
    let definition = match &start.target {
        command::Target::Inline(pipeline) => Some(&**pipeline),
        command::Target::Stored(_) => None,
    };
    if let Some(what) = command::too_large(definition, &start.vars, &start.params) {
        let fault = Malformed { field: Some("pipeline".into()), what, run_id: Some(run) };
        return Answer::Settle(reject(shared, &fault).await, Some(slot));
    }
    let Some(launch) = Launch::enter(shared, &run) else {
        shared.ignored(Some(&run), &format!("run {run} is known already")).await;
        return Answer::Settle(Disposition::Ack, Some(slot));
    };
    match claim::take(shared, held, &run, start).await {
        Taken::Claimed(claimed) => {
            info!(run.id = %run, pipeline.group = %claimed.record.group,
                pipeline.name = %claimed.record.name, "run {run} is claimed");
            launch.go(held, *claimed, named, Some(slot));
            Answer::Settle(Disposition::Ack, None)
        }
        Taken::Known => {
            launch.cancel();
            shared.ignored(Some(&run), &format!("run {run} is known already")).await;
            Answer::Settle(Disposition::Ack, Some(slot))
        }
        Taken::NoMemory(why) => {
            launch.cancel();
            no_memory(shared, message, start, &run, &why, slot).await
        }
        Taken::LeaseLost => {
            launch.cancel();
            // The claim may have been made: then it is for us to end it.
            shared.put_lost(Lost::with_lease(run));
            Answer::Settle(Disposition::Requeue, Some(slot))
        }
        Taken::WorkerEnds => {
            launch.cancel();
            Answer::Settle(Disposition::Requeue, Some(slot))
        }
        Taken::Impossible(why) => {
            launch.cancel();
            let fault = Malformed { field: None, what: why, run_id: Some(run) };
            Answer::Settle(reject(shared, &fault).await, Some(slot))
        }
    }
}

/// The header that counts how often a start was put back for want of memory.
const REJECTIONS: &str = "bob-rejections";

async fn no_memory(
    shared: &Arc<Shared>,
    message: &Message,
    start: &Start,
    run: &RunId,
    why: &str,
    slot: OwnedSemaphorePermit,
) -> Answer {
    let times: u32 =
        message.headers.get(REJECTIONS).and_then(|text| text.parse().ok()).unwrap_or(0);
    let after = quota::delay(times);
    let delay_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    let text = format!("run {run} waits {} s: {why}", after.as_secs());
    let mut event = shared.event(Reason::PipelineRunRejected { delay_ms }, text);
    event.run_id = Some(run.clone());
    let (group, name) = claim::names_of(start);
    (event.group, event.name) = (Some(group), Some(name));
    shared.tell(event).await;
    let mut message = message.clone();
    message.headers.insert(REJECTIONS.into(), times.saturating_add(1).to_string());
    // The same run, whatever the message that carries it.
    message.id.get_or_insert_with(|| run.to_string());
    drop(slot);
    Answer::Later { after, message }
}

/// Keeps a start for a while. So many at once and no more: each holds a channel of the connection.
async fn put_aside(shared: &Arc<Shared>, delivery: Delivery, message: Message, after: Duration) {
    let place = {
        let _waits = waits();
        Arc::clone(&shared.aside).acquire_owned().await
    };
    let Ok(place) = place else { return };
    let shared_then = Arc::clone(shared);
    shared.tasks.spawn(async move {
        again(&shared_then, delivery, message, after).await;
        drop(place);
    });
}

/// Publishes a start again, and settles the one that came.
async fn again(shared: &Shared, delivery: Delivery, message: Message, after: Duration) {
    tokio::select! {
        biased;
        () = tokio::time::sleep(after) => {}
        () = shared.draining.cancelled() => {}
    }
    match shared.ports.queue.publish(Route::Jobs, message).await {
        Ok(()) => settle(delivery, Disposition::Ack).await,
        Err(cause) => {
            warn!(%cause, "a start that waits for memory goes back to its queue");
            settle(delivery, Disposition::Requeue).await;
        }
    }
}

/// A start where no slot is: it belongs into the shared queue.
async fn pass_on(shared: &Shared, message: &Message) -> Answer {
    let mut message = message.clone();
    if message.id.is_none() {
        message.id = Some(uuid::Uuid::now_v7().to_string());
    }
    let _waits = waits();
    match shared.ports.queue.publish(Route::Jobs, message).await {
        Ok(()) => Answer::Settle(Disposition::Ack, None),
        Err(cause) => {
            warn!(%cause, "a start cannot be passed on to {} yet", names::JOBS_QUEUE);
            Answer::NotYet(None)
        }
    }
}

async fn reject(shared: &Shared, fault: &Malformed) -> Disposition {
    let about = fault.run_id.as_ref().map(|run| format!(" for run {run}")).unwrap_or_default();
    let message = format!(
        "a command{about} cannot be understood: {fault}; it is in {}",
        names::DEAD_LETTER_QUEUE
    );
    let reason = Reason::CommandRejected { field: fault.field.clone() };
    let mut event = shared.event(reason, message);
    event.run_id.clone_from(&fault.run_id);
    warn!(run.id = fault.run_id.as_ref().map(RunId::as_str), "{}", event.message);
    shared.tell(event).await;
    Disposition::DeadLetter
}

/// How often the broker has taken a message back, according to the broker.
const DELIVERIES: &str = "x-delivery-count";
/// A single return is normal after the death of a worker. More of them mean that a client takes messages
/// and does not settle them.
const WORTH_A_WARNING: u32 = 2;

/// Warns of a message that was returned to its queue again and again: soon it is dead-lettered.
async fn warn_of_returns(shared: &Shared, message: &Message) {
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
    shared.tell(event).await;
}

async fn settle(delivery: Delivery, disposition: Disposition) {
    let _waits = waits();
    match delivery.settle(disposition).await {
        Ok(()) => {}
        // It comes again, and is known then.
        Err(cause) => info!(%cause, "a message was not settled"),
    }
}

async fn held(lease: &mut Current, stop: &CancellationToken) -> Option<Held> {
    let _waits = waits();
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        held = lease.wait_for(Option::is_some) => held.ok()?.clone(),
    }
}

/// The first pause after a queue has failed; it doubles, to at most [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

async fn pause_after(cause: &QueueError, pause: &mut Duration, stop: &CancellationToken) {
    warn!(%cause, "nothing is taken from a queue");
    let _waits = waits();
    tokio::select! {
        biased;
        () = tokio::time::sleep(*pause) => {}
        () = stop.cancelled() => {}
    }
    *pause = (*pause * 2).min(LONGEST_PAUSE);
}
