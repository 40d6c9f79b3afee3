//! Consumes commands from the queues, and settles their deliveries. A start is settled once its run is
//! claimed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::command::{self, Disposition};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::answer::{Answer, Slot, answer_in_place};
use super::claimant::Claimant;
use super::lease::{Current, HeldLease};
use super::options::Options;
use super::retry::Retry;
use super::shared::Shared;
use super::watchdog::Heartbeat;
use crate::ports::{Consumer, Delivery, Message, QueueError, Route, Source};

/// The first pause after an error of a queue. Pauses double up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A draining worker considers its own queue empty after this time without a message.
const EMPTY_AFTER: Duration = Duration::from_millis(500);
/// How long a draining worker tries to publish a dead letter.
const DEAD_LETTER_GRACE: Duration = Duration::from_secs(5);

/// Consumes starts from the shared queue while a slot is free, the engine's disk has room, and the
/// store accepts writes.
///
/// An open subscription holds a slot. The delivery that takes the last slot is acknowledged only
/// after the subscription is closed. A full worker therefore never holds back a message that an idle
/// worker could process.
pub(super) async fn jobs(
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
    mut lease: Current,
    stop: CancellationToken,
) {
    let intake = Intake { shared: &shared, heartbeat: &heartbeat, stop: &stop };
    let mut retry = intake.retry();
    let mut has_reported_ready = false;
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
                if !std::mem::replace(&mut has_reported_ready, true) {
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
    info!(owner.id = %node, slots, executors, "{node} is ready to drive up to {slots} runs");
}

/// Consumes the control queue or the worker's own queue, even if no slot is free. A start in the
/// worker's own queue is processed if it gets a slot. Other starts are passed on to the shared queue.
pub(super) async fn control(
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
    mut lease: Current,
    source: Source,
    stop: CancellationToken,
) {
    let intake = Intake { shared: &shared, heartbeat: &heartbeat, stop: &stop };
    let mut retry = intake.retry();
    // A command that could not be processed under the previous lease. It is not requeued, because
    // every requeue counts towards its delivery limit.
    let mut pending: Option<Delivery> = None;
    loop {
        let Some(held) = intake.wait_for_lease(&mut lease).await else {
            return intake.requeue(pending).await;
        };
        if let Some(delivery) = pending.take() {
            match intake.process_control(&held, source, delivery).await {
                DeliveryOutcome::NotYet(delivery) => {
                    pending = Some(delivery);
                    continue;
                }
                DeliveryOutcome::Done | DeliveryOutcome::Requeued | DeliveryOutcome::Postponed => {}
            }
        }
        let Some(opened) = intake.open(source).await else { return };
        let mut consumer = match opened {
            Ok(consumer) => consumer,
            Err(cause @ QueueError::Denied { .. }) if source == Source::Node => {
                // The broker's user has no permission to declare queues. The shared queues exist
                // already, but the worker's own queue does not.
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
            // Requeue it first, so that it is moved with the rest of the queue.
            intake.requeue(pending.take()).await;
            intake.move_to_jobs(&held, &mut *consumer).await;
        }
        intake.close(consumer).await;
    }
}

/// The context of a loop that consumes one queue.
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

    /// Creates the pauses after errors of the queue.
    fn retry(self) -> Retry<'a> {
        Retry::new(&*self.shared.ports.host, self.heartbeat, FIRST_PAUSE, LONGEST_PAUSE)
    }

    /// Waits for a valid lease. Returns `None` if `stop` is cancelled first.
    async fn wait_for_lease(self, lease: &mut Current) -> Option<HeldLease> {
        let _waits = self.heartbeat.waits();
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            held = lease.wait_for(Option::is_some) => held.ok()?.clone(),
        }
    }

    /// Opens a subscription. Returns `None` if `stop` is cancelled first.
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

    /// Processes the starts of one subscription until it must be closed, and closes it.
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
                    // The unsettled delivery would block this subscription. Other starts can be
                    // received in the meantime.
                    self.close(consumer).await;
                    self.postpone(delivery, message, after).await;
                    return;
                }
            }
        }
        self.close(consumer).await;
    }

    /// Waits for a start. Returns `None` once the subscription must be closed.
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
            // An orphan, or a start in the worker's own queue, takes precedence over new starts.
            () = shared.slot_wanted.notified() => None,
            () = shared.room.unavailable() => None,
            () = shared.writes.refused() => None,
            delivery = consumer.next() => Some(delivery),
        }
    }

    /// Processes the commands of one subscription until it must be closed. If the lease was lost while
    /// a command was processed, returns that command.
    async fn consume_control(
        self,
        held: &'a HeldLease,
        source: Source,
        consumer: &mut dyn Consumer,
    ) -> Result<Option<Delivery>, QueueError> {
        loop {
            let waits = self.heartbeat.waits();
            let delivery = tokio::select! {
                biased;
                () = held.lost.cancelled() => return Ok(None),
                () = self.stop.cancelled() => return Ok(None),
                delivery = consumer.next() => delivery?,
            };
            drop(waits);
            match self.process_control(held, source, delivery).await {
                DeliveryOutcome::Done | DeliveryOutcome::Requeued => {}
                // The unsettled delivery blocks this subscription. Open a new one, so that a stop
                // behind this message does not wait.
                DeliveryOutcome::Postponed => return Ok(None),
                DeliveryOutcome::NotYet(delivery) => return Ok(Some(delivery)),
            }
        }
    }

    /// Processes one command, and settles or postpones it if possible.
    async fn process_control(
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
                self.postpone(delivery, message, after).await;
                DeliveryOutcome::Postponed
            }
        }
    }

    /// Empties a draining worker's own queue: passes starts on to the shared queue, and processes all
    /// other commands.
    async fn move_to_jobs(self, held: &'a HeldLease, consumer: &mut dyn Consumer) {
        while let Ok(Ok(delivery)) = tokio::time::timeout(EMPTY_AFTER, consumer.next()).await {
            // With `Source::Control`, a start gets no slot and is passed on to the shared queue.
            let outcome = self.process_control(held, Source::Control, delivery).await;
            // Stop here: the broker would deliver a requeued message again and again.
            if matches!(outcome, DeliveryOutcome::Requeued) {
                return;
            }
        }
    }

    /// Publishes a start again later, in a task of its own. The number of postponed starts is limited,
    /// because each keeps a channel of the connection open.
    async fn postpone(self, delivery: Delivery, message: Message, after: Duration) {
        let permit = {
            let _waits = self.heartbeat.waits();
            Arc::clone(&self.shared.postponed).acquire_owned().await
        };
        let Ok(permit) = permit else { return };
        let shared = Arc::clone(self.shared);
        self.shared.tasks.spawn(async move {
            publish_again(&shared, delivery, message, after).await;
            drop(permit);
        });
    }

    /// Requeues a command that this worker could not process, if there is one.
    async fn requeue(self, pending: Option<Delivery>) {
        if let Some(delivery) = pending {
            settle(self.heartbeat, delivery, Disposition::Requeue).await;
        }
    }

    /// Settles a delivery, but gives up [`DEAD_LETTER_GRACE`] after `stop` is cancelled. The publication
    /// of a dead letter of the worker's own queue is retried until it succeeds, and must not delay the
    /// worker's exit.
    async fn settle_before_end(self, delivery: Delivery, disposition: Disposition) {
        let grace_over = async {
            self.stop.cancelled().await;
            tokio::time::sleep(DEAD_LETTER_GRACE).await;
        };
        tokio::select! {
            biased;
            () = settle(self.heartbeat, delivery, disposition) => {}
            () = grace_over => warn!("a command was not settled before this worker ended"),
        }
    }

    /// Logs an error of the queue, and waits before the next attempt, unless `stop` is cancelled.
    async fn pause_after(self, cause: &QueueError, retry: &mut Retry<'_>) {
        warn!(%cause, "cannot consume a queue");
        self.stop.run_until_cancelled(retry.wait()).await;
    }
}

/// The outcome of processing a delivery.
#[derive(Debug)]
enum DeliveryOutcome {
    /// Acknowledged or dead-lettered.
    Done,
    Requeued,
    /// A task publishes it again later, and settles it then.
    Postponed,
    /// Unsettled, to be processed under the next lease.
    NotYet(Delivery),
}

/// Publishes a start again after a delay, and then settles the original delivery.
async fn publish_again(shared: &Shared, delivery: Delivery, message: Message, after: Duration) {
    // The watchdog does not watch this task. It retries while the broker is unavailable, until a drain.
    let heartbeat = Heartbeat::unwatched();
    let first_pause = (after * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
    let mut retry = Retry::new(&*shared.ports.host, &heartbeat, first_pause, LONGEST_PAUSE);
    let delay = tokio::time::sleep(after);
    let mut is_draining = shared.draining.run_until_cancelled(delay).await.is_none();
    loop {
        match shared.ports.queue.publish(Route::Jobs, message.clone()).await {
            Ok(()) => return settle(&heartbeat, delivery, Disposition::Ack).await,
            Err(cause) if is_draining => {
                warn!(%cause, "a postponed start is requeued");
                return settle(&heartbeat, delivery, Disposition::Requeue).await;
            }
            Err(cause) => warn!(%cause, "a postponed start cannot be published yet"),
        }
        is_draining = retry.pause(&shared.draining).await.is_break();
    }
}

async fn settle(heartbeat: &Heartbeat, delivery: Delivery, disposition: Disposition) {
    let _waits = heartbeat.waits();
    match delivery.settle(disposition).await {
        Ok(()) => {}
        // The broker redelivers the message. A start is then ignored, because its run is known.
        Err(cause) => info!(%cause, "a message was not settled"),
    }
}
