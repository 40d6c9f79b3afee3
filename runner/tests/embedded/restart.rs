//! The stored state after a process has ended, cleanly or by SIGKILL.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt};
use protocol::command::{self, Disposition};
use protocol::event::{Event, Reason};
use protocol::id::NodeId;
use protocol::run::{NodeCpu, NodeMemory};
use protocol::time::Millis;
use runner::embedded::{Embedded, OpenError, Options};
use runner::host::Linux;
use runner::ports::{
    Delivery, Events, Host, Message, Position, Queue, QueueError, Route, Source, StoreError, Txn,
};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{node, open, options};

const CHILD_DIR: &str = "BOB_TEST_CHILD_DIR";
const HOUR: Duration = Duration::from_secs(3600);

fn message(body: &str) -> Message {
    Message { body: body.as_bytes().to_vec(), ..Message::default() }
}

async fn next(
    queue: &Arc<dyn Queue>,
    source: Source,
) -> (Box<dyn runner::ports::Consumer>, Delivery) {
    let mut consumer = queue.open(source).await.unwrap();
    let delivery = soon(consumer.next()).await.unwrap();
    (consumer, delivery)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.unwrap()
}

/// Starts this test binary as a child that runs the test below. It prints what was acknowledged.
fn child(dir: &Path) -> tokio::process::Child {
    tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "restart::child_process_that_writes_until_it_is_killed", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Does nothing unless it is started as another test's child. Then it works until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_process_that_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let embedded = open(Some(Path::new(&dir))).await;
    let (store, events, queue) = (embedded.store(), embedded.events(), embedded.queue(&node("a")));
    let lease = store.grant(Duration::from_secs(60)).await.unwrap().lease;
    let own = Txn::new().put_leased("leased", b"x".to_vec(), lease);
    assert!(store.txn(own).await.unwrap().committed);
    queue.publish(Route::Control, message("unsettled")).await.unwrap();
    let _out = next(&queue, Source::Control).await;

    let keys = async {
        for count in 0.. {
            let txn = Txn::new().put(format!("key/{count}"), vec![7; count % 5000]).read("x");
            assert!(store.txn(txn).await.unwrap().committed);
            println!("\nkey {count}");
        }
    };
    let messages = async {
        for count in 0.. {
            queue.publish(Route::Jobs, message(&count.to_string())).await.unwrap();
            println!("\nmessage {count}");
        }
    };
    let log = async {
        for count in 0.. {
            let text = format!("{} {count} {}", std::process::id(), "x".repeat(count % 3000));
            let event = Event::new(Millis(0), Reason::RunnerReady, text);
            let ticket = events.emit(event).await.unwrap();
            events.confirmed(ticket).await.unwrap();
            println!("\nevent {count}");
        }
    };
    tokio::join!(keys, messages, log);
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let mut child = child(dir.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (pid, mut done) = (child.id().unwrap(), [0; 3]);
        while done.iter().any(|done| *done < 50 + 20 * round) {
            count(
                &soon(lines.next_line()).await.unwrap().expect("the child is running"),
                &mut done,
            );
        }
        // After SIGKILL no code of it can run.
        child.kill().await.unwrap();
        while let Some(line) = lines.next_line().await.unwrap() {
            count(&line, &mut done);
        }
        let embedded = open(Some(dir.path())).await;
        check(&embedded, done, pid).await;
        embedded.close().await.unwrap();
    }
}

/// Counts an acknowledgement in a line of output. A truncated line counts less.
fn count(line: &str, done: &mut [usize; 3]) {
    for (at, what) in ["key ", "message ", "event "].into_iter().enumerate() {
        let number = line.strip_prefix(what).and_then(|number| number.parse::<usize>().ok());
        done[at] = number.map_or(done[at], |number| done[at].max(number + 1));
    }
}

async fn check(embedded: &Embedded, [keys, messages, events]: [usize; 3], pid: u32) {
    let (store, queue) = (embedded.store(), embedded.queue(&node("b")));
    assert_eq!(store.get("leased").await.unwrap(), None, "the lease of a dead process is void");
    for count in 0..keys {
        let entry = store.get(&format!("key/{count}")).await.unwrap().expect("an acknowledged key");
        assert!(entry.value.len() == count % 5000, "key {count} has the written value");
    }
    let (mut control, delivery) = next(&queue, Source::Control).await;
    assert_eq!(delivery.message.body, b"unsettled");
    assert!(delivery.redelivered, "an unsettled message is marked as redelivered");
    delivery.settle(Disposition::Ack).await.unwrap();
    let more = tokio::time::timeout(Duration::from_millis(100), control.next()).await;
    assert!(more.is_err(), "a message arrives once: {more:?}");

    let mut jobs = queue.open(Source::Jobs).await.unwrap();
    for count in 0..messages {
        let delivery = soon(jobs.next()).await.unwrap();
        assert_eq!(delivery.message.body, count.to_string().into_bytes());
        assert!(!delivery.redelivered, "the first delivery");
        delivery.settle(Disposition::Ack).await.unwrap();
    }
    // Nothing was promised about work in progress at the end.
    while let Ok(delivery) = tokio::time::timeout(Duration::from_millis(100), jobs.next()).await {
        delivery.unwrap().settle(Disposition::Ack).await.unwrap();
    }

    let mut stream = embedded.events().follow(Position::First).await.unwrap();
    let (mut seen, mut last) = (0, None);
    while seen < events {
        let published = soon(stream.next()).await.unwrap().unwrap();
        assert!(last.is_none_or(|last| published.offset == last + 1), "without a gap");
        last = Some(published.offset);
        let event = published.event().expect("an event");
        if let Some(text) = event.message.strip_prefix(&format!("{pid} ")) {
            assert_eq!(text, format!("{seen} {}", "x".repeat(seen % 3000)));
            seen += 1;
        }
    }
}

#[tokio::test]
async fn a_second_process_is_refused_with_the_owner_of_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(dir.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while !soon(lines.next_line()).await.unwrap().unwrap().starts_with("key ") {}
    let error = Embedded::open(options(Some(dir.path()))).await.unwrap_err();
    let expected = format!(
        "{} is in use by process {}; end it, or set BOB_DATA_DIR to another directory",
        dir.path().display(),
        child.id().unwrap()
    );
    assert!(matches!(error, OpenError::InUse { .. }));
    assert_eq!(error.to_string(), expected);
    child.kill().await.unwrap();
    open(Some(dir.path())).await;
}

#[tokio::test]
async fn a_foreign_file_is_refused_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bob.redb");
    std::fs::write(&path, "a letter to somebody").unwrap();
    let error = Embedded::open(options(Some(dir.path()))).await.unwrap_err();
    assert!(matches!(error, OpenError::Unreadable { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"a letter to somebody");

    let below = dir.path().join("bob.redb/below");
    let error = Embedded::open(options(Some(&below))).await.unwrap_err();
    assert!(error.to_string().contains("bob.redb/below"), "{error}");
}

/// A host with a clock that is set by the test.
#[derive(Default)]
struct Clock(AtomicI64);

impl Host for Clock {
    fn now(&self) -> Millis {
        Millis(self.0.load(Ordering::Relaxed))
    }
    fn since_boot(&self) -> Duration {
        Linux::default().since_boot()
    }
    fn memory(&self) -> NodeMemory {
        Linux::default().memory()
    }
    fn cpu(&self) -> NodeCpu {
        Linux::default().cpu()
    }
    fn name(&self) -> String {
        Linux::default().name()
    }
}

fn at(clock: &Arc<Clock>, dir: &Path) -> Options {
    Options { host: Arc::<Clock>::clone(clock), ..options(Some(dir)) }
}

#[tokio::test(start_paused = true)]
async fn a_long_lease_survives_its_process_until_it_expires() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(Clock::default()));
    let (short, long) = {
        let embedded = Embedded::open(at(&clock, dir.path())).await.unwrap();
        let store = embedded.store();
        let short = store.grant(HOUR - Duration::from_secs(1)).await.unwrap().lease;
        let long = store.grant(24 * HOUR).await.unwrap().lease;
        let txn = Txn::new().put_leased("short", vec![], short).put_leased("long", vec![], long);
        let made = store.txn(txn).await.unwrap().revision;
        assert_eq!(store.list("").await.unwrap().revision, made);
        embedded.close().await.unwrap();
        (short, long)
    };
    clock.0.store(10 * 3_600_000, Ordering::Relaxed);
    {
        let embedded = Embedded::open(at(&clock, dir.path())).await.unwrap();
        let store = embedded.store();
        let names: Vec<_> =
            store.list("").await.unwrap().entries.into_iter().map(|entry| entry.key).collect();
        assert_eq!(names, ["long"]);
        assert!(matches!(store.keep_alive(short).await, Err(StoreError::LeaseGone(_))));
        tokio::time::advance(14 * HOUR - Duration::from_secs(1)).await;
        assert!(store.get("long").await.unwrap().is_some());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(matches!(store.keep_alive(long).await, Err(StoreError::LeaseGone(_))));
        embedded.close().await.unwrap();
    }
    clock.0.store(25 * 3_600_000, Ordering::Relaxed);
    let embedded = Embedded::open(at(&clock, dir.path())).await.unwrap();
    assert!(embedded.store().list("").await.unwrap().entries.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_renewed_long_lease_keeps_its_full_term_after_a_restart() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(Clock::default()));
    {
        let embedded = Embedded::open(at(&clock, dir.path())).await.unwrap();
        let store = embedded.store();
        let lease = store.grant(24 * HOUR).await.unwrap().lease;
        let txn = Txn::new().put_leased("long", vec![], lease);
        assert!(store.txn(txn).await.unwrap().committed);
        clock.0.store(20 * 3_600_000, Ordering::Relaxed);
        store.keep_alive(lease).await.unwrap();
        embedded.close().await.unwrap();
    }
    clock.0.store(40 * 3_600_000, Ordering::Relaxed);
    let embedded = Embedded::open(at(&clock, dir.path())).await.unwrap();
    assert!(embedded.store().get("long").await.unwrap().is_some());
}

#[tokio::test]
async fn revisions_continue_after_a_restart_and_old_ones_cannot_be_watched() {
    let dir = tempfile::tempdir().unwrap();
    let first = {
        let embedded = open(Some(dir.path())).await;
        let store = embedded.store();
        let made = store.txn(Txn::new().put("a", b"1".to_vec())).await.unwrap().revision;
        embedded.close().await.unwrap();
        let late = store.txn(Txn::new().put("a", b"2".to_vec())).await;
        assert!(
            matches!(late, Err(StoreError::Unreachable { .. })),
            "the store is closed: {late:?}"
        );
        assert!(store.get("a").await.is_err());
        made
    };
    let embedded = open(Some(dir.path())).await;
    let store = embedded.store();
    assert_eq!(store.get("a").await.unwrap().unwrap().create_revision, first);
    assert!(matches!(store.watch("a", first).await, Err(StoreError::Compacted { .. })));
    let second = store.txn(Txn::new().put("a", b"2".to_vec())).await.unwrap().revision;
    assert!(second > first);
}

#[tokio::test]
async fn messages_in_the_queue_of_a_dead_worker_are_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (node("old"), node("new"));
    {
        let embedded = open(Some(dir.path())).await;
        let queue = embedded.queue(&old);
        for (kind, body) in [(command::STOP, "stop"), (command::START, "start")] {
            let message = Message { kind: Some(kind.into()), ..message(body) };
            queue.publish(Route::Node(NodeId::from_stored(old.as_str())), message).await.unwrap();
        }
        embedded.close().await.unwrap();
    }
    let embedded = open(Some(dir.path())).await;
    let queue = embedded.queue(&new);
    assert_eq!(next(&queue, Source::Jobs).await.1.message.body, b"start");
    assert_eq!(next(&queue, Source::Control).await.1.message.body, b"stop");
    let lost = queue.publish(Route::Node(old), message("late")).await;
    assert!(matches!(lost, Err(QueueError::Unroutable { .. })));
}

#[tokio::test]
async fn a_message_that_kills_its_worker_reaches_the_delivery_limit() {
    let dir = tempfile::tempdir().unwrap();
    for deliveries in 0..=21 {
        let embedded = open(Some(dir.path())).await;
        let queue = embedded.queue(&node("x"));
        if deliveries == 0 {
            queue.publish(Route::Jobs, message("poison")).await.unwrap();
        }
        if deliveries < 21 {
            let (_consumer, delivery) = next(&queue, Source::Jobs).await;
            assert_eq!(delivery.redelivered, deliveries > 0);
            embedded.close().await.unwrap();
            continue;
        }
        let mut jobs = queue.open(Source::Jobs).await.unwrap();
        let more = tokio::time::timeout(Duration::from_millis(300), jobs.next()).await;
        assert!(more.is_err(), "{more:?}");
        let letters = embedded.dead_letters().await.unwrap();
        assert_eq!(letters[0].message.body, b"poison");
        assert_eq!(letters[0].message.headers["x-first-death-reason"], "delivery_limit");
        assert_eq!(letters[0].message.headers["x-first-death-queue"], "bob.jobs");
    }
}

#[tokio::test]
async fn a_start_that_is_requeued_too_often_is_reported() {
    let embedded = open(None).await;
    let queue = embedded.queue(&node("x"));
    let run = "r-1".parse().unwrap();
    for id in ["r-0", "r-1"] {
        assert!(embedded.start_exhausted(&run).now_or_never().is_none());
        let start = Message {
            kind: Some(protocol::command::START.to_owned()),
            id: Some(id.to_owned()),
            ..message("start")
        };
        queue.publish(Route::Jobs, start).await.unwrap();
        let mut jobs = queue.open(Source::Jobs).await.unwrap();
        for _ in 0..=protocol::names::DELIVERY_LIMIT {
            jobs.next().await.unwrap().settle(Disposition::Requeue).await.unwrap();
        }
    }
    tokio::time::timeout(Duration::from_secs(60), embedded.start_exhausted(&run)).await.unwrap();
}

/// Publishes an event and waits for its confirm.
async fn publish(events: &Arc<dyn Events>, text: &str) {
    let event = Event::new(Millis(0), Reason::RunnerReady, text.to_owned());
    let ticket = events.emit(event).await.unwrap();
    events.confirmed(ticket).await.unwrap();
}

async fn texts(events: &Arc<dyn Events>, from: Position, count: usize) -> Vec<(u64, String)> {
    let stream = events.follow(from).await.unwrap().take(count);
    let read = stream.map(|published| published.unwrap());
    let text = read.map(|published| (published.offset, published.event().unwrap().message));
    soon(text.collect()).await
}

#[tokio::test]
async fn events_continue_after_a_restart_and_expire() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(Clock::default()));
    let minute = 60_000;
    for count in 0..4 {
        clock.0.store(count * 30 * minute, Ordering::Relaxed);
        let embedded = Embedded::open(at(&clock, dir.path())).await.unwrap();
        let events = embedded.events();
        publish(&events, &format!("event {count}")).await;
        assert_eq!(events.end().await.unwrap(), Some(u64::try_from(count).unwrap()));
        embedded.close().await.unwrap();
    }
    // Retention is one hour, and the first event is older now.
    let events = Embedded::open(at(&clock, dir.path())).await.unwrap().events();
    let kept = texts(&events, Position::First, 3).await;
    let event = |count: u64| (count, format!("event {count}"));
    assert_eq!(kept, [event(1), event(2), event(3)]);
    assert_eq!(
        texts(&events, Position::Offset(0), 1).await,
        [event(1)],
        "the oldest event that is kept"
    );
    let since = Position::Since(Millis(70 * minute));
    assert_eq!(
        texts(&events, since, 2).await,
        [event(2), event(3)],
        "from an event a little earlier"
    );

    // The last event is always kept, because it determines the next offset.
    clock.0.store(1000 * minute, Ordering::Relaxed);
    publish(&events, "event 4").await;
    assert_eq!(texts(&events, Position::First, 1).await, [event(4)]);
}
