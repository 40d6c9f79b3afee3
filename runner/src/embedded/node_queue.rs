//! The queues as seen by one node.

use std::sync::Arc;

use async_trait::async_trait;
use protocol::id::NodeId;
use protocol::names;

use super::queue::Broker;
use super::subscription::Reader;
use crate::ports::{Consumer, Message, Queue, QueueError, Route, Source};

/// The queues as seen by one node.
pub(super) struct NodeQueue {
    broker: Arc<Broker>,
    own: String,
}

impl NodeQueue {
    pub(super) fn new(broker: Arc<Broker>, node: &NodeId) -> Self {
        let own = names::node_queue(node);
        broker.attach(&own);
        Self { broker, own }
    }
}

impl Drop for NodeQueue {
    fn drop(&mut self) {
        self.broker.detach(&self.own);
    }
}

#[async_trait]
impl Queue for NodeQueue {
    async fn open(&self, source: Source) -> Result<Box<dyn Consumer>, QueueError> {
        let queue = match source {
            Source::Jobs => names::JOBS_QUEUE.to_owned(),
            Source::Control => names::CONTROL_QUEUE.to_owned(),
            Source::Node => self.own.clone(),
        };
        Ok(Box::new(Reader::new(Arc::clone(&self.broker), queue)))
    }

    async fn publish(&self, route: Route, message: Message) -> Result<(), QueueError> {
        let queue = match &route {
            Route::Jobs => names::JOBS_QUEUE.to_owned(),
            Route::Control => names::CONTROL_QUEUE.to_owned(),
            Route::DeadLetter => names::DEAD_LETTER_QUEUE.to_owned(),
            Route::Node(node) => {
                let queue = names::node_queue(node);
                if !self.broker.is_attached(&queue) {
                    return Err(QueueError::Unroutable { route: queue });
                }
                queue
            }
        };
        self.broker.publish(queue, message).await
    }
}
