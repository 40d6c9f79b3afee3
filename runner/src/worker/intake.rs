//! Consumes commands from the queues and settles them. A start is settled once its run is claimed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::command::{self, Disposition};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::answer::{Answer, Slot, answer_in_place};
use super::claimant::Claimant;
use super::heartbeat::Heartbeat;
use super::lease::{Current, HeldLease};
use super::options::Options;
use super::retry::Retry;
use super::shared::Shared;
use crate::ports::{Consumer, Delivery, Message, QueueError, Route, Source};

/// The first pause after an error of a queue. It doubles up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a draining worker waits for another message in its own queue.
const QUEUE_IS_EMPTY_AFTER: Duration = Duration::from_millis(500);
/// How long a draining worker tries to publish a dead letter.
const LAST_DEAD_LETTER: Duration = Duration::from_secs(5);

/// Consumes starts from the shared queue while a slot is free and the engine's disk has room.
///
/// An open subscription holds a slot. The delivery that takes the last slot is acknowledged only
/// after the subscription is closed. This worker therefore holds back no message that an idle
/// worker could take.
pub(super) async fn jobs(
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
    mut lease: Current,
    stop: CancellationToken,
) {
    let intake = Intake { shared: &shared, heartbeat: &heartbeat, stop: &stop };
    let mut retry = intake.retry();
    let mut is_ready = false;
    loop {
        let slot = {
            let _waits = heartbeat.waits();
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
        let Some(held) = intake.wait_for_lease(&mut lease).await else { return };
        let Some(opened) = intake.open(Source::Jobs).await else { return };
        match opened {
            Ok(consumer) => {
                retry.reset();
                if !std::mem::replace(&mut is_ready, true) {
                    report_ready(&shared);
                }
                shared.slot_is_open.store(true, Ordering::Relaxed);
                intake.consume_jobs(&held, consumer, slot).await;
                shared.slot_is_open.store(false, Ordering::Relaxed);
            }
            Err(cause) => intake.pause_after(&cause, &mut retry).await,
        }
    }
}

fn report_ready(shared: &Shared) {
    let Options { node, slots, executors, .. } = &shared.options;
    let executors: Vec<&str> = executors.iter().map(|executor| executor.as_str()).collect();
    let executors = executors.join(", ");
    info!(owner.id = %node, slots, executors, "{node} is ready: it takes up to {slots} runs at once");
}

/// Consumes stops and pauses even if no slot is free, and passes on misdirected starts.
pub(super) async fn control(
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
    mut lease: Current,
    source: Source,
    stop: CancellationToken,
) {
    let intake = Intake { shared: &shared, heartbeat: &heartbeat, stop: &stop };
    let mut retry = intake.retry();
    // A command that could not be processed under the previous lease. It is kept, because every
    // return to the queue counts towards its delivery limit.
    let mut pending: Option<Delivery> = None;
    loop {
        let Some(held) = intake.wait_for_lease(&mut lease).await else {
            return intake.requeue(pending).await;
        };
        if let Some(delivery) = pending.take() {
            match intake.take_control(&held, source, delivery).await {
                DeliveryOutcome::NotYet(delivery) => {
                    pending = Some(delivery);
                    continue;
                }
                DeliveryOutcome::Done | DeliveryOutcome::Requeued | DeliveryOutcome::Kept => {}
            }
        }
        let Some(opened) = intake.open(source).await else { return };
        let mut consumer = match opened {
            Ok(consumer) => consumer,
            Err(cause @ QueueError::Denied { .. }) if source == Source::Node => {
                // The broker's user lacks the permission to declare queues. The shared queues
                // exist, this one does not.
                warn!(%cause, "this worker has no queue of its own");
                return;
            }
            Err(cause) => {
                intake.pause_after(&cause, &mut retry).await;
                continue;
            }
        };
        retry.reset();
        match intake.consume_control(&held, source, &mut *consumer).await {
            Ok(delivery) => pending = delivery,
            Err(cause) => intake.pause_after(&cause, &mut retry).await,
        }
        if source == Source::Node && stop.is_cancelled() {
            if let Some(delivery) = pending.take() {
                intake.requeue(Some(delivery)).await;
            }
            intake.move_to_jobs(&held, &mut *consumer).await;
        }
        intake.close(consumer).await;
    }
}

/// A loop that consumes a queue.
#[derive(Clone, Copy)]
struct Intake<'a> {
    shared: &'a Arc<Shared>,
    heartbeat: &'a Heartbeat,
    stop: &'a CancellationToken,
}

impl<'a> Intake<'a> {
    fn claimant(self, held: &'a HeldLease) -> Claimant<'a> {
        Claimant { shared: self.shared, held, heartbeat: self.heartbeat }
    }

    /// Returns the pauses after errors of the queue.
    fn retry(self) -> Retry<'a> {
        Retry::new(&*self.shared.ports.host, self.heartbeat, PAUSE, LONGEST_PAUSE)
    }

    async fn wait_for_lease(self, lease: &mut Current) -> Option<HeldLease> {
        let _waits = self.heartbeat.waits();
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            held = lease.wait_for(Option::is_some) => held.ok()?.clone(),
        }
    }

    /// Opens a queue. Returns `None` if `stop` is cancelled first.
    async fn open(self, source: Source) -> Option<Result<Box<dyn Consumer>, QueueError>> {
        let _waits = self.heartbeat.waits();
        tokio::select! {
            biased;
            opened = self.shared.ports.queue.open(source) => Some(opened),
            () = self.stop.cancelled() => None,
        }
    }

    async fn close(self, consumer: Box<dyn Consumer>) {
        let _waits = self.heartbeat.waits();
        consumer.close().await;
    }

    async fn consume_jobs(
        self,
        held: &'a HeldLease,
        mut consumer: Box<dyn Consumer>,
        mut slot: OwnedSemaphorePermit,
    ) {
        let claimant = self.claimant(held);
        loop {
            let delivery = match self.next_job(held, &mut *consumer).await {
                None => break,
                Some(Ok(delivery)) => delivery,
                Some(Err(cause)) => {
                    self.pause_after(&cause, &mut self.retry()).await;
                    break;
                }
            };
            match answer_in_place(claimant, &delivery.message, Slot::Free(slot), self.stop).await {
                Answer::Settle(disposition, Some(kept)) => {
                    slot = kept;
                    settle(self.heartbeat, delivery, disposition).await;
                }
                Answer::NotYet(kept) => {
                    // The subscription is about to close, and another worker receives the message.
                    settle(self.heartbeat, delivery, Disposition::Requeue).await;
                    let Some(kept) = kept else { break };
                    slot = kept;
                }
                Answer::Settle(disposition, None) => {
                    match Arc::clone(&self.shared.slots).try_acquire_owned() {
                        Ok(next) => {
                            slot = next;
                            settle(self.heartbeat, delivery, disposition).await;
                        }
                        Err(_) => {
                            self.close(consumer).await;
                            settle(self.heartbeat, delivery, disposition).await;
                            return;
                        }
                    }
                }
                Answer::Later { after, message } => {
                    // It waits aside, so that starts that fit can run meanwhile.
                    self.close(consumer).await;
                    self.set_aside(delivery, message, after).await;
                    return;
                }
            }
        }
        self.close(consumer).await;
    }

    /// Waits for a start. Returns `None` once this worker must take no more of them.
    async fn next_job(
        self,
        held: &HeldLease,
        consumer: &mut dyn Consumer,
    ) -> Option<Result<Delivery, QueueError>> {
        let shared = self.shared;
        let _waits = self.heartbeat.waits();
        tokio::select! {
            biased;
            () = held.lost.cancelled() => None,
            () = self.stop.cancelled() => None,
            // An orphan, or a start sent to this worker, takes precedence over new starts.
            () = shared.slot_wanted.notified() => None,
            () = shared.room.unavailable() => None,
            () = shared.writes.refused() => None,
            delivery = consumer.next() => Some(delivery),
        }
    }

    /// Processes the commands of one subscription. Returns the command that this worker could not process
    /// under its lease, if it ends with one.
    async fn consume_control(
        self,
        held: &'a HeldLease,
        source: Source,
        consumer: &mut dyn Consumer,
    ) -> Result<Option<Delivery>, QueueError> {
        loop {
            let waiting = self.heartbeat.waits();
            let delivery = tokio::select! {
                biased;
                () = held.lost.cancelled() => return Ok(None),
                () = self.stop.cancelled() => return Ok(None),
                delivery = consumer.next() => delivery?,
            };
            drop(waiting);
            match self.take_control(held, source, delivery).await {
                DeliveryOutcome::Done | DeliveryOutcome::Requeued => {}
                // Open another subscription, so that a stop behind this message does not wait.
                DeliveryOutcome::Kept => return Ok(None),
                DeliveryOutcome::NotYet(delivery) => return Ok(Some(delivery)),
            }
        }
    }

    async fn take_control(
        self,
        held: &'a HeldLease,
        source: Source,
        delivery: Delivery,
    ) -> DeliveryOutcome {
        let is_start = delivery.message.kind.as_deref() == Some(command::START);
        let slot = match source {
            Source::Node if is_start => self.shared.slot_now().await,
            Source::Node | Source::Jobs | Source::Control => None,
        };
        let slot = slot.map_or(Slot::None, Slot::Free);
        match answer_in_place(self.claimant(held), &delivery.message, slot, self.stop).await {
            Answer::Settle(disposition, _slot) => {
                self.settle_before_end(delivery, disposition).await;
                if disposition == Disposition::Requeue {
                    DeliveryOutcome::Requeued
                } else {
                    DeliveryOutcome::Done
                }
            }
            Answer::NotYet(_slot) if self.stop.is_cancelled() => {
                settle(self.heartbeat, delivery, Disposition::Requeue).await;
                DeliveryOutcome::Requeued
            }
            Answer::NotYet(_slot) => DeliveryOutcome::NotYet(delivery),
            Answer::Later { after, message } => {
                self.set_aside(delivery, message, after).await;
                DeliveryOutcome::Kept
            }
        }
    }

    /// Moves the remaining messages of a draining worker's own queue to the shared one.
    async fn move_to_jobs(self, held: &'a HeldLease, consumer: &mut dyn Consumer) {
        while let Ok(Ok(delivery)) =
            tokio::time::timeout(QUEUE_IS_EMPTY_AFTER, consumer.next()).await
        {
            // A message that cannot be moved would be redelivered forever.
            let settled = self.take_control(held, Source::Control, delivery).await;
            if matches!(settled, DeliveryOutcome::Requeued) {
                return;
            }
        }
    }

    /// Keeps a start aside. The number is limited, because each holds a channel of the connection.
    async fn set_aside(self, delivery: Delivery, message: Message, after: Duration) {
        let place = {
            let _waits = self.heartbeat.waits();
            Arc::clone(&self.shared.aside).acquire_owned().await
        };
        let Ok(place) = place else { return };
        let shared_then = Arc::clone(self.shared);
        self.shared.tasks.spawn(async move {
            publish_again(&shared_then, delivery, message, after).await;
            drop(place);
        });
    }

    /// Returns a command that this worker could not process to its queue.
    async fn requeue(self, pending: Option<Delivery>) {
        if let Some(delivery) = pending {
            settle(self.heartbeat, delivery, Disposition::Requeue).await;
        }
    }

    /// Settles a delivery. A dead letter of the worker's own queue is retried until the broker takes it,
    /// which must not delay the end of the worker.
    async fn settle_before_end(self, delivery: Delivery, disposition: Disposition) {
        let late = async {
            self.stop.cancelled().await;
            tokio::time::sleep(LAST_DEAD_LETTER).await;
        };
        tokio::select! {
            biased;
            () = settle(self.heartbeat, delivery, disposition) => {}
            () = late => warn!("a command was not settled before this worker ended"),
        }
    }

    /// Waits before the queue is tried again, unless `stop` is cancelled.
    async fn pause_after(self, cause: &QueueError, retry: &mut Retry<'_>) {
        warn!(%cause, "nothing is taken from a queue");
        self.stop.run_until_cancelled(retry.wait()).await;
    }
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

/// Publishes a start again and settles the original delivery.
async fn publish_again(shared: &Shared, delivery: Delivery, message: Message, after: Duration) {
    // This task has no watchdog: it waits for as long as the broker is unavailable, and a drain ends it.
    let heartbeat = Heartbeat::unwatched();
    let first = (after * 2).clamp(PAUSE, LONGEST_PAUSE);
    let mut retry = Retry::new(&*shared.ports.host, &heartbeat, first, LONGEST_PAUSE);
    let mut drains = shared.draining.run_until_cancelled(tokio::time::sleep(after)).await.is_none();
    loop {
        match shared.ports.queue.publish(Route::Jobs, message.clone()).await {
            Ok(()) => return settle(&heartbeat, delivery, Disposition::Ack).await,
            Err(cause) if drains => {
                warn!(%cause, "a start that waits goes back to its queue");
                return settle(&heartbeat, delivery, Disposition::Requeue).await;
            }
            Err(cause) => warn!(%cause, "a start that waits cannot be published yet"),
        }
        drains = retry.pause(&shared.draining).await.is_break();
    }
}

async fn settle(heartbeat: &Heartbeat, delivery: Delivery, disposition: Disposition) {
    let _waits = heartbeat.waits();
    match delivery.settle(disposition).await {
        Ok(()) => {}
        // The message will be redelivered, and its run is known then.
        Err(cause) => info!(%cause, "a message was not settled"),
    }
}
