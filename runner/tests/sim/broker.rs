//! An in-memory broker. Unacknowledged messages are delivered again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use protocol::command::Disposition;
use protocol::names;
use runner::ports::{Consumer, Delivery, Message, Queue, QueueError, Route, Settle, Source};
use tokio::sync::Notify;

use crate::plan::EffectSide;
use crate::world::{Broken, Process, lock};

#[derive(Default)]
struct Inner {
    jobs: VecDeque<(u64, Message)>,
    control: VecDeque<(u64, Message)>,
    /// The number of redeliveries of each message, by its latest delivery number.
    returns: BTreeMap<u64, u32>,
    dead: Vec<Message>,
    /// Unsettled messages with the process that has them, and the number of connection cuts so far.
    out: BTreeMap<u64, (usize, Source, Message)>,
    next: u64,
}

#[derive(Default)]
pub struct Broker {
    inner: Mutex<Inner>,
    arrived: Notify,
}

impl Inner {
    fn line(&mut self, source: Source) -> &mut VecDeque<(u64, Message)> {
        match source {
            Source::Jobs | Source::Node => &mut self.jobs,
            Source::Control => &mut self.control,
        }
    }

    fn give_back(&mut self, of: impl Fn(usize) -> bool) {
        let back: Vec<u64> =
            self.out.iter().filter(|(_, (by, _, _))| of(*by)).map(|(id, _)| *id).collect();
        for id in back.into_iter().rev() {
            if let Some((_, source, message)) = self.out.remove(&id) {
                self.comes_back(id, source, message);
            }
        }
    }

    /// Requeues an unsettled message, up to the queue's delivery limit.
    fn comes_back(&mut self, id: u64, source: Source, message: Message) {
        let times = self.returns.remove(&id).unwrap_or(0) + 1;
        if i64::from(times) > names::DELIVERY_LIMIT {
            return self.dead.push(message);
        }
        self.next += 1;
        let id = self.next;
        self.returns.insert(id, times);
        self.line(source).push_front((id, message));
    }
}

impl Broker {
    pub fn publish(&self, source: Source, message: Message) {
        {
            let mut inner = lock(&self.inner);
            inner.next += 1;
            let id = inner.next;
            inner.line(source).push_back((id, message));
        }
        self.arrived.notify_waiters();
    }

    /// Closes a process's connection, which requeues its unsettled messages.
    pub fn drop_connections(&self, process: usize) {
        lock(&self.inner).give_back(|by| by == process);
        self.arrived.notify_waiters();
    }

    pub fn cut(&self) {
        lock(&self.inner).give_back(|_| true);
        self.arrived.notify_waiters();
    }

    /// The number of waiting and unsettled messages.
    pub fn unsettled(&self) -> usize {
        let inner = lock(&self.inner);
        inner.jobs.len() + inner.control.len() + inner.out.len()
    }

    pub fn dead_letters(&self) -> usize {
        lock(&self.inner).dead.len()
    }
}

/// The broker as seen by one process.
pub struct Handle {
    pub process: Arc<Process>,
}

fn gone() -> QueueError {
    QueueError::Unreachable { at: "the broker".into(), cause: "it does not answer".into() }
}

#[async_trait]
impl Queue for Handle {
    async fn open(&self, source: Source) -> Result<Box<dyn Consumer>, QueueError> {
        self.process.pass("open", EffectSide::Before).await.map_err(|Broken| gone())?;
        Ok(Box::new(Subscription { process: Arc::clone(&self.process), source }))
    }

    async fn publish(&self, route: Route, message: Message) -> Result<(), QueueError> {
        self.process.pass("publish", EffectSide::Before).await.map_err(|Broken| gone())?;
        let broker = &self.process.world.broker;
        match route {
            Route::Jobs => broker.publish(Source::Jobs, message),
            Route::Control => broker.publish(Source::Control, message),
            Route::DeadLetter => lock(&broker.inner).dead.push(message),
            Route::Node(node) => return Err(QueueError::Unroutable { route: node.to_string() }),
        }
        self.process.pass("publish", EffectSide::After).await.map_err(|Broken| gone())
    }
}

struct Subscription {
    process: Arc<Process>,
    source: Source,
}

#[async_trait]
impl Consumer for Subscription {
    async fn next(&mut self) -> Result<Delivery, QueueError> {
        loop {
            self.process.pass("deliver", EffectSide::Before).await.map_err(|Broken| gone())?;
            let arrived = self.process.world.broker.arrived.notified();
            let taken = {
                let mut inner = lock(&self.process.world.broker.inner);
                let taken = inner.line(self.source).pop_front();
                if let Some((id, message)) = &taken {
                    inner.out.insert(*id, (self.process.number, self.source, message.clone()));
                }
                taken
            };
            if let Some((id, message)) = taken {
                let settle = Settler { process: Arc::clone(&self.process), id };
                return Ok(Delivery::new(message, false, Box::new(settle)));
            }
            // A broken connection is noticed and replaced sooner or later.
            tokio::time::timeout(Duration::from_secs(60), arrived).await.ok();
        }
    }

    async fn close(self: Box<Self>) {
        self.process.pass("close", EffectSide::Before).await.ok();
    }
}

struct Settler {
    process: Arc<Process>,
    id: u64,
}

#[async_trait]
impl Settle for Settler {
    async fn settle(self: Box<Self>, disposition: Disposition) -> Result<(), QueueError> {
        let before = self.process.pass("settle", EffectSide::Before).await;
        let broker = &self.process.world.broker;
        {
            let mut inner = lock(&broker.inner);
            let Some((_, source, message)) = inner.out.remove(&self.id) else {
                return Err(QueueError::DeliveryLost);
            };
            match (before, disposition) {
                (Ok(()), Disposition::Ack) => {}
                (Ok(()), Disposition::DeadLetter) => inner.dead.push(message),
                // The acknowledgement was lost, so the message is delivered again.
                (Ok(()), Disposition::Requeue) | (Err(Broken), _) => {
                    inner.comes_back(self.id, source, message);
                }
            }
        }
        broker.arrived.notify_waiters();
        before.map_err(|Broken| QueueError::DeliveryLost)?;
        self.process
            .pass("settle", EffectSide::After)
            .await
            .map_err(|Broken| QueueError::DeliveryLost)
    }
}
