//! Finds orphans and resumes them. Scans all open and owned runs, watches both from the scanned
//! revision on, and repeats the scan regularly, because watches can fall behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use protocol::id::RunId;
use protocol::names;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::claimant::Claimant;
use super::control::end_orphan;
use super::launch::Launch;
use super::lease::{Current, HeldLease};
use super::orphan::{Purpose, claim_orphan};
use super::orphan_action::{LOOK_EVERY, OrphanAction, next_action, waits_for_admission};
use super::records::owner_value;
use super::retry::Retry;
use super::shared::Shared;
use super::watchdog::Heartbeat;
use crate::ports::{Change, Entry, StoreError, Txn};
use crate::rules::run::StopWhy;

/// Spreads the attempts of workers that see the same orphan at the same time.
const SPREAD: Duration = Duration::from_millis(200);
/// The delay before a run is tried again that could not be claimed.
const AGAIN: Duration = Duration::from_millis(500);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// Rescues runs while there is a lease, until `stop` is cancelled.
pub(super) async fn run(
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
    mut lease: Current,
    stop: CancellationToken,
) {
    {
        let _waits = heartbeat.waits();
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = shared.room.known() => {}
        }
    }
    loop {
        let stands =
            |held: &Option<HeldLease>| held.as_ref().is_some_and(|h| !h.lost.is_cancelled());
        let held = {
            let _waits = heartbeat.waits();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                held = lease.wait_for(stands) => match held {
                    Ok(held) => held.clone(),
                    Err(_) => return,
                }
            }
        };
        let Some(held) = held else { continue };
        let mut rescue = Rescue {
            claimant: Claimant { shared: &shared, held: &held, heartbeat: &heartbeat },
            stop: &stop,
            orphans: BTreeMap::new(),
            slot: Slot::None,
        };
        rescue.until_over().await;
    }
}

/// A run without an owner.
#[derive(Debug, Clone, Copy)]
struct Orphan {
    /// When it was first seen without an owner.
    since: Instant,
    /// The time of the next attempt.
    due: Instant,
    /// How often it was found to need a worker of another version.
    complaints: u32,
}

enum Slot {
    None,
    Awaited(BoxFuture<'static, Option<OwnedSemaphorePermit>>),
    Free(OwnedSemaphorePermit),
}

struct Rescue<'a> {
    claimant: Claimant<'a>,
    stop: &'a CancellationToken,
    orphans: BTreeMap<RunId, Orphan>,
    slot: Slot,
}

impl Rescue<'_> {
    fn is_over(&self) -> bool {
        self.claimant.held.lost.is_cancelled() || self.stop.is_cancelled()
    }

    /// Scans and follows until the lease is lost or the worker stops.
    async fn until_over(&mut self) {
        let Claimant { shared, held, heartbeat } = self.claimant;
        let mut retry = Retry::new(&*shared.ports.host, heartbeat, RETRY_FIRST, RETRY_MOST);
        while !self.is_over() {
            match self.look_and_follow().await {
                Ok(()) => retry.reset(),
                Err(cause) => {
                    warn!(%cause, "runs without an owner are looked for anew");
                    tokio::select! {
                        biased;
                        () = held.lost.cancelled() => {}
                        () = self.stop.cancelled() => {}
                        () = retry.wait() => {}
                    }
                }
            }
        }
    }

    /// Scans once and follows the changes. Returns when the next scan is due.
    async fn look_and_follow(&mut self) -> Result<(), StoreError> {
        let Claimant { shared, held, heartbeat } = self.claimant;
        let store = &shared.ports.store;
        let look = Txn::new().read_prefix(names::OPEN).read_prefix(names::OWNERS);
        let look = store.txn(look).await?;
        self.on_scan(&look.reads);
        let mut changes = store.watch(names::OPEN_AND_OWNERS, look.revision + 1).await?;
        let until = Instant::now() + LOOK_EVERY;
        loop {
            if self.orphans.is_empty() {
                // Other workers were faster. Release the slot for the next run.
                self.slot = Slot::None;
            }
            let due = self.orphans.values().map(|orphan| orphan.due).min();
            let slot = async {
                match &mut self.slot {
                    Slot::Awaited(slot) => slot.await,
                    Slot::None | Slot::Free(_) => std::future::pending().await,
                }
            };
            let is_due = {
                let _waits = heartbeat.waits();
                tokio::select! {
                    biased;
                    () = held.lost.cancelled() => return Ok(()),
                    () = self.stop.cancelled() => return Ok(()),
                    change = changes.next() => {
                        match change {
                            Some(change) => self.changed(change?),
                            None => return Ok(()),
                        }
                        false
                    }
                    slot = slot => {
                        self.slot = slot.map_or(Slot::None, Slot::Free);
                        let now = Instant::now();
                        self.orphans.values_mut().for_each(|orphan| orphan.due = now);
                        false
                    }
                    () = tokio::time::sleep_until(due.unwrap_or(until).min(until)) => true,
                }
            };
            if is_due {
                if Instant::now() >= until {
                    return Ok(());
                }
                self.take_what_is_due().await?;
            }
        }
    }

    /// Processes a scan: the lists of open and of owned runs.
    fn on_scan(&mut self, reads: &[Vec<Entry>]) {
        let (open, owners) = (reads.first().into_iter().flatten(), reads.get(1));
        let Claimant { shared, held, .. } = self.claimant;
        let mine = owner_value(&shared.options.node, held.lease);
        let owned: BTreeSet<RunId> = owners
            .into_iter()
            .flatten()
            .filter_map(|owner| Some((run_of(&owner.key, names::OWNERS)?, owner)))
            // A run that this lease owns without a drive is a claim whose reply was lost. A claim
            // under an earlier lease of this node is left to expire with that lease.
            .filter(|(run, owner)| owner.value != mine || shared.roster.has(run))
            .map(|(run, _)| run)
            .collect();
        let orphans: BTreeSet<RunId> = open
            .filter(|entry| !waits_for_admission(&entry.value))
            .filter_map(|entry| run_of(&entry.key, names::OPEN))
            .filter(|run| !owned.contains(run))
            .collect();
        self.orphans.retain(|run, _| orphans.contains(run));
        for run in orphans {
            self.note(run);
        }
    }

    fn changed(&mut self, change: Change) {
        match change {
            Change::Put(entry) => {
                if let Some(run) = run_of(&entry.key, names::OWNERS) {
                    self.orphans.remove(&run);
                    // The run has a new owner, and its next loss is a different one.
                    self.claimant.shared.own_lost().remove(&run);
                } else if let Some(run) = run_of(&entry.key, names::OPEN)
                    && !waits_for_admission(&entry.value)
                {
                    // A waiting run has got a place. A new run has its owner from the same
                    // transaction on, which the next change shows.
                    self.note(run);
                }
            }
            Change::Deleted { key, .. } => {
                if let Some(run) = run_of(&key, names::OPEN) {
                    self.orphans.remove(&run);
                } else if let Some(run) = run_of(&key, names::OWNERS) {
                    self.note(run);
                }
            }
        }
    }

    fn note(&mut self, run: RunId) {
        let now = Instant::now();
        let due = now + self.claimant.shared.ports.host.jitter(SPREAD);
        self.orphans.entry(run).or_insert(Orphan { since: now, due, complaints: 0 });
    }

    async fn take_what_is_due(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        let mut due: Vec<(RunId, Orphan)> = self
            .orphans
            .iter()
            .filter(|(_, orphan)| orphan.due <= now)
            .map(|(run, orphan)| (run.clone(), *orphan))
            .collect();
        due.sort_by_key(|(_, orphan)| orphan.since);
        for (run, orphan) in due {
            self.claimant.heartbeat.beat();
            if self.is_over() {
                return Ok(());
            }
            let taken = match self.take(&run, orphan).await {
                // The other orphans may have valid epochs.
                Err(cause @ StoreError::Restored { .. }) => {
                    warn!(run.id = %run, %cause, "run {run} cannot be taken over");
                    Some(LOOK_EVERY)
                }
                taken => taken?,
            };
            match taken {
                None => drop(self.orphans.remove(&run)),
                Some(wait) => {
                    if let Some(orphan) = self.orphans.get_mut(&run) {
                        orphan.due = Instant::now() + wait;
                    }
                }
            }
        }
        if !matches!(self.slot, Slot::Awaited(_)) || self.orphans.is_empty() {
            self.slot = Slot::None;
        }
        Ok(())
    }

    /// Handles an orphan. Returns the delay before the next attempt, or `None` if nothing is left
    /// to do.
    async fn take(&mut self, run: &RunId, orphan: Orphan) -> Result<Option<Duration>, StoreError> {
        let Claimant { shared, held, .. } = self.claimant;
        if shared.roster.has(run) || shared.lost.has(run) {
            // This worker's previous drive of the run has not yet ended.
            return Ok(Some(AGAIN));
        }
        let (entry, purpose) = match next_action(shared, held, run, orphan.since).await? {
            OrphanAction::Settled => {
                shared.own_lost().remove(run);
                return Ok(None);
            }
            OrphanAction::NotYet(wait) => return Ok(Some(wait)),
            OrphanAction::NotForUs(why) => {
                self.complain(run, &why);
                return Ok(Some(LOOK_EVERY));
            }
            OrphanAction::Stopped(stop) => {
                return match end_orphan(self.claimant, run, &StopWhy::of_entry(stop)).await {
                    Ok(()) => Ok(Some(AGAIN)),
                    Err(cause) if cause.is_invalid_request() => {
                        warn!(run.id = %run, %cause, "run {run} cannot be stopped yet");
                        Ok(Some(LOOK_EVERY))
                    }
                    Err(cause) => Err(cause),
                };
            }
            OrphanAction::Ended(entry) => (entry, Purpose::End),
            OrphanAction::Open(entry) => {
                (entry, Purpose::Resume { lost: !shared.own_lost().contains(run) })
            }
        };
        let slot = match purpose {
            Purpose::End => None,
            Purpose::Resume { .. } => match self.free_slot() {
                Some(slot) => Some(slot),
                // It is tried again as soon as a slot is free.
                None => return Ok(Some(LOOK_EVERY)),
            },
        };
        claim(self.claimant, run, &entry, purpose, slot).await
    }

    /// Warns about a run that needs a worker of another version: at once, then at growing
    /// intervals.
    fn complain(&mut self, run: &RunId, why: &str) {
        let Some(orphan) = self.orphans.get_mut(run) else { return };
        orphan.complaints += 1;
        if orphan.complaints.is_power_of_two() {
            warn!(
                run.id = %run,
                "run {run} waits for a worker of another version: {why}; start one, or stop the run"
            );
        }
    }

    fn free_slot(&mut self) -> Option<OwnedSemaphorePermit> {
        match std::mem::replace(&mut self.slot, Slot::None) {
            Slot::Free(slot) => return Some(slot),
            Slot::Awaited(slot) => {
                self.slot = Slot::Awaited(slot);
                return None;
            }
            Slot::None => {}
        }
        let mut waiting = self.claimant.shared.wait_for_slot();
        if let Some(slot) = (&mut waiting).now_or_never() {
            return slot;
        }
        self.slot = Slot::Awaited(waiting);
        None
    }
}

/// Claims an orphan, and resumes it in the slot or ends it. Returns the delay before the next
/// attempt, or `None` if nothing is left to do.
async fn claim(
    claimant: Claimant<'_>,
    run: &RunId,
    entry: &Entry,
    purpose: Purpose,
    slot: Option<OwnedSemaphorePermit>,
) -> Result<Option<Duration>, StoreError> {
    let Claimant { shared, held, .. } = claimant;
    let Some(launch) = Launch::enter(shared, run) else { return Ok(Some(AGAIN)) };
    match claim_orphan(claimant, run, entry, purpose).await {
        Ok(Some((owned, past))) => {
            shared.own_lost().remove(run);
            match slot {
                // It waited until now, and no worker has driven it.
                Some(slot) if owned.record.attempt == 1 => {
                    launch.drive_admitted(held, owned, slot);
                }
                Some(slot) => {
                    info!(run.id = %run, previous = %past.node, "run {run} is taken over");
                    launch.resume(held, owned, past, slot);
                }
                None => launch.conclude(held, owned),
            }
            Ok(None)
        }
        // Another worker was faster, or a stop was recorded.
        Ok(None) => {
            launch.cancel();
            Ok(Some(AGAIN))
        }
        Err(cause) => {
            launch.cancel();
            if cause.is_invalid_request() {
                warn!(run.id = %run, %cause, "run {run} cannot be taken over");
                return Ok(Some(LOOK_EVERY));
            }
            Err(cause)
        }
    }
}

fn run_of(key: &str, prefix: &str) -> Option<RunId> {
    key.strip_prefix(prefix)?.parse().ok()
}
