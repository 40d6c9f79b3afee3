//! Tests of a worker with any adapters. They run over the embedded adapters, and over RabbitMQ and
//! etcd. A failing test panics with the broken rule.
//!
//! Steps use the scripted executor: `exit N`, `print TEXT`, `hang`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::disallowed_methods,
    reason = "a suite may panic, looks for single events, and runs workers as tasks of its own"
)]

pub mod admission;
pub mod commands;
pub mod hard;
pub mod large;
pub mod later;
pub mod marks;
pub mod rerun;
mod rows;
pub mod runs;
pub mod takeover;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use protocol::definition;
use protocol::event::{Event, Reason};
use protocol::id::{NodeId, RunId};
use protocol::names;
use protocol::pipeline::{ExecutorKind, PullPolicy};
use protocol::run::{NodeEntry, NodeState, RunRecord};
use serde_json::Value;
use tokio::task::JoinHandle;

use runner::ports::{Message, Ports, Position, QueueError, Route, Txn};
use runner::worker::{DiskOptions, Options, OutOfOrder, Shutdown, Worker};

/// How long a test waits for an expected event. Generous, because a busy machine is not a fault.
const PATIENCE: Duration = Duration::from_secs(240);

/// Creates the adapters of one worker. Workers of a rig share the services, but not the process.
pub type MakePorts =
    Arc<dyn Fn(&NodeId) -> futures::future::BoxFuture<'static, Ports> + Send + Sync>;

/// A test environment for workers.
pub struct Rig {
    make: MakePorts,
    /// The adapters of the test itself.
    pub ports: Ports,
    /// Makes names unique to this rig on shared servers.
    pub tag: String,
    workers: Vec<Running>,
}

struct Running {
    node: NodeId,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), OutOfOrder>>,
}

impl std::fmt::Debug for Rig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rig").field("tag", &self.tag).finish_non_exhaustive()
    }
}

/// Returns a new node ID.
#[must_use]
pub fn new_node() -> NodeId {
    NodeId::from_uuid(uuid::Uuid::new_v4())
}

/// Returns options for tests.
#[must_use]
pub fn options(node: NodeId, slots: usize) -> Options {
    Options {
        node,
        slots,
        parallel_steps: 16,
        lease_ttl: Duration::from_secs(10),
        stall_timeout: Duration::from_secs(60),
        kill_grace: Duration::from_secs(2),
        drain: Duration::from_secs(30),
        network: None,
        pull: PullPolicy::Missing,
        node_refresh: Duration::from_secs(1),
        rescue: true,
        keeps_images: true,
        max_losses: 3,
        sweep: Duration::from_secs(600),
        disk: DiskOptions::default(),
        retention: Duration::from_secs(24 * 3600),
        retention_count: None,
        own_queue: true,
        executors: vec![ExecutorKind::Podman],
        log_limit: Some(1 << 30),
        literal_secrets: false,
        changed_reruns: true,
        logs: None,
        job_env: protocol::pipeline::Vars::new(),
        version: "test".into(),
    }
}

impl Rig {
    /// Creates a rig without workers.
    pub async fn new(make: MakePorts) -> Self {
        let ports = make(&new_node()).await;
        let tag = uuid::Uuid::now_v7().simple().to_string();
        Self { make, ports, tag, workers: Vec::new() }
    }

    /// Starts a worker and waits until it accepts work.
    pub async fn worker(&mut self, slots: usize) -> NodeId {
        let node = new_node();
        let ports = (self.make)(&node).await;
        self.worker_with(options(node, slots), ports).await
    }

    /// Starts a worker with the given options.
    pub async fn worker_as(&mut self, options: Options) -> NodeId {
        let ports = (self.make)(&options.node).await;
        self.worker_with(options, ports).await
    }

    /// Starts a worker with the given options and adapters.
    pub async fn worker_with(&mut self, options: Options, ports: Ports) -> NodeId {
        let node = options.node.clone();
        let worker = Worker::new(ports, options).await.expect("the engine answers");
        let shutdown = Shutdown::default();
        let task = tokio::spawn(worker.run(shutdown.clone()));
        self.workers.push(Running { node: node.clone(), shutdown, task });
        let key = names::node_key(&node);
        until("the node's entry appears", || async {
            self.ports.store.get(&key).await.unwrap().is_some().then_some(())
        })
        .await;
        node
    }

    /// Ends a worker like SIGTERM.
    pub async fn end_worker(&mut self, node: &NodeId) {
        let at = self.workers.iter().position(|worker| worker.node == *node).expect("it is ours");
        let worker = self.workers.remove(at);
        worker.shutdown.intake.cancel();
        let ended = tokio::time::timeout(PATIENCE, worker.task).await.expect("it ends");
        ended.expect("no panic").expect("it is in order");
    }

    /// Asks a worker to end without waiting.
    pub fn drain_worker(&mut self, node: &NodeId) {
        for worker in self.workers.iter().filter(|worker| worker.node == *node) {
            worker.shutdown.intake.cancel();
        }
    }

    /// Ends all workers.
    pub async fn end(mut self) {
        let nodes: Vec<NodeId> = self.workers.iter().map(|worker| worker.node.clone()).collect();
        for worker in &self.workers {
            worker.shutdown.intake.cancel();
            worker.shutdown.abort.cancel();
        }
        for node in nodes {
            self.end_worker(&node).await;
        }
    }

    /// Returns a run ID of this rig.
    #[must_use]
    pub fn run(&self, name: &str) -> RunId {
        format!("r-{}-{name}", self.tag).parse().unwrap()
    }

    /// Returns a pipeline of this rig with these steps, as JSON.
    #[must_use]
    pub fn pipeline(&self, name: &str, steps: &[&str]) -> Value {
        let steps: Vec<Value> = steps.iter().map(|cmd| serde_json::json!({ "cmd": cmd })).collect();
        serde_json::json!({
            "group": self.tag, "name": name, "image": "scripted", "steps": steps,
        })
    }

    /// Publishes a command.
    pub async fn publish(&self, route: Route, kind: &str, body: &Value) {
        self.publish_raw(route, Some(kind), None, body.to_string().as_bytes()).await;
    }

    /// Publishes an arbitrary message.
    pub async fn publish_raw(
        &self,
        route: Route,
        kind: Option<&str>,
        id: Option<&str>,
        body: &[u8],
    ) {
        let message = Message {
            kind: kind.map(str::to_owned),
            id: id.map(str::to_owned),
            headers: std::collections::BTreeMap::new(),
            body: body.to_vec(),
        };
        // The worker's own queue may appear slightly later than its entry.
        until("the queue takes it", || async {
            match self.ports.queue.publish(route.clone(), message.clone()).await {
                Ok(()) => Some(()),
                Err(QueueError::Unroutable { .. }) => None,
                Err(cause) => panic!("the queue takes it: {cause}"),
            }
        })
        .await;
    }

    /// Starts an inline pipeline.
    pub async fn start(&self, run: &RunId, pipeline: &Value) {
        let body = serde_json::json!({ "run-id": run, "pipeline": pipeline });
        self.publish(Route::Jobs, protocol::command::START, &body).await;
    }

    /// Starts a pipeline in a partition of its wait list.
    pub async fn start_in_partition(&self, run: &RunId, pipeline: &Value, partition: &str) {
        let body =
            serde_json::json!({ "run-id": run, "pipeline": pipeline, "partition": partition });
        self.publish(Route::Jobs, protocol::command::START, &body).await;
    }

    /// Starts a stored pipeline.
    pub async fn start_stored(&self, run: &RunId, name: &str) {
        let body = serde_json::json!({ "run-id": run, "group": self.tag, "name": name });
        self.publish(Route::Jobs, protocol::command::START, &body).await;
    }

    /// Publishes a stop.
    pub async fn stop(&self, run: &RunId) {
        let body = serde_json::json!({ "run-id": run, "reason": "the test says so" });
        self.publish(Route::Control, protocol::command::STOP, &body).await;
    }

    /// Stores a pipeline.
    pub async fn store_pipeline(&self, pipeline: &Value) {
        let group = pipeline["group"].as_str().unwrap();
        let name = pipeline["name"].as_str().unwrap();
        let id = protocol::id::PipelineId::new(group, name).unwrap();
        let txn = Txn::new().put(names::pipeline_key(&id), pipeline.to_string().into_bytes());
        assert!(self.ports.store.txn(txn).await.unwrap().committed);
    }

    /// Returns the events for which `keep` holds, up to the one for which `last` holds.
    pub async fn events_until(
        &self,
        keep: impl Fn(&Event) -> bool,
        last: impl Fn(&Event) -> bool,
    ) -> Vec<Event> {
        let mut stream = self.ports.events.follow(Position::First).await.unwrap();
        let mut kept = Vec::new();
        let found = tokio::time::timeout(PATIENCE, async {
            while let Some(published) = stream.next().await {
                let Some(event) = published.expect("the stream can be read").event() else {
                    continue;
                };
                let ends = last(&event);
                if keep(&event) {
                    kept.push(event);
                }
                if ends {
                    return;
                }
            }
        });
        assert!(found.await.is_ok(), "the last event did not come; there were {kept:#?}");
        kept
    }

    /// Returns the events of a run up to its ending.
    pub async fn events_of(&self, run: &RunId) -> Vec<Event> {
        let of_run = |event: &Event| event.run_id.as_ref() == Some(run);
        self.events_until(
            |event| of_run(event) && event.seq.is_some(),
            |event| of_run(event) && event.reason.is_ending(),
        )
        .await
    }

    /// Returns the event of a run with a reason.
    pub async fn event(&self, run: &RunId, reason: &str) -> Event {
        let is_it = |event: &Event| {
            event.run_id.as_ref() == Some(run) && reason_of(&event.reason) == reason
        };
        self.events_until(is_it, is_it).await.pop().unwrap()
    }

    /// Returns the run's record once a condition holds for it.
    pub async fn record(&self, run: &RunId, when: impl Fn(&RunRecord) -> bool) -> RunRecord {
        until("the record is as expected", || async {
            let look = Txn::new().read(names::run_key(run)).read(names::definition_key(run));
            let look = self.ports.store.txn(look).await.unwrap();
            let definition = look.entry(1).map(|definition| definition.value.as_slice());
            let record = definition::read(&look.entry(0)?.value, definition).unwrap().record;
            when(&record).then_some(record)
        })
        .await
    }

    /// Waits until a worker's entry has the state `draining`.
    pub async fn record_of_node_is_draining(&self, node: &NodeId) {
        until("the node says that it drains", || async {
            let entry = self.ports.store.get(&names::node_key(node)).await.unwrap()?;
            let entry: NodeEntry = serde_json::from_slice(&entry.value).unwrap();
            (entry.state == NodeState::Draining).then_some(())
        })
        .await;
    }

    /// Returns a node's entry once a condition holds for it.
    pub async fn node(&self, node: &NodeId, when: impl Fn(&NodeEntry) -> bool) -> NodeEntry {
        until("the node's entry is as expected", || async {
            let entry = self.ports.store.get(&names::node_key(node)).await.unwrap()?;
            let entry: NodeEntry = serde_json::from_slice(&entry.value).unwrap();
            when(&entry).then_some(entry)
        })
        .await
    }

    /// Waits until a stop is recorded.
    pub async fn stop_is_recorded(&self, run: &RunId) {
        let key = names::stop_key(run);
        until("the stop is recorded", || async { self.ports.store.get(&key).await.unwrap() }).await;
    }

    /// Waits until a run has ended, even if its release is pending.
    pub async fn ended(&self, run: &RunId) -> RunRecord {
        self.record(run, |record| record.status.is_ended()).await
    }

    /// Waits until a run has ended and is released.
    pub async fn settled(&self, run: &RunId) -> RunRecord {
        let settled =
            |record: &RunRecord| record.status.is_ended() && record.ending_event.is_none();
        let record = self.record(run, settled).await;
        for key in [names::open_key(run), names::owner_key(run), names::stop_key(run)] {
            let left = self.ports.store.get(&key).await.unwrap();
            assert!(left.is_none(), "{key} is gone with the write that strikes the ending");
        }
        record
    }
}

/// Returns the name of a reason.
#[must_use]
pub fn reason_of(reason: &Reason) -> String {
    serde_json::to_value(reason).unwrap()["reason"].as_str().unwrap().to_owned()
}

/// Polls until a condition holds.
pub async fn until<T, F, Fut>(what: &str, mut look: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    match found.await {
        Ok(found) => found,
        Err(late) => panic!("{what}: {late}"),
    }
}
