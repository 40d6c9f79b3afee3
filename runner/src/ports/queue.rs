//! Command queues, and how deliveries are settled.

use std::collections::BTreeMap;

use async_trait::async_trait;
use protocol::command::Disposition;
use protocol::id::NodeId;
use thiserror::Error;

/// The parts of an AMQP message that are used or passed on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The `type` property.
    pub kind: Option<String>,
    /// The `message_id` property.
    pub id: Option<String>,
    /// The text headers (`traceparent` among them), and the broker's own dead-letter headers,
    /// flattened (`x-first-death-reason`).
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

/// A queue that commands are consumed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The shared queue of starts.
    Jobs,
    /// The shared queue of stops and pauses.
    Control,
    /// This worker's own queue.
    Node,
}

/// The destination of a published message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The shared queue of starts.
    Jobs,
    /// The shared queue of stops and pauses.
    Control,
    /// One worker's own queue.
    Node(NodeId),
    /// The dead-letter queue.
    DeadLetter,
}

/// Errors of the queue.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The broker does not answer.
    #[error("cannot reach the broker at {at}: {cause}")]
    Unreachable {
        /// Its address, without credentials.
        at: String,
        /// The connection error.
        cause: String,
    },
    /// The user, password, virtual host or certificate does not grant access.
    #[error("cannot use the broker at {at}: {cause}")]
    Denied {
        /// The address, without credentials.
        at: String,
        /// The broker's reply, and how to fix it.
        cause: String,
    },
    /// A queue or exchange exists with different properties.
    #[error("cannot use the broker at {at}: {cause}")]
    WrongKind {
        /// The address, without credentials.
        at: String,
        /// The resource concerned, and what to delete.
        cause: String,
    },
    /// The broker returned the message because no queue is bound to the route.
    #[error("no queue takes a message for {route}; is a worker there, or was one ever?")]
    Unroutable {
        /// The routing key.
        route: String,
    },
    /// The broker rejected the message because its queue is full.
    #[error("the broker did not take a message for {route}")]
    NotTaken {
        /// The routing key.
        route: String,
    },
    /// The channel of the delivery is closed. The broker will deliver the message again.
    #[error("the connection over which the message came is gone; it will be delivered again")]
    DeliveryLost,
}

impl QueueError {
    /// Returns true if the same call may succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NotTaken { .. } => true,
            Self::Denied { .. }
            | Self::WrongKind { .. }
            | Self::Unroutable { .. }
            | Self::DeliveryLost => false,
        }
    }
}

/// Settles one delivery, once.
#[async_trait]
pub trait Settle: Send {
    /// Settles the delivery at the broker.
    async fn settle(self: Box<Self>, disposition: Disposition) -> Result<(), QueueError>;
}

/// A message that is not yet settled.
#[must_use = "a message that is not settled comes back only when its connection ends"]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Whether the message was delivered before.
    pub redelivered: bool,
    /// Settles the message at the broker.
    settle: Box<dyn Settle>,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery").field("message", &self.message).finish_non_exhaustive()
    }
}

impl Delivery {
    /// Creates a delivery.
    pub fn new(message: Message, redelivered: bool, settle: Box<dyn Settle>) -> Self {
        Self { message, redelivered, settle }
    }

    /// Settles the delivery.
    ///
    /// # Errors
    /// [`QueueError::DeliveryLost`] if the broker will deliver the message again.
    pub async fn settle(self, disposition: Disposition) -> Result<(), QueueError> {
        self.settle.settle(disposition).await
    }
}

/// An open subscription. If it is dropped, its unsettled deliveries return to the queue.
#[async_trait]
pub trait Consumer: Send {
    /// Returns the next message. At most one delivery is unsettled at a time. Reconnects by itself.
    ///
    /// # Cancel safety
    /// If the future is dropped, no message is lost.
    async fn next(&mut self) -> Result<Delivery, QueueError>;

    /// Closes the subscription. Returns once the broker has confirmed that no more messages will
    /// follow. A message that arrived but was not consumed returns to the queue. An unsettled
    /// delivery can still be settled.
    async fn close(self: Box<Self>);
}

/// The broker of commands. Adapters reconnect by themselves, without limit.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Opens a subscription with manual acknowledgement and a prefetch of one.
    async fn open(&self, source: Source) -> Result<Box<dyn Consumer>, QueueError>;

    /// Publishes a persistent, mandatory message and returns once the broker has confirmed it.
    async fn publish(&self, route: Route, message: Message) -> Result<(), QueueError>;
}
