//! The report of a history, as a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use protocol::event::Reason;
use protocol::names;
use protocol::run::NodeEntry;
use protocol::time::Millis;

use crate::check::{self, Owner, RunHistory};
use crate::facts::{HistoryFacts, Outcome, seconds};

/// The maximum number of items shown of a list.
const MOST: usize = 60;

/// Adds a line.
fn row(table: &mut String, what: &str, value: &str) {
    // Writing to a `String` cannot fail.
    writeln!(table, "{what:44}{value}").unwrap_or_default();
}

/// The whole report.
pub(crate) fn table(facts: &HistoryFacts, seed: u64, wrong: &[String]) -> String {
    let mut table = String::new();
    row(&mut table, "seed", &seed.to_string());
    faults(facts, &mut table);
    let stories = check::stories(facts);
    endings(&stories, &mut table);
    takeovers(facts, &stories, &mut table);
    let begun = facts.begun.len();
    let steps: BTreeSet<(&str, usize)> =
        facts.begun.iter().map(|begun| (begun.run.as_str(), begun.step)).collect();
    row(&mut table, "steps begun", &begun.to_string());
    row(&mut table, "of these again (retries among them)", &(begun - steps.len()).to_string());
    row(&mut table, "events on the stream", &facts.told.len().to_string());
    row(&mut table, "changes of etcd", &facts.changes.len().to_string());
    row(&mut table, "violations", &wrong.len().to_string());
    for violation in wrong.iter().take(MOST) {
        writeln!(table, "  {violation}").unwrap_or_default();
    }
    if wrong.len() > MOST {
        writeln!(table, "  and {} more", wrong.len() - MOST).unwrap_or_default();
    }
    table
}

fn counted<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for word in words {
        *counts.entry(word).or_default() += 1;
    }
    let counts: Vec<String> =
        counts.into_iter().map(|(word, count)| format!("{word} {count}")).collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

fn faults(facts: &HistoryFacts, table: &mut String) {
    let kinds = facts.injected.iter().map(|fault| fault.kind);
    row(table, &format!("faults injected: {}", facts.injected.len()), &counted(kinds));
}

fn endings(stories: &[RunHistory<'_>], table: &mut String) {
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
    let all = counted(endings.iter().map(String::as_str));
    row(table, &format!("runs: {}", stories.len()), &all);
    let fails = stories.iter().filter(|story| story.plan.outcome == Outcome::Failed).count();
    let stopped = stories.iter().filter(|story| story.plan.is_stopped).count();
    row(table, "of these meant to fail, and to be stopped", &format!("{fails}, {stopped}"));
}

/// How runs changed owners, and how long that took.
fn takeovers(facts: &HistoryFacts, stories: &[RunHistory<'_>], table: &mut String) {
    let pids = pids(facts);
    let (mut lost, mut handed) = (Vec::new(), 0);
    let mut total = 0;
    for story in stories {
        total += story.owners.len().saturating_sub(1);
        for pair in story.owners.windows(2) {
            let [before, after] = pair else { continue };
            let Some((cause, at)) = resumed(story, after) else { continue };
            if cause == "handed-over" {
                handed += 1;
            } else if let Some(since) = hit(facts, &pids, before, at) {
                lost.push(seconds(since, at));
            }
        }
    }
    row(table, "changes of owner", &total.to_string());
    row(table, "of these reported as handed over", &handed.to_string());
    lost.sort_by(f64::total_cmp);
    let of = |place: usize| lost.get(place).copied().unwrap_or(0.0);
    row(
        table,
        "from a fault of the owner to the next one",
        &format!(
            "{} times, median {:.1} s, longest {:.1} s",
            lost.len(),
            of(lost.len() / 2),
            of(lost.len().saturating_sub(1))
        ),
    );
}

/// An owner's reason for resuming the run, and its time.
fn resumed<'a>(story: &RunHistory<'a>, owner: &Owner) -> Option<(&'a str, Millis)> {
    let mut told = story.told.iter();
    told.find_map(|told| {
        let is_of_owner = told.epoch.map(|epoch| epoch.0) == Some(owner.epoch);
        let Reason::PipelineRunResumed { cause, .. } = &told.reason else { return None };
        is_of_owner.then_some((cause.as_str(), told.at))
    })
}

/// The process ids of the nodes.
fn pids(facts: &HistoryFacts) -> BTreeMap<String, u32> {
    let nodes = facts.changes.iter().filter(|change| change.key.starts_with(names::NODES));
    nodes
        .filter_map(|change| {
            let node: NodeEntry = serde_json::from_slice(change.value.as_ref()?).ok()?;
            Some((change.key.strip_prefix(names::NODES)?.to_owned(), node.pid))
        })
        .collect()
}

/// The time of the last fault of an owner before a time.
fn hit(
    facts: &HistoryFacts,
    pids: &BTreeMap<String, u32>,
    owner: &Owner,
    before: Millis,
) -> Option<Millis> {
    let pid = pids.get(owner.node.as_ref()?.as_str())?;
    let faults = facts.injected.iter().filter(|fault| fault.pid == Some(*pid));
    faults.map(|fault| fault.from).filter(|from| *from <= before).max()
}
