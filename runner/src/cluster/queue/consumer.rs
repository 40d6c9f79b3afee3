//! A subscription that survives reconnects.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use lapin::message::Delivery as Delivered;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    BasicRejectOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use parking_lot::Mutex;
use protocol::command::Disposition;
use protocol::names;
use tracing::{debug, warn};

use super::client::AmqpQueue;
use super::message;
use crate::cluster::amqp::{Fault, topology};
use crate::cluster::retry::reconnect_pauses;
use crate::ports::{Consumer, Delivery, Pauses, QueueError, Route, Settle, Source};

/// The timeout of opening a subscription, including reconnects.
const SUBSCRIBE_DEADLINE: Duration = Duration::from_secs(15);
/// The timeout of the broker's confirmation of a cancel.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);
/// The timeout of sending the settlement of a delivery.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);

/// The channel of a subscription. It is closed together with the subscription, or with the delivery
/// that is still unsettled: a delivery can only be settled over its channel.
type HeldChannel = Arc<Mutex<Option<Channel>>>;

/// A subscription on one connection.
pub(super) struct Subscription {
    consumer: lapin::Consumer,
    channel: HeldChannel,
    /// Whether the channel is left open for an unsettled delivery.
    closed: bool,
}

impl Drop for Subscription {
    /// Closing the channel returns all its deliveries to the queue.
    fn drop(&mut self) {
        if !self.closed {
            drop(take(&self.channel));
        }
    }
}

fn take(hold: &HeldChannel) -> Option<Channel> {
    hold.lock().take()
}

fn borrow(hold: &HeldChannel) -> Option<Channel> {
    hold.lock().clone()
}

pub(super) struct AmqpConsumer {
    queue: AmqpQueue,
    source: Source,
    subscription: Option<Subscription>,
    /// The next subscription while it is being opened. Kept here because a caller may drop `next`.
    /// The subscription would then remain on the broker without a reader, holding a message.
    opening: Option<BoxFuture<'static, (Pauses, Result<Subscription, Fault>)>>,
    pauses: Option<Pauses>,
}

impl AmqpConsumer {
    pub(super) fn new(queue: AmqpQueue, source: Source, subscription: Subscription) -> Self {
        Self { queue, source, subscription: Some(subscription), opening: None, pauses: None }
    }

    /// Waits for a delivery. Returns `None` if the subscription has ended.
    async fn take(&mut self) -> Option<Delivered> {
        let subscription = self.subscription.as_mut()?;
        match subscription.consumer.next().await {
            Some(Ok(delivered)) => Some(delivered),
            Some(Err(error)) => {
                debug!(%error, source = ?self.source, "a subscription has ended");
                None
            }
            // The broker cancelled the subscription: the queue was deleted, or its leader moved.
            None => {
                debug!(source = ?self.source, "the broker has ended a subscription");
                None
            }
        }
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    async fn next(&mut self) -> Result<Delivery, QueueError> {
        loop {
            if let Some(delivered) = self.take().await {
                self.pauses = None;
                let hold = self.subscription.as_ref().map(|sub| Arc::clone(&sub.channel));
                let hold = hold.unwrap_or_default();
                return Ok(self.queue.delivery(self.source, delivered, hold));
            }
            self.subscription = None;
            let (queue, source) = (self.queue.clone(), self.source);
            let mut pauses = self.pauses.take();
            let opening = self.opening.get_or_insert_with(|| {
                Box::pin(async move {
                    // Make the first attempt at once: the connection is usually restored by then.
                    match &mut pauses {
                        Some(pauses) => pauses.wait().await,
                        None => pauses = Some(reconnect_pauses()),
                    }
                    (pauses.unwrap_or_else(reconnect_pauses), queue.subscribe_in_time(source).await)
                })
            });
            let (pauses, opened) = opening.await;
            self.opening = None;
            self.pauses = Some(pauses);
            match opened {
                Ok(subscription) => self.subscription = Some(subscription),
                Err(fault @ Fault::Denied(_)) => return Err(fault.of_queue(self.queue.at())),
                Err(fault) => {
                    debug!(cause = fault.cause(), source = ?self.source, "not yet subscribed")
                }
            }
        }
    }

    async fn close(self: Box<Self>) {
        let Some(mut subscription) = self.subscription else { return };
        let Some(channel) = borrow(&subscription.channel) else { return };
        subscription.closed = true;
        let tag = subscription.consumer.tag();
        // Keep the consumer until the broker has answered. lapin cancels a dropped consumer by
        // itself, and a second cancel would close the connection.
        let cancelling = async {
            channel.basic_cancel(tag, BasicCancelOptions::default()).await?;
            requeue_prefetched(&mut subscription.consumer).await;
            Ok::<(), lapin::Error>(())
        };
        match tokio::time::timeout(CANCEL_DEADLINE, cancelling).await {
            Ok(Ok(())) => {}
            // The channel is closed or about to be, which returns its messages.
            Ok(Err(error)) => debug!(%error, "a subscription ended while it was closed"),
            Err(_elapsed) => {
                debug!("the broker does not confirm the end of a subscription");
                // Calls on a breaking connection may never complete. Give up the channel instead.
                subscription.closed = false;
            }
        }
    }
}

/// Returns messages to the queue that arrived before the broker processed the cancel.
async fn requeue_prefetched(consumer: &mut lapin::Consumer) {
    while let Some(Ok(delivered)) = consumer.next().await {
        let requeue = BasicNackOptions { requeue: true, multiple: false };
        if let Err(error) = delivered.acker.nack(requeue).await {
            debug!(%error, "a message goes back with its channel");
        }
    }
}

impl AmqpQueue {
    pub(super) async fn subscribe_in_time(&self, source: Source) -> Result<Subscription, Fault> {
        let opened = tokio::time::timeout(SUBSCRIBE_DEADLINE, self.subscribe(source)).await;
        opened.unwrap_or_else(|_elapsed| {
            Err(self.link().fault().unwrap_or_else(|| {
                Fault::Unreachable("it does not answer a subscription".to_owned())
            }))
        })
    }

    async fn subscribe(&self, source: Source) -> Result<Subscription, Fault> {
        let live = self.link().live().await?;
        if source == Source::Node {
            // The queue is exclusive to its connection, so every new connection declares it.
            self.link().declare(&live, &topology::of_node(self.node())).await?;
        }
        match self.consume(live.channel().await?, source).await {
            // The queue was deleted. The refusal has closed the channel.
            Err(Fault::Missing(_)) => {
                self.link().declare_again(&live).await?;
                self.consume(live.channel().await?, source).await
            }
            other => other,
        }
    }

    async fn consume(&self, channel: Channel, source: Source) -> Result<Subscription, Fault> {
        channel.basic_qos(1, BasicQosOptions::default()).await?;
        let queue = match source {
            Source::Jobs => names::JOBS_QUEUE.to_owned(),
            Source::Control => names::CONTROL_QUEUE.to_owned(),
            Source::Node => names::node_queue(self.node()),
        };
        let (queue, tag) = (topology::short(&queue)?, ShortString::from(""));
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(queue, tag, options, FieldTable::default()).await?;
        Ok(Subscription { consumer, channel: Arc::new(Mutex::new(Some(channel))), closed: false })
    }

    fn delivery(&self, source: Source, delivered: Delivered, hold: HeldChannel) -> Delivery {
        let Delivered { properties, data, redelivered, acker, .. } = delivered;
        // Only the worker's own queue needs a copy of the message, to publish it as a dead letter.
        let kept = (source == Source::Node).then(|| (properties.clone(), data.clone()));
        let message = message::message(&properties, data);
        let settle = AmqpSettle { queue: self.clone(), acker, kept, hold };
        Delivery::new(message, redelivered, Box::new(settle))
    }
}

struct AmqpSettle {
    queue: AmqpQueue,
    acker: lapin::Acker,
    kept: Option<(BasicProperties, Vec<u8>)>,
    hold: HeldChannel,
}

impl AmqpSettle {
    fn is_usable(&self) -> bool {
        borrow(&self.hold).is_some() && self.acker.usable()
    }

    /// Publishes the message as a dead letter. Retries as long as the delivery can be settled: an
    /// unsettled delivery stops the whole queue, because the prefetch limit is 1. A requeue would
    /// be redelivered forever, because a classic queue has no delivery limit.
    async fn publish_dead_letter(
        &self,
        properties: &BasicProperties,
        body: &[u8],
    ) -> Result<(), QueueError> {
        let mut pauses = reconnect_pauses();
        let mut is_reported = false;
        loop {
            let published = self.queue.publish_as_is(&Route::DeadLetter, properties.clone(), body);
            let Err(cause) = published.await else { return Ok(()) };
            if !self.is_usable() {
                return Err(QueueError::DeliveryLost);
            }
            if !std::mem::replace(&mut is_reported, true) {
                warn!(%cause, "a dead letter cannot be published yet; it is retried");
            }
            pauses.wait().await;
        }
    }
}

#[async_trait]
impl Settle for AmqpSettle {
    async fn settle(self: Box<Self>, disposition: Disposition) -> Result<(), QueueError> {
        if !self.is_usable() {
            return Err(QueueError::DeliveryLost);
        }
        if let (Disposition::DeadLetter, Some((properties, body))) = (disposition, &self.kept) {
            // Dead-lettering from a classic queue, like the worker's own one, is not reliable.
            self.publish_dead_letter(properties, body).await?;
        }
        let telling = async {
            match disposition {
                Disposition::DeadLetter if self.kept.is_none() => {
                    self.acker.reject(BasicRejectOptions { requeue: false }).await
                }
                Disposition::Ack | Disposition::DeadLetter => {
                    self.acker.ack(BasicAckOptions::default()).await
                }
                Disposition::Requeue => {
                    self.acker.reject(BasicRejectOptions { requeue: true }).await
                }
            }
        };
        match tokio::time::timeout(SETTLE_DEADLINE, telling).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false) | Err(_)) => Err(QueueError::DeliveryLost),
            // The message is redelivered once its channel is closed.
            Err(_elapsed) => {
                drop(take(&self.hold));
                Err(QueueError::DeliveryLost)
            }
        }
    }
}
