//! Checks the invariants against everything that was recorded, published and run. They are numbered
//! as in `docs/chaos.md`. They hold under every fault.

mod events;
mod places;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use protocol::event::{Event, Reason};
use protocol::id::NodeId;
use protocol::names;
use protocol::run::{Cause, OwnerEntry, RunRecord, Status};

use crate::facts::{Change, Execution, HistoryFacts, Outcome, Plan, seconds};

/// A version of a record.
pub(crate) struct Version {
    pub(crate) revision: i64,
    /// When the rig saw it, which is not before it was written.
    pub(crate) seen: protocol::time::Millis,
    pub(crate) record: RunRecord,
}

/// An owner's epoch and node.
pub(crate) struct Owner {
    pub(crate) epoch: i64,
    pub(crate) node: Option<NodeId>,
}

/// Everything known about one run.
pub(crate) struct RunHistory<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) versions: Vec<Version>,
    pub(crate) owners: Vec<Owner>,
    /// The revision of the first recorded stop.
    stopped: Option<i64>,
    pub(crate) told: Vec<&'a Event>,
    pub(crate) executions: Vec<&'a Execution>,
}

/// The facts, grouped by run.
struct Sorted<'a> {
    changes: BTreeMap<&'a str, Vec<&'a Change>>,
    told: BTreeMap<&'a str, Vec<&'a Event>>,
    executions: BTreeMap<&'a str, Vec<&'a Execution>>,
}

impl<'a> Sorted<'a> {
    fn of(facts: &'a HistoryFacts) -> Self {
        let mut sorted =
            Self { changes: BTreeMap::new(), told: BTreeMap::new(), executions: BTreeMap::new() };
        for change in &facts.changes {
            sorted.changes.entry(&change.key).or_default().push(change);
        }
        for event in &facts.told {
            if let Some(run) = &event.run_id {
                sorted.told.entry(run.as_str()).or_default().push(event);
            }
        }
        for execution in &facts.executions {
            sorted.executions.entry(execution.run.as_str()).or_default().push(execution);
        }
        sorted
    }

    fn changes(&self, key: &str) -> &[&'a Change] {
        self.changes.get(key).map_or(&[], Vec::as_slice)
    }
}

/// Builds the story of every run.
pub(crate) fn stories(facts: &HistoryFacts) -> Vec<RunHistory<'_>> {
    let sorted = Sorted::of(facts);
    facts.plans.iter().map(|plan| RunHistory::of(plan, &sorted)).collect()
}

impl<'a> RunHistory<'a> {
    fn of(plan: &'a Plan, sorted: &Sorted<'a>) -> Self {
        let run = &plan.run;
        let versions = sorted.changes(&names::run_key(run)).iter().filter_map(|change| {
            let record = serde_json::from_slice(change.value.as_ref()?).ok()?;
            Some(Version { revision: change.revision, seen: change.seen, record })
        });
        let owners = sorted.changes(&names::owner_key(run)).iter().filter_map(|change| {
            let owner: Option<OwnerEntry> = serde_json::from_slice(change.value.as_ref()?).ok();
            Some(Owner { epoch: change.revision, node: owner.map(|owner| owner.node) })
        });
        let stops = sorted.changes(&names::stop_key(run));
        let stopped = stops.iter().find(|change| change.value.is_some());
        Self {
            plan,
            versions: versions.collect(),
            owners: owners.collect(),
            stopped: stopped.map(|change| change.revision),
            told: sorted.told.get(run.as_str()).cloned().unwrap_or_default(),
            executions: sorted.executions.get(run.as_str()).cloned().unwrap_or_default(),
        }
    }

    pub(crate) fn last(&self) -> Option<&RunRecord> {
        self.versions.last().map(|version| &version.record)
    }

    /// The first version with an end.
    pub(crate) fn end(&self) -> Option<&Version> {
        self.versions.iter().find(|version| version.record.status.is_ended())
    }

    /// The epoch of the owner at a revision.
    fn epoch_at(&self, revision: i64) -> Option<i64> {
        self.owners.iter().map(|owner| owner.epoch).filter(|epoch| *epoch <= revision).max()
    }

    /// Whether the run started over because an image was lost. Passed steps then run again.
    fn began_anew(&self) -> bool {
        self.told.iter().any(|told| {
            matches!(&told.reason,
                Reason::PipelineRunResumed { cause, .. } if cause == "image-lost")
        })
    }
}

/// How many seconds the broker can be unavailable before a run ends without waiting for its events.
/// Gaps are then not checked.
const PATIENCE_FOR_LOGS: f64 = 25.0;

pub(crate) type ReportLine<'a> = dyn FnMut(String) + 'a;

/// The violations in a history, as sentences.
pub(crate) fn broken(facts: &HistoryFacts) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut away = facts.injected.iter().filter(|fault| fault.kind == "broker");
    let broker_was_away_for_long =
        away.any(|fault| seconds(fault.from, fault.to) > PATIENCE_FOR_LOGS);
    for story in stories(facts) {
        let mut say = |what: String| wrong.push(format!("{what} ({})", story.plan.run));
        one_end(&story, &mut say);
        ends_as_it_was_to(&story, facts, &mut say);
        epochs_grow(&story, &mut say);
        statuses_go_forward(&story, &mut say);
        stops_are_obeyed(&story, &mut say);
        losses_are_counted(&story, facts.max_losses, &mut say);
        steps::keep_their_order(&story, &mut say);
        steps::are_recorded_before_they_begin(&story, &mut say);
        steps::never_overlap(&story, &mut say);
        events::are_the_same_each_time(&story, &mut say);
        if !broker_was_away_for_long {
            events::have_no_gap(&story, &mut say);
            events::tell_every_byte(&story, &mut say);
        }
        if facts.is_gentle {
            suffers_nothing(&story, &mut say);
        }
    }
    if let Some(places) = facts.places {
        let mut say = |what: String| wrong.push(what);
        places::are_given_once(facts, places, &mut say);
        places::are_not_exceeded(facts, places, &mut say);
        places::are_given_in_order(&stories(facts), &mut say);
    }
    wrong.extend(facts.left.iter().map(|left| format!("I4: {left}")));
    wrong.extend(facts.mishaps.iter().map(|mishap| format!("W: {mishap}")));
    wrong
}

/// I1: exactly one end is recorded and published at least once, always as the same event.
fn one_end(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    if story.versions.is_empty() {
        return say("I1: it was published, but is not recorded".into());
    }
    let Some(first) = story.end() else {
        let last = story.last().map(|record| record.status);
        return say(format!("I1: it has not ended, and is {last:?}"));
    };
    let was = &first.record;
    for later in story.versions.iter().filter(|version| version.revision > first.revision) {
        let is = &later.record;
        if (was.status, was.cause, &was.message) != (is.status, is.cause, &is.message) {
            say(format!(
                "I1: it ended {} at {}, and is {} at {}",
                was.status, first.revision, is.status, later.revision
            ));
        }
    }
    let Some(event) = was.ending_event.as_deref() else {
        return say(format!("I1: its ending at {} has no event", first.revision));
    };
    let mut told = story.told.iter().filter(|event| event.reason.is_ending()).peekable();
    if told.peek().is_none() {
        say("I1: its ending event was never published".into());
    }
    if let Some(other) = told.find(|other| **other != event) {
        say(format!("I1: its ending was recorded as {event:?}, but published as {other:?}"));
    }
}

/// E: the run ends as its steps do, unless it was stopped or lost too many workers.
fn ends_as_it_was_to(story: &RunHistory<'_>, facts: &HistoryFacts, say: &mut ReportLine<'_>) {
    let Some(Version { record, .. }) = story.end() else { return };
    let plan = story.plan;
    let is_right = match (record.status, record.cause) {
        (Status::Passed, _) => plan.outcome == Outcome::Passed,
        (Status::Failed, Some(Cause::ExitCode)) => plan.outcome == Outcome::Failed,
        (Status::Failed, Some(Cause::Lost)) => record.losses > facts.max_losses,
        (Status::Stopped, Some(Cause::User)) => plan.is_stopped,
        (_, _) => false,
    };
    if !is_right {
        let message = record.message.as_deref().unwrap_or_default();
        say(format!("E: it ended {}, {:?}: {message}", record.status, record.cause));
    }
}

/// I2: epochs strictly increase, every version was written in the newest epoch, and no result of an
/// older epoch is accepted.
fn epochs_grow(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let epochs: Vec<i64> = story.owners.iter().map(|owner| owner.epoch).collect();
    if !epochs.is_sorted_by(|a, b| a < b) {
        say(format!("I2: its epochs are {epochs:?}"));
    }
    let mut passed: BTreeSet<(usize, Option<i64>)> = BTreeSet::new();
    for version in &story.versions {
        let Some(newest) = story.epoch_at(version.revision) else { continue };
        if let Some(written) = version.record.epoch
            && written.0 != newest
            && !version.record.status.is_ended()
        {
            let at = version.revision;
            say(format!("I2: epoch {written} wrote at {at}, although {newest} owned it"));
        }
        for (place, step) in version.record.steps.iter().enumerate() {
            let epoch = step.epoch.map(|epoch| epoch.0);
            if step.status == protocol::run::StepStatus::Passed
                && passed.insert((place, epoch))
                && epoch != Some(newest)
            {
                let at = version.revision;
                say(format!(
                    "I2: step {place} passed at {at} by a result of epoch {epoch:?}, when {newest} \
                     owned it"
                ));
            }
        }
    }
    // A run that waits has no owner, and attempt 0.
    let attempts = story.versions.iter().map(|version| version.record.attempt);
    let attempts: BTreeSet<u32> = attempts.filter(|attempt| *attempt > 0).collect();
    if attempts.len() > epochs.len().max(1) {
        say(format!("I2: {} owners, and attempts {attempts:?}", epochs.len()));
    }
}

/// I6: a status never changes back to an earlier one, and an end never changes.
fn statuses_go_forward(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    for pair in story.versions.windows(2) {
        let [before, after] = pair else { continue };
        let (was, is) = (before.record.status, after.record.status);
        if was.at_least(is) != is || (was.is_ended() && was != is) {
            say(format!("I6: it was {was}, and then {is} at {}", after.revision));
        }
    }
}

/// I8: a run whose stop was recorded before its end ends as stopped.
fn stops_are_obeyed(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let (Some(stopped), Some(end)) = (story.stopped, story.end()) else { return };
    if stopped < end.revision && end.record.status != Status::Stopped {
        let (status, at) = (end.record.status, end.revision);
        say(format!("I8: its stop was recorded at {stopped}, and it ended {status} at {at}"));
    }
}

/// I10: losses stay within the limit.
fn losses_are_counted(story: &RunHistory<'_>, most: u32, say: &mut ReportLine<'_>) {
    for version in &story.versions {
        let (losses, status) = (version.record.losses, version.record.status);
        if losses > most + 1 && !status.is_ended() {
            say(format!("I10: it was lost {losses} times, and is {status}"));
        }
    }
}

/// R: if workers are only drained, no run fails or is lost, and no finished step runs again (which
/// I3 checks in every history).
fn suffers_nothing(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    if let Some(version) = story.versions.iter().find(|version| version.record.losses > 0) {
        say(format!("R: it was lost at {}, although its owner was draining", version.revision));
    }
    if story.began_anew() {
        say("R: its committed steps were lost, and finished steps ran again".into());
    }
}
