//! Commands: where they wait, and how they are settled.

use std::collections::BTreeMap;

use async_trait::async_trait;
use protocol::command::Disposition;
use protocol::id::NodeId;
use thiserror::Error;

/// A message, as much of it as we use and pass on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Its `type` property.
    pub kind: Option<String>,
    /// Its `message_id` property.
    pub id: Option<String>,
    /// Its headers that are text (`traceparent` among them), and the broker's own about its death,
    /// flattened (`x-first-death-reason`).
    pub headers: BTreeMap<String, String>,
    /// Its body.
    pub body: Vec<u8>,
}

/// Where commands are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The shared queue of starts.
    Jobs,
    /// The shared queue of stops and pauses.
    Control,
    /// This worker's own queue.
    Node,
}

/// Where a message is published to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The shared queue of starts.
    Jobs,
    /// The shared queue of stops and pauses.
    Control,
    /// One worker's own queue.
    Node(NodeId),
    /// The queue of what cannot be understood.
    DeadLetter,
}

/// What the queue could not do.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The broker does not answer.
    #[error("cannot reach the broker at {at}: {cause}")]
    Unreachable {
        /// Its address, without credentials.
        at: String,
        /// What the connection said.
        cause: String,
    },
    /// User, password, virtual host or certificate are not good for this.
    #[error("cannot use the broker at {at}: {cause}")]
    Denied {
        /// Its address.
        at: String,
        /// What it said, and what to do about it.
        cause: String,
    },
    /// A queue or an exchange of ours is of another kind.
    #[error("cannot use the broker at {at}: {cause}")]
    WrongKind {
        /// Its address.
        at: String,
        /// Which one, and what to delete.
        cause: String,
    },
    /// The broker returned the message: no queue takes it.
    #[error("no queue takes a message for {route}; is a worker there, or was one ever?")]
    Unroutable {
        /// The routing key.
        route: String,
    },
    /// The broker would not keep the message (its queue is full).
    #[error("the broker did not take a message for {route}")]
    NotTaken {
        /// The routing key.
        route: String,
    },
    /// The channel over which the delivery came is gone, so that the broker will deliver it again.
    #[error("the connection over which the message came is gone; it will be delivered again")]
    DeliveryLost,
}

impl QueueError {
    /// Whether the same call may succeed later.
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

/// Settles one message, once.
#[async_trait]
pub trait Settle: Send {
    /// Tells the broker.
    async fn settle(self: Box<Self>, disposition: Disposition) -> Result<(), QueueError>;
}

/// A message that is not settled yet.
#[must_use = "a message that is not settled comes back only when its connection ends"]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Whether it was delivered before.
    pub redelivered: bool,
    /// How it is settled.
    settle: Box<dyn Settle>,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery").field("message", &self.message).finish_non_exhaustive()
    }
}

impl Delivery {
    /// A message, and how it is settled.
    pub fn new(message: Message, redelivered: bool, settle: Box<dyn Settle>) -> Self {
        Self { message, redelivered, settle }
    }

    /// Settles it.
    ///
    /// # Errors
    /// [`QueueError::DeliveryLost`] where the broker will deliver it again.
    pub async fn settle(self, disposition: Disposition) -> Result<(), QueueError> {
        self.settle.settle(disposition).await
    }
}

/// An open subscription. Deliveries of one that is dropped go back to the queue.
#[async_trait]
pub trait Consumer: Send {
    /// The next message; at most one is out and unsettled. Goes on over reconnects.
    ///
    /// # Cancel safety
    /// Dropping the future loses no message.
    async fn next(&mut self) -> Result<Delivery, QueueError>;

    /// Ends the subscription, and returns once the broker has said that nothing more comes; a
    /// message that came and was not taken goes back to the queue. A delivery that is out can still
    /// be settled.
    async fn close(self: Box<Self>);
}

/// Where commands wait. Adapters reconnect by themselves, for ever.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Opens a subscription with manual acknowledgement and one message at a time.
    async fn open(&self, source: Source) -> Result<Box<dyn Consumer>, QueueError>;

    /// Publishes a persistent message, mandatory, and returns once the broker has confirmed it.
    async fn publish(&self, route: Route, message: Message) -> Result<(), QueueError>;
}
