//! Checks the invariants against everything that was written, published and run.
//!
//! They are numbered as in the reliability document.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::event::{Event, Reason};
use protocol::id::{RunId, StepName};
use protocol::names;
use protocol::run::{Cause, RunRecord, Status, StepRecord, StepStatus};
use protocol::wait_list::WaitList;

use crate::cluster::{MAX_LOSSES, run_id};
use crate::engine::Executed;
use crate::plan::{RunPlan, is_call};
use crate::store::StoreChange;
use crate::world::{World, lock};

/// A version of a record.
struct Version {
    revision: i64,
    record: RunRecord,
}

/// Everything known about one run.
struct RunHistory<'a> {
    plan: &'a RunPlan,
    run: RunId,
    versions: Vec<Version>,
    /// The revisions at which its owner keys were created: the epochs, in order.
    epochs: Vec<i64>,
    /// The revision of the first recorded stop.
    stopped: Option<i64>,
    told: Vec<&'a Event>,
    executed: Vec<Executed>,
}

impl<'a> RunHistory<'a> {
    fn of(plan: &'a RunPlan, journal: &[StoreChange], told: &'a [Event], world: &World) -> Self {
        let run = run_id(plan);
        let of = |key: &str| journal.iter().filter(move |made| made.key == key).collect::<Vec<_>>();
        let versions = of(&names::run_key(&run))
            .into_iter()
            .filter_map(|made| {
                let record = serde_json::from_slice(made.value.as_ref()?).ok()?;
                Some(Version { revision: made.revision, record })
            })
            .collect();
        let owners = of(&names::owner_key(&run));
        let epochs = owners.iter().filter(|made| made.value.is_some()).map(|made| made.revision);
        let stops = of(&names::stop_key(&run));
        let stopped = stops.iter().find(|made| made.value.is_some()).map(|made| made.revision);
        let executed = world.engines.iter().flat_map(crate::engine::Engine::journal);
        Self {
            versions,
            epochs: epochs.collect(),
            stopped,
            told: told.iter().filter(|told| told.run_id.as_ref() == Some(&run)).collect(),
            executed: executed.filter(|executed| executed.run == run).collect(),
            plan,
            run,
        }
    }

    fn last(&self) -> Option<&RunRecord> {
        self.versions.last().map(|version| &version.record)
    }

    /// Whether a step must not run twice.
    fn is_call(&self, position: usize) -> bool {
        self.plan.steps.get(position).is_some_and(|step| is_call(step))
    }

    /// Whether a step that must not run twice was ever recorded as started.
    fn began_a_call(&self) -> bool {
        let calls = (0..self.plan.steps.len()).filter(|position| self.is_call(*position));
        let begun = |position: usize| {
            self.versions.iter().any(|version| of(&version.record, position).is_some())
        };
        calls.into_iter().any(begun)
    }

    /// The record at a revision.
    fn at(&self, revision: i64) -> Option<&RunRecord> {
        let stood = self.versions.iter().rev().find(|version| version.revision <= revision);
        stood.map(|version| &version.record)
    }

    /// The events of one epoch without duplicates, ordered by number.
    fn events(&self, epoch: i64) -> BTreeMap<u64, &Event> {
        let of_epoch = self.told.iter().copied();
        of_epoch
            .filter(|event| event.epoch.map(|epoch| epoch.0) == Some(epoch))
            .filter_map(|event| Some((event.seq?, event)))
            .collect()
    }

    /// Whether the owner of an epoch finished or released the run in an orderly way.
    fn was_kept(&self, epoch: i64) -> bool {
        let of_epoch = |version: &&Version| version.record.epoch.map(|at| at.0) == Some(epoch);
        let last = self.versions.iter().rev().find(of_epoch).map(|version| &version.record);
        last.is_some_and(|record| record.status.is_ended() || record.released.is_some())
    }

    /// Whether a later owner could not get its images. That owner publishes this unless it is lost
    /// before. In any case the record drops steps.
    fn resumed_from_the_top(&self) -> bool {
        let several = self.executed.iter().any(|executed| executed.engine > 0);
        let forgets = |pair: &[Version]| match pair {
            [before, after] => {
                let had = before.record.steps.iter();
                let passed = had.filter(|step| step.status == StepStatus::Passed);
                let is_there =
                    |step: &StepRecord| after.record.steps.iter().any(|it| it.name == step.name);
                passed.into_iter().any(|step| !is_there(step))
            }
            _ => false,
        };
        (several && self.versions.windows(2).any(forgets))
            || self.told.iter().any(|told| match &told.reason {
                Reason::PipelineRunResumed { cause, .. } => cause == "image-lost",
                _ => false,
            })
    }
}

/// The remaining state of a history that did not finish.
pub fn what_is_left(world: &World) -> String {
    let open = world.store.keys(names::OPEN_AND_OWNERS);
    let records: Vec<String> = world
        .plan
        .runs
        .iter()
        .map(|run| {
            let value = world.store.value(&names::run_key(&run_id(run)));
            let text = value.map(|value| String::from_utf8_lossy(&value).into_owned());
            text.unwrap_or_else(|| format!("{}: no record", run.name))
        })
        .collect();
    let unsettled = world.broker.unsettled();
    let left: Vec<(usize, usize)> = world.engines.iter().map(|engine| engine.left()).collect();
    format!(
        "I1: it does not end: open {open:?}, {unsettled} messages unsettled, containers and images \
         {left:?}, {records:#?}"
    )
}

/// The violations in a finished history.
pub fn broken(world: &World) -> Vec<String> {
    let (journal, told) = (world.store.journal(), world.stream.told());
    let mut wrong = Vec::new();
    for plan in &world.plan.runs {
        let story = RunHistory::of(plan, &journal, &told, world);
        let mut say = |what: String| wrong.push(format!("{}: {what}", story.run));
        one_end(&story, &mut say);
        epochs_grow(&story, &mut say);
        statuses_go_forward(&story, &mut say);
        steps_keep_their_order(&story, &mut say);
        nothing_overlaps(&story, &mut say);
        losses_are_counted(&story, &mut say);
        calls_are_made_once(&story, &mut say);
        stops_are_obeyed(&story, &mut say);
        events_have_no_gap(&story, world, &mut say);
    }
    places_are_kept(world, &journal, &mut |what| wrong.push(what));
    for prefix in [names::OPEN_AND_OWNERS, names::WAIT_LISTS, names::STOPS, names::NODES] {
        let left = world.store.keys(prefix);
        // A stop after the end, or for a run that never existed, expires with its lease.
        if prefix != names::STOPS && !left.is_empty() && prefix != names::NODES {
            wrong.push(format!("I12: the store still holds {left:?}"));
        }
    }
    let out_of_order = lock(&world.out_of_order);
    if let Some(fault) = out_of_order.first()
        && !world.was_broken.load(Ordering::Relaxed)
    {
        wrong.push(format!("I11: a worker that only waited was broken off: {fault}"));
    }
    if world.broker.dead_letters() > 0 {
        wrong.push(format!("I1: {} good commands are dead letters", world.broker.dead_letters()));
    }
    let pushed = world.registry.lock().len();
    if pushed > 0 && !world.was_late.load(Ordering::Relaxed) {
        wrong.push(format!("I4: the registry still holds {pushed} checkpoints"));
    }
    if world.plan.replaced {
        for engine in &world.engines {
            let (containers, images) = engine.left();
            if containers + images > 0 {
                wrong.push(format!(
                    "I4: engine {} still has {containers} containers and {images} images",
                    engine.number
                ));
            }
        }
    }
    wrong
}

type ReportLine<'a> = dyn FnMut(String) + 'a;

/// I1: exactly one end is recorded and published at least once, always as the same event.
fn one_end(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let ended: Vec<&Version> =
        story.versions.iter().filter(|version| version.record.status.is_ended()).collect();
    let Some(first) = ended.first() else { return say("I1: it has not ended".into()) };
    for later in &ended {
        let (was, is) = (&first.record, &later.record);
        if (was.status, was.cause, &was.message, was.epoch)
            != (is.status, is.cause, &is.message, is.epoch)
            && (was.status, was.cause, &was.message) != (is.status, is.cause, &is.message)
        {
            say(format!("I1: it ended {:?} at first, and {:?} later", was.status, is.status));
        }
    }
    for fault in ["its worker failed", "was not started"] {
        if first.record.message.as_deref().is_some_and(|why| why.contains(fault)) {
            say(format!("it ended for a fault of the worker: {:?}", first.record.message));
        }
    }
    let Some(event) = first.record.ending_event.as_deref() else {
        return say("I1: its end has no event".into());
    };
    let told: Vec<&Event> =
        story.told.iter().copied().filter(|event| event.reason.is_ending()).collect();
    if told.is_empty() {
        say("I1: its ending event was never published".into());
    }
    for other in told {
        if other != event {
            say(format!("I1: its ending was published as {other:?}, but recorded as {event:?}"));
        }
    }
}

/// I9: a pipeline has never more runs between claim and end than places, and a run gets its place once.
fn places_are_kept(world: &World, journal: &[StoreChange], say: &mut ReportLine<'_>) {
    let policy = world.plan.runs.iter().find_map(|run| run.admission.as_ref());
    let Some(places) = policy.and_then(|policy| policy["concurrency"].as_u64()) else { return };
    let runs: BTreeMap<String, RunId> =
        world.plan.runs.iter().map(run_id).map(|run| (names::run_key(&run), run)).collect();
    let mut active: BTreeSet<&RunId> = BTreeSet::new();
    let mut before: BTreeSet<RunId> = BTreeSet::new();
    for change in journal {
        let Some(value) = &change.value else { continue };
        if let Some(run) = runs.get(&change.key) {
            let Ok(record) = serde_json::from_slice::<RunRecord>(value) else { continue };
            // A run that waits, or that ends without ever having had a place, holds none.
            let runs_now = !record.status.is_ended() && record.status != Status::Pending;
            if runs_now {
                active.insert(run)
            } else {
                active.remove(run)
            };
            if u64::try_from(active.len()).is_ok_and(|count| count > places) {
                say(format!("I9: at {} {active:?} run, with {places} places", change.revision));
            }
        } else if change.key.starts_with(names::WAIT_LISTS) {
            let Ok(list) = serde_json::from_slice::<WaitList>(value) else { continue };
            if u64::try_from(list.running.len()).is_ok_and(|count| count > places) {
                say(format!("I9: at {} {:?} have {places} places", change.revision, list.running));
            }
            let again = list.waiting.iter().find(|waiting| before.contains(&waiting.run_id));
            if let Some(again) = again {
                say(format!("I9: {} waits after it had a place", again.run_id));
            }
            before.extend(list.running);
        }
    }
}

/// I2: epochs strictly increase, and every version was written in the newest epoch.
fn epochs_grow(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    if !story.epochs.is_sorted_by(|a, b| a < b) {
        say(format!("I2: its epochs are {:?}", story.epochs));
    }
    for version in &story.versions {
        let newest = story.epochs.iter().rev().find(|epoch| **epoch <= version.revision);
        if let (Some(written), Some(newest)) = (version.record.epoch, newest)
            && written.0 != *newest
            && !version.record.status.is_ended()
        {
            say(format!(
                "I2: epoch {written:?} wrote at {}, when {newest} owned it",
                version.revision
            ));
        }
    }
    // A run that waits has no owner, and attempt 0.
    let attempts = story.versions.iter().map(|version| version.record.attempt);
    let attempts: BTreeSet<u32> = attempts.filter(|attempt| *attempt > 0).collect();
    if attempts.len() > story.epochs.len() {
        say(format!("I2: {} owners, and attempts {attempts:?}", story.epochs.len()));
    }
}

/// I6: a status never changes back to an earlier one, and an end never changes.
fn statuses_go_forward(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    for pair in story.versions.windows(2) {
        let [before, after] = pair else { continue };
        let (was, is) = (before.record.status, after.record.status);
        if was.at_least(is) != is || (was.is_ended() && was != is) {
            say(format!("I6: it was {was}, and then {is}"));
        }
    }
}

/// The record of the step at a position.
fn of(record: &RunRecord, position: usize) -> Option<&StepRecord> {
    let name = StepName::position(position);
    record.steps.iter().find(|step| step.name == name)
}

/// I3: a step starts after it is recorded as started and its dependencies as passed. A passed step
/// does not run again.
fn steps_keep_their_order(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let again = story.plan.on_lost == Some("restart") || story.resumed_from_the_top();
    for executed in &story.executed {
        let Some(record) = story.at(executed.revision) else {
            say(format!("I3: {executed:?} began before the run was recorded"));
            continue;
        };
        if record.epoch != Some(executed.epoch) {
            // Run by a lost owner. Its result is not used.
            continue;
        }
        for needed in story.plan.needed_by(executed.position) {
            let status = of(record, needed).map(|step| step.status);
            if status != Some(StepStatus::Passed) {
                say(format!("I3: {executed:?} began when step {needed} was {status:?}"));
            }
        }
        let own = of(record, executed.position);
        if own.is_none_or(|step| step.status != StepStatus::Started) {
            say(format!("I3: {executed:?} began without being recorded as begun: {own:?}"));
        }
        let kept = story.versions.iter().filter(|version| version.revision < executed.revision);
        let mut kept = kept.filter_map(|version| of(&version.record, executed.position));
        if !again && kept.any(|step| step.status == StepStatus::Passed) {
            say(format!("I3: {executed:?} ran again after it had passed"));
        }
    }
}

/// On one engine, two containers of a step never run at the same time.
fn nothing_overlaps(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    for (at, one) in story.executed.iter().enumerate() {
        for other in story.executed.iter().skip(at + 1) {
            let same = (one.engine, one.position) == (other.engine, other.position);
            let ended = |executed: &Executed| executed.ended.unwrap_or(Duration::MAX);
            if same && one.began < ended(other) && other.began < ended(one) {
                say(format!("a step overlaps itself: {one:?} and {other:?}"));
            }
        }
    }
}

/// I10: losses stay within the limit, and a run that exceeds it fails as lost.
fn losses_are_counted(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    for version in &story.versions {
        let (losses, status) = (version.record.losses, version.record.status);
        if losses > MAX_LOSSES + 1 && status != Status::Stopped && !status.is_ended() {
            say(format!("I10: it was lost {losses} times, and is {status}"));
        }
    }
    if let Some(last) = story.last()
        && last.status == Status::Failed
        && last.cause == Some(Cause::Lost)
        && last.losses <= MAX_LOSSES
        && story.plan.on_lost != Some("fail")
        && !story.began_a_call()
    {
        say(format!("I10: it failed as lost after {} losses", last.losses));
    }
}

/// I13: a step that must not run twice starts once. It starts again only as a new attempt after it
/// failed by itself.
fn calls_are_made_once(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    for position in (0..story.plan.steps.len()).filter(|position| story.is_call(*position)) {
        let made = story.executed.iter().filter(|executed| executed.position == position);
        let mut made: Vec<&Executed> = made.collect();
        made.sort_by_key(|executed| executed.began);
        for pair in made.windows(2) {
            let [before, after] = pair else { continue };
            let has_failed = before.code.is_some_and(|code| code != 0);
            if before.attempt >= after.attempt || !has_failed {
                say(format!("I13: {after:?} was made again after {before:?}"));
            }
        }
    }
}

/// I8: a run whose stop was recorded before its end ends as stopped.
fn stops_are_obeyed(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let ended = story.versions.iter().find(|version| version.record.status.is_ended());
    let (Some(stopped), Some(ended)) = (story.stopped, ended) else { return };
    if stopped < ended.revision && ended.record.status != Status::Stopped {
        say(format!(
            "I8: its stop was recorded at {stopped}, and it ended {} at {}",
            ended.record.status, ended.revision
        ));
    }
}

/// How long the stream can be unavailable before a run ends without waiting for its events.
const PATIENCE_FOR_LOGS: Duration = Duration::from_secs(25);

/// I5: the epoch that ended the run has no gap. Of each passed step, an owner that was not lost and did
/// not die with unpublished events has published every byte.
fn events_have_no_gap(story: &RunHistory<'_>, world: &World, say: &mut ReportLine<'_>) {
    if world.stream.longest_away() > PATIENCE_FOR_LOGS {
        return;
    }
    let Some(last) = story.last() else { return };
    let ending = story.told.iter().find(|told| told.reason.is_ending());
    if let Some((epoch, seq)) = ending.and_then(|told| Some((told.epoch?.0, told.seq?))) {
        let seqs: Vec<u64> = story.events(epoch).into_keys().collect();
        if seqs != (0..=seq).collect::<Vec<u64>>() {
            say(format!("I5: of epoch {epoch}, which ended with {seq}, there are {seqs:?}"));
        }
    }
    for step in last.steps.iter().filter(|step| step.status == StepStatus::Passed) {
        let Some(epoch) = step.epoch else { continue };
        let mut bytes = 0;
        for event in story.events(epoch.0).into_values() {
            let of_step =
                event.step.as_ref() == Some(&step.name) && event.attempt == Some(step.attempt);
            if let Reason::Log { offset, partial, .. } = &event.reason
                && of_step
            {
                if *offset != bytes {
                    say(format!("I5: step {} has a text at {offset}, after {bytes}", step.name));
                }
                bytes = offset + event.message.len() as u64 + u64::from(!partial);
            }
        }
        // Output that an owner had not published when it died is lost, even if it had handed the run
        // over. The record has its length.
        let kept = story.was_kept(epoch.0) && !world.stream.has_lost(&story.run, epoch);
        if bytes > step.stdout_bytes || (kept && bytes != step.stdout_bytes) {
            say(format!(
                "I5: step {} wrote {}, and {bytes} were told",
                step.name, step.stdout_bytes
            ));
        }
    }
}
