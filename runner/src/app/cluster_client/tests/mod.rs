//! The commands over embedded services: the same ports without a broker and etcd.

mod waiting;

use std::time::Duration;

use protocol::event::{Event, LogStream, Reason};
use protocol::id::{Epoch, NodeId, PipelineId};
use protocol::names;
use protocol::pipeline::{Params, Pipeline, Vars};
use protocol::run::{Open, Registered, RunRecord, Status, StoredPipeline};
use protocol::time::Millis;

use super::*;
use crate::app::this_host;
use crate::client::*;
use crate::embedded::{Embedded, Options};
use crate::ports::{Position, Source, Txn};

fn now() -> Millis {
    this_host().now()
}

struct Here(Embedded);

#[async_trait]
impl Services for Here {
    async fn store(&self) -> Result<Arc<dyn Store>, Unavailable> {
        Ok(self.0.store())
    }

    async fn queue(&self) -> Result<Arc<dyn Queue>, Unavailable> {
        Ok(self.0.queue(&NodeId::from_stored("bob/runner-test")))
    }

    async fn events(&self) -> Result<Arc<dyn Events>, Unavailable> {
        Ok(self.0.events())
    }
}

async fn client() -> (Client, Embedded) {
    let options =
        Options { dir: None, event_retention: Duration::from_secs(86_400), host: this_host() };
    let embedded = Embedded::open(options).await.unwrap();
    let services = Arc::new(Here(embedded.clone()));
    (Client::new(services), embedded)
}

fn pipeline(cmd: &str) -> Pipeline {
    let text = format!(
        r#"{{"group":"dev","name":"x","image":"localhost/i","steps":[{{"cmd":"{cmd}"}}]}}"#
    );
    protocol::dialect::parse(None, text.as_bytes()).pipelines.remove(0)
}

fn record(run: &str, status: Status, scheduled: Millis) -> RunRecord {
    RunRecord {
        group: "dev".into(),
        name: "x".into(),
        run_id: run.parse().unwrap(),
        status,
        cause: None,
        message: None,
        logger: None,
        vars: Vars::new(),
        params: Params::new(),
        pipeline: Some(pipeline("true")),
        node: None,
        epoch: None,
        parent: None,
        attempt: 1,
        losses: 0,
        reclaims: 0,
        furthest: 0,
        attempts: indexmap::IndexMap::new(),
        last_seq: None,
        released: None,
        scheduled_at: scheduled.into(),
        initiated_at: None,
        initialized_at: None,
        started_at: None,
        completed_at: None,
        steps: Vec::new(),
        ending_event: None,
        trusted: false,
        rest: serde_json::Map::new(),
    }
}

async fn put_run(embedded: &Embedded, record: &RunRecord) {
    let mut txn = Txn::new().put(names::run_key(&record.run_id), json(record));
    if let Some(definition) = record.definition().unwrap() {
        txn = txn.put(names::definition_key(&record.run_id), definition);
    }
    if !record.status.is_ended() {
        txn = txn.put(names::open_key(&record.run_id), json(&Open::default()));
    }
    assert!(embedded.store().txn(txn).await.unwrap().committed);
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

fn event(run: &str, seq: u64, reason: Reason) -> Event {
    let mut event = Event::new(now(), reason, "text".into());
    event.run_id = Some(run.parse().unwrap());
    event.epoch = Some(Epoch(5));
    event.seq = Some(seq);
    event
}

fn log(run: &str, seq: u64) -> Event {
    let (stream, offset, partial, encoding) = (LogStream::Stdout, 0, false, None);
    event(run, seq, Reason::Log { stream, offset, partial, encoding })
}

async fn publish(embedded: &Embedded, events: Vec<Event>) {
    let stream = embedded.events();
    for event in events {
        let ticket = stream.emit(event).await.unwrap();
        stream.confirmed(ticket).await.unwrap();
    }
}

async fn read(tail: &mut LogTail) -> usize {
    let mut items = 0;
    while tail.next().await.unwrap().is_some() {
        items += 1;
    }
    items
}

async fn reasons(embedded: &Embedded) -> Vec<Reason> {
    let events = embedded.events();
    let Some(end) = events.end().await.unwrap() else { return Vec::new() };
    let mut stream = events.follow(Position::First).await.unwrap();
    let mut reasons = Vec::new();
    while let Some(message) = futures::StreamExt::next(&mut stream).await {
        let message = message.unwrap();
        reasons.extend(message.event().map(|event| event.reason));
        if message.offset >= end {
            break;
        }
    }
    reasons
}

#[tokio::test]
async fn a_start_waits_in_the_queue_under_its_run_id() {
    let (client, embedded) = client().await;
    let (run, what) = ("r-1".parse().unwrap(), StartOf::Inline(Box::new(pipeline("true"))));
    let (vars, params) = (Vars::new(), Params::new());
    let start =
        StartRequest { what, run, vars, params, logger: None, partition: None, parent: None };
    client.start(&start).await.unwrap();
    let id = pipeline("true").id().unwrap();
    let unknown = client.pause(&id, true).await.unwrap_err();
    assert!(matches!(unknown, Error::UnknownPipeline(_)), "{unknown}");
    put_run(&embedded, &record("r-0", Status::Passed, now())).await;
    let ended = client.stop(&"r-0".parse().unwrap(), None).await.unwrap_err();
    assert_eq!(ended.to_string(), "run r-0 has ended already: passed");
    // Neither of the two sent anything.
    assert!(!client.stop(&start.run, Some("enough")).await.unwrap(), "it is not known yet");
    client.apply_pipeline(&id, &pipeline("true")).await.unwrap();
    client.pause(&id, true).await.unwrap();
    let queue = embedded.queue(&NodeId::from_stored("bob/runner-test"));
    let mut jobs = queue.open(Source::Jobs).await.unwrap();
    let job = jobs.next().await.unwrap();
    assert_eq!(job.message.id.as_deref(), Some("r-1"));
    assert_eq!(job.message.kind.as_deref(), Some(protocol::command::START));
    let mut control = queue.open(Source::Control).await.unwrap();
    for kind in [protocol::command::STOP, protocol::command::PAUSE] {
        let delivery = control.next().await.unwrap();
        let message = &delivery.message;
        assert_eq!(message.kind.as_deref(), Some(kind));
        protocol::command::decode(Some(kind), message.id.as_deref(), &message.body).unwrap();
        delivery.settle(protocol::command::Disposition::Ack).await.unwrap();
    }
}

#[tokio::test]
async fn a_paused_pipeline_stays_paused_when_it_is_stored_again() {
    let (client, embedded) = client().await;
    let id = pipeline("true").id().unwrap();
    let apply = async |cmd: &str| client.apply_pipeline(&id, &pipeline(cmd)).await.unwrap();
    assert_eq!(apply("true").await, Applied::Created);
    assert_eq!(apply("true").await, Applied::Unchanged);
    let mut stored = client.pipelines().await.unwrap().readable.remove(0);
    stored.paused = true;
    stored.paused_at = Some(Millis(7));
    let key = names::pipeline_key(&id);
    let pause = Txn::new().put(key.as_str(), json(&stored));
    assert!(embedded.store().txn(pause).await.unwrap().committed);
    assert_eq!(apply("false").await, Applied::Changed);
    let [now]: [StoredPipeline; 1] = client.pipelines().await.unwrap().readable.try_into().unwrap();
    assert!(now.paused);
    assert_eq!(now.paused_at, Some(Millis(7)));
    assert_eq!(now.pipeline["steps"][0]["cmd"], "false");
    assert!(client.delete_pipeline(&id).await.unwrap());
    assert!(!client.delete_pipeline(&id).await.unwrap());
    let told = reasons(&embedded).await;
    let expected = [Reason::PipelineCreate, Reason::PipelineCreate, Reason::PipelineDelete];
    assert_eq!(told, expected, "a change without effect is not published");
}

#[tokio::test]
async fn a_pipeline_is_not_deleted_while_a_run_of_it_is_open() {
    let (client, embedded) = client().await;
    let id = pipeline("true").id().unwrap();
    client.apply_pipeline(&id, &pipeline("true")).await.unwrap();
    put_run(&embedded, &record("r-1", Status::Running, now())).await;
    put_run(&embedded, &record("r-2", Status::Passed, now())).await;
    let refused = client.delete_pipeline(&id).await.unwrap_err();
    assert!(refused.to_string().contains("r-1"), "{refused}");
    assert_eq!(refused.kind(), ErrorKind::State);
    assert_eq!(client.pipelines().await.unwrap().readable.len(), 1);
}

#[tokio::test]
async fn services_can_be_registered_changed_and_removed() {
    let (client, embedded) = client().await;
    let name = || "logs".parse().unwrap();
    let at = |url: &str| Registered { name: name(), url: url.to_owned() };
    let register = async |url: &str| client.register(Registry::Loggers, &at(url)).await.unwrap();
    assert_eq!(register("http://u:hunter2@a").await, Applied::Created);
    assert_eq!(register("http://b").await, Applied::Changed);
    assert_eq!(register("http://b").await, Applied::Unchanged);
    assert_eq!(client.registered(Registry::Loggers).await.unwrap().readable, [at("http://b")]);
    assert!(client.registered(Registry::Stores).await.unwrap().readable.is_empty());
    assert!(client.unregister(Registry::Loggers, &name()).await.unwrap());
    assert!(!client.unregister(Registry::Loggers, &name()).await.unwrap());
    let told = reasons(&embedded).await;
    assert_eq!(told, [Reason::LoggerCreate, Reason::LoggerCreate, Reason::LoggerDelete]);
    let mut events = client.events(Position::First, false).await.unwrap();
    while let Some(message) = events.next().await.unwrap() {
        assert!(!String::from_utf8(message.body).unwrap().contains("hunter2"));
    }
}

#[tokio::test]
async fn runs_are_listed_newest_first_and_filtered() {
    let (client, embedded) = client().await;
    for (run, status, at) in
        [("r-1", Status::Running, 1), ("r-2", Status::Failed, 2), ("r-3", Status::Pending, 3)]
    {
        put_run(&embedded, &record(run, status, Millis(at))).await;
    }
    let list = async |filter: RunFilter| -> Vec<String> {
        let runs = client.runs(&filter).await.unwrap().readable;
        runs.iter().map(|run| run.record.run_id.to_string()).collect()
    };
    assert_eq!(list(RunFilter::default()).await, ["r-3", "r-1"]);
    assert_eq!(
        list(RunFilter { ended: true, ..RunFilter::default() }).await,
        ["r-3", "r-2", "r-1"]
    );
    let failed = RunFilter { status: Some(Status::Failed), ..RunFilter::default() };
    assert_eq!(list(failed).await, ["r-2"]);
    let pipeline = Some(PipelineId::new("dev", "y").unwrap());
    assert!(list(RunFilter { ended: true, pipeline, status: None }).await.is_empty());
    let unknown = client.run(&"r-9".parse().unwrap()).await.unwrap_err();
    assert!(matches!(unknown, Error::UnknownRun(_)));
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_hides_no_other() {
    let (client, embedded) = client().await;
    let id = pipeline("true").id().unwrap();
    client.apply_pipeline(&id, &pipeline("true")).await.unwrap();
    put_run(&embedded, &record("r-1", Status::Passed, now())).await;
    let later = br#"{"group":"dev","name":"z","run-id":"r-3","status":"pondering"}"#;
    let odd = Txn::new()
        .put(names::run_key(&"r-2".parse().unwrap()), b"[]".to_vec())
        .put(names::open_key(&"r-2".parse().unwrap()), b"{}".to_vec())
        .put(names::run_key(&"r-3".parse().unwrap()), later.to_vec())
        .put(names::open_key(&"r-3".parse().unwrap()), b"{}".to_vec())
        .put(format!("{}dev:odd", names::PIPELINES), b"[]".to_vec())
        .put(format!("{}odd", names::LOGGERS), b"[]".to_vec())
        .put(format!("{}odd", names::NODES), b"[]".to_vec());
    assert!(embedded.store().txn(odd).await.unwrap().committed);
    let runs = client.runs(&RunFilter { ended: true, ..RunFilter::default() }).await.unwrap();
    assert_eq!((runs.readable.len(), runs.unreadable.len()), (1, 2));
    assert!(runs.unreadable[0].to_string().contains("bob.pipeline.run/r-2"));
    let pipelines = client.pipelines().await.unwrap();
    assert_eq!((pipelines.readable.len(), pipelines.unreadable.len()), (1, 1));
    let loggers = client.registered(Registry::Loggers).await.unwrap();
    assert_eq!((loggers.readable.len(), loggers.unreadable.len()), (0, 1));
    let nodes = client.nodes().await.unwrap();
    assert_eq!((nodes.readable.len(), nodes.unreadable.len()), (0, 1));
    let asked = client.run(&"r-2".parse().unwrap()).await.unwrap_err();
    assert_eq!(asked.kind(), ErrorKind::State, "a single unreadable run is an error");
    assert!(client.delete_pipeline(&id).await.unwrap());
    let used = PipelineId::new("dev", "z").unwrap();
    client.apply_pipeline(&used, &Pipeline::new("dev", "z")).await.unwrap();
    let refused = client.delete_pipeline(&used).await.unwrap_err();
    assert!(matches!(refused, Error::InUse { .. }), "its run can be resumed: {refused}");
}

#[tokio::test]
async fn an_unknown_step_is_reported_with_the_known_ones() {
    let (client, embedded) = client().await;
    put_run(&embedded, &record("r-1", Status::Running, now())).await;
    let tail = client.log(&"r-1".parse().unwrap(), false, None).await.unwrap();
    let known = tail.record().unwrap();
    known.check_step(&"0".parse().unwrap()).unwrap();
    let error = known.check_step(&"nope".parse().unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::State);
    assert_eq!(error.to_string(), "run r-1 has no step nope; it has 0");
    let unknown = RunRecord { pipeline: None, ..record("r-2", Status::Failed, now()) };
    put_run(&embedded, &unknown).await;
    let known = client.run(&"r-2".parse().unwrap()).await.unwrap();
    let error = known.check_step(&"0".parse().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "run r-2 has no step 0; it has none");
}

#[tokio::test]
async fn events_since_a_time_are_those_of_that_time_and_later() {
    let (client, embedded) = client().await;
    let at = |seq: u64, time: i64| {
        let mut event = log("r-1", seq);
        event.at = Millis(time);
        event
    };
    let time = now().0;
    // Events of one moment are stored together, whatever their own times are.
    let events = vec![at(0, time - 5_000), at(1, time), at(2, time - 1), at(3, time + 1)];
    publish(&embedded, events).await;
    let mut tail = client.events(Position::Since(Millis(time)), false).await.unwrap();
    let mut read = Vec::new();
    while let Some(message) = tail.next().await.unwrap() {
        read.push(message.event().unwrap().seq.unwrap());
    }
    assert_eq!(read, [1, 3]);
}

#[tokio::test]
async fn a_log_ends_with_its_ending_event() {
    let (client, embedded) = client().await;
    let ending = event("r-1", 2, Reason::PipelineSuccessful);
    publish(&embedded, vec![log("r-1", 0), log("r-2", 0), log("r-1", 1), ending, log("r-1", 9)])
        .await;
    put_run(&embedded, &record("r-1", Status::Passed, now())).await;
    let mut tail = client.log(&"r-1".parse().unwrap(), true, None).await.unwrap();
    assert_eq!(read(&mut tail).await, 3);
    let Some(Outcome::Ended(ending, missing)) = tail.outcome() else { panic!("{tail:?}") };
    assert_eq!(ending.status, Status::Passed);
    assert!(missing.is_empty());
}

#[tokio::test]
async fn events_of_an_earlier_worker_are_read_even_after_the_ending_event() {
    let (client, embedded) = client().await;
    let ending = event("r-1", 3, Reason::PipelineSuccessful);
    publish(&embedded, vec![log("r-1", 0), ending, log("r-2", 0), log("r-1", 1), log("r-1", 2)])
        .await;
    put_run(&embedded, &record("r-1", Status::Passed, now())).await;
    let mut tail = client.log(&"r-1".parse().unwrap(), true, None).await.unwrap();
    assert_eq!(read(&mut tail).await, 4);
    let Some(Outcome::Ended(_, missing)) = tail.outcome() else { panic!("{tail:?}") };
    assert!(missing.is_empty(), "{missing:?}");
}

#[tokio::test]
async fn the_log_of_an_unfinished_run_stops_at_the_end_of_the_stream_or_waits() {
    let (client, embedded) = client().await;
    put_run(&embedded, &record("r-1", Status::Running, now())).await;
    publish(&embedded, vec![log("r-1", 0)]).await;
    let run = "r-1".parse().unwrap();
    let mut once = client.log(&run, false, None).await.unwrap();
    assert_eq!(read(&mut once).await, 1);
    assert_eq!(once.outcome(), Some(&Outcome::CaughtUp));
    let mut following = client.log(&run, true, None).await.unwrap();
    let later = async {
        publish(&embedded, vec![event("r-1", 1, Reason::PipelineSuccessful)]).await;
    };
    let (items, ()) = tokio::join!(read(&mut following), later);
    assert_eq!(items, 2);
}

#[tokio::test]
async fn an_expired_log_ends_with_the_list_of_missing_events() {
    let (client, embedded) = client().await;
    let old = Millis(now().0 - 8 * 86_400_000);
    put_run(&embedded, &record("r-1", Status::Passed, old)).await;
    publish(&embedded, vec![log("r-2", 0), log("r-1", 3)]).await;
    let mut tail = client.log(&"r-1".parse().unwrap(), true, None).await.unwrap();
    read(&mut tail).await;
    let Some(Outcome::GaveUp(missing)) = tail.outcome() else { panic!("{tail:?}") };
    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
    assert_eq!(missing, ["events 0 to 2 of epoch 5", "the event that ends the run"]);
    let past = tail.past_retention().await.unwrap().expect("the oldest event is younger");
    assert!(past.oldest.unwrap() > old);
}

#[tokio::test(start_paused = true)]
async fn following_a_run_ends_even_if_its_ending_event_is_missing() {
    let (client, embedded) = client().await;
    put_run(&embedded, &record("r-1", Status::Running, now())).await;
    publish(&embedded, vec![log("r-1", 0)]).await;
    let mut tail = client.log(&"r-1".parse().unwrap(), true, None).await.unwrap();
    put_run(&embedded, &record("r-1", Status::Failed, now())).await;
    assert_eq!(read(&mut tail).await, 1);
    assert!(matches!(tail.outcome(), Some(Outcome::GaveUp(_))), "{tail:?}");
}

#[tokio::test]
async fn a_run_without_a_record_is_searched_in_the_whole_stream() {
    let (client, embedded) = client().await;
    publish(&embedded, vec![log("r-2", 0), log("r-1", 0)]).await;
    let mut tail = client.log(&"r-1".parse().unwrap(), false, None).await.unwrap();
    assert_eq!(read(&mut tail).await, 1);
    assert!(tail.is_known());
    let mut unknown = client.log(&"r-9".parse().unwrap(), false, None).await.unwrap();
    assert_eq!(read(&mut unknown).await, 0);
    assert!(!unknown.is_known());
}

fn rejection(run: &str, text: &str) -> Event {
    let mut event = Event::new(now(), Reason::CommandRejected { field: None }, text.into());
    event.run_id = Some(run.parse().unwrap());
    event
}

#[tokio::test]
async fn a_followed_start_ends_with_its_own_rejection() {
    let (client, embedded) = client().await;
    publish(&embedded, vec![rejection("r-1", "of an earlier start")]).await;
    let sent = client.before_start().await.unwrap();
    publish(&embedded, vec![rejection("r-2", "of another"), rejection("r-1", "unknown key")]).await;
    let mut tail = client.log(&"r-1".parse().unwrap(), true, Some(sent)).await.unwrap();
    assert_eq!(read(&mut tail).await, 1);
    assert_eq!(tail.outcome(), Some(&Outcome::Rejected("unknown key".to_owned())));
}

#[tokio::test]
async fn a_rejected_command_does_not_end_the_log_of_a_known_run() {
    let (client, embedded) = client().await;
    let sent = client.before_start().await.unwrap();
    let mut tail = client.log(&"r-1".parse().unwrap(), true, Some(sent)).await.unwrap();
    put_run(&embedded, &record("r-1", Status::Running, now())).await;
    let ending = event("r-1", 0, Reason::PipelineSuccessful);
    publish(&embedded, vec![rejection("r-1", "a second start"), ending]).await;
    read(&mut tail).await;
    assert!(matches!(tail.outcome(), Some(Outcome::Ended(..))), "{tail:?}");
}
