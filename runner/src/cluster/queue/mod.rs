//! Commands, over RabbitMQ.

mod client;
mod consumer;
mod message;

use async_trait::async_trait;

pub use self::client::AmqpQueue;
use self::client::address;
use self::consumer::AmqpConsumer;
use crate::ports::{Consumer, Message, Queue, QueueError, Route, Source};

#[async_trait]
impl Queue for AmqpQueue {
    async fn open(&self, source: Source) -> Result<Box<dyn Consumer>, QueueError> {
        let subscription = self.subscribe_in_time(source).await;
        let subscription = subscription.map_err(|fault| fault.of_queue(self.at()))?;
        Ok(Box::new(AmqpConsumer::new(self.clone(), source, subscription)))
    }

    async fn publish(&self, route: Route, message: Message) -> Result<(), QueueError> {
        let Some(properties) = message::properties(&message) else {
            return Err(QueueError::NotTaken { route: address(&route).1 });
        };
        self.publish_as_is(&route, properties, &message.body).await
    }
}
