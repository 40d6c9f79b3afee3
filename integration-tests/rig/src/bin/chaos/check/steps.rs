//! Invariants of steps.

use std::collections::{BTreeMap, BTreeSet};

use protocol::run::{RunRecord, StepStatus};

use super::{ReportLine, RunHistory};

/// The number of leading steps that passed.
fn passed(record: &RunRecord) -> usize {
    record.steps.iter().take_while(|step| step.status == StepStatus::Passed).count()
}

/// I3, in the record: a step starts after all earlier ones have passed. A passed step stays passed
/// and does not start again. No step starts after the end of the run.
pub(super) fn keep_their_order(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let mut kept = 0;
    for version in &story.versions {
        let (now, at) = (passed(&version.record), version.revision);
        let later = version.record.steps.iter().skip(now + 1);
        if later.clone().any(|step| step.status != StepStatus::Pending) {
            say(format!("I3: at {at} a step is recorded as started after one that has not passed"));
        }
        if now < kept && !story.began_anew() {
            say(format!("I3: {kept} steps had passed, but only {now} at {at}"));
        }
        kept = now;
    }
    if let Some(end) = story.end() {
        for execution in story.executions.iter().filter(|execution| execution.at > end.seen) {
            let (step, at) = (execution.step, end.revision);
            say(format!("I3: step {step} started after the run had ended at {at}"));
        }
    }
    if story.began_anew() {
        return;
    }
    for execution in &story.executions {
        let step = execution.step;
        let before = story.versions.iter().filter(|version| version.seen < execution.at);
        let known = before.map(|version| (passed(&version.record), version.revision));
        if let Some((_, at)) = known.into_iter().find(|(passed, _)| *passed > step) {
            say(format!(
                "I3: step {step} started (start {}) after it had passed at {at}",
                execution.began
            ));
        }
    }
}

/// I3, in execution: a step runs only if and as often as it is recorded as started, and after all
/// earlier ones have passed.
pub(super) fn are_recorded_before_they_begin(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let mut recorded: BTreeMap<usize, BTreeSet<(Option<i64>, u32)>> = BTreeMap::new();
    for version in &story.versions {
        for (place, step) in version.record.steps.iter().enumerate() {
            if step.status != StepStatus::Pending {
                let attempt = (step.epoch.map(|epoch| epoch.0), step.attempt);
                recorded.entry(place).or_default().insert(attempt);
            }
        }
    }
    let mut ran: BTreeMap<usize, usize> = BTreeMap::new();
    for execution in &story.executions {
        *ran.entry(execution.step).or_default() += 1;
        // The record was read after the step's start, so anything missing was missing then too.
        if let Some(found) = &execution.found
            && passed(&found.record) < execution.step
            && !story.began_anew()
        {
            let (step, at) = (execution.step, found.revision);
            say(format!(
                "I3: step {step} had started when {} passed, at {at}",
                passed(&found.record)
            ));
        }
    }
    for (step, times) in ran {
        let attempts = recorded.get(&step).map_or(0, BTreeSet::len);
        if times > attempts {
            say(format!(
                "I3: step {step} started {times} times, but is recorded with attempt {attempts}"
            ));
        }
    }
}

/// O: on one engine, no two executions of a run's steps overlap.
pub(super) fn never_overlap(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    for (place, one) in story.executions.iter().enumerate() {
        for other in story.executions.iter().skip(place + 1) {
            let end = |ended: Option<u64>| ended.unwrap_or(u64::MAX);
            let is_same_engine = one.engine == other.engine;
            if is_same_engine && one.began < end(other.ended) && other.began < end(one.ended) {
                say(format!(
                    "O: steps {} and {} ran at the same time (starts {} and {})",
                    one.step, other.step, one.began, other.began
                ));
            }
        }
    }
}
