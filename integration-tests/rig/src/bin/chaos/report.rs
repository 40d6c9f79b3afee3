//! Formats the report of a history as a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use protocol::event::Reason;
use protocol::names;
use protocol::run::NodeEntry;
use protocol::time::Millis;

use crate::check::{self, Owner, RunHistory};
use crate::facts::{HistoryFacts, Outcome, seconds};

/// The maximum number of violations that the report lists.
const MAX_VIOLATIONS: usize = 60;

/// Adds a line with a label and a value.
fn add_row(table: &mut String, label: &str, value: &str) {
    // Writing to a `String` cannot fail.
    writeln!(table, "{label:44}{value}").unwrap_or_default();
}

/// The complete report.
pub(crate) fn table(facts: &HistoryFacts, seed: u64, violations: &[String]) -> String {
    let mut table = String::new();
    add_row(&mut table, "seed", &seed.to_string());
    add_faults(facts, &mut table);
    let stories = check::stories(facts);
    add_endings(&stories, &mut table);
    add_takeovers(facts, &stories, &mut table);
    let starts = facts.executions.len();
    let steps: BTreeSet<(&str, usize)> =
        facts.executions.iter().map(|execution| (execution.run.as_str(), execution.step)).collect();
    add_row(&mut table, "steps started", &starts.to_string());
    add_row(&mut table, "of these again (retries among them)", &(starts - steps.len()).to_string());
    add_row(&mut table, "events on the stream", &facts.told.len().to_string());
    add_row(&mut table, "changes of etcd", &facts.changes.len().to_string());
    add_row(&mut table, "violations", &violations.len().to_string());
    for violation in violations.iter().take(MAX_VIOLATIONS) {
        writeln!(table, "  {violation}").unwrap_or_default();
    }
    if violations.len() > MAX_VIOLATIONS {
        writeln!(table, "  and {} more", violations.len() - MAX_VIOLATIONS).unwrap_or_default();
    }
    table
}

/// Formats the number of times that each word occurs, or `none` if there are no words.
fn format_counts<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for word in words {
        *counts.entry(word).or_default() += 1;
    }
    let counts: Vec<String> =
        counts.into_iter().map(|(word, count)| format!("{word} {count}")).collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

fn add_faults(facts: &HistoryFacts, table: &mut String) {
    let kinds = facts.injected.iter().map(|fault| fault.kind);
    add_row(table, &format!("faults injected: {}", facts.injected.len()), &format_counts(kinds));
}

fn add_endings(stories: &[RunHistory<'_>], table: &mut String) {
    let endings: Vec<String> = stories
        .iter()
        .map(|story| match story.end() {
            None => "no end".to_owned(),
            Some(end) => match end.record.cause {
                None => end.record.status.to_string(),
                Some(cause) => format!("{} ({cause})", end.record.status),
            },
        })
        .collect();
    let counts = format_counts(endings.iter().map(String::as_str));
    add_row(table, &format!("runs: {}", stories.len()), &counts);
    let planned_failures =
        stories.iter().filter(|story| story.plan.outcome == Outcome::Failed).count();
    let planned_stops = stories.iter().filter(|story| story.plan.is_stopped).count();
    add_row(
        table,
        "of these meant to fail, and to be stopped",
        &format!("{planned_failures}, {planned_stops}"),
    );
}

/// Adds the number of owner changes, and the time from an owner's fault to the next owner.
fn add_takeovers(facts: &HistoryFacts, stories: &[RunHistory<'_>], table: &mut String) {
    let pids = pids(facts);
    let (mut takeover_seconds, mut hand_overs) = (Vec::new(), 0);
    let mut owner_changes = 0;
    for story in stories {
        owner_changes += story.owners.len().saturating_sub(1);
        for pair in story.owners.windows(2) {
            let [previous, next] = pair else { continue };
            let Some((cause, resumed_at)) = resume_cause(story, next) else { continue };
            if cause == "handed-over" {
                hand_overs += 1;
            } else if let Some(fault_at) = last_fault(facts, &pids, previous, resumed_at) {
                takeover_seconds.push(seconds(fault_at, resumed_at));
            }
        }
    }
    add_row(table, "changes of owner", &owner_changes.to_string());
    add_row(table, "of these reported as handed over", &hand_overs.to_string());
    takeover_seconds.sort_by(f64::total_cmp);
    let value_at = |index: usize| takeover_seconds.get(index).copied().unwrap_or(0.0);
    add_row(
        table,
        "from a fault of the owner to the next one",
        &format!(
            "{} times, median {:.1} s, longest {:.1} s",
            takeover_seconds.len(),
            value_at(takeover_seconds.len() / 2),
            value_at(takeover_seconds.len().saturating_sub(1))
        ),
    );
}

/// The cause in an owner's resume event, and the time of that event.
fn resume_cause<'a>(story: &RunHistory<'a>, owner: &Owner) -> Option<(&'a str, Millis)> {
    let mut events = story.told.iter();
    events.find_map(|event| {
        let is_from_owner = event.epoch.map(|epoch| epoch.0) == Some(owner.epoch);
        let Reason::PipelineRunResumed { cause, .. } = &event.reason else { return None };
        is_from_owner.then_some((cause.as_str(), event.at))
    })
}

/// The process id of each node.
fn pids(facts: &HistoryFacts) -> BTreeMap<String, u32> {
    let nodes = facts.changes.iter().filter(|change| change.key.starts_with(names::NODES));
    nodes
        .filter_map(|change| {
            let node: NodeEntry = serde_json::from_slice(change.value.as_ref()?).ok()?;
            Some((change.key.strip_prefix(names::NODES)?.to_owned(), node.pid))
        })
        .collect()
}

/// The time of the last fault that hit an owner's process, up to `limit`.
fn last_fault(
    facts: &HistoryFacts,
    pids: &BTreeMap<String, u32>,
    owner: &Owner,
    limit: Millis,
) -> Option<Millis> {
    let pid = pids.get(owner.node.as_ref()?.as_str())?;
    let faults = facts.injected.iter().filter(|fault| fault.pid == Some(*pid));
    faults.map(|fault| fault.from).filter(|start| *start <= limit).max()
}
