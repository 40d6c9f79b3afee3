//! Conformance tests for the [`Queue`] port.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use protocol::command::Disposition;
use protocol::id::NodeId;
use protocol::names;

use super::{never, soon};
use runner::ports::{Consumer, Delivery, Message, Queue, QueueError, Route, Source};

/// Removes all dead letters from the broker and returns them, oldest first.
pub type TakeDeadLetters = Box<dyn Fn() -> BoxFuture<'static, Vec<Message>> + Send + Sync>;

/// A queue under test. Its queues are empty, and no other client uses them.
pub struct QueueSubject {
    /// Included in every message. Unique to this call.
    pub prefix: String,
    /// The node whose own queue is `Source::Node` of `queue`.
    pub node: NodeId,
    /// The queue.
    pub queue: Arc<dyn Queue>,
    /// The same broker through another node's adapter.
    pub other: Arc<dyn Queue>,
    /// Removes and returns the dead letters.
    pub take_dead_letters: TakeDeadLetters,
}

impl std::fmt::Debug for QueueSubject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueSubject").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Asserts the contract of [`Queue`].
pub async fn queue(subject: QueueSubject) {
    let subject = &subject;
    Box::pin(messages_come_whole_and_in_order(subject)).await;
    Box::pin(a_route_leads_to_its_queue(subject)).await;
    Box::pin(one_message_is_out_at_a_time(subject)).await;
    Box::pin(what_is_requeued_comes_again(subject)).await;
    Box::pin(a_dead_letter_is_kept_as_it_came(subject)).await;
    Box::pin(too_many_returns_end_in_a_dead_letter(subject)).await;
    Box::pin(a_wait_that_is_dropped_loses_nothing(subject)).await;
    Box::pin(close_gives_back_what_was_not_taken(subject)).await;
    Box::pin(a_dropped_subscription_gives_everything_back(subject)).await;
    Box::pin(two_subscriptions_share(subject)).await;
}

impl QueueSubject {
    fn message(&self, body: &str) -> Message {
        Message {
            kind: Some("pipeline/stop".into()),
            id: Some(format!("{}-{body}", self.prefix)),
            headers: [("traceparent".to_owned(), format!("00-{body}"))].into(),
            body: format!("{} {body}", self.prefix).into_bytes(),
        }
    }

    async fn publish(&self, route: Route, body: &str) -> Message {
        let message = self.message(body);
        soon("a confirm", self.queue.publish(route, message.clone())).await.expect("it is taken");
        message
    }

    async fn open(&self, source: Source) -> Box<dyn Consumer> {
        soon("a subscription", self.queue.open(source)).await.expect("a subscription opens")
    }
}

async fn next(consumer: &mut Box<dyn Consumer>) -> Delivery {
    soon("a delivery", consumer.next()).await.expect("a message comes")
}

async fn settle(delivery: Delivery, disposition: Disposition) {
    soon("an answer", delivery.settle(disposition)).await.expect("a message can be settled");
}

/// Asserts that the next message is `expected`, and acknowledges it.
async fn take(consumer: &mut Box<dyn Consumer>, expected: &Message) {
    let delivery = next(consumer).await;
    same(&delivery.message, expected);
    settle(delivery, Disposition::Ack).await;
}

/// Asserts that two messages are equal. The broker may add headers of its own.
fn same(found: &Message, expected: &Message) {
    assert_eq!(found.kind, expected.kind);
    assert_eq!(found.id, expected.id);
    assert!(found.body == expected.body, "a body comes as it was sent");
    for (name, value) in &expected.headers {
        assert_eq!(found.headers.get(name), Some(value), "header {name}");
    }
}

async fn messages_come_whole_and_in_order(subject: &QueueSubject) {
    let mut sent = Vec::new();
    for count in 0..20 {
        sent.push(subject.publish(Route::Jobs, &format!("order-{count}")).await);
    }
    let mut jobs = subject.open(Source::Jobs).await;
    for expected in &sent {
        let delivery = next(&mut jobs).await;
        same(&delivery.message, expected);
        assert!(!delivery.redelivered, "it comes for the first time");
        settle(delivery, Disposition::Ack).await;
    }
    never("another delivery", jobs.next()).await;

    let odd = Message {
        kind: None,
        id: None,
        headers: [].into(),
        body: (0..400 * 1024_u32).map(|at| at.to_le_bytes()[0]).collect(),
    };
    subject.queue.publish(Route::Jobs, odd.clone()).await.expect("bytes are taken");
    take(&mut jobs, &odd).await;
    let empty = Message::default();
    subject.other.publish(Route::Jobs, empty.clone()).await.expect("nothing is taken too");
    take(&mut jobs, &empty).await;
    jobs.close().await;
}

async fn a_route_leads_to_its_queue(subject: &QueueSubject) {
    let mut own = subject.open(Source::Node).await;
    let mut jobs = subject.open(Source::Jobs).await;
    let mut control = subject.open(Source::Control).await;
    let to_control = subject.publish(Route::Control, "control").await;
    let to_jobs = subject.publish(Route::Jobs, "jobs").await;
    let to_node = subject.message("node");
    soon("a confirm", subject.other.publish(Route::Node(subject.node.clone()), to_node.clone()))
        .await
        .expect("another node reaches this one's queue");
    take(&mut own, &to_node).await;
    take(&mut jobs, &to_jobs).await;
    take(&mut control, &to_control).await;
    never("a message on the wrong queue", async {
        tokio::select! { _ = own.next() => {} _ = jobs.next() => {} _ = control.next() => {} }
    })
    .await;

    let nobody = NodeId::from_stored(&format!("bob/runner-{}", subject.prefix));
    let refusal = subject.queue.publish(Route::Node(nobody.clone()), subject.message("lost")).await;
    match refusal {
        Err(QueueError::Unroutable { route }) => assert_eq!(route, names::node_queue(&nobody)),
        other => panic!("it must be unroutable: {other:?}"),
    }

    let letter = subject.publish(Route::DeadLetter, "letter").await;
    let letters = dead_letters(subject, 1).await;
    same(&letters[0], &letter);
    jobs.close().await;
    control.close().await;
    own.close().await;
}

async fn dead_letters(subject: &QueueSubject, count: usize) -> Vec<Message> {
    let mut letters = Vec::new();
    soon("a dead letter", async {
        while letters.len() < count {
            letters.extend((subject.take_dead_letters)().await);
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(letters.len(), count, "{letters:?}");
    letters
}

async fn one_message_is_out_at_a_time(subject: &QueueSubject) {
    let first = subject.publish(Route::Jobs, "one").await;
    let second = subject.publish(Route::Jobs, "two").await;
    let mut jobs = subject.open(Source::Jobs).await;
    let out = next(&mut jobs).await;
    same(&out.message, &first);
    never("a second delivery", jobs.next()).await;
    let (settled, delivery) =
        soon("the second", async { tokio::join!(out.settle(Disposition::Ack), jobs.next()) }).await;
    settled.expect("the first is settled");
    let delivery = delivery.expect("then the second comes");
    same(&delivery.message, &second);
    settle(delivery, Disposition::Ack).await;
    jobs.close().await;
}

async fn what_is_requeued_comes_again(subject: &QueueSubject) {
    let sent = subject.publish(Route::Control, "again").await;
    let mut control = subject.open(Source::Control).await;
    let delivery = next(&mut control).await;
    assert!(!delivery.redelivered);
    settle(delivery, Disposition::Requeue).await;
    for _ in 0..2 {
        let delivery = next(&mut control).await;
        same(&delivery.message, &sent);
        assert!(delivery.redelivered, "what comes again says so");
        settle(delivery, Disposition::Requeue).await;
    }
    take(&mut control, &sent).await;
    never("what was acked", control.next()).await;
    control.close().await;
}

async fn a_dead_letter_is_kept_as_it_came(subject: &QueueSubject) {
    let mut sent = Vec::new();
    for (route, source, body) in [
        (Route::Jobs, Source::Jobs, "dead-1"),
        (Route::Control, Source::Control, "dead-2"),
        (Route::Node(subject.node.clone()), Source::Node, "dead-3"),
    ] {
        let mut consumer = subject.open(source).await;
        sent.push(subject.publish(route, body).await);
        let delivery = next(&mut consumer).await;
        settle(delivery, Disposition::DeadLetter).await;
        never("what is dead", consumer.next()).await;
        consumer.close().await;
    }
    let letters = dead_letters(subject, sent.len()).await;
    for expected in &sent {
        let letter = letters.iter().find(|letter| letter.id == expected.id).expect("it is kept");
        same(letter, expected);
    }
}

async fn too_many_returns_end_in_a_dead_letter(subject: &QueueSubject) {
    let sent = subject.publish(Route::Jobs, "poison").await;
    let mut jobs = subject.open(Source::Jobs).await;
    let mut returns = 0;
    while returns < names::DELIVERY_LIMIT {
        let delivery = next(&mut jobs).await;
        same(&delivery.message, &sent);
        settle(delivery, Disposition::Requeue).await;
        returns += 1;
    }
    // Brokers count either returns or deliveries, so their limits differ by one.
    if let Ok(delivery) = tokio::time::timeout(super::QUIET, jobs.next()).await {
        settle(delivery.expect("a message comes"), Disposition::Requeue).await;
    }
    never("a message that came back too often", jobs.next()).await;
    let letters = dead_letters(subject, 1).await;
    same(&letters[0], &sent);
    let reason = letters[0].headers.get("x-first-death-reason").map(String::as_str);
    assert_eq!(reason, Some("delivery_limit"), "the reason for its death must be given");
    jobs.close().await;
}

async fn a_wait_that_is_dropped_loses_nothing(subject: &QueueSubject) {
    let mut jobs = subject.open(Source::Jobs).await;
    assert!(jobs.next().now_or_never().is_none(), "nothing is there");
    for count in 0..10 {
        let sent = subject.publish(Route::Jobs, &format!("wait-{count}")).await;
        // Poll once and drop the future. The message may already be here or still in flight.
        match jobs.next().now_or_never() {
            Some(taken) => settle(taken.expect("a message comes"), Disposition::Ack).await,
            None => take(&mut jobs, &sent).await,
        }
    }
    never("one of them again", jobs.next()).await;
    jobs.close().await;
}

async fn close_gives_back_what_was_not_taken(subject: &QueueSubject) {
    let first = subject.publish(Route::Jobs, "out").await;
    let second = subject.publish(Route::Jobs, "not-taken").await;
    let mut jobs = subject.open(Source::Jobs).await;
    let out = next(&mut jobs).await;
    same(&out.message, &first);
    soon("the end of a subscription", jobs.close()).await;

    let mut jobs = subject.open(Source::Jobs).await;
    let delivery = next(&mut jobs).await;
    same(&delivery.message, &second);
    settle(out, Disposition::Ack).await;
    settle(delivery, Disposition::Ack).await;
    never("what was settled after the close", jobs.next()).await;
    jobs.close().await;

    let jobs = subject.open(Source::Jobs).await;
    let third = subject.publish(Route::Jobs, "maybe-prefetched").await;
    soon("the end of a subscription", jobs.close()).await;
    let mut jobs = subject.open(Source::Jobs).await;
    take(&mut jobs, &third).await;
    jobs.close().await;
}

async fn a_dropped_subscription_gives_everything_back(subject: &QueueSubject) {
    let sent = subject.publish(Route::Control, "dropped").await;
    let mut control = subject.open(Source::Control).await;
    let out = next(&mut control).await;
    drop(control);
    let mut control = subject.open(Source::Control).await;
    let delivery = next(&mut control).await;
    same(&delivery.message, &sent);
    assert!(delivery.redelivered, "it came before");
    match soon("an answer", out.settle(Disposition::Ack)).await {
        Err(QueueError::DeliveryLost) => {}
        other => panic!("it must belong to another consumer: {other:?}"),
    }
    settle(delivery, Disposition::Ack).await;
    control.close().await;
}

async fn two_subscriptions_share(subject: &QueueSubject) {
    let mut here = subject.open(Source::Jobs).await;
    let mut there = soon("a subscription", subject.other.open(Source::Jobs)).await.unwrap();
    subject.publish(Route::Jobs, "share-1").await;
    subject.publish(Route::Jobs, "share-2").await;
    let (mine, theirs) =
        soon("one for each", async { tokio::join!(here.next(), there.next()) }).await;
    let (mine, theirs) = (mine.unwrap(), theirs.unwrap());
    assert_ne!(mine.message.id, theirs.message.id, "a message goes to one of them");
    settle(mine, Disposition::Ack).await;
    settle(theirs, Disposition::Ack).await;
    here.close().await;
    there.close().await;
}
