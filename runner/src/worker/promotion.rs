//! Gives places to waiting runs at their due time, whichever worker accepted them.
//!
//! The end of a run promotes the next one in the transaction of its ending. This loop promotes the runs
//! whose delay is over, and those for which a newer definition has more places.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use protocol::names;
use protocol::time::Millis;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::places::Places;
use super::retry::Retry;
use super::shared::Shared;
use super::watchdog::Heartbeat;
use crate::ports::{Change, Entry, StoreError, Txn};
use crate::rules::admission::next_promotion;

/// Spreads the attempts of workers that see the same due time.
const SPREAD: Duration = Duration::from_millis(200);
/// The interval between scans, because a watch can fall behind.
const SCAN_EVERY: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// Promotes waiting runs until `stop` is cancelled.
pub(super) async fn run(shared: Arc<Shared>, heartbeat: Heartbeat, stop: CancellationToken) {
    let mut retry = Retry::new(&*shared.ports.host, &heartbeat, RETRY_FIRST, RETRY_MOST);
    loop {
        let followed = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            followed = follow(&shared, &heartbeat) => followed,
        };
        match followed {
            Ok(()) => retry.reset(),
            Err(cause) => {
                warn!(%cause, "wait lists are read again");
                if retry.pause(&stop).await.is_break() {
                    return;
                }
            }
        }
    }
}

/// Reads all wait lists and follows their changes. Returns when the next scan is due.
async fn follow(shared: &Shared, heartbeat: &Heartbeat) -> Result<(), StoreError> {
    let store = &shared.ports.store;
    let scan = store.list(names::WAIT_LISTS).await?;
    let mut due: BTreeMap<String, Instant> = BTreeMap::new();
    for entry in &scan.entries {
        note(shared, &mut due, entry);
    }
    let mut changes = store.watch(names::WAIT_LISTS, scan.revision + 1).await?;
    let until = Instant::now() + SCAN_EVERY;
    loop {
        let next = due.values().min().copied().unwrap_or(until).min(until);
        let change = {
            let _waits = heartbeat.waits();
            tokio::select! {
                biased;
                change = changes.next() => Some(change),
                () = tokio::time::sleep_until(next) => None,
            }
        };
        match change {
            Some(Some(Ok(Change::Put(entry)))) => note(shared, &mut due, &entry),
            Some(Some(Ok(Change::Deleted { key, .. }))) => drop(due.remove(&key)),
            Some(Some(Err(cause))) => return Err(cause),
            Some(None) => return Ok(()),
            None if Instant::now() >= until => return Ok(()),
            None => {
                let now = Instant::now();
                let keys: Vec<String> =
                    due.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
                for key in keys {
                    heartbeat.beat();
                    due.remove(&key);
                    if let Some(entry) = promote(shared, &key).await? {
                        note(shared, &mut due, &entry);
                    }
                }
            }
        }
    }
}

/// Notes when a list next has something to promote.
fn note(shared: &Shared, due: &mut BTreeMap<String, Instant>, entry: &Entry) {
    let next = match Places::of(entry) {
        Ok(places) => next_promotion(places.list()),
        Err(cause) => return warn!(%cause, "a wait list is left to a worker of another version"),
    };
    match next {
        Some(Millis(at)) => {
            let Millis(now) = shared.ports.host.now();
            let wait = u64::try_from(at.saturating_sub(now)).unwrap_or(0);
            // The next scan finds everything that is due later.
            let wait = Duration::from_millis(wait).min(SCAN_EVERY);
            let wait = wait + shared.ports.host.jitter(SPREAD);
            due.insert(entry.key.clone(), Instant::now() + wait);
        }
        None => drop(due.remove(&entry.key)),
    }
}

/// Promotes the runs of a list that are due. If the list has changed meanwhile, the watch shows it.
/// Returns the list if no run of it is due yet: the wall clock can have been set back.
async fn promote(shared: &Shared, key: &str) -> Result<Option<Entry>, StoreError> {
    let store = &shared.ports.store;
    let Some(entry) = store.get(key).await? else { return Ok(None) };
    let mut places = Places::of(&entry)?;
    if !places.promote(shared.ports.host.now()) {
        return Ok(Some(entry));
    }
    if store.txn(places.write(Txn::new())?).await?.committed {
        for run in places.promoted() {
            info!(run.id = %run, "run {run} has got a place");
        }
    }
    Ok(None)
}
