//! The events port on a real RabbitMQ stream.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use protocol::event::{Event, LogStream, Reason};
use protocol::id::{Epoch, RunId};
use protocol::time::Millis;
use runner::cluster::{AmqpEvents, AmqpOptions};
use runner::host;
use runner::ports::{EventStream, Events as _, EventsError, Position, Ticket};
use test_support::conformance::{self, EventsSubject};
use test_support::raw;
use test_support::services::{BROKER, OwnServices, Services, Vhost};

const PATIENCE: Duration = Duration::from_secs(120);

async fn broker() -> Option<(Services, Vhost)> {
    let services = Services::from_env(BROKER)?;
    let vhost = services.vhost().await;
    Some((services, vhost))
}

fn run(name: &str) -> RunId {
    format!("r-{name}").parse().unwrap()
}

fn event(run: &RunId, seq: u64, text: &str) -> Event {
    let reason =
        Reason::Log { stream: LogStream::Stdout, offset: 0, partial: false, encoding: None };
    let mut event = Event::new(Millis(1), reason, text.to_owned());
    event.run_id = Some(run.clone());
    event.epoch = Some(Epoch(7));
    event.seq = Some(seq);
    event
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

async fn emit(events: &AmqpEvents, run: &RunId, seqs: std::ops::Range<u64>, text: &str) -> Ticket {
    let mut last = Ticket::default();
    for seq in seqs {
        last = in_time("an emit", events.emit(event(run, seq, text))).await.unwrap();
    }
    last
}

async fn confirmed(events: &AmqpEvents, ticket: Ticket) {
    in_time("a confirm", events.confirmed(ticket)).await.unwrap();
}

/// Reads the numbers of a run's events up to `last`, without duplicates.
async fn read_to(stream: &mut EventStream, run: &RunId, last: u64) -> Vec<u64> {
    let mut seqs = Vec::new();
    while seqs.last() != Some(&last) {
        let published = in_time("an event", stream.next()).await.unwrap().unwrap();
        let event = published.event().unwrap();
        if event.run_id.as_ref() == Some(run) && seqs.last() < event.seq.as_ref() {
            seqs.extend(event.seq);
        }
    }
    seqs
}

/// Checks that every number appears once and in order.
fn assert_whole(seqs: &[u64], count: u64) {
    assert!(seqs.iter().copied().eq(0..count), "{} of {count}", seqs.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_event_stream_passes_the_conformance_suite() {
    let Some((services, vhost)) = broker().await else { return };
    let options = services.amqp(&vhost);
    conformance::events(EventsSubject {
        prefix: uuid::Uuid::new_v4().simple().to_string(),
        events: Arc::new(AmqpEvents::connect(&options).await.unwrap()),
        other: Arc::new(AmqpEvents::connect(&options).await.unwrap()),
        host: Arc::new(host::Linux::default()),
    })
    .await;
}

#[tokio::test]
async fn the_end_is_the_last_message_of_the_last_chunk_and_none_if_empty() {
    let Some((services, vhost)) = broker().await else { return };
    let events = AmqpEvents::connect(&services.amqp(&vhost)).await.unwrap();
    assert_eq!(events.end().await.unwrap(), None);
    let run = run("end");
    let mut from = 0;
    for to in [1, 2, 700, 5_000] {
        let last = emit(&events, &run, from..to, "x").await;
        confirmed(&events, last).await;
        assert_eq!(events.end().await.unwrap(), Some(to - 1));
        from = to;
    }
}

#[tokio::test]
async fn an_event_carries_its_run_for_the_brokers_filter() {
    let Some((services, vhost)) = broker().await else { return };
    let options = services.amqp(&vhost);
    let events = AmqpEvents::connect(&options).await.unwrap();
    confirmed(&events, emit(&events, &run("a"), 0..1, "x").await).await;
    let message = raw::first_of_stream(&options).await;
    let headers = message.properties.headers().clone().unwrap();
    let filter = headers.inner().get("x-stream-filter-value");
    assert_eq!(filter, Some(&AMQPValue::LongString("r-a".into())));
    let content = message.properties.content_type().clone().unwrap();
    assert_eq!(content.as_str(), "application/json");
}

// F20: age and size are enforced only when a segment is full.
#[tokio::test]
async fn a_new_stream_has_small_segments_and_the_configured_size() {
    for (max_bytes, expected) in [(None, None), (Some(1_u64 << 30), Some(1_u64 << 30))] {
        let Some((services, vhost)) = broker().await else { return };
        let mut options = services.amqp(&vhost);
        options.stream_max_bytes = max_bytes;
        let events = AmqpEvents::connect(&options).await.unwrap();
        confirmed(&events, emit(&events, &run("a"), 0..1, "x").await).await;
        let stream = format!("queues/{}/bob.event-stream", vhost.name);
        let arguments = vhost.management.get(&stream).await["arguments"].clone();
        assert_eq!(arguments["x-stream-max-segment-size-bytes"], 64 << 20, "{arguments}");
        assert_eq!(arguments["x-max-age"], "7D", "{arguments}");
        assert_eq!(arguments["x-max-length-bytes"].as_u64(), expected, "{arguments}");
    }
}

#[tokio::test]
async fn an_existing_stream_with_other_arguments_is_used_with_one_warning() {
    let Some((services, vhost)) = broker().await else { return };
    let options = services.amqp(&vhost);
    let channel = raw::channel(&options).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    arguments.insert("x-max-age".into(), AMQPValue::LongString("30D".into()));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("bob.event-stream".into(), durable, arguments).await.unwrap();

    let warnings = raw::Warnings::default();
    let watching = warnings.watch();
    let events = AmqpEvents::connect(&options).await.unwrap();
    confirmed(&events, emit(&events, &run("a"), 0..1, "x").await).await;
    drop(watching);
    let said = warnings.containing("is used as it stands");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("inequivalent arg"), "{said:?}");
}

#[tokio::test]
async fn amqp_replaces_the_stream_protocol_with_one_warning() {
    let Some((services, vhost)) = broker().await else { return };
    let mut options = services.amqp(&vhost);
    options.stream_url = Some("rabbitmq-stream://bob:hidden@127.0.0.1:5552".to_owned());
    let warnings = raw::Warnings::default();
    let watching = warnings.watch();
    let events = AmqpEvents::connect(&options).await.unwrap();
    confirmed(&events, emit(&events, &run("a"), 0..1, "x").await).await;
    drop(watching);
    assert_eq!(warnings.containing("AMQP is used").len(), 1);
    assert!(warnings.containing("hidden").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publisher_and_readers_continue_after_their_connections_close() {
    let Some((services, vhost)) = broker().await else { return };
    let options = services.amqp(&vhost);
    let events = AmqpEvents::connect(&options).await.unwrap();
    let run = run("closed");
    let mut stream = events.follow(Position::Next).await.unwrap();
    let emitting = async {
        let mut last = Ticket::default();
        for round in 0..4 {
            last = emit(&events, &run, round * 5_000..(round + 1) * 5_000, "line").await;
            in_time("a connection", async {
                while !vhost.management.close_connections(&vhost).await {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
        confirmed(&events, last).await;
    };
    let (seqs, ()) = tokio::join!(read_to(&mut stream, &run, 19_999), emitting);
    assert_whole(&seqs, 20_000);
}

#[tokio::test]
async fn a_deleted_stream_is_declared_again_and_receives_the_unconfirmed_events() {
    let Some((services, vhost)) = broker().await else { return };
    let options = services.amqp(&vhost);
    let events = AmqpEvents::connect(&options).await.unwrap();
    confirmed(&events, emit(&events, &run("a"), 0..10, "x").await).await;
    let channel = raw::channel(&options).await;
    let gone = QueueDeleteOptions::default();
    channel.queue_delete("bob.event-stream".into(), gone).await.unwrap();
    confirmed(&events, emit(&events, &run("b"), 0..10, "x").await).await;
    let mut stream = events.follow(Position::First).await.unwrap();
    assert_whole(&read_to(&mut stream, &run("b"), 9).await, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_lost_while_the_broker_is_unavailable_and_memory_is_full() {
    let Some(own) = OwnServices::start("rabbitmq", &[]) else { return };
    let vhost = own.services().vhost().await;
    let events = AmqpEvents::connect(&own.services().amqp(&vhost)).await.unwrap();
    let run = run("away");
    let text = "x".repeat(60_000);
    let mut stream = events.follow(Position::Next).await.unwrap();
    let last = emit(&events, &run, 0..20, &text).await;
    confirmed(&events, last).await;
    own.control("kill", "rabbitmq").await;
    // 60 MB, several times the memory limit.
    let last = emit(&events, &run, 20..1_000, &text).await;
    assert!(on_disk(&vhost) > 40_000_000, "events beyond the memory limit are on disk");
    own.control("start", "rabbitmq").await;
    confirmed(&events, last).await;
    assert_whole(&read_to(&mut stream, &run, 999).await, 1_000);
    nothing_is_on_disk(&vhost).await;
}

/// Waits until the spill directory has no confirmed events.
async fn nothing_is_on_disk(vhost: &Vhost) {
    in_time("confirmed events leave the disk", async {
        while on_disk(vhost) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// The size of the events in the test's spill directory, in bytes.
fn on_disk(vhost: &Vhost) -> u64 {
    let workers = std::fs::read_dir(vhost.spill.path()).unwrap().flatten();
    let files = workers.filter_map(|worker| std::fs::read_dir(worker.path()).ok());
    // A file removed meanwhile counts as gone.
    files.flatten().flatten().filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_a_worker_left_on_disk_are_published_by_the_next_worker() {
    let Some(own) = OwnServices::start("rabbitmq", &[]) else { return };
    let vhost = own.services().vhost().await;
    let options = own.services().amqp(&vhost);
    let events = AmqpEvents::connect(&options).await.unwrap();
    let (kept, lost) = (run("kept"), run("lost"));
    let text = "x".repeat(60_000);
    confirmed(&events, emit(&events, &kept, 0..1, &text).await).await;
    own.control("kill", "rabbitmq").await;
    // Several times the memory limit, and one event that needs no file.
    emit(&events, &kept, 1..400, &text).await;
    emit(&events, &lost, 0..1, &text).await;
    events.discard(&lost, Epoch(7));
    let left = events.close_and_save().await;
    assert_eq!((left.events, left.dropped.len()), (399, 0));
    assert!(events.emit(event(&kept, 400, "x")).await.is_err(), "it has ended");
    own.control("start", "rabbitmq").await;

    // After a SIGKILL the stream takes some time to have a leader again.
    let retry_delay = Duration::from_millis(200);
    let options = AmqpOptions { retry_attempts: 500, retry_delay, ..options };
    let foreign = AmqpOptions { spill_cluster: Some("another".to_owned()), ..options.clone() };
    let foreign = AmqpEvents::connect(&foreign).await.unwrap();
    let next = AmqpEvents::connect(&options).await.unwrap();
    let mut stream = next.follow(Position::First).await.unwrap();
    assert_whole(&read_to(&mut stream, &kept, 399).await, 400);
    nothing_is_on_disk(&vhost).await;
    assert_eq!(
        foreign.close_and_save().await,
        next.close_and_save().await,
        "neither leaves events on disk"
    );
    assert_eq!(std::fs::read_dir(vhost.spill.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_do_not_fit_on_disk_are_counted_when_the_worker_exits() {
    let Some(own) = OwnServices::start("rabbitmq", &[]) else { return };
    let vhost = own.services().vhost().await;
    let options = AmqpOptions { spill_bytes: 100_000, ..own.services().amqp(&vhost) };
    let events = AmqpEvents::connect(&options).await.unwrap();
    let run = run("full");
    let text = "x".repeat(60_000);
    own.control("kill", "rabbitmq").await;
    emit(&events, &run, 0..5, &text).await;
    let left = events.close_and_save().await;
    assert_eq!((left.events, left.dropped), (1, BTreeMap::from([(Some(run), 4)])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_cannot_be_saved_when_the_worker_exits_are_counted() {
    let Some(own) = OwnServices::start("rabbitmq", &[]) else { return };
    let vhost = own.services().vhost().await;
    let events = AmqpEvents::connect(&own.services().amqp(&vhost)).await.unwrap();
    let run = run("unsaved");
    let text = "x".repeat(60_000);
    own.control("kill", "rabbitmq").await;
    // More than memory holds.
    emit(&events, &run, 0..300, &text).await;
    in_time("some are on disk", async {
        while on_disk(&vhost) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Move the directory away, so that no file can be created in it.
    let dir = std::fs::read_dir(vhost.spill.path()).unwrap().next().unwrap().unwrap().path();
    std::fs::rename(&dir, dir.with_extension("elsewhere")).unwrap();
    let left = events.close_and_save().await;
    let lost: u64 = left.dropped.values().sum();
    assert!(left.events > 0 && lost > 0, "{left:?}");
    assert_eq!(left.events + lost, 300, "{left:?}");
    assert_eq!(left.dropped, BTreeMap::from([(Some(run), lost)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emitters_wait_for_the_broker_if_the_disk_allowance_is_full() {
    let Some(own) = OwnServices::start("rabbitmq", &[]) else { return };
    let vhost = own.services().vhost().await;
    let options = AmqpOptions { spill_bytes: 10 << 20, ..own.services().amqp(&vhost) };
    let events = AmqpEvents::connect(&options).await.unwrap();
    let run = run("full");
    let text = "x".repeat(60_000);
    let mut stream = events.follow(Position::Next).await.unwrap();
    own.control("stop", "rabbitmq").await;
    let mut emitted = 0;
    // If there is no progress for two seconds, the emitter waits.
    while let Ok(taken) =
        tokio::time::timeout(Duration::from_secs(2), events.emit(event(&run, emitted, &text))).await
    {
        taken.unwrap();
        emitted += 1;
    }
    let bytes = emitted * 60_000;
    assert!((12 << 20..32 << 20).contains(&bytes), "{bytes} bytes were accepted");
    // The future was dropped, so this event was not accepted and its number is used again.
    let rest = emit(&events, &run, emitted..emitted + 200, &text);
    let (last, ()) = tokio::join!(rest, own.control("start", "rabbitmq"));
    confirmed(&events, last).await;
    assert_whole(&read_to(&mut stream, &run, emitted + 199).await, emitted + 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discarded_events_are_sent_neither_from_memory_nor_from_disk() {
    let Some(own) = OwnServices::start("rabbitmq", &[]) else { return };
    let vhost = own.services().vhost().await;
    let events = AmqpEvents::connect(&own.services().amqp(&vhost)).await.unwrap();
    let (lost, kept) = (run("lost"), run("kept"));
    let text = "x".repeat(60_000);
    confirmed(&events, emit(&events, &kept, 0..1, &text).await).await;
    own.control("stop", "rabbitmq").await;
    let mut last = Ticket::default();
    for seq in 0..300 {
        emit(&events, &lost, seq..seq + 1, &text).await;
        last = emit(&events, &kept, seq + 1..seq + 2, &text).await;
    }
    assert!(on_disk(&vhost) > 10_000_000, "events of both runs are on disk");
    events.discard(&lost, Epoch(7));
    own.control("start", "rabbitmq").await;
    confirmed(&events, last).await;
    let end = events.end().await.unwrap();
    let mut stream = events.follow(Position::First).await.unwrap();
    let mut seqs = Vec::new();
    loop {
        let published = in_time("an event", stream.next()).await.unwrap().unwrap();
        let event = published.event().unwrap();
        assert_eq!(event.run_id.as_ref(), Some(&kept), "no event of the lost run is published");
        seqs.extend(event.seq);
        if Some(published.offset) == end {
            break;
        }
    }
    assert_whole(&seqs, 301);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_broker_does_not_block_emitters_while_there_is_space() {
    let Some(own) = OwnServices::start("rabbitmq", &[]) else { return };
    let vhost = own.services().vhost().await;
    let events = AmqpEvents::connect(&own.services().amqp(&vhost)).await.unwrap();
    let run = run("hang");
    let text = "x".repeat(60_000);
    let mut stream = events.follow(Position::Next).await.unwrap();
    own.control("pause", "rabbitmq").await;
    let last = emit(&events, &run, 0..400, &text).await;
    let unreachable = events.end().await.unwrap_err();
    assert!(matches!(unreachable, EventsError::Unreachable { .. }), "{unreachable}");
    own.control("unpause", "rabbitmq").await;
    confirmed(&events, last).await;
    assert_whole(&read_to(&mut stream, &run, 399).await, 400);
}

#[tokio::test]
async fn an_unwritable_spill_directory_is_reported_at_startup() {
    let Some((services, vhost)) = broker().await else { return };
    let file = vhost.spill.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    let options = AmqpOptions { spill_dir: file.join("spill"), ..services.amqp(&vhost) };
    let error = AmqpEvents::connect(&options).await.unwrap_err();
    assert!(matches!(error, EventsError::Spill { .. }), "{error}");
    assert!(error.to_string().contains("a-file/spill"), "{error}");
}

#[tokio::test]
async fn waiting_callers_get_an_error_when_the_adapter_closes() {
    let Some((services, vhost)) = broker().await else { return };
    let events = AmqpEvents::connect(&services.amqp(&vhost)).await.unwrap();
    let waiting = events.clone();
    let (answer, ()) = tokio::join!(waiting.confirmed(Ticket(1)), events.close());
    assert!(matches!(answer, Err(EventsError::Closed)), "{answer:?}");
    let emitted = events.emit(event(&run("a"), 0, "x")).await;
    assert!(matches!(emitted, Err(EventsError::Closed)), "{emitted:?}");
}
