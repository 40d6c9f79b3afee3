//! Access to etcd with a plain client.

use etcd_client::{Client, EventType, GetOptions, WatchOptions};
use serde_json::Value;

use crate::place::in_time;

/// The store.
#[derive(Clone)]
pub(crate) struct Keys {
    client: Client,
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("every value is JSON")
}

impl Keys {
    pub(crate) async fn connect(urls: &str) -> Self {
        let urls: Vec<&str> = urls.split(',').collect();
        Self { client: Client::connect(urls, None).await.unwrap() }
    }

    pub(crate) async fn put(&self, key: &str, value: &Value) {
        self.client.clone().put(key, value.to_string(), None).await.unwrap();
    }

    pub(crate) async fn get(&self, key: &str) -> Option<Value> {
        let got = self.client.clone().get(key, None).await.unwrap();
        got.kvs().first().map(|entry| json(entry.value()))
    }

    /// Waits for the first value below a prefix that matches a condition.
    pub(crate) async fn below(&mut self, prefix: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let options = GetOptions::new().with_prefix();
        let got = self.client.get(prefix, Some(options)).await.unwrap();
        let values = got.kvs().iter().map(|entry| json(entry.value()));
        if let Some(found) = values.into_iter().find(&holds) {
            return found;
        }
        let next = got.header().unwrap().revision() + 1;
        let options = WatchOptions::new().with_prefix().with_start_revision(next);
        let mut changes = self.client.watch(prefix, Some(options)).await.unwrap();
        let watching = async {
            while let Some(change) = changes.message().await.unwrap() {
                for event in change.events() {
                    let Some(entry) = event.kv().filter(|_| event.event_type() == EventType::Put)
                    else {
                        continue;
                    };
                    let value = json(entry.value());
                    if holds(&value) {
                        return value;
                    }
                }
            }
            panic!("the watch of {prefix} has ended");
        };
        in_time(&format!("the expected entry below {prefix}"), watching).await
    }

    /// Waits until a key does not exist.
    pub(crate) async fn gone(&mut self, key: &str) {
        let got = self.client.get(key, None).await.unwrap();
        if got.kvs().is_empty() {
            return;
        }
        let next = got.header().unwrap().revision() + 1;
        let options = WatchOptions::new().with_start_revision(next);
        let mut changes = self.client.watch(key, Some(options)).await.unwrap();
        let watching = async {
            while let Some(change) = changes.message().await.unwrap() {
                if change.events().iter().any(|event| event.event_type() == EventType::Delete) {
                    return;
                }
            }
            panic!("the watch of {key} has ended");
        };
        in_time(&format!("that {key} goes"), watching).await;
    }

    /// Waits until the record of a run matches a condition.
    pub(crate) async fn record(&self, run: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let key = format!("bob.pipeline.run/{run}");
        self.clone().below(&key, |record| record["run-id"] == run && holds(record)).await
    }

    /// Waits until a run has ended and its ending event is published.
    pub(crate) async fn settled(&self, run: &str) -> Value {
        let is_ended =
            |status: &Value| ["passed", "failed", "stopped"].iter().any(|ending| status == ending);
        self.record(run, |record| {
            is_ended(&record["status"]) && record.get("ending-event").is_none()
        })
        .await
    }

    /// Every value that a key has had, oldest first.
    pub(crate) async fn history(&self, key: &str) -> Vec<Value> {
        let mut client = self.client.clone();
        let got = client.get(key, None).await.unwrap();
        let entry = got.kvs().first().expect("the key is there");
        let (first, last) = (entry.create_revision(), entry.mod_revision());
        let options = WatchOptions::new().with_start_revision(first);
        let mut changes = client.watch(key, Some(options)).await.unwrap();
        let mut held = Vec::new();
        let reading = async {
            loop {
                let change = changes.message().await.unwrap().expect("the watch continues");
                assert_eq!(change.compact_revision(), 0, "the history is still there");
                for event in change.events() {
                    let entry = event.kv().expect("an entry");
                    held.push(json(entry.value()));
                    if entry.mod_revision() == last {
                        return;
                    }
                }
            }
        };
        in_time("the history of a key", reading).await;
        held
    }
}
