//! Workers during outages of their broker or store. Each test has its own services.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::names;
use protocol::run::{Cause, Status};
use runner::cluster::{AmqpEvents, AmqpOptions, AmqpQueue, Etcd};
use runner::ports::{Executor, NoSecrets, Ports, Route};
use runner::worker::RenderInline;
use runner::{host, transfer};
use test_support::scripted::Scripted;
use test_support::services::{OwnServices, Vhost};
use test_support::worker_suite::{MakePorts, Rig, new_node, options, until};

async fn rig(own: &OwnServices) -> (Rig, Arc<Vhost>) {
    let services = own.services().clone();
    let vhost = Arc::new(services.vhost().await);
    let executor: Arc<dyn Executor> = Arc::new(Scripted::default());
    let here = Arc::clone(&vhost);
    let make: MakePorts = Arc::new(move |node| {
        let amqp = AmqpOptions { node: node.clone(), ..services.amqp(&here) };
        let (etcd, executor) = (services.etcd(), Arc::clone(&executor));
        let spill_dir = here.spill.path().to_owned();
        Box::pin(async move {
            let http = transfer::Options {
                policy: runner::egress::Policy::unrestricted(),
                spill_dir,
                spill_bytes: 1 << 20,
            };
            Ports {
                queue: Arc::new(AmqpQueue::connect(&amqp).await.unwrap()),
                store: Arc::new(Etcd::connect(&etcd).await.unwrap()),
                events: Arc::new(AmqpEvents::connect(&amqp).await.unwrap()),
                executor,
                transfer: Arc::new(transfer::Http::new(http).unwrap()),
                host: Arc::new(host::Linux::default()),
                renderer: Arc::new(RenderInline),
                secrets: Arc::new(NoSecrets),
                outputs: None,
            }
        })
    });
    (Rig::new(make).await, vhost)
}

fn waits_for(path: &Path) -> String {
    format!("wait-for {}", path.display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_continues_during_a_broker_restart_and_loses_no_event() {
    let Some(own) = OwnServices::start("rabbitmq,etcd", &[]) else { return };
    let (mut rig, _vhost) = rig(&own).await;
    rig.worker(1).await;
    let dir = tempfile::tempdir().unwrap();
    let run = rig.run("goes-on");
    let steps = [
        "print before".to_owned(),
        waits_for(&dir.path().join("down")),
        "write 80 20000".to_owned(),
        "print after".to_owned(),
    ];
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    rig.start(&run, &rig.pipeline("goes-on", &steps)).await;
    rig.record(&run, |record| record.steps.len() == 2).await;
    own.control("stop", "rabbitmq").await;
    std::fs::write(dir.path().join("down"), "").unwrap();
    rig.record(&run, |record| record.steps.len() == 4).await;
    own.control("start", "rabbitmq").await;
    assert_eq!(rig.settled(&run).await.status, Status::Passed);
    let events = rig.events_of(&run).await;
    // On a slow host the worker can lose its lease, and the run continues in a new epoch.
    let mut owners: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for event in &events {
        if let (Some(epoch), Some(seq)) = (event.epoch, event.seq) {
            owners.entry(epoch).or_default().push(seq);
        }
    }
    for (epoch, mut seqs) in owners {
        seqs.dedup();
        let expected: Vec<u64> = (0..seqs.len() as u64).collect();
        assert_eq!(seqs, expected, "no event of {epoch:?} is missing or out of order");
    }
    let lines: usize = events
        .iter()
        .filter(|event| event.step.as_ref().is_some_and(|step| step.as_str() == "2"))
        .filter_map(protocol::event::Event::log_bytes)
        .map(|bytes| bytes.split(|byte| *byte == b'\n').count())
        .sum();
    assert!(lines >= 20_000, "every line is there: {lines}");
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_waits_while_etcd_is_unavailable_and_is_not_requeued_repeatedly() {
    let Some(own) = OwnServices::start("rabbitmq,etcd", &[]) else { return };
    let (mut rig, vhost) = rig(&own).await;
    let node = new_node();
    let ports = {
        let amqp = AmqpOptions { node: node.clone(), ..own.services().amqp(&vhost) };
        let mut ports = rig.ports.clone();
        ports.queue = Arc::new(AmqpQueue::connect(&amqp).await.unwrap());
        ports.store = Arc::new(Etcd::connect(&own.services().etcd()).await.unwrap());
        ports
    };
    let mut short = options(node, 2);
    short.lease_ttl = Duration::from_secs(3);
    rig.worker_with(short, ports).await;
    let run = rig.run("interrupted");
    rig.start(&run, &rig.pipeline("interrupted", &["hang"])).await;
    rig.event(&run, "StepStarted").await;
    own.control("pause", "etcd").await;
    // No worker receives it during the outage, or one requeues it once.
    rig.start(&rig.run("waits"), &rig.pipeline("waits", &["exit 0"])).await;
    own.control("unpause", "etcd").await;
    assert_eq!(rig.settled(&rig.run("waits")).await.status, Status::Passed);
    // The run was resumed after its lease was lost, or it never noticed.
    rig.stop(&run).await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.losses), (Status::Stopped, 0), "{record:?}");
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_outlives_the_brokers_acknowledgement_timeout() {
    let options = ["--rabbitmq-set", "consumer_timeout=60000"];
    let Some(own) = OwnServices::start("rabbitmq,etcd", &options) else { return };
    let (mut rig, vhost) = rig(&own).await;
    let first = rig.worker(1).await;
    let dir = tempfile::tempdir().unwrap();
    let run = rig.run("long");
    let wait = waits_for(&dir.path().join("closed"));
    rig.start(&run, &rig.pipeline("long", &[&wait])).await;
    rig.event(&run, "StepStarted").await;

    // The broker closes a consumer that never acknowledges. That shows that the timeout has also
    // passed for the run's command.
    let amqp = own.services().amqp(&vhost);
    let uri = amqp.url.replacen("://", &format!("://{}:{}@", amqp.user, amqp.password), 1);
    let connection =
        lapin::Connection::connect(&uri, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let arguments = {
        let mut arguments = lapin::types::FieldTable::default();
        arguments
            .insert("x-queue-type".into(), lapin::types::AMQPValue::LongString("quorum".into()));
        arguments
    };
    let durable = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("silent".into(), durable, arguments).await.unwrap();
    let mut consumer = channel
        .basic_consume(
            "silent".into(),
            "silent".into(),
            lapin::options::BasicConsumeOptions::default(),
            lapin::types::FieldTable::default(),
        )
        .await
        .unwrap();
    channel
        .basic_publish(
            "".into(),
            "silent".into(),
            lapin::options::BasicPublishOptions::default(),
            b"never acknowledged",
            lapin::BasicProperties::default(),
        )
        .await
        .unwrap();
    use futures::StreamExt as _;
    let _kept = consumer.next().await.unwrap().unwrap();
    let closed = async { while let Some(Ok(_)) = consumer.next().await {} };
    tokio::time::timeout(Duration::from_secs(300), closed).await.expect("the broker closes it");

    std::fs::write(dir.path().join("closed"), "").unwrap();
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.attempt), (Status::Passed, 1));
    assert_eq!(record.node.as_ref(), Some(&first));
    let events = rig.events_of(&run).await;
    let node_changes = events.iter().filter(|event| event.node.as_ref() != Some(&first)).count();
    assert_eq!(node_changes, 0, "the run ends on its first worker");
    let jobs = until("the queue is empty", || async {
        let path = format!("queues/{}/{}", vhost.name, names::JOBS_QUEUE);
        let queue = vhost.management.get(&path).await;
        (queue["messages"] == 0).then_some(())
    });
    jobs.await;
    rig.end().await;
}

/// Raises or clears the alarm that etcd raises when its database is full.
async fn alarm(own: &OwnServices, action: etcd_client::AlarmAction) {
    let urls = own.services().etcd().urls;
    let mut client = etcd_client::Client::connect(urls, None).await.unwrap();
    client.alarm(action, etcd_client::AlarmType::Nospace, None).await.unwrap();
}

/// Reads and lease renewals work, and no write does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_wait_for_a_full_store_and_lose_no_command() {
    let Some(own) = OwnServices::start("rabbitmq,etcd", &[]) else { return };
    let (mut rig, vhost) = rig(&own).await;
    let node = rig.worker(3).await;
    let dir = tempfile::tempdir().unwrap();
    let sign = dir.path().join("disarmed");
    let [continues, stopped] = ["continues", "stopped"].map(|name| rig.run(name));
    rig.start(&continues, &rig.pipeline("continues", &[&waits_for(&sign)])).await;
    rig.start(&stopped, &rig.pipeline("stopped", &["hang"])).await;
    for run in [&continues, &stopped] {
        rig.event(run, "StepStarted").await;
    }
    let paused = rig.pipeline("paused", &["exit 0"]);
    rig.store_pipeline(&paused).await;

    alarm(&own, etcd_client::AlarmAction::Activate).await;
    let late = rig.run("late");
    rig.start(&late, &rig.pipeline("late", &["exit 0"])).await;
    rig.stop(&stopped).await;
    let pause = serde_json::json!({ "group": rig.tag, "name": "paused" });
    rig.publish(Route::Control, protocol::command::PAUSE, &pause).await;
    // One command is being retried, and the other waits behind it.
    let queue =
        async |name: &str| vhost.management.get(&format!("queues/{}/{name}", vhost.name)).await;
    until("the command is kept", || async {
        let control = queue(names::CONTROL_QUEUE).await;
        (control["messages"] == 2 && control["messages_unacknowledged"] == 1).then_some(())
    })
    .await;
    // The lease is renewed, so the node's entry stays, but it cannot be rewritten.
    let lease_is_kept = async || {
        let key = names::node_key(&node);
        rig.ports.store.get(&key).await.unwrap().map(|entry| entry.mod_revision)
    };
    let before = lease_is_kept().await;
    until("the broker has stored it for a while", || async {
        let control = queue(names::CONTROL_QUEUE).await;
        let stats = &control["message_stats"]["deliver_get"];
        (stats.as_u64() >= Some(1)).then_some(())
    })
    .await;
    assert_eq!(lease_is_kept().await, before, "the entry is kept, but not rewritten");
    assert!(before.is_some());

    alarm(&own, etcd_client::AlarmAction::Deactivate).await;
    let record = rig.settled(&stopped).await;
    assert_eq!((record.status, record.cause), (Status::Stopped, Some(Cause::User)));
    assert_eq!(rig.settled(&late).await.status, Status::Passed);
    std::fs::write(&sign, "").unwrap();
    let record = rig.settled(&continues).await;
    assert_eq!((record.status, record.attempt), (Status::Passed, 1), "the run was not interrupted");
    let refused = rig.run("refused");
    rig.start_stored(&refused, "paused").await;
    assert_eq!(rig.settled(&refused).await.cause, Some(Cause::Paused));
    // Nothing was requeued, so nothing was dead-lettered.
    let dead = queue(names::DEAD_LETTER_QUEUE).await;
    assert_eq!(dead["messages"].as_u64().unwrap_or(0), 0, "{dead}");
    until("the broker's figures are there", || async {
        let control = queue(names::CONTROL_QUEUE).await;
        (control["message_stats"]["ack"].as_u64() >= Some(2)).then_some(())
    })
    .await;
    let control = queue(names::CONTROL_QUEUE).await;
    assert_eq!(control["message_stats"]["redeliver"].as_u64().unwrap_or(0), 0, "{control}");
    rig.end().await;
}
