//! A subscription that goes on over reconnects.

use std::sync::{Arc, Mutex, PoisonError};
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
use protocol::command::Disposition;
use protocol::names;
use tracing::debug;

use super::{AmqpQueue, message};
use crate::cluster::amqp::{Fault, topology};
use crate::cluster::retry::Pace;
use crate::ports::{Consumer, Delivery, QueueError, Route, Settle, Source};

/// How long the broker may take to confirm that nothing more comes.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection may take to send what settles a delivery.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);

/// A channel that ends with its subscription, or later, with the message that is out. A message can
/// be settled as long as its channel is there.
type Hold = Arc<Mutex<Option<Channel>>>;

/// A subscription as it stands on one connection.
pub(super) struct Subscription {
    consumer: lapin::Consumer,
    channel: Hold,
    /// Whether the channel is left to the message that is out.
    closed: bool,
}

impl Drop for Subscription {
    /// Everything that came over the channel goes back with it.
    fn drop(&mut self) {
        if !self.closed {
            drop(take(&self.channel));
        }
    }
}

fn take(hold: &Hold) -> Option<Channel> {
    hold.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn borrow(hold: &Hold) -> Option<Channel> {
    hold.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

pub(super) struct AmqpConsumer {
    queue: AmqpQueue,
    source: Source,
    subscription: Option<Subscription>,
    /// The next subscription in the making. It is kept here so that a caller who drops `next` does
    /// not leave behind a subscription that nobody reads, with a message in it.
    opening: Option<BoxFuture<'static, (Pace, Result<Subscription, Fault>)>>,
    pace: Option<Pace>,
}

impl AmqpConsumer {
    pub(super) fn new(queue: AmqpQueue, source: Source, subscription: Subscription) -> Self {
        Self { queue, source, subscription: Some(subscription), opening: None, pace: None }
    }

    /// Takes what the subscription has, or says that it is over.
    async fn take(&mut self) -> Option<Delivered> {
        let subscription = self.subscription.as_mut()?;
        match subscription.consumer.next().await {
            Some(Ok(delivered)) => Some(delivered),
            Some(Err(error)) => {
                debug!(%error, source = ?self.source, "a subscription has ended");
                None
            }
            // The broker takes it back: the queue was deleted, or its leader has moved.
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
                self.pace = None;
                let hold = self.subscription.as_ref().map(|sub| Arc::clone(&sub.channel));
                let hold = hold.unwrap_or_default();
                return Ok(self.queue.delivery(self.source, delivered, hold));
            }
            self.subscription = None;
            let (queue, source) = (self.queue.clone(), self.source);
            let mut pace = self.pace.take();
            let opening = self.opening.get_or_insert_with(|| {
                Box::pin(async move {
                    // The first one at once: mostly the connection is back before we are.
                    match &mut pace {
                        Some(pace) => pace.wait().await,
                        None => pace = Some(Pace::new()),
                    }
                    (pace.unwrap_or_else(Pace::new), queue.subscribe(source).await)
                })
            });
            let (pace, opened) = opening.await;
            self.opening = None;
            self.pace = Some(pace);
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
        // The consumer lives until the broker has answered: lapin cancels a dropped one by itself,
        // and a second cancel would end the connection.
        let cancelling = async {
            channel.basic_cancel(tag, BasicCancelOptions::default()).await?;
            give_back(&mut subscription.consumer).await;
            Ok::<(), lapin::Error>(())
        };
        match tokio::time::timeout(CANCEL_DEADLINE, cancelling).await {
            Ok(Ok(())) => {}
            // The channel is gone or as good as gone, and with it what came over it.
            Ok(Err(error)) => debug!(%error, "a subscription ended while it was closed"),
            Err(_elapsed) => {
                debug!("the broker does not confirm the end of a subscription");
                // A connection that breaks right now ends nothing that waits for it.
                subscription.closed = false;
            }
        }
    }
}

/// What came before the broker knew, goes back.
async fn give_back(consumer: &mut lapin::Consumer) {
    while let Some(Ok(delivered)) = consumer.next().await {
        let requeue = BasicNackOptions { requeue: true, multiple: false };
        if let Err(error) = delivered.acker.nack(requeue).await {
            debug!(%error, "a message goes back with its channel");
        }
    }
}

impl AmqpQueue {
    pub(super) async fn subscribe(&self, source: Source) -> Result<Subscription, Fault> {
        let live = self.link().live().await?;
        if source == Source::Node {
            // Exclusive to its connection: every new one makes it anew.
            self.link().declare(&live, &topology::of_node(self.node())).await?;
        }
        match self.consume(live.channel().await?, source).await {
            // Somebody deleted it. A refusal has closed the channel.
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

    fn delivery(&self, source: Source, delivered: Delivered, hold: Hold) -> Delivery {
        let Delivered { properties, data, redelivered, acker, .. } = delivered;
        // Only our own queue needs the message again: what is dead-lettered from it is published.
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
    hold: Hold,
}

#[async_trait]
impl Settle for AmqpSettle {
    async fn settle(self: Box<Self>, disposition: Disposition) -> Result<(), QueueError> {
        if borrow(&self.hold).is_none() || !self.acker.usable() {
            return Err(QueueError::DeliveryLost);
        }
        if let (Disposition::DeadLetter, Some((properties, body))) = (disposition, &self.kept) {
            // Our own queue is no quorum queue: its dead-lettering is not safe by itself.
            self.queue.publish_as_is(&Route::DeadLetter, properties.clone(), body).await?;
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
            // It comes again with another channel.
            Err(_elapsed) => {
                drop(take(&self.hold));
                Err(QueueError::DeliveryLost)
            }
        }
    }
}
