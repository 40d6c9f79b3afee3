//! Invariants of events.

use std::collections::BTreeMap;

use protocol::event::{Event, LogStream, Reason};
use protocol::run::{Status, StepRecord, StepStatus};

use super::{ReportLine, RunHistory};

/// The events of one epoch without duplicates, ordered by number.
fn events_of_epoch<'a>(story: &RunHistory<'a>, epoch: i64) -> BTreeMap<u64, &'a Event> {
    let events = story.told.iter().copied();
    events
        .filter(|event| event.epoch.map(|epoch| epoch.0) == Some(epoch))
        .filter_map(|event| Some((event.seq?, event)))
        .collect()
}

/// I5: no event is missing from the epoch that ended the run, and none follows the ending event.
pub(super) fn have_no_gap(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let Some(ending) = story.told.iter().find(|event| event.reason.is_ending()) else { return };
    let (Some(epoch), Some(seq)) = (ending.epoch, ending.seq) else {
        return say("I5: its ending event has no epoch and number".into());
    };
    let numbers: Vec<u64> = events_of_epoch(story, epoch.0).into_keys().collect();
    let missing: Vec<u64> = (0..=seq).filter(|number| !numbers.contains(number)).collect();
    if !missing.is_empty() {
        say(format!(
            "I5: epoch {epoch} ended with event {seq}, and events {missing:?} are missing"
        ));
    }
    if let Some(after) = numbers.iter().find(|number| **number > seq) {
        say(format!("I5: epoch {epoch} has event {after} after its ending event {seq}"));
    }
    let newest = story.told.iter().filter_map(|event| event.epoch).max();
    if newest > Some(epoch) {
        say(format!("I5: it ended in epoch {epoch}, but there are events of {newest:?}"));
    }
}

/// I5: events with the same epoch and number are identical.
pub(super) fn are_the_same_each_time(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let mut first_events: BTreeMap<(i64, u64), &Event> = BTreeMap::new();
    for event in &story.told {
        let (Some(epoch), Some(seq)) = (event.epoch, event.seq) else { continue };
        let first = first_events.entry((epoch.0, seq)).or_insert(event);
        if first != event {
            say(format!(
                "I5: event {seq} of epoch {epoch} was published as {first:?} and as {event:?}"
            ));
        }
    }
}

/// The length of one stream of a step according to its `Log` events, or the position of the first
/// gap.
fn published_bytes(
    events: &BTreeMap<u64, &Event>,
    step: &StepRecord,
    stream: LogStream,
) -> Result<u64, u64> {
    let mut bytes = 0;
    for event in events.values() {
        let Reason::Log { stream: log_stream, offset, partial, .. } = &event.reason else {
            continue;
        };
        if *log_stream != stream
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

/// I5: the published output of each passed step begins at its first byte and has no gap. It is
/// complete unless the step's owner was lost. If the run passed, I3 is checked as well.
pub(super) fn tell_every_byte(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let Some(last) = story.last() else { return };
    for step in last.steps.iter().filter(|step| step.status == StepStatus::Passed) {
        let Some(epoch) = step.epoch else { continue };
        let events = events_of_epoch(story, epoch.0);
        match_recorded_bytes(&events, step, say);
        let is_orderly = has_orderly_end(story, epoch.0);
        for (stream, recorded) in
            [(LogStream::Stdout, step.stdout_bytes), (LogStream::Stderr, step.stderr_bytes)]
        {
            match published_bytes(&events, step, stream) {
                // A lost owner can leave output unpublished. The record counts those bytes as well.
                Ok(published) if published == recorded || (published < recorded && !is_orderly) => {
                }
                Ok(published) => {
                    say(format!(
                        "I5: step {} wrote {recorded} bytes, but {published} were published",
                        step.name
                    ));
                }
                // Output that was in transit can follow a gap that a lost owner left.
                Err(_) if !is_orderly => {}
                Err(position) => say(format!(
                    "I5: the output of step {} is missing from {position} on",
                    step.name
                )),
            }
        }
    }
    if last.status == Status::Passed {
        list_each_step_once(story, say);
    }
}

/// I5: a step's completion event has the recorded numbers of bytes.
fn match_recorded_bytes(
    events: &BTreeMap<u64, &Event>,
    step: &StepRecord,
    say: &mut ReportLine<'_>,
) {
    for event in events.values() {
        let Reason::StepCompleted { stdout_bytes, stderr_bytes, .. } = event.reason else {
            continue;
        };
        let is_same_attempt =
            event.step.as_ref() == Some(&step.name) && event.attempt == Some(step.attempt);
        let (published, recorded) =
            ((stdout_bytes, stderr_bytes), (step.stdout_bytes, step.stderr_bytes));
        if is_same_attempt && published != recorded {
            let name = &step.name;
            say(format!(
                "I5: the event of step {name} counts {published:?} bytes, and the record \
                 {recorded:?}"
            ));
        }
    }
}

/// I3: the last step prints the number of every step once.
fn list_each_step_once(story: &RunHistory<'_>, say: &mut ReportLine<'_>) {
    let Some(ending) = story.told.iter().find(|event| event.reason.is_ending()) else { return };
    let Some(epoch) = ending.epoch else { return };
    let events = events_of_epoch(story, epoch.0);
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
    let line = text.iter().flat_map(|text| text.lines()).find(|line| line.starts_with("did "));
    // If the last step had passed before, its text is in the earlier epoch.
    if line != Some(&expected) && !repeats_last {
        say(format!("I3: the last step found {line:?}, not {expected:?}"));
    }
}

/// Whether the owner of an epoch finished or released the run. Otherwise the owner was lost.
fn has_orderly_end(story: &RunHistory<'_>, epoch: i64) -> bool {
    let versions = story.versions.iter().rev();
    let mut versions_of_epoch =
        versions.filter(|version| version.record.epoch.map(|epoch| epoch.0) == Some(epoch));
    versions_of_epoch.next().is_some_and(|version| {
        version.record.status.is_ended() || version.record.released.is_some()
    })
}
