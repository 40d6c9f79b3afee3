//! Records every change in etcd to keys with the prefix `bob.`, from the first revision on. If a
//! member fails, the recorder continues with the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use etcd_client::{Client, ConnectOptions, EventType, WatchOptions};
use parking_lot::{Mutex, MutexGuard};
use protocol::names;
use protocol::run::RunRecord;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::facts::{Change, ReadRecord, now};

/// Timeout for connecting, for a request and for a keep-alive. The contacted member can be down.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// The number of times a request is tried, on each member in turn.
const MAX_TRIES: usize = 6;
/// The delay before a broken watch is opened again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

async fn connect(url: &str) -> anyhow::Result<Client> {
    let options = ConnectOptions::new()
        .with_connect_timeout(REQUEST_TIMEOUT)
        .with_keep_alive(Duration::from_secs(1), REQUEST_TIMEOUT)
        .with_keep_alive_while_idle(true)
        .with_require_leader(true);
    Ok(tokio::time::timeout(REQUEST_TIMEOUT, Client::connect([url], Some(options))).await??)
}

/// Reads records from etcd.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    urls: Vec<String>,
}

impl Records {
    pub(crate) fn new(urls: Vec<String>) -> Self {
        Self { urls }
    }

    /// A run's current record. `None` if it does not exist or no member answers.
    pub(crate) async fn of(&self, run: &protocol::id::RunId) -> Option<ReadRecord> {
        for url in self.urls.iter().cycle().take(MAX_TRIES) {
            let result =
                tokio::time::timeout(REQUEST_TIMEOUT, read_record(url, &names::run_key(run))).await;
            if let Ok(Ok(record)) = result {
                return record;
            }
        }
        None
    }

    /// The number of the leading member, counted from 1. `None` if it is unknown.
    pub(crate) async fn leader(&self) -> Option<usize> {
        for (index, url) in self.urls.iter().enumerate() {
            let request = async {
                let status = connect(url).await?.status().await?;
                let header = status.header().context("an etcd response has no header")?;
                anyhow::Ok(header.member_id() == status.leader())
            };
            if let Ok(Ok(true)) = tokio::time::timeout(REQUEST_TIMEOUT, request).await {
                return Some(index + 1);
            }
        }
        None
    }

    async fn revision(&self) -> anyhow::Result<i64> {
        let mut error = anyhow::anyhow!("no etcd member answers");
        for url in self.urls.iter().cycle().take(MAX_TRIES) {
            let request = async {
                let response = connect(url).await?.get("bob.", None).await?;
                Ok(response.header().context("an etcd response has no header")?.revision())
            };
            match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
                Ok(Ok(revision)) => return Ok(revision),
                Ok(Err(cause)) => error = cause,
                Err(elapsed) => error = elapsed.into(),
            }
        }
        Err(error)
    }
}

async fn read_record(url: &str, key: &str) -> anyhow::Result<Option<ReadRecord>> {
    let response = connect(url).await?.get(key, None).await?;
    let Some(entry) = response.kvs().first() else { return Ok(None) };
    let record = serde_json::from_slice(entry.value())?;
    Ok(Some(ReadRecord { revision: entry.mod_revision(), record }))
}

/// The changes seen so far.
#[derive(Debug, Default)]
pub(crate) struct SeenChanges {
    changes: Vec<Change>,
    /// The current value of each key.
    live: BTreeMap<String, Vec<u8>>,
    /// The record keys of ended runs.
    ended: BTreeSet<String>,
    /// The revision of the newest change.
    revision: i64,
}

impl SeenChanges {
    fn add(&mut self, change: Change) {
        self.revision = change.revision;
        match &change.value {
            Some(value) => {
                if change.key.starts_with(names::RUNS) && is_ended(value) {
                    self.ended.insert(change.key.clone());
                }
                self.live.insert(change.key.clone(), value.clone());
            }
            None => drop(self.live.remove(&change.key)),
        }
        self.changes.push(change);
    }

    /// Whether a run has a record.
    pub(crate) fn is_accepted(&self, run: &protocol::id::RunId) -> bool {
        self.live.contains_key(&names::run_key(run))
    }

    /// The number of ended runs.
    pub(crate) fn ended(&self) -> usize {
        self.ended.len()
    }

    /// The current keys with a prefix.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let entries = self.live.range(prefix.to_owned()..);
        entries.map(|(key, _)| key.clone()).take_while(|key| key.starts_with(prefix)).collect()
    }

    /// The number of nodes that are ready.
    pub(crate) fn ready(&self) -> usize {
        let keys = self.keys(names::NODES);
        let states = keys.iter().filter_map(|key| {
            let node: Value = serde_json::from_slice(&self.live[key]).ok()?;
            Some(node["state"] == "ready")
        });
        states.filter(|ready| *ready).count()
    }
}

fn is_ended(record: &[u8]) -> bool {
    serde_json::from_slice::<RunRecord>(record).is_ok_and(|record| record.status.is_ended())
}

/// Records changes in a background task. Dropping the recorder ends the task.
#[derive(Debug)]
pub(crate) struct Recorder {
    records: Records,
    seen: Arc<Mutex<SeenChanges>>,
    changed: watch::Sender<()>,
    task: JoinHandle<()>,
}

fn lock(seen: &Mutex<SeenChanges>) -> MutexGuard<'_, SeenChanges> {
    seen.lock()
}

impl Recorder {
    pub(crate) fn start(records: Records) -> Self {
        let seen: Arc<Mutex<SeenChanges>> = Arc::default();
        let changed = watch::Sender::new(());
        let task = TaskTracker::new().spawn(record_changes(
            records.urls.clone(),
            Arc::clone(&seen),
            changed.clone(),
        ));
        Self { records, seen, changed, task }
    }

    /// Waits until `holds` is true for the changes seen so far. Returns `false` on timeout.
    pub(crate) async fn until(
        &self,
        timeout: Duration,
        holds: impl Fn(&SeenChanges) -> bool,
    ) -> bool {
        let mut changed = self.changed.subscribe();
        let waiting = changed.wait_for(|()| holds(&lock(&self.seen)));
        tokio::time::timeout(timeout, waiting).await.is_ok()
    }

    /// Calls `read` with the changes seen so far.
    pub(crate) fn look<T>(&self, read: impl FnOnce(&SeenChanges) -> T) -> T {
        read(&lock(&self.seen))
    }

    /// All changes up to etcd's current revision.
    pub(crate) async fn changes(&self) -> anyhow::Result<Vec<Change>> {
        // Nothing writes other keys, so the watch reaches the newest revision.
        let newest = self.records.revision().await?;
        let is_complete = self.until(Duration::from_secs(60), |seen| seen.revision >= newest).await;
        ensure!(
            is_complete,
            "the history ends at revision {}, before {newest}",
            self.look(|seen| seen.revision)
        );
        Ok(self.look(|seen| seen.changes.clone()))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn record_changes(
    urls: Vec<String>,
    seen: Arc<Mutex<SeenChanges>>,
    changed: watch::Sender<()>,
) {
    for url in urls.iter().cycle() {
        // If a member is down or has no leader, continue with the next one.
        drop(follow(url, &seen, &changed).await);
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

async fn follow(
    url: &str,
    seen: &Mutex<SeenChanges>,
    changed: &watch::Sender<()>,
) -> anyhow::Result<()> {
    let start_revision = lock(seen).revision + 1;
    let options = WatchOptions::new().with_prefix().with_start_revision(start_revision);
    let mut client = connect(url).await?;
    let mut responses =
        tokio::time::timeout(REQUEST_TIMEOUT, client.watch("bob.", Some(options))).await??;
    while let Some(response) = responses.message().await? {
        ensure!(response.compact_revision() == 0, "the history was compacted");
        ensure!(!response.canceled(), "etcd canceled the watch");
        let seen_at = now();
        {
            let mut seen = lock(seen);
            for event in response.events() {
                let entry = event.kv().context("a watch event has no entry")?;
                let value = (event.event_type() == EventType::Put).then(|| entry.value().to_vec());
                seen.add(Change {
                    key: entry.key_str()?.to_owned(),
                    value,
                    revision: entry.mod_revision(),
                    seen: seen_at,
                });
            }
        }
        changed.send_replace(());
    }
    Ok(())
}
