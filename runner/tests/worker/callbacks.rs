//! Callbacks to receivers that do not answer, next to one that does.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use protocol::id::{RunId, StepPosition};
use protocol::names;
use protocol::pipeline::Vars;
use runner::ports::{ByteStream, LoggerFeed, Origin, Ports, Transfer, TransferError, Txn};
use runner::rules::callback::Notification;
use serde_json::json;
use test_support::worker_suite::{Rig, new_node, options};
use tokio::sync::Notify;

use crate::rig;

/// Transfers whose `slow-*` receivers accept a callback and never answer.
struct Hanging {
    others: Arc<dyn Transfer>,
    /// The number of hanging posts per receiver.
    hanging: Mutex<BTreeMap<String, usize>>,
    taken: Mutex<Vec<String>>,
    changed: Notify,
}

impl Hanging {
    fn of(rig: &Rig) -> Arc<Self> {
        Arc::new(Self {
            others: Arc::clone(&rig.ports.transfer),
            hanging: Mutex::default(),
            taken: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Waits until a condition holds. Panics with `what` after a timeout.
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if holds(self) {
                    return;
                }
                changed.await;
            }
        };
        let patience = std::time::Duration::from_secs(60);
        tokio::time::timeout(patience, waiting).await.unwrap_or_else(|_late| panic!("{what}"));
    }

    fn hanging(&self) -> BTreeMap<String, usize> {
        self.hanging.lock().clone()
    }
}

#[async_trait]
impl Transfer for Hanging {
    async fn external_resource(
        &self,
        url: &str,
        params: &Vars,
        mount: &str,
    ) -> Result<ByteStream, TransferError> {
        self.others.external_resource(url, params, mount).await
    }

    async fn internal_resource(
        &self,
        url: &str,
        params: &Vars,
        mount: &str,
    ) -> Result<ByteStream, TransferError> {
        self.others.internal_resource(url, params, mount).await
    }

    async fn upload_artifact(
        &self,
        url: &str,
        path: [&str; 4],
        tar: ByteStream,
        origin: &Origin,
    ) -> Result<(), TransferError> {
        self.others.upload_artifact(url, path, tar, origin).await
    }

    async fn post(
        &self,
        url: &str,
        _secret: Option<&str>,
        _id: &str,
        body: Bytes,
    ) -> Result<u16, TransferError> {
        if url.starts_with("http://slow-") {
            *self.hanging.lock().entry(url.to_owned()).or_default() += 1;
            self.changed.notify_waiters();
            std::future::pending::<()>().await;
        }
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        self.taken.lock().push(body["status"].as_str().unwrap().to_owned());
        self.changed.notify_waiters();
        Ok(200)
    }

    fn logger(&self, url: &str, run: &RunId) -> Result<Box<dyn LoggerFeed>, TransferError> {
        self.others.logger(url, run)
    }
}

async fn run(rig: &Rig, steps: &serde_json::Value) {
    let mut pipeline = rig.pipeline("notified", &[]);
    pipeline["steps"] = steps.clone();
    rig.start(&rig.run("notified"), &pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_receivers_do_not_delay_others() {
    let (mut rig, _embedded) = rig().await;
    let transfer = Hanging::of(&rig);
    let node = new_node();
    let ports = Ports { transfer: Arc::clone(&transfer) as _, ..rig.ports.clone() };
    let node = rig.worker_with(options(node, 1), ports).await;
    let mut steps: Vec<_> = (0..20)
        .map(|number| json!({ "cmd": "exit 0", "callback": { "url": format!("http://slow-{number}/x") } }))
        .collect();
    steps.push(json!({ "cmd": "exit 0", "callback": { "url": "http://healthy/x" } }));
    run(&rig, &json!(steps)).await;
    transfer.until("the healthy receiver is notified", |it| it.taken.lock().len() == 2).await;
    assert_eq!(*transfer.taken.lock(), ["running", "success"]);
    assert_eq!(transfer.hanging().len(), 20, "all other receivers hang");
    rig.end_worker(&node).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backlog_of_a_hanging_receiver_does_not_delay_others() {
    let (mut rig, _embedded) = rig().await;
    let transfer = Hanging::of(&rig);
    for number in 0..350 {
        let news = Notification {
            pipeline: ("g".to_owned(), "n".to_owned()),
            trusted: false,
            url: "http://slow-one/x".to_owned(),
            secret: None,
            body: json!({ "status": "running" }),
            tries: 0,
            since: rig.ports.host.now().0,
            due: 0,
        };
        let key = names::callback_key(
            &format!("r-{number:03}").parse().unwrap(),
            StepPosition::new(0),
            0,
        );
        let txn = Txn::new().put(key, serde_json::to_vec(&news).unwrap());
        assert!(rig.ports.store.txn(txn).await.unwrap().committed);
    }
    let ports = Ports { transfer: Arc::clone(&transfer) as _, ..rig.ports.clone() };
    let node = rig.worker_with(options(new_node(), 1), ports).await;
    let slow = |it: &Hanging| it.hanging().get("http://slow-one/x").copied().unwrap_or_default();
    transfer.until("the slow receiver is called", |it| slow(it) == 4).await;
    run(&rig, &json!([{ "cmd": "exit 0", "callback": { "url": "http://healthy/x" } }])).await;
    transfer.until("the healthy receiver is notified", |it| it.taken.lock().len() == 2).await;
    assert_eq!(slow(&transfer), 4, "at most four calls are made at once");
    rig.end_worker(&node).await;
    rig.end().await;
}
