//! Logs over embedded services: the follower, filling on demand, the archive, and reading without a
//! cache.

mod archive;

use async_trait::async_trait;
use futures::poll;
use protocol::event::{Event, LogStream, Reason};
use protocol::id::{Epoch, RunId};
use protocol::names;
use protocol::run::Status;
use protocol::time::{Millis, Timestamp};
use serde_json::json;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use super::*;
use crate::app::this_host;
use crate::client::{Error, Services, Unavailable};
use crate::embedded::{self, Embedded};
use crate::http::logs::{Batch, Cursor, End, Filter, Limits, Line, tail, window};
use crate::ports::{Events, Queue, Txn};

/// More than all tests need.
const BYTES: u64 = 64 << 20;

struct Here(Embedded);

#[async_trait]
impl Services for Here {
    async fn store(&self) -> Result<Arc<dyn Store>, Unavailable> {
        Ok(self.0.store())
    }

    async fn queue(&self) -> Result<Arc<dyn Queue>, Unavailable> {
        Ok(self.0.queue(&node()))
    }

    async fn events(&self) -> Result<Arc<dyn Events>, Unavailable> {
        Ok(self.0.events())
    }
}

fn node() -> NodeId {
    NodeId::from_stored("bob/runner-test")
}

fn run(id: &str) -> RunId {
    id.parse().unwrap()
}

/// A cluster without a worker, and a node that reads logs.
struct Fleet {
    embedded: Embedded,
    dir: TempDir,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Fleet {
    async fn new() -> Self {
        let options = embedded::Options {
            dir: None,
            event_retention: Duration::from_secs(86_400),
            host: this_host(),
        };
        let embedded = Embedded::open(options).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        Self { embedded, dir, stop: CancellationToken::new(), tasks: TaskTracker::new() }
    }

    fn client(&self) -> Client {
        Client::new(Arc::new(Here(self.embedded.clone())))
    }

    async fn logs(&self, bytes: u64, archive: Option<Archive>) -> Logs {
        let options = Options { dir: self.dir.path().join("cache"), bytes };
        Logs::open(options, self.client(), archive, self.stop.clone()).await
    }

    /// Follows the stream from now on.
    async fn follow(&self, logs: &Logs) {
        let logs = logs.clone();
        let mut following = Box::pin(async move { logs.follow().await });
        // The stream is open once the follower waits for an event.
        assert!(poll!(&mut following).is_pending());
        self.tasks.spawn(following);
    }

    /// Ends the node.
    async fn end(&self, logs: Logs) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        logs.ended().await;
    }

    /// The next process on the same directory.
    async fn restarted(self) -> Self {
        Self { dir: self.dir, ..Self::new().await }
    }

    async fn put_run(&self, id: &str, status: Status, scheduled: Millis) {
        let record = json!({
            "group": "dev", "name": "x", "run-id": id, "status": status, "attempt": 1,
            "scheduled-at": Timestamp(scheduled), "steps": [],
        });
        let put = Txn::new().put(names::run_key(&run(id)), serde_json::to_vec(&record).unwrap());
        assert!(self.embedded.store().txn(put).await.unwrap().committed);
    }

    async fn publish(&self, events: Vec<Event>) {
        let stream = self.embedded.events();
        for event in events {
            let ticket = stream.emit(event).await.unwrap();
            stream.confirmed(ticket).await.unwrap();
        }
    }
}

fn now() -> Millis {
    this_host().now()
}

fn event(id: &str, epoch: i64, seq: u64, reason: Reason) -> Event {
    let mut event = Event::new(now(), reason, "text".into());
    event.run_id = Some(run(id));
    (event.group, event.name) = (Some("dev".into()), Some("x".into()));
    event.node = Some(node());
    (event.epoch, event.seq) = (Some(Epoch(epoch)), Some(seq));
    event
}

fn scheduled(id: &str) -> Event {
    event(id, 5, 0, Reason::PipelineRunScheduled { waiting: false })
}

fn log(id: &str, epoch: i64, seq: u64, step: &str, text: &str) -> Event {
    let partial = !text.ends_with('\n');
    let (stream, offset, encoding) = (LogStream::Stdout, 0, None);
    let mut event = event(id, epoch, seq, Reason::Log { stream, offset, partial, encoding });
    event.message = text.strip_suffix('\n').unwrap_or(text).to_owned();
    (event.step, event.attempt) = (Some(step.parse().unwrap()), Some(1));
    event
}

fn passed(id: &str, epoch: i64, seq: u64) -> Event {
    event(id, epoch, seq, Reason::PipelineSuccessful)
}

/// A run with three lines of two steps.
fn a_run(id: &str) -> Vec<Event> {
    vec![
        scheduled(id),
        log(id, 5, 1, "build", "one\ntw"),
        log(id, 5, 2, "test", "other\n"),
        log(id, 5, 3, "build", "o\n"),
        passed(id, 5, 4),
    ]
}

const LINES: [&str; 3] = ["1 build one", "2 test other", "3 build two"];

fn shown(lines: &[Line]) -> Vec<String> {
    let step = |line: &Line| line.step.as_ref().map(ToString::to_string).unwrap_or_default();
    lines.iter().map(|line| format!("{} {} {}", line.line, step(line), line.text)).collect()
}

/// Reads to the end of the log.
async fn read_to_end(cursor: &mut Cursor) -> (Vec<Line>, End) {
    let mut all = Vec::new();
    loop {
        match cursor.next().await.unwrap() {
            Batch::Lines(lines) => all.extend(lines),
            Batch::CaughtUp => {}
            Batch::End(end) => return (all, End::clone(&end)),
        }
    }
}

async fn whole(logs: &Logs, id: &str) -> (Vec<String>, End) {
    let (lines, end) = read_to_end(&mut logs.read(&run(id), 1).await.unwrap()).await;
    assert_eq!(end.lines, lines.len() as u64);
    (shown(&lines), end)
}

/// Reads the log of a run without a record, once the follower has begun it.
async fn followed(logs: &Logs, id: &str) -> (Vec<String>, End) {
    loop {
        match logs.read(&run(id), 1).await {
            Ok(mut cursor) => {
                let (lines, end) = read_to_end(&mut cursor).await;
                return (shown(&lines), end);
            }
            Err(Error::UnknownRun(_)) => tokio::task::yield_now().await,
            Err(cause) => panic!("{cause}"),
        }
    }
}

#[tokio::test]
async fn logs_of_new_runs_are_cached_and_survive_a_restart() {
    let fleet = Fleet::new().await;
    let logs = fleet.logs(BYTES, None).await;
    fleet.follow(&logs).await;
    fleet.publish(a_run("r-1")).await;
    fleet.publish(vec![scheduled("r-2"), log("r-2", 5, 1, "build", "half\n")]).await;
    // There are no records, so the logs can only come from the cache.
    let (lines, end) = followed(&logs, "r-1").await;
    assert_eq!(
        (lines.as_slice(), end.status),
        (LINES.map(String::from).as_slice(), Some(Status::Passed))
    );
    fleet.end(logs).await;
    let fleet = fleet.restarted().await;
    let logs = fleet.logs(BYTES, None).await;
    assert_eq!(whole(&logs, "r-1").await.0, LINES);
    let unknown = logs.read(&run("r-2"), 1).await.unwrap_err();
    assert!(matches!(unknown, Error::UnknownRun(_)), "an incomplete log is not trusted: {unknown}");
}

#[tokio::test]
async fn a_requested_log_is_read_with_and_without_a_cache() {
    let fleet = Fleet::new().await;
    fleet.put_run("r-1", Status::Passed, now()).await;
    fleet.publish(a_run("r-1")).await;
    for bytes in [0, BYTES] {
        let logs = fleet.logs(bytes, None).await;
        for _ in 0..2 {
            let (lines, end) = whole(&logs, "r-1").await;
            assert_eq!(lines, LINES);
            assert!(end.missing.is_empty() && end.note.is_none(), "{end:?}");
        }
    }
}

#[tokio::test]
async fn an_unusable_directory_only_means_that_there_is_no_cache() {
    let fleet = Fleet::new().await;
    std::fs::write(fleet.dir.path().join("cache"), "a file").unwrap();
    fleet.put_run("r-1", Status::Passed, now()).await;
    fleet.publish(a_run("r-1")).await;
    let logs = fleet.logs(BYTES, None).await;
    logs.follow().await;
    assert_eq!(whole(&logs, "r-1").await.0, LINES);
}

#[tokio::test]
async fn a_log_is_followed_while_it_is_written() {
    for bytes in [0, BYTES] {
        let fleet = Fleet::new().await;
        fleet.put_run("r-1", Status::Running, now()).await;
        fleet.publish(vec![scheduled("r-1"), log("r-1", 5, 1, "build", "one\n")]).await;
        let logs = fleet.logs(bytes, None).await;
        let mut cursor = logs.read(&run("r-1"), 1).await.unwrap();
        let Batch::Lines(lines) = cursor.next().await.unwrap() else { panic!() };
        assert_eq!(shown(&lines), ["1 build one"]);
        assert_eq!(cursor.next().await.unwrap(), Batch::CaughtUp);
        fleet.publish(vec![log("r-1", 5, 2, "build", "two"), passed("r-1", 5, 3)]).await;
        let (lines, end) = read_to_end(&mut cursor).await;
        assert_eq!(shown(&lines), ["2 build two"]);
        assert_eq!((lines[0].partial, end.lines), (true, 2));
        let mut second = logs.read(&run("r-1"), 2).await.unwrap();
        assert_eq!(read_to_end(&mut second).await.0, lines, "a line has one number");
    }
}

#[tokio::test]
async fn a_log_of_two_owners_has_no_text_of_steps_that_ran_again() {
    let fleet = Fleet::new().await;
    let resumed = Reason::PipelineRunResumed {
        from_step: "test".parse().unwrap(),
        previous_node: node(),
        previous_epoch: Epoch(5),
        previous_seq: Some(3),
        cause: "lost".into(),
        repeats: vec!["test".parse().unwrap()],
    };
    fleet.put_run("r-1", Status::Passed, now()).await;
    fleet
        .publish(vec![
            scheduled("r-1"),
            log("r-1", 5, 1, "build", "one\n"),
            event("r-1", 9, 0, resumed),
            log("r-1", 5, 2, "build", "late\n"),
            log("r-1", 5, 3, "test", "dropped\n"),
            log("r-1", 9, 1, "test", "again\n"),
            log("r-1", 9, 1, "test", "again\n"),
            passed("r-1", 9, 2),
        ])
        .await;
    let (lines, end) = whole(&fleet.logs(BYTES, None).await, "r-1").await;
    assert_eq!(lines, ["1 build one", "2 build late", "3 test again"]);
    assert!(end.missing.is_empty(), "{end:?}");
}

#[tokio::test]
async fn a_gap_is_named_and_filled_by_what_arrives_later() {
    tokio::time::pause();
    let fleet = Fleet::new().await;
    let logs = fleet.logs(BYTES, None).await;
    fleet.put_run("r-1", Status::Passed, now()).await;
    let mut events = a_run("r-1");
    let late = events.remove(2);
    fleet.publish(events).await;
    let (lines, end) = whole(&logs, "r-1").await;
    assert_eq!(lines, ["1 build one", "2 build two"]);
    assert_eq!(end.missing, ["event 2 of epoch 5"]);
    assert_eq!(end.note, None);
    fleet.publish(vec![late]).await;
    tokio::time::advance(Duration::from_secs(61)).await;
    let (lines, end) = whole(&logs, "r-1").await;
    assert_eq!(lines, ["1 build one", "2 build two", "3 test other"]);
    assert!(end.missing.is_empty(), "{end:?}");
}

#[tokio::test]
async fn windows_the_last_lines_and_search_answer_alike_with_and_without_a_cache() {
    for bytes in [0, BYTES] {
        let fleet = Fleet::new().await;
        fleet.put_run("r-1", Status::Passed, now()).await;
        let line = |n: u64| {
            log("r-1", 5, n, if n.is_multiple_of(2) { "a" } else { "b" }, &format!("Line {n}\n"))
        };
        let mut events = vec![scheduled("r-1")];
        events.extend((1..=300).map(line));
        events.push(passed("r-1", 5, 301));
        fleet.publish(events).await;
        let logs = fleet.logs(bytes, None).await;
        let read = async |from| logs.read(&run("r-1"), from).await.unwrap();
        let lines = |lines| Limits { lines };
        let all = Filter::default();
        let step = Filter { step: Some("a".parse().unwrap()), ..Filter::default() };
        let text = |text: &str| Filter { text: Some(text.to_owned()), ..Filter::default() };

        let found = window(&mut read(10).await, &all, lines(2)).await.unwrap();
        assert_eq!(shown(&found.lines), ["10 a Line 10", "11 b Line 11"]);
        assert_eq!((found.next, found.is_complete, found.end), (12, false, None));
        let found = window(&mut read(300).await, &all, lines(2)).await.unwrap();
        assert_eq!((found.lines.len(), found.next, found.is_complete), (1, 301, true));
        let found = window(&mut read(7000).await, &all, lines(2)).await.unwrap();
        assert!(found.lines.is_empty() && found.is_complete);

        let found = tail(&mut read(1).await, &all, lines(2)).await.unwrap();
        assert_eq!(shown(&found.lines), ["299 b Line 299", "300 a Line 300"]);
        assert_eq!((found.next, found.is_complete), (301, true));
        let found = tail(&mut read(1).await, &step, lines(2)).await.unwrap();
        assert_eq!(shown(&found.lines), ["298 a Line 298", "300 a Line 300"]);

        let found = window(&mut read(1).await, &text("line 29"), lines(3)).await.unwrap();
        assert_eq!(shown(&found.lines), ["29 b Line 29", "290 a Line 290", "291 b Line 291"]);
        let found =
            window(&mut read(found.next).await, &text("Line 29"), lines(100)).await.unwrap();
        assert_eq!((found.lines.len(), found.is_complete), (8, true));
        let found = window(&mut read(1).await, &text("LINE"), lines(100)).await.unwrap();
        assert!(found.lines.is_empty(), "a capital is searched as it is");
    }
}

#[tokio::test]
async fn a_log_that_outgrows_the_cache_is_read_from_the_stream() {
    let fleet = Fleet::new().await;
    fleet.put_run("r-1", Status::Passed, now()).await;
    // Text that does not compress well.
    let text = |n: u64| format!("{:x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).repeat(100);
    let mut events = vec![scheduled("r-1")];
    events.extend((1..=400).map(|n| log("r-1", 5, n, "a", &format!("{n} {}\n", text(n)))));
    events.push(passed("r-1", 5, 401));
    fleet.publish(events).await;
    let logs = fleet.logs(4096, None).await;
    let (lines, end) = whole(&logs, "r-1").await;
    assert_eq!((lines.len(), end.missing.len()), (400, 0));
}

#[tokio::test]
async fn a_log_past_the_retention_says_so() {
    let fleet = Fleet::new().await;
    let old = Millis(now().0 - 8 * 86_400_000);
    fleet.put_run("r-1", Status::Passed, old).await;
    fleet.publish(vec![scheduled("r-2")]).await;
    let (lines, end) = whole(&fleet.logs(BYTES, None).await, "r-1").await;
    assert!(lines.is_empty());
    assert_eq!(end.missing, ["the event that ends the run"]);
    let note = end.note.unwrap();
    assert!(note.starts_with("the log of run r-1 is past the stream's retention"), "{note}");
}

#[tokio::test]
async fn the_log_of_an_unknown_run_is_not_searched_in_the_stream() {
    let fleet = Fleet::new().await;
    fleet.publish(a_run("r-1")).await;
    for bytes in [0, BYTES] {
        let unknown = fleet.logs(bytes, None).await.read(&run("r-1"), 1).await.unwrap_err();
        assert!(matches!(unknown, Error::UnknownRun(_)), "{unknown}");
    }
}
