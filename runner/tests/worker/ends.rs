//! A worker ends, whatever its queue does meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use protocol::event::Event;
use protocol::id::{Epoch, RunId};
use protocol::run::Status;
use runner::ports::{
    Consumer, Delivery, EventStream, Events, EventsError, Message, Ports, Position, Queue,
    QueueError, Route, Source, Ticket,
};
use test_support::worker_suite::{new_node, options};

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

/// Events whose first ending cannot be read back from disk.
struct UnreadableEnding {
    events: Arc<dyn Events>,
    endings: AtomicUsize,
    is_readable: AtomicBool,
}

#[async_trait]
impl Events for UnreadableEnding {
    async fn emit(&self, event: Event) -> Result<Ticket, EventsError> {
        if event.reason.is_ending() {
            self.endings.fetch_add(1, Ordering::Relaxed);
        }
        self.events.emit(event).await
    }

    async fn confirmed(&self, ticket: Ticket) -> Result<(), EventsError> {
        self.events.confirmed(ticket).await
    }

    fn is_unreadable(&self, _ticket: Ticket) -> bool {
        !self.is_readable.swap(true, Ordering::Relaxed)
    }

    fn discard(&self, run: &RunId, up_to: Epoch) {
        self.events.discard(run, up_to);
    }

    async fn follow(&self, from: Position) -> Result<EventStream, EventsError> {
        self.events.follow(from).await
    }

    async fn end(&self) -> Result<Option<u64>, EventsError> {
        self.events.end().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ending_that_cannot_be_read_from_disk_is_published_again() {
    let (mut rig, embedded) = rig().await;
    let events = Arc::new(UnreadableEnding {
        events: embedded.events(),
        endings: AtomicUsize::new(0),
        is_readable: AtomicBool::new(false),
    });
    let ports = Ports { events: Arc::<UnreadableEnding>::clone(&events), ..rig.ports.clone() };
    rig.worker_with(options(new_node(), 1), ports).await;
    let run = rig.run("unreadable");
    rig.start(&run, &rig.pipeline("unreadable", &["exit 0"])).await;
    assert_eq!(rig.settled(&run).await.status, Status::Passed);
    assert_eq!(events.endings.load(Ordering::Relaxed), 2);
    rig.end().await;
}
