//! Consumes commands from the queues and settles them. A start is settled once its run is claimed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::command::{self, Disposition};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::answer::{Answer, Slot, answer_in_place};
use super::lease::{Current, HeldLease};
use super::options::Options;
use super::shared::Shared;
use super::watchdog::waits;
use crate::ports::{Consumer, Delivery, Message, QueueError, Route, Source};

/// Consumes starts from the shared queue while a slot is free and the engine's disk has room.
///
/// An open subscription holds a slot. The delivery that takes the last slot is acknowledged only
/// after the subscription is closed. This worker therefore holds back no message that an idle
/// worker could take.
pub(super) async fn jobs(shared: Arc<Shared>, mut lease: Current, stop: CancellationToken) {
    let mut pause = PAUSE;
    let mut is_ready = false;
    loop {
        let slot = {
            let _waits = waits();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = shared.room.available() => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = shared.writes.accepted() => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = shared.room.unavailable() => continue,
                () = shared.writes.refused() => continue,
                slot = Arc::clone(&shared.slots).acquire_owned() => slot,
            }
        };
        let Ok(slot) = slot else { return };
        let Some(held) = wait_for_lease(&mut lease, &stop).await else { return };
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
    held: &HeldLease,
    mut consumer: Box<dyn Consumer>,
    mut slot: OwnedSemaphorePermit,
    stop: &CancellationToken,
) {
    loop {
        let delivery = match next_job(shared, held, &mut *consumer, stop).await {
            None => break,
            Some(Ok(delivery)) => delivery,
            Some(Err(cause)) => {
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
                // The subscription is about to close, and another worker receives the message.
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
                // It waits aside, so that starts that fit can run meanwhile.
                close(consumer).await;
                set_aside(shared, delivery, message, after).await;
                return;
            }
        }
    }
    close(consumer).await;
}

/// Waits for a start. Returns `None` once this worker must take no more of them.
async fn next_job(
    shared: &Shared,
    held: &HeldLease,
    consumer: &mut dyn Consumer,
    stop: &CancellationToken,
) -> Option<Result<Delivery, QueueError>> {
    let _waits = waits();
    tokio::select! {
        biased;
        () = held.lost.cancelled() => None,
        () = stop.cancelled() => None,
        // An orphan, or a start sent to this worker, takes precedence over new starts.
        () = shared.slot_wanted.notified() => None,
        () = shared.room.unavailable() => None,
        () = shared.writes.refused() => None,
        delivery = consumer.next() => Some(delivery),
    }
}

/// Consumes stops and pauses even if no slot is free, and passes on misdirected starts.
pub(super) async fn control(
    shared: Arc<Shared>,
    mut lease: Current,
    source: Source,
    stop: CancellationToken,
) {
    let mut pause = PAUSE;
    // A command that could not be processed under the previous lease. It is kept, because every
    // return to the queue counts towards its delivery limit.
    let mut pending: Option<Delivery> = None;
    loop {
        let Some(held) = wait_for_lease(&mut lease, &stop).await else {
            return requeue(pending).await;
        };
        if let Some(delivery) = pending.take() {
            match take_control(&shared, &held, source, delivery, &stop).await {
                DeliveryOutcome::NotYet(delivery) => {
                    pending = Some(delivery);
                    continue;
                }
                DeliveryOutcome::Done | DeliveryOutcome::Requeued | DeliveryOutcome::Kept => {}
            }
        }
        let Some(opened) = open(&shared, source, &stop).await else { return };
        let mut consumer = match opened {
            Ok(consumer) => consumer,
            Err(cause @ QueueError::Denied { .. }) if source == Source::Node => {
                // The broker's user lacks the permission to declare queues. The shared queues
                // exist, this one does not.
                warn!(%cause, "this worker has no queue of its own");
                return;
            }
            Err(cause) => {
                pause_after(&cause, &mut pause, &stop).await;
                continue;
            }
        };
        pause = PAUSE;
        match consume_control(&shared, &held, source, &mut *consumer, &stop).await {
            Ok(delivery) => pending = delivery,
            Err(cause) => pause_after(&cause, &mut pause, &stop).await,
        }
        if source == Source::Node && stop.is_cancelled() {
            if let Some(delivery) = pending.take() {
                requeue(Some(delivery)).await;
            }
            move_to_jobs(&shared, &held, &mut consumer, &stop).await;
        }
        close(consumer).await;
    }
}

/// Processes the commands of one subscription. Returns the command that this worker could not process
/// under its lease, if it ends with one.
async fn consume_control(
    shared: &Arc<Shared>,
    held: &HeldLease,
    source: Source,
    consumer: &mut dyn Consumer,
    stop: &CancellationToken,
) -> Result<Option<Delivery>, QueueError> {
    loop {
        let waiting = waits();
        let delivery = tokio::select! {
            biased;
            () = held.lost.cancelled() => return Ok(None),
            () = stop.cancelled() => return Ok(None),
            delivery = consumer.next() => delivery?,
        };
        drop(waiting);
        match take_control(shared, held, source, delivery, stop).await {
            DeliveryOutcome::Done | DeliveryOutcome::Requeued => {}
            // Open another subscription, so that a stop behind this message does not wait.
            DeliveryOutcome::Kept => return Ok(None),
            DeliveryOutcome::NotYet(delivery) => return Ok(Some(delivery)),
        }
    }
}

/// Returns a command that this worker could not process to its queue.
async fn requeue(pending: Option<Delivery>) {
    if let Some(delivery) = pending {
        settle(delivery, Disposition::Requeue).await;
    }
}

/// Opens a queue. Returns `None` if `stop` is cancelled first.
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

/// The outcome of a delivery.
#[derive(Debug)]
enum DeliveryOutcome {
    Done,
    Requeued,
    /// Kept for a while. Its subscription receives no further messages.
    Kept,
    /// To be processed under the next lease.
    NotYet(Delivery),
}

async fn take_control(
    shared: &Arc<Shared>,
    held: &HeldLease,
    source: Source,
    delivery: Delivery,
    stop: &CancellationToken,
) -> DeliveryOutcome {
    let is_start = delivery.message.kind.as_deref() == Some(command::START);
    let slot = match source {
        Source::Node if is_start => shared.slot_now().await,
        Source::Node | Source::Jobs | Source::Control => None,
    };
    let slot = slot.map_or(Slot::None, Slot::Free);
    match answer_in_place(shared, held, &delivery.message, slot, stop).await {
        Answer::Settle(disposition, _slot) => {
            settle_before_end(delivery, disposition, stop).await;
            if disposition == Disposition::Requeue {
                DeliveryOutcome::Requeued
            } else {
                DeliveryOutcome::Done
            }
        }
        Answer::NotYet(_slot) if stop.is_cancelled() => {
            settle(delivery, Disposition::Requeue).await;
            DeliveryOutcome::Requeued
        }
        Answer::NotYet(_slot) => DeliveryOutcome::NotYet(delivery),
        Answer::Later { after, message } => {
            set_aside(shared, delivery, message, after).await;
            DeliveryOutcome::Kept
        }
    }
}

/// How long a draining worker waits for another message in its own queue.
const QUEUE_IS_EMPTY_AFTER: Duration = Duration::from_millis(500);

/// Moves the remaining messages of a draining worker's own queue to the shared one.
async fn move_to_jobs(
    shared: &Arc<Shared>,
    held: &HeldLease,
    consumer: &mut Box<dyn Consumer>,
    stop: &CancellationToken,
) {
    while let Ok(Ok(delivery)) = tokio::time::timeout(QUEUE_IS_EMPTY_AFTER, consumer.next()).await {
        // A message that cannot be moved would be redelivered forever.
        let settled = take_control(shared, held, Source::Control, delivery, stop).await;
        if matches!(settled, DeliveryOutcome::Requeued) {
            return;
        }
    }
}

/// Keeps a start aside. The number is limited, because each holds a channel of the connection.
async fn set_aside(shared: &Arc<Shared>, delivery: Delivery, message: Message, after: Duration) {
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

/// Publishes a start again and settles the original delivery.
async fn again(shared: &Shared, delivery: Delivery, message: Message, after: Duration) {
    let mut pause = after;
    loop {
        let drains = shared.draining.run_until_cancelled(tokio::time::sleep(pause)).await.is_none();
        match shared.ports.queue.publish(Route::Jobs, message.clone()).await {
            Ok(()) => return settle(delivery, Disposition::Ack).await,
            Err(cause) if drains => {
                warn!(%cause, "a start that waits goes back to its queue");
                return settle(delivery, Disposition::Requeue).await;
            }
            Err(cause) => warn!(%cause, "a start that waits cannot be published yet"),
        }
        pause = (pause * 2).clamp(PAUSE, LONGEST_PAUSE);
    }
}

async fn settle(delivery: Delivery, disposition: Disposition) {
    let _waits = waits();
    match delivery.settle(disposition).await {
        Ok(()) => {}
        // The message will be redelivered, and its run is known then.
        Err(cause) => info!(%cause, "a message was not settled"),
    }
}

/// How long a draining worker tries to publish a dead letter.
const LAST_DEAD_LETTER: Duration = Duration::from_secs(5);

/// Settles a delivery. A dead letter of the worker's own queue is retried until the broker takes it,
/// which must not delay the end of the worker.
async fn settle_before_end(delivery: Delivery, disposition: Disposition, stop: &CancellationToken) {
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_DEAD_LETTER).await;
    };
    tokio::select! {
        biased;
        () = settle(delivery, disposition) => {}
        () = late => warn!("a command was not settled before this worker ended"),
    }
}

async fn wait_for_lease(lease: &mut Current, stop: &CancellationToken) -> Option<HeldLease> {
    let _waits = waits();
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        held = lease.wait_for(Option::is_some) => held.ok()?.clone(),
    }
}

/// The first pause after an error of a queue. It doubles up to [`LONGEST_PAUSE`].
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
