//! The connection for commands, and publishing over it.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation};
use parking_lot::Mutex;
use protocol::id::NodeId;
use protocol::names;

use crate::cluster::amqp::{AmqpOptions, Fault, Link, Live, Target, topology};
use crate::cluster::stream::health;
use crate::ports::{QueueError, Route};

/// The frame size limit. All properties of a message arrive in one frame, which may have the
/// broker's default size. A frame above the negotiated limit would close the connection.
const FRAME_BYTES: u32 = 128 * 1024;

/// The timeout of a publish until the broker's confirm, including reconnects.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(15);
/// The number of idle publishing channels to keep.
const IDLE_CHANNELS: usize = 4;

/// Commands, over RabbitMQ.
#[derive(Clone)]
pub struct AmqpQueue(Arc<Shared>);

struct Shared {
    link: Link,
    node: NodeId,
    /// Idle publishing channels, with the number of their connection. Each carries one message at a
    /// time: a returned message has no delivery tag, only its position before the confirm.
    idle: Mutex<Vec<(u64, Channel)>>,
}

impl std::fmt::Debug for AmqpQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AmqpQueue").field(&self.0.link).finish()
    }
}

impl AmqpQueue {
    /// Connects and declares the shared objects, retrying as often as the options say. Later
    /// reconnects are automatic and unlimited.
    ///
    /// # Errors
    /// [`QueueError::Denied`] at once if the user, password, virtual host or certificates are
    /// wrong; [`QueueError::Unreachable`] after the last attempt.
    pub async fn connect(options: &AmqpOptions) -> Result<Self, QueueError> {
        let target = Target::new(options, &options.url, options.node.to_string())
            .map_err(|fault| fault.of_queue("BOB_QUEUE_URL"))?
            .with_frames_of(FRAME_BYTES);
        let at = Arc::clone(target.at());
        let opening =
            Link::open(target, topology::shared(), options.retry_attempts, options.retry_delay);
        let link = opening.await.map_err(|fault| fault.of_queue(&at))?;
        let node = options.node.clone();
        Ok(Self(Arc::new(Shared { link, node, idle: Mutex::default() })))
    }

    /// Closes the connection, so that the broker need not detect its loss. The worker's own queue
    /// is deleted, and unsettled messages are returned at once.
    pub async fn close(&self) {
        self.0.link.close().await;
    }

    /// Checks that the broker confirms a message published to the exchange of commands.
    ///
    /// # Errors
    /// [`QueueError`] if it does not.
    pub async fn probe(&self) -> Result<(), QueueError> {
        let probed = health::probe(self.link(), names::EXCHANGE).await;
        probed.map_err(|fault| fault.of_queue(self.at()))
    }

    /// Returns the number of dead letters.
    ///
    /// # Errors
    /// [`QueueError`] if the broker does not report it.
    pub async fn dead_letters(&self) -> Result<u32, QueueError> {
        let counting = async {
            let channel = self.link().live().await?.channel().await?;
            let passive =
                QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
            let name = topology::short(names::DEAD_LETTER_QUEUE)?;
            let declared = channel.queue_declare(name, passive, FieldTable::default()).await?;
            Ok::<_, Fault>(declared.message_count())
        };
        let counted = tokio::time::timeout(PUBLISH_DEADLINE, counting).await;
        let late =
            || Fault::Unreachable("it does not say how many messages a queue has".to_owned());
        counted.unwrap_or_else(|_elapsed| Err(late())).map_err(|fault| fault.of_queue(self.at()))
    }

    pub(super) fn link(&self) -> &Link {
        &self.0.link
    }

    pub(super) fn node(&self) -> &NodeId {
        &self.0.node
    }

    pub(super) fn at(&self) -> &str {
        self.0.link.at()
    }

    /// Publishes a message with the given properties.
    pub(super) async fn publish_as_is(
        &self,
        route: &Route,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<(), QueueError> {
        let (exchange, key) = address(route);
        let work = self.publish_soon(exchange, &key, properties, body);
        let confirmed = match tokio::time::timeout(PUBLISH_DEADLINE, work).await {
            Ok(confirmed) => confirmed.map_err(|fault| fault.of_queue(self.at()))?,
            Err(_elapsed) => {
                let seconds = PUBLISH_DEADLINE.as_secs();
                let late = format!("it did not confirm a message for {key} within {seconds} s");
                let fault = self.link().fault().unwrap_or(Fault::Unreachable(late));
                return Err(fault.of_queue(self.at()));
            }
        };
        match confirmed {
            Confirmation::Ack(None) | Confirmation::NotRequested => Ok(()),
            Confirmation::Ack(Some(_)) => Err(QueueError::Unroutable { route: key }),
            Confirmation::Nack(_) => Err(QueueError::NotTaken { route: key }),
        }
    }

    async fn publish_soon(
        &self,
        exchange: &str,
        key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<Confirmation, Fault> {
        let live = self.link().live().await?;
        match self.publish_once(&live, exchange, key, properties.clone(), body).await {
            // The exchange was deleted.
            Err(Fault::Missing(_)) => {
                self.link().declare_again(&live).await?;
                self.publish_once(&live, exchange, key, properties, body).await
            }
            other => other,
        }
    }

    async fn publish_once(
        &self,
        live: &Live,
        exchange: &str,
        key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<Confirmation, Fault> {
        let channel = match self.idle_channel(live) {
            Some(channel) => channel,
            None => live.confirming_channel().await?,
        };
        let (exchange, key) = (topology::short(exchange)?, topology::short(key)?);
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let sent = channel.basic_publish(exchange, key, options, body, properties).await?;
        let confirmed = sent.await?;
        let mut idle = self.0.idle.lock();
        if idle.len() < IDLE_CHANNELS {
            idle.push((live.number, channel));
        }
        Ok(confirmed)
    }

    fn idle_channel(&self, live: &Live) -> Option<Channel> {
        let mut idle = self.0.idle.lock();
        idle.retain(|(number, channel)| *number == live.number && channel.status().connected());
        idle.pop().map(|(_, channel)| channel)
    }
}

/// Returns the exchange and the routing key of a route.
pub(super) fn address(route: &Route) -> (&'static str, String) {
    match route {
        Route::Jobs => (names::EXCHANGE, names::JOBS_QUEUE.to_owned()),
        Route::Control => (names::EXCHANGE, names::CONTROL_QUEUE.to_owned()),
        Route::Node(node) => (names::EXCHANGE, names::node_queue(node)),
        Route::DeadLetter => (names::DEAD_LETTER_EXCHANGE, names::DEAD_LETTER_QUEUE.to_owned()),
    }
}
