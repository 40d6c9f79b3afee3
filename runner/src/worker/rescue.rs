//! Finds runs that nobody looks after, and goes on with them: a look at what is open and what is
//! owned, then a watch from there, and another look every now and then, as watches can fall behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use protocol::definition::Stored;
use protocol::id::RunId;
use protocol::names;
use protocol::run::{NodeEntry, NodeState, Open, RunRecord, StepStatus, StopEntry};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Shared;
use super::claim::read_record;
use super::control::end_orphan;
use super::launch::Launch;
use super::lease::{Current, Held};
use super::ledger::owner_value;
use super::orphan::{Purpose, claim_orphan};
use super::watchdog::{self, beat};
use crate::ports::{Change, Entry, StoreError, Txn};
use crate::rules::quota::{self, Fit};

/// The time between two looks where nothing else asks for one.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Of several workers that see the same run orphaned, one is the first.
const SPREAD: Duration = Duration::from_millis(200);
/// How long workers on the engine that holds the last image go first, where all can have it.
const THEIRS_FIRST: Duration = Duration::from_secs(1);
/// How long a run is left alone that could not be taken.
const AGAIN: Duration = Duration::from_millis(500);
/// When a run is looked at again for which there is no memory here.
const NO_MEMORY: Duration = Duration::from_secs(5);
/// The same for want of room on the engine's disk.
const NO_ROOM: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// Rescues for as long as there is a lease, until the worker takes nothing any more.
pub(super) async fn run(shared: Arc<Shared>, mut lease: Current, stop: CancellationToken) {
    {
        let _waits = watchdog::waits();
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = shared.room.known() => {}
        }
    }
    loop {
        let stands = |held: &Option<Held>| held.as_ref().is_some_and(|h| !h.lost.is_cancelled());
        let held = {
            let _waits = watchdog::waits();
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
            shared: &shared,
            held: &held,
            stop: &stop,
            orphans: BTreeMap::new(),
            slot: Slot::None,
        };
        rescue.under_lease().await;
    }
}

/// A run without an owner.
#[derive(Debug, Clone, Copy)]
struct Orphan {
    /// When it was first seen so.
    since: Instant,
    /// When it is looked at next.
    due: Instant,
    /// How often it was found to be for a worker of another version.
    complaints: u32,
}

enum Slot {
    None,
    Awaited(BoxFuture<'static, Option<OwnedSemaphorePermit>>),
    Free(OwnedSemaphorePermit),
}

struct Rescue<'a> {
    shared: &'a Arc<Shared>,
    held: &'a Held,
    stop: &'a CancellationToken,
    orphans: BTreeMap<RunId, Orphan>,
    slot: Slot,
}

/// What is to be done with a run that was found without an owner.
enum Found {
    /// Nothing: it is looked after.
    Settled,
    /// Its ending is recorded: it is to be published, and the run let go.
    Ended(Entry),
    /// Somebody has stopped it.
    Stopped(StopEntry),
    /// It is to go on.
    Open(Entry),
    /// Others are to be given the time.
    NotYet(Duration),
    /// Only a worker of another version can drive it: the sentence.
    NotForUs(String),
}

impl Rescue<'_> {
    fn is_over(&self) -> bool {
        self.held.lost.is_cancelled() || self.stop.is_cancelled()
    }

    async fn under_lease(&mut self) {
        let mut wait = RETRY_FIRST;
        while !self.is_over() {
            match self.look_and_follow().await {
                Ok(()) => wait = RETRY_FIRST,
                Err(cause) => {
                    warn!(%cause, "runs without an owner are looked for anew");
                    let _waits = watchdog::waits();
                    tokio::select! {
                        biased;
                        () = self.held.lost.cancelled() => {}
                        () = self.stop.cancelled() => {}
                        () = tokio::time::sleep(wait) => {}
                    }
                    wait = (wait * 2).min(RETRY_MOST);
                }
            }
        }
    }

    /// One look, and what follows on it. Ends when it is time for the next.
    async fn look_and_follow(&mut self) -> Result<(), StoreError> {
        let store = &self.shared.ports.store;
        let look = Txn::new().read_prefix(names::OPEN).read_prefix(names::OWNERS);
        let look = store.txn(look).await?;
        self.saw(&look.reads);
        let mut changes = store.watch(names::OPEN_AND_OWNERS, look.revision + 1).await?;
        let until = Instant::now() + LOOK_EVERY;
        loop {
            if self.orphans.is_empty() {
                // Others were faster: the slot is for whatever comes next.
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
                let _waits = watchdog::waits();
                tokio::select! {
                    biased;
                    () = self.held.lost.cancelled() => return Ok(()),
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

    /// Notes what a look has shown: lists of what is open, and of what is owned.
    fn saw(&mut self, reads: &[Vec<Entry>]) {
        let (open, owners) = (reads.first().into_iter().flatten(), reads.get(1));
        let mine = owner_value(&self.shared.options.node, self.held.lease);
        let owned: BTreeSet<RunId> = owners
            .into_iter()
            .flatten()
            .filter_map(|owner| Some((run_of(&owner.key, names::OWNERS)?, owner)))
            // What this lease owns and nobody here drives is a claim whose answer was lost. A claim under
            // an earlier lease of this node is left to end with that lease.
            .filter(|(run, owner)| owner.value != mine || self.shared.roster.has(run))
            .map(|(run, _)| run)
            .collect();
        let orphans: BTreeSet<RunId> = open
            .filter(|entry| !waits(&entry.value))
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
                    // Whoever has it now, the next loss of it is not this one.
                    self.shared.own_lost().remove(&run);
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
        let due = now + self.shared.ports.host.jitter(SPREAD);
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
            beat();
            if self.is_over() {
                return Ok(());
            }
            let taken = match self.take(&run, orphan).await {
                // The others' epochs may be good.
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

    /// Does what is to be done with a run. `None`: nothing is left to do for us; else when to look
    /// again.
    async fn take(&mut self, run: &RunId, orphan: Orphan) -> Result<Option<Duration>, StoreError> {
        let (shared, held) = (self.shared, self.held);
        if shared.roster.has(run) || shared.is_to_be_ended(run) {
            // It is one of ours that has not gone yet.
            return Ok(Some(AGAIN));
        }
        let (entry, purpose) = match find(shared, held, run, orphan).await? {
            Found::Settled => {
                shared.own_lost().remove(run);
                return Ok(None);
            }
            Found::NotYet(wait) => return Ok(Some(wait)),
            Found::NotForUs(why) => {
                self.complain(run, &why);
                return Ok(Some(LOOK_EVERY));
            }
            Found::Stopped(stop) => {
                return match end_orphan(shared, held, run, &stop.reason).await {
                    Ok(()) => Ok(Some(AGAIN)),
                    Err(cause) if cause.is_of_the_request() => {
                        warn!(run.id = %run, %cause, "run {run} cannot be stopped yet");
                        Ok(Some(LOOK_EVERY))
                    }
                    Err(cause) => Err(cause),
                };
            }
            Found::Ended(entry) => (entry, Purpose::End),
            Found::Open(entry) => (entry, Purpose::GoOn { lost: !shared.own_lost().contains(run) }),
        };
        let slot = match purpose {
            Purpose::End => None,
            Purpose::GoOn { .. } => match self.free_slot() {
                Some(slot) => Some(slot),
                // As soon as one is free it is looked at again.
                None => return Ok(Some(LOOK_EVERY)),
            },
        };
        let Some(launch) = Launch::enter(shared, run) else { return Ok(Some(AGAIN)) };
        match claim_orphan(shared, held, run, &entry, purpose).await {
            Ok(Some(orphan)) => {
                shared.own_lost().remove(run);
                match slot {
                    Some(slot) => {
                        info!(run.id = %run, previous = %orphan.past.node, "run {run} is taken over");
                        launch.resume(held, orphan, slot);
                    }
                    None => launch.conclude(held, orphan),
                }
                Ok(None)
            }
            // Somebody was faster, or has stopped it.
            Ok(None) => {
                launch.cancel();
                Ok(Some(AGAIN))
            }
            Err(cause) => {
                launch.cancel();
                if cause.is_of_the_request() {
                    warn!(run.id = %run, %cause, "run {run} cannot be taken over");
                    return Ok(Some(LOOK_EVERY));
                }
                Err(cause)
            }
        }
    }

    /// Warns about a run that waits for a worker of another version: at the first look, and then at
    /// growing intervals.
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
        let mut waiting = self.shared.wait_for_slot();
        if let Some(slot) = (&mut waiting).now_or_never() {
            return slot;
        }
        self.slot = Slot::Awaited(waiting);
        None
    }
}

/// What stands of a run, and so what is to be done with it.
async fn find(
    shared: &Shared,
    held: &Held,
    run: &RunId,
    orphan: Orphan,
) -> Result<Found, StoreError> {
    let look = Txn::new()
        .read(names::run_key(run))
        .read(names::open_key(run))
        .read(names::owner_key(run))
        .read(names::stop_key(run))
        .read(names::definition_key(run));
    let look = shared.ports.store.txn(look).await?;
    let mine = owner_value(&shared.options.node, held.lease);
    let owned = look.entry(2).is_some_and(|owner| owner.value != mine);
    let (Some(entry), Some(open), false) = (look.entry(0), look.entry(1), owned) else {
        return Ok(Found::Settled);
    };
    if waits(&open.value) {
        return Ok(Found::Settled);
    }
    let Stored { record, unknown, .. } = match read_record(run, entry, look.entry(4)) {
        Ok(stored) => stored,
        Err(cause) => return Ok(Found::NotForUs(cause.to_string())),
    };
    if record.status.is_ended() {
        return Ok(Found::Ended(entry.clone()));
    }
    if let Some(stop) = look.entry(3) {
        let unsaid =
            StopEntry { reason: None, by: shared.options.node.clone(), at: record.scheduled_at };
        return Ok(Found::Stopped(serde_json::from_slice(&stop.value).unwrap_or(unsaid)));
    }
    if let Some(key) = unknown {
        return Ok(Found::NotForUs(format!(
            "its definition has the key `{key}`, which this version does not know"
        )));
    }
    if !shared.room.is_there() || shared.writes.refused().is_some() {
        return Ok(Found::NotYet(NO_ROOM));
    }
    if record.pipeline.as_ref().is_some_and(|pipeline| shared.lacks(pipeline).is_some()) {
        return Ok(Found::NotYet(LOOK_EVERY));
    }
    if let Some(pipeline) = &record.pipeline
        && !matches!(quota::fit(pipeline, shared.ports.host.memory()), Fit::Now)
    {
        return Ok(Found::NotYet(NO_MEMORY));
    }
    if let Some(wait) = is_for_others(shared, &record, orphan).await? {
        return Ok(Found::NotYet(wait));
    }
    // Or each of an engine's workers would take the run, meet the same, and count as a loss.
    if let Err(cause) = shared.ports.executor.answers().await {
        warn!(run.id = %run, %cause, "run {run} waits for the engine");
        shared.room.engine_went(None);
        return Ok(Found::NotYet(NO_ROOM));
    }
    Ok(Found::Open(entry.clone()))
}

/// Whether the engine that holds what the run has come to is another one, and how long its workers
/// are given.
async fn is_for_others(
    shared: &Shared,
    record: &RunRecord,
    orphan: Orphan,
) -> Result<Option<Duration>, StoreError> {
    let passed = record.steps.iter().rev().find(|step| step.status == StepStatus::Passed);
    let Some((step, engine)) = passed.and_then(|step| Some((step, step.engine.as_ref()?))) else {
        return Ok(None);
    };
    if *engine == shared.engine.id {
        return Ok(None);
    }
    if step.digest.is_some() && shared.engine.checkpoints {
        // It need not be fetched where it is.
        let left = THEIRS_FIRST.saturating_sub(orphan.since.elapsed());
        return Ok((!left.is_zero()).then_some(left));
    }
    let ttl = shared.options.lease_ttl;
    let left = (ttl * 2).saturating_sub(orphan.since.elapsed());
    if !left.is_zero() {
        return Ok(Some(left));
    }
    let nodes = shared.ports.store.list(names::NODES).await?;
    let can = |node: &NodeEntry| {
        node.engine == *engine && node.state == NodeState::Ready && !node.engine_away
    };
    let there = nodes
        .entries
        .iter()
        .filter_map(|entry| serde_json::from_slice(&entry.value).ok())
        .any(|node| can(&node));
    Ok(there.then_some(ttl))
}

fn run_of(key: &str, prefix: &str) -> Option<RunId> {
    key.strip_prefix(prefix)?.parse().ok()
}

/// Whether it waits in its pipeline's queue, which is no business of ours.
fn waits(open: &[u8]) -> bool {
    serde_json::from_slice::<Open>(open).is_ok_and(|open| open.waiting_in.is_some())
}
