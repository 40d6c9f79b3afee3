//! A worker ends, whatever its queue does meanwhile.

use std::sync::Arc;

use async_trait::async_trait;
use runner::ports::{Consumer, Delivery, Message, Ports, Queue, QueueError, Route, Source};
use runner::worker::suite::{new_node, options};

use crate::rig;

/// A queue whose subscription for starts never ends, as if its connection broke at the wrong
/// moment.
struct EndlessQueue(Arc<dyn Queue>);

struct NeverCloses(Box<dyn Consumer>);

#[async_trait]
impl Queue for EndlessQueue {
    async fn open(&self, source: Source) -> Result<Box<dyn Consumer>, QueueError> {
        let consumer = self.0.open(source).await?;
        Ok(match source {
            Source::Jobs => Box::new(NeverCloses(consumer)),
            Source::Control | Source::Node => consumer,
        })
    }

    async fn publish(&self, route: Route, message: Message) -> Result<(), QueueError> {
        self.0.publish(route, message).await
    }
}

#[async_trait]
impl Consumer for NeverCloses {
    async fn next(&mut self) -> Result<Delivery, QueueError> {
        self.0.next().await
    }

    async fn close(self: Box<Self>) {
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_exits_although_a_subscription_never_ends() {
    let (mut rig, embedded) = rig().await;
    let node = new_node();
    let queue = Arc::new(EndlessQueue(embedded.queue(&node)));
    let ports = Ports { queue, ..rig.ports.clone() };
    let node = rig.worker_with(options(node, 1), ports).await;
    rig.end_worker(&node).await;
    rig.end().await;
}
