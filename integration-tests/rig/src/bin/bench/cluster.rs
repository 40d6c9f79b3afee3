//! A virtual host, and in-process workers on it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use protocol::id::{NodeId, RunId};
use protocol::names;
use runner::cluster::{AmqpEvents, AmqpOptions, AmqpQueue, Etcd};
use runner::ports::{Change, Changes, Executor, Message, NoSecrets, Ports};
use runner::worker::{DiskOptions, Options, OutOfOrder, RenderInline, Shutdown, Worker};
use runner::{host, transfer};
use serde_json::{Value, json};
use test_support::services::{Services, Vhost};
use test_support::worker_suite;
pub(crate) use test_support::worker_suite::new_node;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// The timeout of every wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// A virtual host for this bench on the shared broker, and the shared etcd.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) services: Services,
    pub(crate) vhost: Vhost,
    /// Part of every run id. Distinguishes this bench's keys from others'.
    pub(crate) tag: String,
}

impl Cluster {
    pub(crate) async fn new(services: &Services) -> Self {
        let vhost = services.vhost().await;
        let tag = uuid::Uuid::now_v7().simple().to_string();
        Self { services: services.clone(), vhost, tag }
    }

    pub(crate) fn amqp(&self, node: NodeId) -> AmqpOptions {
        AmqpOptions { node, ..self.services.amqp(&self.vhost) }
    }

    pub(crate) async fn store(&self) -> anyhow::Result<Etcd> {
        Ok(Etcd::connect(&self.services.etcd()).await?)
    }

    pub(crate) async fn events(&self) -> anyhow::Result<AmqpEvents> {
        Ok(AmqpEvents::connect(&self.amqp(new_node())).await?)
    }

    pub(crate) async fn ports(
        &self,
        node: &NodeId,
        executor: Arc<dyn Executor>,
    ) -> anyhow::Result<Ports> {
        let amqp = self.amqp(node.clone());
        let spill_dir = self.vhost.spill.path().to_owned();
        Ok(Ports {
            queue: Arc::new(AmqpQueue::connect(&amqp).await?),
            store: Arc::new(self.store().await?),
            events: Arc::new(AmqpEvents::connect(&amqp).await?),
            executor,
            transfer: Arc::new(transfer::Http::new(transfer::Options {
                policy: runner::egress::Policy::unrestricted(),
                spill_dir,
                spill_bytes: 1 << 20,
            })?),
            host: Arc::new(host::Linux::default()),
            renderer: Arc::new(RenderInline),
            secrets: Arc::new(NoSecrets),
            outputs: None,
        })
    }

    /// Starts a worker and waits until its entry is ready.
    pub(crate) async fn worker(
        &self,
        slots: usize,
        executor: Arc<dyn Executor>,
    ) -> anyhow::Result<RunningWorker> {
        let node = new_node();
        let ports = self.ports(&node, executor).await?;
        let store = Arc::clone(&ports.store);
        let worker = Worker::new(ports, options(node.clone(), slots)).await?;
        let shutdown = Shutdown::default();
        let task = TaskTracker::new().spawn(worker.run(shutdown.clone()));
        let key = names::node_key(&node);
        let seen = async {
            while store.get(&key).await?.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        };
        in_time("a worker is ready", seen).await?;
        Ok(RunningWorker { shutdown, task })
    }

    pub(crate) fn run(&self, name: &str) -> anyhow::Result<RunId> {
        Ok(format!("r-{}-{name}", self.tag).parse()?)
    }

    /// A start with an inline definition.
    pub(crate) fn start(&self, run: &RunId, image: &str, steps: &[Vec<&str>]) -> Message {
        let steps: Vec<Value> = steps.iter().map(|words| json!({ "cmd": words })).collect();
        let pipeline = json!({
            "group": "bench", "name": self.tag, "image": image, "steps": steps,
            "network": "none", "pull": "never",
        });
        let body = json!({ "run-id": run, "pipeline": pipeline });
        Message {
            kind: Some(protocol::command::START.to_owned()),
            id: Some(run.to_string()),
            headers: std::collections::BTreeMap::new(),
            body: body.to_string().into_bytes(),
        }
    }

    /// Watches the keys of this bench's runs under a prefix, from now on.
    pub(crate) async fn watch(&self, store: &Etcd, prefix: &str) -> anyhow::Result<Changes> {
        use runner::ports::Store as _;
        let prefix = format!("{prefix}r-{}", self.tag);
        let now = store.list(&prefix).await?.revision;
        Ok(store.watch(&prefix, now + 1).await?)
    }
}

/// A worker in this process.
#[derive(Debug)]
pub(crate) struct RunningWorker {
    shutdown: Shutdown,
    task: JoinHandle<Result<(), OutOfOrder>>,
}

impl RunningWorker {
    /// Ends it like SIGTERM.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        self.shutdown.intake.cancel();
        Ok(self.task.await??)
    }
}

/// Waits until `count` keys are removed.
pub(crate) async fn removals(changes: &mut Changes, count: usize) -> anyhow::Result<()> {
    let mut left = count;
    let counted = async {
        while left > 0 {
            match changes.next().await.context("the watch has ended")?? {
                Change::Deleted { .. } => left -= 1,
                Change::Put(_) => {}
            }
        }
        anyhow::Ok(())
    };
    in_time("all runs are released", counted).await
}

/// Limits a wait.
pub(crate) async fn in_time<T>(
    what: &str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.with_context(|| format!("waited in vain: {what}"))?
}

/// The options of a worker of the bench.
pub(crate) fn options(node: NodeId, slots: usize) -> Options {
    Options {
        node_refresh: Duration::from_secs(10),
        disk: DiskOptions { high: 100, low: 99, ..DiskOptions::default() },
        changed_reruns: false,
        version: "bench".into(),
        ..worker_suite::options(node, slots)
    }
}
