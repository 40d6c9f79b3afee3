//! Subscriptions, which deliver the messages of a queue one at a time.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use protocol::command::Disposition;
use tokio::sync::Notify;

use super::disk::Fault;
use super::queue::{Broker, DELIVERY_LIMIT, TakeOutcome, returned_too_often};
use crate::ports::{Consumer, Delivery, QueueError, Settle};

/// The state shared by a subscription's reader and its delivery.
struct Subscription {
    broker: Arc<Broker>,
    queue: String,
    state: Mutex<State>,
    settled: Notify,
}

struct State {
    /// The unsettled delivery.
    out: Option<u64>,
    /// Whether the reader still exists.
    open: bool,
}

/// The consumer of a subscription.
pub(super) struct Reader {
    subscription: Arc<Subscription>,
    closed: bool,
}

impl Reader {
    /// Opens a subscription.
    pub(super) fn new(broker: Arc<Broker>, queue: String) -> Self {
        let subscription = Subscription {
            broker,
            queue,
            state: Mutex::new(State { out: None, open: true }),
            settled: Notify::new(),
        };
        Self { subscription: Arc::new(subscription), closed: false }
    }
}

/// A message that was taken from its queue but not yet delivered. Returned to the queue on drop.
struct Reserved<'a> {
    subscription: &'a Subscription,
    id: u64,
    kept: bool,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.subscription.broker.ready(&self.subscription.queue, self.id);
        }
    }
}

impl Subscription {
    /// Takes the first waiting message of the queue.
    fn reserve(&self) -> Option<Reserved<'_>> {
        let id = self.broker.first(&self.queue)?;
        Some(Reserved { subscription: self, id, kept: false })
    }

    /// Waits until no delivery is unsettled and a message is available, and delivers it.
    async fn next(self: &Arc<Self>) -> Result<Delivery, Fault> {
        loop {
            // Register before the checks, so that no notification in between is missed.
            let (arrived, settled) = (self.broker.arrived.notified(), self.settled.notified());
            tokio::pin!(arrived, settled);
            arrived.as_mut().enable();
            settled.as_mut().enable();
            if self.state.lock().out.is_some() {
                settled.await;
                continue;
            }
            let Some(mut reserved) = self.reserve() else {
                arrived.await;
                continue;
            };
            let (id, found) = (reserved.id, self.broker.take(&self.queue, reserved.id).await?);
            match found {
                TakeOutcome::Message(message, deliveries) => {
                    reserved.kept = true;
                    self.state.lock().out = Some(id);
                    let subscription = Arc::clone(self);
                    let settler = Settler { subscription, id, deliveries, progress: Progress::Out };
                    return Ok(Delivery::new(message, deliveries > 1, Box::new(settler)));
                }
                TakeOutcome::Dead | TakeOutcome::Nothing => reserved.kept = true,
            }
        }
    }

    /// Clears the unsettled delivery. Returns false if it is a different one.
    fn clear_unsettled(&self, id: u64) -> bool {
        let mut state = self.state.lock();
        let ours = state.out == Some(id);
        if ours {
            state.out = None;
            self.settled.notify_waiters();
        }
        ours
    }
}

#[async_trait]
impl Consumer for Reader {
    async fn next(&mut self) -> Result<Delivery, QueueError> {
        let next = self.subscription.next().await;
        next.map_err(|fault| self.subscription.broker.error(fault))
    }

    async fn close(mut self: Box<Self>) {
        self.closed = true;
        self.subscription.state.lock().open = false;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        let out = {
            let mut state = self.subscription.state.lock();
            state.open = false;
            state.out.take()
        };
        if let Some(id) = out {
            self.subscription.broker.ready(&self.subscription.queue, id);
        }
    }
}

/// Settles the unsettled delivery.
struct Settler {
    subscription: Arc<Subscription>,
    id: u64,
    deliveries: u32,
    progress: Progress,
}

/// The progress of settling a delivery.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Not yet settled.
    Out,
    /// Settling was started, and possibly cancelled before it completed.
    Begun,
    /// Settled, or no longer this delivery.
    Done,
}

#[async_trait]
impl Settle for Settler {
    async fn settle(mut self: Box<Self>, disposition: Disposition) -> Result<(), QueueError> {
        let id = self.id;
        if self.subscription.state.lock().out != Some(id) {
            self.progress = Progress::Done;
            return Err(QueueError::DeliveryLost);
        }
        self.progress = Progress::Begun;
        let Subscription { broker, queue, .. } = &*self.subscription;
        let outcome = match disposition {
            Disposition::Ack => broker.remove(queue.clone(), id).await.map(drop),
            Disposition::DeadLetter => broker.dead_letter(queue, id, "rejected").await,
            Disposition::Requeue if returned_too_often(self.deliveries) => {
                broker.dead_letter(queue, id, DELIVERY_LIMIT).await
            }
            Disposition::Requeue => {
                broker.ready(queue, id);
                Ok(())
            }
        };
        let ours = self.subscription.clear_unsettled(id);
        if outcome.is_err() && ours {
            broker.ready(queue, id);
        }
        self.progress = Progress::Done;
        outcome
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        let back = match self.progress {
            Progress::Done => false,
            // If it was completed after all, the message does not exist when it is taken again.
            Progress::Begun => true,
            // An open subscription keeps the delivery, like a broker. A closed one returns it now.
            Progress::Out => !self.subscription.state.lock().open,
        };
        if back && self.subscription.clear_unsettled(self.id) {
            self.subscription.broker.ready(&self.subscription.queue, self.id);
        }
    }
}
