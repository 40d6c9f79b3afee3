//! The queue port on a real RabbitMQ.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use lapin::options::{
    BasicGetOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use protocol::command::Disposition;
use protocol::names;
use runner::cluster::AmqpQueue;
use runner::ports::{Consumer, Delivery, Message, Queue as _, QueueError, Route, Source};
use test_support::conformance::{self, QueueSubject};
use test_support::raw;
use test_support::services::{BROKER, OwnServices, Services, Vhost};

const PATIENCE: Duration = Duration::from_secs(90);

async fn broker() -> Option<(Services, Vhost)> {
    let services = Services::from_env(BROKER)?;
    let vhost = services.vhost().await;
    Some((services, vhost))
}

fn message(body: &str) -> Message {
    Message { body: body.as_bytes().to_vec(), ..Message::default() }
}

async fn next(consumer: &mut Box<dyn Consumer>) -> Delivery {
    let waited = tokio::time::timeout(PATIENCE, consumer.next()).await;
    waited.expect("a message in time").expect("a message")
}

/// Publishes, and retries while the service is unavailable.
async fn publish(queue: &AmqpQueue, route: Route, body: &str) {
    let trying = async {
        while let Err(error) = queue.publish(route.clone(), message(body)).await {
            assert!(error.retryable(), "{error}");
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, trying).await.expect("published in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_passes_the_conformance_suite() {
    let Some((services, vhost)) = broker().await else { return };
    let options = services.amqp(&vhost);
    let queue = AmqpQueue::connect(&options).await.unwrap();
    let other = AmqpQueue::connect(&services.amqp(&vhost)).await.unwrap();
    let letters = raw::channel(&options).await;
    conformance::queue(QueueSubject {
        prefix: uuid::Uuid::new_v4().to_string(),
        node: options.node.clone(),
        queue: Arc::new(queue),
        other: Arc::new(other),
        take_dead_letters: Box::new(move || raw::take_all(letters.clone()).boxed()),
    })
    .await;
}

#[tokio::test]
async fn the_topology_matches_the_wire_contract() {
    let Some((services, vhost)) = broker().await else { return };
    let options = services.amqp(&vhost);
    let queue = AmqpQueue::connect(&options).await.unwrap();
    let own = queue.open(Source::Node).await.unwrap();
    let found = vhost.management.get(&format!("queues/{}", vhost.name)).await;
    let of = |name: &str| {
        let queues = found.as_array().unwrap().iter();
        let mut named = queues.filter(|queue| queue["name"] == name);
        named.next().unwrap_or_else(|| panic!("no queue {name} in {found}")).clone()
    };
    for name in [names::JOBS_QUEUE, names::CONTROL_QUEUE] {
        let queue = of(name);
        assert_eq!(queue["durable"], true);
        let expected = serde_json::json!({
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": "bob.dlx",
            "x-dead-letter-routing-key": "bob.dlq",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-delivery-limit": 20,
        });
        assert_eq!(queue["arguments"], expected, "{name}");
    }
    assert_eq!(of(names::DEAD_LETTER_QUEUE)["arguments"]["x-queue-type"], "quorum");
    let node = of(&names::node_queue(&options.node));
    assert_eq!(node["exclusive"], true);
    assert_eq!(node["arguments"]["x-dead-letter-exchange"], "bob.dlx");

    let bindings = vhost.management.get(&format!("bindings/{}", vhost.name)).await;
    for (exchange, queue) in [
        ("bob.direct", names::JOBS_QUEUE.to_owned()),
        ("bob.direct", names::CONTROL_QUEUE.to_owned()),
        ("bob.dlx", names::DEAD_LETTER_QUEUE.to_owned()),
        ("bob.direct", names::node_queue(&options.node)),
    ] {
        let bound = bindings.as_array().unwrap().iter().any(|binding| {
            binding["source"] == exchange
                && binding["destination"] == queue.as_str()
                && binding["routing_key"] == queue.as_str()
        });
        assert!(bound, "{queue} to {exchange}: {bindings}");
    }
    // The management API lists a new connection only after some seconds.
    let path = format!("vhosts/{}/connections", vhost.name);
    let named = async {
        while vhost.management.get(&path).await[0]["client_properties"]["connection_name"]
            != options.node.as_str()
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, named).await.expect("the connection is named after the node");
    own.close().await;
}

#[tokio::test]
async fn a_message_is_persistent_and_names_its_type() {
    let Some((services, vhost)) = broker().await else { return };
    let options = services.amqp(&vhost);
    let queue = AmqpQueue::connect(&options).await.unwrap();
    let sent = Message {
        kind: Some("pipeline/start".to_owned()),
        id: Some("r-1".to_owned()),
        headers: [("traceparent".to_owned(), "00-ab".to_owned())].into(),
        body: b"{}".to_vec(),
    };
    queue.publish(Route::Jobs, sent).await.unwrap();
    let channel = raw::channel(&options).await;
    let get = channel.basic_get(names::JOBS_QUEUE.into(), BasicGetOptions { no_ack: true }).await;
    let got = get.unwrap().expect("a message in the queue").delivery;
    let text = |value: &Option<lapin::types::ShortString>| {
        value.as_ref().map(|value| value.as_str().to_owned())
    };
    assert_eq!(text(got.properties.kind()).as_deref(), Some("pipeline/start"));
    assert_eq!(text(got.properties.message_id()).as_deref(), Some("r-1"));
    assert_eq!(text(got.properties.content_type()).as_deref(), Some("application/json"));
    assert_eq!(*got.properties.delivery_mode(), Some(2));
}

#[tokio::test]
async fn existing_queues_with_other_arguments_are_used_with_one_warning() {
    let Some((services, vhost)) = broker().await else { return };
    let options = services.amqp(&vhost);
    let channel = raw::channel(&options).await;
    let mut arguments = FieldTable::default();
    for (name, value) in [
        ("x-queue-type", "quorum"),
        ("x-dead-letter-exchange", "bob.dlx"),
        ("x-dead-letter-routing-key", "bob.dlq"),
        ("x-dead-letter-strategy", "at-least-once"),
        ("x-overflow", "reject-publish"),
    ] {
        arguments.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(5));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(names::JOBS_QUEUE.into(), durable, arguments).await.unwrap();

    let warnings = raw::Warnings::default();
    let watching = warnings.watch();
    let queue = AmqpQueue::connect(&options).await.unwrap();
    let mut jobs = queue.open(Source::Jobs).await.unwrap();
    publish(&queue, Route::Jobs, "first").await;
    next(&mut jobs).await.settle(Disposition::Ack).await.unwrap();
    // A new connection declares everything again, but does not repeat the warnings.
    while !vhost.management.close_connections(&vhost).await {
        tokio::task::yield_now().await;
    }
    publish(&queue, Route::Jobs, "second").await;
    assert_eq!(next(&mut jobs).await.message.body, b"second");
    drop(watching);
    let said = warnings.containing("is used as it stands");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("queue bob.jobs"), "{said:?}");
    assert!(said[0].contains("'x-delivery-limit'"), "{said:?}");
    assert!(said[0].contains("received '20' but current is '5'"), "{said:?}");
}

#[tokio::test]
async fn subscriptions_continue_after_their_connection_closes() {
    let Some((services, vhost)) = broker().await else { return };
    let options = services.amqp(&vhost);
    let queue = AmqpQueue::connect(&options).await.unwrap();
    let mut jobs = queue.open(Source::Jobs).await.unwrap();
    let mut own = queue.open(Source::Node).await.unwrap();
    publish(&queue, Route::Jobs, "out").await;
    let out = next(&mut jobs).await;
    while !vhost.management.close_connections(&vhost).await {
        tokio::task::yield_now().await;
    }
    let again = next(&mut jobs).await;
    assert_eq!(again.message.body, b"out");
    assert!(again.redelivered);
    match out.settle(Disposition::Ack).await {
        Err(QueueError::DeliveryLost) => {}
        other => panic!("its channel must be closed: {other:?}"),
    }
    again.settle(Disposition::Ack).await.unwrap();
    // The node's queue ended with its connection, and was declared again with its subscription.
    let ours = Route::Node(options.node.clone());
    let (delivery, ()) = tokio::join!(next(&mut own), until_routed(&queue, ours));
    assert_eq!(delivery.message.body, b"to a node");
    delivery.settle(Disposition::Ack).await.unwrap();
}

/// Publishes to a queue that is about to be declared.
async fn until_routed(queue: &AmqpQueue, route: Route) {
    let trying = async {
        loop {
            match queue.publish(route.clone(), message("to a node")).await {
                Ok(()) => return,
                Err(QueueError::Unroutable { .. }) => tokio::task::yield_now().await,
                Err(error) => assert!(error.retryable(), "{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, trying).await.expect("routed in time");
}

#[tokio::test]
async fn a_deleted_queue_is_declared_again_and_consumed() {
    let Some((services, vhost)) = broker().await else { return };
    let options = services.amqp(&vhost);
    let queue = AmqpQueue::connect(&options).await.unwrap();
    let mut jobs = queue.open(Source::Jobs).await.unwrap();
    let channel = raw::channel(&options).await;
    let gone = QueueDeleteOptions::default();
    channel.queue_delete(names::JOBS_QUEUE.into(), gone).await.unwrap();
    let (delivery, ()) = tokio::join!(next(&mut jobs), until_routed(&queue, Route::Jobs));
    delivery.settle(Disposition::Ack).await.unwrap();

    channel.exchange_delete("bob.direct".into(), ExchangeDeleteOptions::default()).await.unwrap();
    queue.publish(Route::Jobs, message("its exchange was missing")).await.unwrap();
    assert_eq!(next(&mut jobs).await.message.body, b"its exchange was missing");
}

#[tokio::test]
async fn a_dead_letter_of_a_worker_queue_is_retried_until_the_broker_accepts_it() {
    let Some((services, vhost)) = broker().await else { return };
    let options = services.amqp(&vhost);
    let queue = AmqpQueue::connect(&options).await.unwrap();
    let mut own = queue.open(Source::Node).await.unwrap();
    let route = Route::Node(options.node.clone());
    publish(&queue, route.clone(), "malformed").await;
    publish(&queue, route, "behind it").await;
    let malformed = next(&mut own).await;
    let channel = raw::channel(&options).await;
    let gone = QueueDeleteOptions::default();
    channel.queue_delete(names::DEAD_LETTER_QUEUE.into(), gone).await.unwrap();
    // The worker declares the queue again after some seconds.
    let settled = tokio::time::timeout(PATIENCE, malformed.settle(Disposition::DeadLetter)).await;
    settled.expect("settled in time").unwrap();
    let behind = next(&mut own).await;
    assert_eq!(behind.message.body, b"behind it");
    behind.settle(Disposition::Ack).await.unwrap();
    let letters = raw::take_all(channel).await;
    let bodies: Vec<_> = letters.iter().map(|letter| letter.body.as_slice()).collect();
    assert_eq!(bodies, [b"malformed"]);
}

#[tokio::test]
async fn a_publish_to_a_full_queue_is_rejected_with_the_reason() {
    let Some((services, vhost)) = broker().await else { return };
    let options = services.amqp(&vhost);
    let queue = AmqpQueue::connect(&options).await.unwrap();
    let limit = r#"{"pattern":"^bob.jobs$","definition":{"max-length":1},"apply-to":"queues"}"#;
    let path = format!("policies/{}/small", vhost.name);
    vhost.management.send(reqwest::Method::PUT, &path, Some(limit)).await;
    let filling = async {
        loop {
            if let Err(error) = queue.publish(Route::Jobs, message("one more")).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, filling).await.expect("full in time");
    assert!(matches!(&error, QueueError::NotTaken { route } if route == "bob.jobs"), "{error}");
    assert!(error.retryable());
}

#[tokio::test]
async fn a_wrong_password_or_missing_virtual_host_is_reported_at_once() {
    let Some((services, vhost)) = broker().await else { return };
    let mut options = services.amqp(&vhost);
    options.retry_attempts = 100;
    options.retry_delay = PATIENCE;
    options.password = "wr0ng-secret".to_owned();
    let denied = AmqpQueue::connect(&options).await.unwrap_err();
    assert!(matches!(denied, QueueError::Denied { .. }), "{denied}");
    assert!(!format!("{denied} {denied:?} {options:?}").contains("wr0ng-secret"), "{denied}");

    let mut options = services.amqp(&vhost);
    options.url = options.url.replace(&vhost.name, "nowhere");
    let denied = AmqpQueue::connect(&options).await.unwrap_err();
    assert!(matches!(denied, QueueError::Denied { .. }), "{denied}");
    assert!(denied.to_string().contains("nowhere"), "{denied}");
}

#[tokio::test]
async fn an_unreachable_broker_is_retried_the_configured_number_of_times() {
    let Some((services, vhost)) = broker().await else { return };
    let mut options = services.amqp(&vhost);
    options.url = "amqp://bob:hidden@127.0.0.1:1/v".to_owned();
    options.retry_attempts = 3;
    options.retry_delay = Duration::from_millis(50);
    let began = tokio::time::Instant::now();
    let error = AmqpQueue::connect(&options).await.unwrap_err();
    assert!(error.retryable(), "{error}");
    assert!(error.to_string().contains("amqp://127.0.0.1:1/v"), "{error}");
    assert!(!error.to_string().contains("hidden"), "{error}");
    assert!(began.elapsed() >= options.retry_delay * 2);
}

/// A user with permission to read and write, but not to declare.
#[tokio::test]
async fn existing_queues_are_used_without_permission_to_declare_them() {
    let Some((services, vhost)) = broker().await else { return };
    let mut options = services.amqp(&vhost);
    let user = format!("u-{}", vhost.name);
    let account = r#"{"password":"secret","tags":""}"#;
    vhost.management.send(reqwest::Method::PUT, &format!("users/{user}"), Some(account)).await;
    let rights = r#"{"configure":"","write":".*","read":".*"}"#;
    let path = format!("permissions/{}/{user}", vhost.name);
    vhost.management.send(reqwest::Method::PUT, &path, Some(rights)).await;
    options.user.clone_from(&user);
    options.password = "secret".to_owned();

    let denied = AmqpQueue::connect(&options).await.unwrap_err();
    assert!(denied.to_string().contains("is not there and cannot be made"), "{denied}");
    drop(AmqpQueue::connect(&services.amqp(&vhost)).await.unwrap());
    let queue = AmqpQueue::connect(&options).await.unwrap();
    queue.publish(Route::Jobs, message("x")).await.unwrap();
    let mut jobs = queue.open(Source::Jobs).await.unwrap();
    next(&mut jobs).await.settle(Disposition::Ack).await.unwrap();
    vhost.management.send(reqwest::Method::DELETE, &format!("users/{user}"), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confirmed_messages_survive_a_broker_restart_and_the_connection_recovers() {
    let Some(own) = OwnServices::start("rabbitmq", &[]) else { return };
    let vhost = own.services().vhost().await;
    let options = own.services().amqp(&vhost);
    let queue = AmqpQueue::connect(&options).await.unwrap();
    let mut jobs = queue.open(Source::Jobs).await.unwrap();
    for body in ["0", "1", "2"] {
        queue.publish(Route::Jobs, message(body)).await.unwrap();
    }
    let out = next(&mut jobs).await;
    own.control("restart", "rabbitmq").await;
    assert!(matches!(out.settle(Disposition::Ack).await, Err(QueueError::DeliveryLost)));
    let mut bodies = Vec::new();
    for _ in 0..3 {
        let delivery = next(&mut jobs).await;
        bodies.push(delivery.message.body.clone());
        delivery.settle(Disposition::Ack).await.unwrap();
    }
    bodies.sort();
    assert_eq!(bodies, [b"0", b"1", b"2"]);
    publish(&queue, Route::Jobs, "after").await;
    assert_eq!(next(&mut jobs).await.message.body, b"after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_broker_is_unreachable_within_seconds_and_recovers() {
    let Some(own) = OwnServices::start("rabbitmq", &[]) else { return };
    let vhost = own.services().vhost().await;
    let options = own.services().amqp(&vhost);
    let queue = AmqpQueue::connect(&options).await.unwrap();
    let mut jobs = queue.open(Source::Jobs).await.unwrap();
    own.control("pause", "rabbitmq").await;
    let lost = queue.publish(Route::Jobs, message("nobody answers")).await.unwrap_err();
    assert!(lost.retryable(), "{lost}");
    let refused = AmqpQueue::connect(&options).await.unwrap_err();
    assert!(matches!(refused, QueueError::Unreachable { .. }), "{refused}");
    own.control("unpause", "rabbitmq").await;
    publish(&queue, Route::Jobs, "after").await;
    // A message published during the hang might have been accepted.
    loop {
        let delivery = next(&mut jobs).await;
        let body = delivery.message.body.clone();
        delivery.settle(Disposition::Ack).await.unwrap();
        if body == b"after" {
            break;
        }
    }
}

/// A broker without enough free disk space blocks all publishers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_waits_for_a_blocking_broker_and_then_reports_it() {
    let full = ["--rabbitmq-set", "disk_free_limit.absolute=100000GB"];
    let Some(own) = OwnServices::start("rabbitmq", &full) else { return };
    let vhost = own.services().vhost().await;
    let queue = AmqpQueue::connect(&own.services().amqp(&vhost)).await.unwrap();
    let mut jobs = queue.open(Source::Jobs).await.unwrap();
    let error = queue.publish(Route::Jobs, message("x")).await.unwrap_err();
    assert!(error.retryable(), "{error}");
    assert!(error.to_string().contains("low on memory or disk"), "{error}");
    assert!(jobs.next().now_or_never().is_none());
    // Takes longer than two heartbeats: a blocked connection is not dead.
    let again = queue.publish(Route::Jobs, message("x")).await.unwrap_err();
    assert!(again.to_string().contains("low on memory or disk"), "{again}");
}

/// The broker checks for late acknowledgements once a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsettled_delivery_is_requeued_by_the_broker_and_redelivered() {
    let late = ["--rabbitmq-set", "consumer_timeout=1000"];
    let Some(own) = OwnServices::start("rabbitmq", &late) else { return };
    let vhost = own.services().vhost().await;
    let queue = AmqpQueue::connect(&own.services().amqp(&vhost)).await.unwrap();
    let mut jobs = queue.open(Source::Jobs).await.unwrap();
    queue.publish(Route::Jobs, message("slow")).await.unwrap();
    let out = next(&mut jobs).await;
    let again = tokio::time::timeout(PATIENCE * 3, jobs.next()).await.expect("in time").unwrap();
    assert!(again.redelivered && again.message.body == b"slow");
    assert!(matches!(out.settle(Disposition::Ack).await, Err(QueueError::DeliveryLost)));
    again.settle(Disposition::Ack).await.unwrap();
}
