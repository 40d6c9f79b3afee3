//! Invariants of events.

use std::collections::BTreeMap;

use protocol::event::{Event, LogStream, Reason};
use protocol::run::{Status, StepRecord, StepStatus};

use super::{ReportLine, RunHistory};

/// The events of one epoch without duplicates, ordered by number.
fn of_epoch<'a>(story: &RunHistory<'a>, epoch: i64) -> BTreeMap<u64, &'a Event> {
    let told = story.told.iter().copied();
    told.filter(|event| event.epoch.map(|epoch| epoch.0) == Some(epoch))
        .filter_map(|event| Some((event.seq?, event)))
        .collect()
}

/// I5: the epoch that ended the run has all its events, and none after its ending.
pub(super) fn have_no_gap(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let Some(ending) = story.told.iter().find(|told| told.reason.is_ending()) else { return };
    let (Some(epoch), Some(seq)) = (ending.epoch, ending.seq) else {
        return say("I5: its ending event has no epoch and number".into());
    };
    let numbers: Vec<u64> = of_epoch(story, epoch.0).into_keys().collect();
    let missing: Vec<u64> = (0..=seq).filter(|number| !numbers.contains(number)).collect();
    if !missing.is_empty() {
        say(format!(
            "I5: epoch {epoch} ended with event {seq}, and events {missing:?} are missing"
        ));
    }
    if let Some(after) = numbers.iter().find(|number| **number > seq) {
        say(format!("I5: epoch {epoch} has event {after} after its ending event {seq}"));
    }
    let newest = story.told.iter().filter_map(|told| told.epoch).max();
    if newest > Some(epoch) {
        say(format!("I5: it ended in epoch {epoch}, but there are events of {newest:?}"));
    }
}

/// I5: events with the same number are identical.
pub(super) fn are_the_same_each_time(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let mut told: BTreeMap<(i64, u64), &Event> = BTreeMap::new();
    for event in &story.told {
        let (Some(epoch), Some(seq)) = (event.epoch, event.seq) else { continue };
        let first = told.entry((epoch.0, seq)).or_insert(event);
        if first != event {
            say(format!(
                "I5: event {seq} of epoch {epoch} was published as {first:?} and as {event:?}"
            ));
        }
    }
}

/// The length of one stream of a step according to its `Log` events, or the position of the first
/// gap.
fn bytes(events: &BTreeMap<u64, &Event>, step: &StepRecord, of: LogStream) -> Result<u64, u64> {
    let mut bytes = 0;
    for event in events.values() {
        let Reason::Log { stream, offset, partial, .. } = &event.reason else { continue };
        if *stream != of
            || event.step.as_ref() != Some(&step.name)
            || event.attempt != Some(step.attempt)
        {
            continue;
        }
        if *offset != bytes {
            return Err(bytes);
        }
        let text = event.log_bytes().unwrap_or_default();
        bytes += text.len() as u64 + u64::from(!partial);
    }
    Ok(bytes)
}

/// I5: the published output of each passed step begins at its first byte and has no gap. If its
/// owner was not lost, it is complete. The last step prints which steps left something behind, each
/// once.
pub(super) fn tell_every_byte(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let Some(last) = story.last() else { return };
    for step in last.steps.iter().filter(|step| step.status == StepStatus::Passed) {
        let Some(epoch) = step.epoch else { continue };
        let events = of_epoch(story, epoch.0);
        completed_as_recorded(&events, step, say);
        let is_kept = was_kept(story, epoch.0);
        for (of, recorded) in
            [(LogStream::Stdout, step.stdout_bytes), (LogStream::Stderr, step.stderr_bytes)]
        {
            match bytes(&events, step, of) {
                // Output that a lost owner had not published is lost. The record has its length.
                Ok(told) if told == recorded || (told < recorded && !is_kept) => {}
                Ok(told) => {
                    say(format!(
                        "I5: step {} wrote {recorded} bytes, but {told} were published",
                        step.name
                    ));
                }
                // After a gap of a lost owner, output that was in transit can follow.
                Err(_) if !is_kept => {}
                Err(at) => {
                    say(format!("I5: the output of step {} is missing from {at} on", step.name))
                }
            }
        }
    }
    if last.status == Status::Passed {
        leaves_each_once(story, say);
    }
}

/// I5: a step's completion event has the recorded numbers.
fn completed_as_recorded(
    events: &BTreeMap<u64, &Event>,
    step: &StepRecord,
    say: &mut ReportLine<'_>,
) {
    for event in events.values() {
        let Reason::StepCompleted { stdout_bytes, stderr_bytes, .. } = event.reason else {
            continue;
        };
        let is_it = event.step.as_ref() == Some(&step.name) && event.attempt == Some(step.attempt);
        let (told, recorded) =
            ((stdout_bytes, stderr_bytes), (step.stdout_bytes, step.stderr_bytes));
        if is_it && told != recorded {
            let name = &step.name;
            say(format!(
                "I5: the event of step {name} counts {told:?} bytes, and the record {recorded:?}"
            ));
        }
    }
}

fn leaves_each_once(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let Some(ending) = story.told.iter().find(|told| told.reason.is_ending()) else { return };
    let Some(epoch) = ending.epoch else { return };
    let events = of_epoch(story, epoch.0);
    let mut text: Vec<&str> = Vec::new();
    let mut repeats_last = false;
    for event in events.values() {
        let is_last = event
            .step
            .as_ref()
            .is_some_and(|step| step.as_str() == (story.plan.steps - 1).to_string());
        if !is_last {
            continue;
        }
        if let Reason::Log { stream: LogStream::Stdout, .. } = &event.reason {
            text.push(&event.message);
        }
        repeats_last |= matches!(&event.reason, Reason::StepCompleted { repeated: true, .. });
    }
    let numbers: Vec<String> = (0..story.plan.steps).map(|step| step.to_string()).collect();
    let expected = format!("did {}", numbers.join(" "));
    let told = text.iter().flat_map(|text| text.lines()).find(|line| line.starts_with("did "));
    // If the last step had passed before, its text is in the earlier epoch.
    if told != Some(&expected) && !repeats_last {
        say(format!("I3: the last step found {told:?}, not {expected:?}"));
    }
}

/// Whether the owner of an epoch finished or released the run in an orderly way.
fn was_kept(story: &RunHistory<'_>, epoch: i64) -> bool {
    let versions = story.versions.iter().rev();
    let mut of_epoch =
        versions.filter(|version| version.record.epoch.map(|at| at.0) == Some(epoch));
    of_epoch.next().is_some_and(|version| {
        version.record.status.is_ended() || version.record.released.is_some()
    })
}
