//! The minimum that a run with trivial steps needs from etcd and RabbitMQ. It is the floor for the
//! worker's own speed.
//!
//! A run consists of one message of a quorum queue and one read of its keys. Transactions follow
//! for its claim, its four later states and its release. It publishes eight events on a stream and
//! waits for confirms twice: before and after its ending is recorded. All have as many bytes as the
//! worker's.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse,
};
use futures::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use test_support::raw;

use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Consumer, PublisherConfirm};
use protocol::id::RunId;
use protocol::names;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::task::TaskTracker;

use crate::cluster::{Cluster, new_node};

/// The floor's own queue and stream.
pub(crate) const QUEUE: &str = "bench.jobs";
pub(crate) const STREAM: &str = "bench.events";

/// Opens a channel with publisher confirms.
pub(crate) async fn confirming(cluster: &Cluster) -> anyhow::Result<Channel> {
    let channel = raw::channel(&cluster.amqp(new_node())).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

/// Declares the floor's queue and stream, of the same types as the worker's.
pub(crate) async fn declare(channel: &Channel) -> anyhow::Result<()> {
    for (name, kind) in [(QUEUE, "quorum"), (STREAM, "stream")] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(name.into(), options, arguments).await?;
    }
    Ok(())
}

/// Publishes a persistent message. Returns its pending confirm.
pub(crate) async fn publish(
    channel: &Channel,
    exchange: &str,
    key: &str,
    kind: &str,
    body: &[u8],
) -> anyhow::Result<PublisherConfirm> {
    let properties = BasicProperties::default()
        .with_content_type(names::CONTENT_TYPE.into())
        .with_delivery_mode(2)
        .with_type(kind.into());
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let key: ShortString = key.into();
    Ok(channel.basic_publish(exchange.into(), key, options, body, properties).await?)
}

/// Waits for confirms.
pub(crate) async fn confirmed(owed: Vec<PublisherConfirm>) -> anyhow::Result<()> {
    for confirm in owed {
        let confirmation = confirm.await?;
        ensure!(
            matches!(confirmation, Confirmation::Ack(None)),
            "the broker did not take a message"
        );
    }
    Ok(())
}

/// Takes runs like a worker, but without any of its rules.
#[derive(Debug)]
pub(crate) struct BareWorker(JoinHandle<anyhow::Result<()>>);

struct Hands {
    etcd: Client,
    lease: i64,
    stream: Channel,
}

impl BareWorker {
    /// Starts taking runs, up to `slots` at once. `only_claim` stops after the claim.
    pub(crate) async fn start(
        cluster: &Cluster,
        slots: u16,
        only_claim: bool,
    ) -> anyhow::Result<Self> {
        let urls = cluster.services.etcd().urls;
        let mut etcd = Client::connect(urls, None).await?;
        let lease = etcd.lease_grant(3600, None).await?.id();
        let stream = confirming(cluster).await?;
        let jobs = raw::channel(&cluster.amqp(new_node())).await;
        jobs.basic_qos(slots, BasicQosOptions::default()).await?;
        let (tag, options) = (ShortString::default(), BasicConsumeOptions::default());
        let consumer =
            jobs.basic_consume(QUEUE.into(), tag, options, FieldTable::default()).await?;
        let hands = Arc::new(Hands { etcd, lease, stream });
        Ok(Self(TaskTracker::new().spawn(work(hands, jobs, consumer, slots, only_claim))))
    }

    /// Ends it and returns its error, if any.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        if !self.0.is_finished() {
            self.0.abort();
            return Ok(());
        }
        self.0.await?
    }
}

async fn work(
    hands: Arc<Hands>,
    // Keeps the consumer alive.
    _jobs: Channel,
    mut consumer: Consumer,
    slots: u16,
    only_claim: bool,
) -> anyhow::Result<()> {
    let free = Arc::new(Semaphore::new(usize::from(slots)));
    let mut runs = JoinSet::new();
    loop {
        let slot = Arc::clone(&free).acquire_owned().await?;
        let delivery = consumer.next().await.context("the consumer has ended")??;
        while let Some(done) = runs.try_join_next() {
            done??;
        }
        let start: serde_json::Value = serde_json::from_slice(&delivery.data)?;
        let run: RunId = start["run-id"].as_str().context("a run id")?.parse()?;
        hands.claim(&run).await?;
        delivery.ack(BasicAckOptions::default()).await?;
        let hands = Arc::clone(&hands);
        runs.spawn(async move {
            if only_claim {
                hands.let_go(&run).await?
            } else {
                hands.drive(&run).await?
            }
            drop(slot);
            anyhow::Ok(())
        });
    }
}

impl Hands {
    async fn claim(&self, run: &RunId) -> anyhow::Result<()> {
        let keys = [
            names::seen_key(run),
            names::stop_key(run),
            names::owner_key(run),
            names::run_key(run),
        ];
        let reads: Vec<TxnOp> =
            keys.iter().map(|key| TxnOp::get(key.as_str(), None::<GetOptions>)).collect();
        let looked = self.etcd.kv_client().txn(Txn::new().and_then(reads)).await?;
        for read in looked.op_responses() {
            let TxnOpResponse::Get(read) = read else { continue };
            ensure!(read.kvs().is_empty(), "run {run} is there already");
        }
        let absent: Vec<Compare> = keys
            .iter()
            .map(|key| Compare::create_revision(key.as_str(), CompareOp::Equal, 0))
            .collect();
        let leased = || Some(PutOptions::new().with_lease(self.lease));
        let txn = Txn::new().when(absent).and_then([
            TxnOp::put(names::owner_key(run), owner(), leased()),
            TxnOp::put(names::run_key(run), record(run, 0), None),
            TxnOp::put(names::open_key(run), "{}", None),
            TxnOp::put(names::seen_key(run), "", leased()),
        ]);
        self.commit(txn).await
    }

    /// Commits a write that compares the owner, as the worker does.
    async fn commit(&self, txn: Txn) -> anyhow::Result<()> {
        let reply = self.etcd.kv_client().txn(txn).await?;
        ensure!(reply.succeeded(), "a transaction of the floor did not commit");
        Ok(())
    }

    async fn state(&self, run: &RunId, state: usize) -> anyhow::Result<()> {
        let owned = Compare::create_revision(names::owner_key(run), CompareOp::Greater, 0);
        let put = TxnOp::put(names::run_key(run), record(run, state), None);
        self.commit(Txn::new().when([owned]).and_then([put])).await
    }

    async fn events(&self, run: &RunId, count: usize) -> anyhow::Result<Vec<PublisherConfirm>> {
        let mut owed = Vec::with_capacity(count);
        for _ in 0..count {
            owed.push(publish(&self.stream, "", STREAM, "", &event(run)).await?);
        }
        Ok(owed)
    }

    async fn drive(&self, run: &RunId) -> anyhow::Result<()> {
        // Events scheduled, started, image.
        let mut owed = self.events(run, 3).await?;
        self.state(run, 1).await?;
        self.state(run, 2).await?;
        // Running, and the step recorded before it starts.
        self.state(run, 3).await?;
        owed.extend(self.events(run, 4).await?);
        confirmed(owed).await?;
        self.state(run, 4).await?;
        confirmed(self.events(run, 1).await?).await?;
        self.let_go(run).await
    }

    async fn let_go(&self, run: &RunId) -> anyhow::Result<()> {
        let owned = Compare::create_revision(names::owner_key(run), CompareOp::Greater, 0);
        let leased = || Some(PutOptions::new().with_lease(self.lease));
        let delete = |key: String| TxnOp::delete(key, None::<DeleteOptions>);
        self.commit(Txn::new().when([owned]).and_then([
            TxnOp::put(names::run_key(run), record(run, 4), leased()),
            TxnOp::put(names::seen_key(run), "", leased()),
            delete(names::open_key(run)),
            delete(names::owner_key(run)),
            delete(names::stop_key(run)),
        ]))
        .await
    }
}

fn owner() -> Vec<u8> {
    json!({ "node": new_node() }).to_string().into_bytes()
}

/// A record of the same size as the worker's in that state.
fn record(run: &RunId, state: usize) -> Vec<u8> {
    const AT: &str = "2026-01-01T00:00:00.000Z";
    let words = ["pending", "initializing", "initialized", "running", "passed"];
    let mut record = json!({
        "group": "bench", "name": run, "run-id": run, "status": words[state],
        "pipeline": { "group": "bench", "name": run, "image": "scripted", "network": "none",
            "pull": "never", "steps": [{ "name": "0", "cmd": ["exit", "0"] }] },
        "node": new_node(), "epoch": 1_000_000, "attempt": 1, "losses": 0, "scheduled-at": AT,
        "initiated-at": AT, "initialized-at": AT, "started-at": AT,
    });
    if state >= 3 {
        record["steps"] = json!([{ "name": "0", "status": "passed", "attempt": 1, "exit-code": 0,
            "image": run, "engine": "scripted", "epoch": 1_000_000, "last-seq": 5,
            "started-at": AT, "completed-at": AT }]);
    }
    record.to_string().into_bytes()
}

fn event(run: &RunId) -> Vec<u8> {
    let event = json!({
        "at": 1_800_000_000_000_u64, "type": "Normal", "kind": "Pipeline", "reason": "StepStarted",
        "message": format!("step 0 of run {run} starts"), "run-id": run, "group": "bench",
        "name": run, "node": new_node(), "epoch": 1_000_000, "seq": 4, "step": "0", "attempt": 1,
        "command": "exit 0", "executor": "scripted",
    });
    event.to_string().into_bytes()
}
