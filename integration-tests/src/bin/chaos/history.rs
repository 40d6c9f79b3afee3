//! Records every change of etcd below `bob.` from the first revision, despite failures of its
//! members.

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

/// The timeout of a request. The contacted member can be down.
const CALL: Duration = Duration::from_secs(3);
/// How often a request is tried.
const TRIES: usize = 6;
/// The pause after a broken watch.
const AGAIN: Duration = Duration::from_millis(200);

async fn client(url: &str) -> anyhow::Result<Client> {
    let options = ConnectOptions::new()
        .with_connect_timeout(CALL)
        .with_keep_alive(Duration::from_secs(1), CALL)
        .with_keep_alive_while_idle(true)
        .with_require_leader(true);
    Ok(tokio::time::timeout(CALL, Client::connect([url], Some(options))).await??)
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

    /// A run's current record. `None` if no member answers.
    pub(crate) async fn of(&self, run: &protocol::id::RunId) -> Option<ReadRecord> {
        for url in self.urls.iter().cycle().take(TRIES) {
            let reading = tokio::time::timeout(CALL, read(url, &names::run_key(run))).await;
            if let Ok(Ok(found)) = reading {
                return found;
            }
        }
        None
    }

    /// The number of the leading member, counted from 1. `None` if it is unknown.
    pub(crate) async fn leader(&self) -> Option<usize> {
        for (place, url) in self.urls.iter().enumerate() {
            let asking = async {
                let status = client(url).await?.status().await?;
                let header = status.header().context("a header")?;
                anyhow::Ok(header.member_id() == status.leader())
            };
            if let Ok(Ok(true)) = tokio::time::timeout(CALL, asking).await {
                return Some(place + 1);
            }
        }
        None
    }

    async fn revision(&self) -> anyhow::Result<i64> {
        let mut last = anyhow::anyhow!("no etcd member answers");
        for url in self.urls.iter().cycle().take(TRIES) {
            let asking = async {
                let got = client(url).await?.get("bob.", None).await?;
                Ok(got.header().context("a header")?.revision())
            };
            match tokio::time::timeout(CALL, asking).await {
                Ok(Ok(revision)) => return Ok(revision),
                Ok(Err(cause)) => last = cause,
                Err(late) => last = late.into(),
            }
        }
        Err(last)
    }
}

async fn read(url: &str, key: &str) -> anyhow::Result<Option<ReadRecord>> {
    let got = client(url).await?.get(key, None).await?;
    let Some(entry) = got.kvs().first() else { return Ok(None) };
    let record = serde_json::from_slice(entry.value())?;
    Ok(Some(ReadRecord { revision: entry.mod_revision(), record }))
}

/// The changes seen so far.
#[derive(Debug, Default)]
pub(crate) struct SeenChanges {
    changes: Vec<Change>,
    /// The current values.
    live: BTreeMap<String, Vec<u8>>,
    /// The record keys of ended runs.
    ended: BTreeSet<String>,
    revision: i64,
}

impl SeenChanges {
    fn take(&mut self, change: Change) {
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

    /// The number of ended runs.
    pub(crate) fn ended(&self) -> usize {
        self.ended.len()
    }

    /// The current keys below a prefix.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let below = self.live.range(prefix.to_owned()..);
        below.map(|(key, _)| key.clone()).take_while(|key| key.starts_with(prefix)).collect()
    }

    /// The number of nodes that are ready.
    pub(crate) fn ready(&self) -> usize {
        let nodes = self.keys(names::NODES);
        let states = nodes.iter().filter_map(|key| {
            let node: Value = serde_json::from_slice(&self.live[key]).ok()?;
            Some(node["state"] == "ready")
        });
        states.filter(|ready| *ready).count()
    }
}

fn is_ended(record: &[u8]) -> bool {
    serde_json::from_slice::<RunRecord>(record).is_ok_and(|record| record.status.is_ended())
}

/// A running recorder. Dropping it ends the recording.
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
        let task = TaskTracker::new().spawn(record(
            records.urls.clone(),
            Arc::clone(&seen),
            changed.clone(),
        ));
        Self { records, seen, changed, task }
    }

    /// Waits until `holds` is true for the changes seen. `false` after the timeout.
    pub(crate) async fn until(
        &self,
        within: Duration,
        holds: impl Fn(&SeenChanges) -> bool,
    ) -> bool {
        let mut changed = self.changed.subscribe();
        let waiting = changed.wait_for(|()| holds(&lock(&self.seen)));
        tokio::time::timeout(within, waiting).await.is_ok()
    }

    /// Reads the changes seen so far.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&SeenChanges) -> T) -> T {
        at(&lock(&self.seen))
    }

    /// All changes up to now.
    pub(crate) async fn changes(&self) -> anyhow::Result<Vec<Change>> {
        // Only keys below `bob.` are written, so the watch will see the newest revision.
        let newest = self.records.revision().await?;
        let all = self.until(Duration::from_secs(60), |seen| seen.revision >= newest).await;
        ensure!(all, "the history ends at {}, before {newest}", self.look(|seen| seen.revision));
        Ok(self.look(|seen| seen.changes.clone()))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn record(urls: Vec<String>, seen: Arc<Mutex<SeenChanges>>, changed: watch::Sender<()>) {
    for url in urls.iter().cycle() {
        // If a member is down or has no leader, continue with the next one.
        drop(follow(url, &seen, &changed).await);
        tokio::time::sleep(AGAIN).await;
    }
}

async fn follow(
    url: &str,
    seen: &Mutex<SeenChanges>,
    changed: &watch::Sender<()>,
) -> anyhow::Result<()> {
    let from = lock(seen).revision + 1;
    let options = WatchOptions::new().with_prefix().with_start_revision(from);
    let mut client = client(url).await?;
    let mut changes = tokio::time::timeout(CALL, client.watch("bob.", Some(options))).await??;
    while let Some(change) = changes.message().await? {
        ensure!(change.compact_revision() == 0, "the history was compacted");
        ensure!(!change.canceled(), "the watch was ended");
        let at = now();
        {
            let mut seen = lock(seen);
            for event in change.events() {
                let entry = event.kv().context("an entry")?;
                let value = (event.event_type() == EventType::Put).then(|| entry.value().to_vec());
                seen.take(Change {
                    key: entry.key_str()?.to_owned(),
                    value,
                    revision: entry.mod_revision(),
                    seen: at,
                });
            }
        }
        changed.send_replace(());
    }
    Ok(())
}
