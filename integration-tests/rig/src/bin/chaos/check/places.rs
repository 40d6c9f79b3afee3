//! I9: how the runs of a pipeline with a wait list share its places.

use std::collections::{BTreeMap, BTreeSet};

use protocol::id::RunId;
use protocol::names;
use protocol::run::RunRecord;
use protocol::wait_list::WaitList;

use super::{ReportLine, RunHistory};
use crate::facts::{Execution, HistoryFacts};

/// No list ever has more runs in places than there are places, and no run loses its place before
/// its end is recorded, or gets one twice.
pub(super) fn are_given_once(facts: &HistoryFacts, places: usize, say: &mut ReportLine<'_>) {
    let mut ended: BTreeSet<RunId> = BTreeSet::new();
    let mut had_place: BTreeSet<RunId> = BTreeSet::new();
    let mut running: Vec<RunId> = Vec::new();
    for revision in facts.changes.chunk_by(|one, other| one.revision == other.revision) {
        for change in revision.iter().filter(|change| change.key.starts_with(names::RUNS)) {
            let record = change.value.as_deref().map(serde_json::from_slice::<RunRecord>);
            ended.extend(
                record
                    .and_then(Result::ok)
                    .filter(|record| record.status.is_ended())
                    .map(|record| record.run_id),
            );
        }
        for change in revision.iter().filter(|change| change.key.starts_with(names::WAIT_LISTS)) {
            let at = change.revision;
            let list = match change.value.as_deref().map(serde_json::from_slice::<WaitList>) {
                None => WaitList::default(),
                Some(Ok(list)) => list,
                Some(Err(cause)) => {
                    return say(format!("I9: the list at {at} is unreadable: {cause}"));
                }
            };
            if list.running.len() > places {
                say(format!("I9: {:?} have a place at {at}, but there are {places}", list.running));
            }
            for left in running.iter().filter(|run| !list.running.contains(run)) {
                if !ended.contains(left) {
                    say(format!("I9: {left} has lost its place at {at}, and has not ended"));
                }
            }
            for new in list.running.iter().filter(|run| !running.contains(run)) {
                if !had_place.insert(new.clone()) {
                    say(format!("I9: {new} has got a place again at {at}"));
                }
            }
            running = list.running;
        }
    }
}

/// No more runs than places ever execute a step at the same time, on whichever worker.
pub(super) fn are_not_exceeded(facts: &HistoryFacts, places: usize, say: &mut ReportLine<'_>) {
    let mut bounds: Vec<(u64, bool, &Execution)> = Vec::new();
    for execution in &facts.executions {
        bounds.push((execution.began, true, execution));
        bounds.extend(execution.ended.map(|ended| (ended, false, execution)));
    }
    bounds.sort_by_key(|(number, ..)| *number);
    let mut active: BTreeMap<&RunId, usize> = BTreeMap::new();
    for (number, begins, execution) in bounds {
        let count = active.entry(&execution.run).or_default();
        if begins {
            *count += 1;
        } else {
            *count = count.saturating_sub(1);
        }
        active.retain(|_, count| *count > 0);
        if begins && active.len() > places {
            say(format!("I9: {:?} ran at the same time (start {number})", active.keys()));
        }
    }
}

/// Runs begin in the order in which they were started. Each start was published only once the one
/// before it had been accepted.
pub(super) fn are_given_in_order(stories: &[RunHistory<'_>], say: &mut ReportLine<'_>) {
    let first = |story: &RunHistory<'_>| {
        let began = story.executions.iter().map(|execution| execution.began).min()?;
        Some((began, story.plan.run.clone()))
    };
    let begun: Vec<(u64, RunId)> = stories.iter().filter_map(first).collect();
    for pair in begun.windows(2) {
        if let [(one, earlier), (other, later)] = pair
            && one > other
        {
            say(format!("I9: {later} began before {earlier}, which was started earlier"));
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::time::Millis;
    use serde_json::{Value, json};

    use super::*;
    use crate::check;
    use crate::facts::{Change, Outcome, Plan};

    fn change(revision: i64, key: &str, value: &Value) -> Change {
        let value = Some(value.to_string().into_bytes());
        Change { key: key.to_owned(), value, revision, seen: Millis(revision) }
    }

    fn list(revision: i64, running: &[&str]) -> Change {
        change(revision, "bob.wait/g:n", &json!({ "running": running, "waiting": [] }))
    }

    fn end(revision: i64, run: &str) -> Change {
        let record = json!({
            "group": "g", "name": "n", "run-id": run, "status": "passed", "attempt": 1,
            "losses": 0, "scheduled-at": "2026-01-01T00:00:00.000Z", "steps": [],
        });
        change(revision, &format!("{}{run}", names::RUNS), &record)
    }

    fn execution(run: &str, began: u64, ended: u64) -> Execution {
        Execution {
            run: run.parse().unwrap(),
            step: 0,
            engine: "e".into(),
            at: Millis(0),
            began,
            ended: Some(ended),
            found: None,
        }
    }

    /// Two runs that take turns.
    fn history() -> HistoryFacts {
        let plan = |run: &str| Plan {
            run: run.parse().unwrap(),
            outcome: Outcome::Passed,
            steps: 1,
            is_stopped: false,
        };
        HistoryFacts {
            plans: vec![plan("r-a"), plan("r-b")],
            changes: vec![list(1, &["r-a"]), end(2, "r-a"), list(2, &["r-b"]), end(3, "r-b")],
            executions: vec![execution("r-a", 1, 2), execution("r-b", 3, 4)],
            ..HistoryFacts::default()
        }
    }

    fn broken(facts: &HistoryFacts) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut say = |what: String| wrong.push(what);
        are_given_once(facts, 1, &mut say);
        are_not_exceeded(facts, 1, &mut say);
        are_given_in_order(&check::stories(facts), &mut say);
        wrong
    }

    fn is_found(facts: &HistoryFacts, part: &str) {
        let wrong = broken(facts);
        assert!(wrong.iter().any(|what| what.contains(part)), "{wrong:#?}");
    }

    #[test]
    fn runs_that_take_turns_are_right() {
        assert_eq!(broken(&history()), Vec::<String>::new());
    }

    #[test]
    fn too_many_runs_in_places_are_found() {
        let mut facts = history();
        facts.changes.insert(1, list(1, &["r-a", "r-b"]));
        is_found(&facts, "there are 1");
    }

    #[test]
    fn a_place_that_is_lost_or_given_twice_is_found() {
        let mut facts = history();
        facts.changes.insert(1, list(1, &["r-b"]));
        is_found(&facts, "r-a has lost its place");
        let mut facts = history();
        facts.changes.push(list(4, &["r-a"]));
        is_found(&facts, "r-a has got a place again");
    }

    #[test]
    fn runs_that_overlap_are_found() {
        let mut facts = history();
        facts.executions[1].began = 1;
        facts.executions[0].began = 0;
        is_found(&facts, "ran at the same time");
    }

    #[test]
    fn a_run_that_overtakes_another_is_found() {
        let mut facts = history();
        facts.executions = vec![execution("r-b", 1, 2), execution("r-a", 3, 4)];
        is_found(&facts, "r-b began before r-a");
    }
}
