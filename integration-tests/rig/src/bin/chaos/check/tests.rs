//! Tests of the checker: one correct history, and a violation of each invariant.

use protocol::event::Event;
use protocol::names;
use protocol::run::{RunRecord, Status, StepStatus};
use protocol::time::Millis;
use serde_json::{Value, json};

use super::broken;
use crate::facts::{Change, Execution, HistoryFacts, Outcome, Plan, ReadRecord};

const RUN: &str = "r-t";
const NODE: &str = "bob/runner-0188d3a2-0000-4000-8000-000000000001";
const OTHER: &str = "bob/runner-0188d3a2-0000-4000-8000-000000000002";
/// The epochs of the two owners.
const FIRST: i64 = 10;
const SECOND: i64 = 20;

fn step(name: &str, status: &str, epoch: i64) -> Value {
    json!({ "name": name, "status": status, "attempt": 1, "epoch": epoch, "stdout-bytes": 0 })
}

fn record(status: &str, epoch: Option<i64>, steps: &[Value]) -> Value {
    let mut record = json!({
        "group": "g", "name": "n", "run-id": RUN, "status": status, "attempt": 1, "losses": 0,
        "scheduled-at": "2026-01-01T00:00:00.000Z", "steps": steps,
    });
    if let Some(epoch) = epoch {
        record["epoch"] = json!(epoch);
    }
    record
}

fn event(epoch: i64, seq: u64, reason: &str, more: &Value) -> Value {
    let mut event = json!({
        "at": 1000, "type": "Normal", "kind": "Pipeline", "reason": reason, "message": "m",
        "run-id": RUN, "group": "g", "name": "n", "node": NODE, "epoch": epoch, "seq": seq,
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        event[name] = value.clone();
    }
    event
}

/// A history under construction, with changes in revision order.
struct Made {
    facts: HistoryFacts,
    order: u64,
}

impl Made {
    fn new() -> Self {
        let plan = Plan {
            run: RUN.parse().unwrap(),
            outcome: Outcome::Passed,
            steps: 2,
            is_stopped: false,
        };
        let facts = HistoryFacts { plans: vec![plan], max_losses: 3, ..HistoryFacts::default() };
        Self { facts, order: 0 }
    }

    fn change(&mut self, revision: i64, key: &str, value: Option<&Value>) -> &mut Self {
        let value = value.map(|value| value.to_string().into_bytes());
        let key = format!("{key}{RUN}");
        self.facts.changes.push(Change { key, value, revision, seen: Millis(revision * 100) });
        self
    }

    fn owner(&mut self, epoch: i64, node: &str) -> &mut Self {
        self.change(epoch, names::OWNERS, Some(&json!({ "node": node })))
    }

    fn record(&mut self, revision: i64, record: &Value) -> &mut Self {
        self.change(revision, names::RUNS, Some(record))
    }

    fn tell(&mut self, event: Value) -> &mut Self {
        self.facts.told.push(serde_json::from_value(event).unwrap());
        self
    }

    /// Adds an execution that saw the record at a revision and ended before the next one started.
    fn ran(&mut self, step: usize, at: i64) -> &mut Self {
        self.order += 2;
        let found = self
            .facts
            .changes
            .iter()
            .rev()
            .find(|change| change.key.starts_with(names::RUNS) && change.revision <= at);
        let found = found.map(|change| ReadRecord {
            revision: change.revision,
            record: serde_json::from_slice(change.value.as_ref().unwrap()).unwrap(),
        });
        self.facts.executions.push(Execution {
            run: RUN.parse().unwrap(),
            step,
            engine: "one".into(),
            at: Millis(at * 100 + 50),
            began: self.order - 1,
            ended: Some(self.order),
            found,
        });
        self
    }

    fn log(&mut self, epoch: i64, seq: u64, step: &str, offset: u64, text: &str) -> &mut Self {
        let more = json!({
            "stream": "stdout", "offset": offset, "message": text, "step": step, "attempt": 1,
        });
        self.tell(event(epoch, seq, "Log", &more))
    }

    /// Checks that a violation with this prefix is found.
    fn is_broken(&self, how: &str) {
        let wrong = broken(&self.facts);
        assert!(wrong.iter().any(|what| what.starts_with(how)), "no {how} in {wrong:#?}");
    }

    fn holds(&self) {
        assert_eq!(broken(&self.facts), Vec::<String>::new());
    }

    /// Changes all records.
    fn with(mut self, change: impl Fn(i64, &mut RunRecord)) -> Self {
        for made in &mut self.facts.changes {
            if let Some(value) = &mut made.value
                && made.key.starts_with(names::RUNS)
            {
                let mut record: RunRecord = serde_json::from_slice(value).unwrap();
                change(made.revision, &mut record);
                *value = serde_json::to_vec(&record).unwrap();
            }
        }
        self
    }
}

/// Two steps. The owner is lost during the second one, and the next owner runs it again.
fn taken_over() -> Made {
    let mut made = Made::new();
    let done = |epoch| step("0", "passed", epoch);
    let end = event(SECOND, 3, "PipelineSuccessful", &json!({ "node": OTHER }));
    let mut last = step("1", "passed", SECOND);
    last["stdout-bytes"] = json!(8);
    let mut ended = record("passed", Some(SECOND), &[done(FIRST), last]);
    ended["attempt"] = json!(2);
    made.owner(FIRST, NODE)
        .record(FIRST, &record("pending", None, &[]))
        .record(11, &record("running", Some(FIRST), &[step("0", "started", FIRST)]))
        .ran(0, 11)
        .record(12, &record("running", Some(FIRST), &[done(FIRST)]))
        .record(13, &record("running", Some(FIRST), &[done(FIRST), step("1", "started", FIRST)]))
        .ran(1, 13)
        .change(19, names::OWNERS, None)
        .owner(SECOND, OTHER);
    let mut claimed = record("running", None, &[done(FIRST), step("1", "started", FIRST)]);
    claimed["attempt"] = json!(2);
    let mut again = record("running", Some(SECOND), &[done(FIRST), step("1", "started", SECOND)]);
    again["attempt"] = json!(2);
    made.record(SECOND, &claimed).record(21, &again).ran(1, 21);
    let mut ending = ended.clone();
    ending["ending-event"] = end.clone();
    made.record(22, &ending).record(23, &ended);
    let resumed = json!({
        "from-step": "1", "previous-node": NODE, "previous-epoch": FIRST, "cause": "lost",
        "repeats": ["1"],
    });
    made.tell(event(FIRST, 0, "PipelineRunScheduled", &json!({})))
        .tell(event(SECOND, 0, "PipelineRunResumed", &resumed))
        .tell(event(SECOND, 1, "PipelineRunning", &json!({})))
        .log(SECOND, 2, "1", 0, "did 0 1")
        .tell(end);
    made
}

#[test]
fn a_correct_history_has_no_violations() {
    taken_over().holds();
}

#[test]
fn a_missing_or_unfinished_run_is_reported() {
    Made::new().is_broken("I1: it was published");
    let mut made = taken_over();
    made.facts.changes.retain(|change| change.revision < 22);
    made.is_broken("I1: it has not ended");
}

#[test]
fn a_second_ending_is_reported() {
    let twice = taken_over().with(|revision, record| {
        if revision == 23 {
            record.status = Status::Failed;
        }
    });
    twice.is_broken("I1: it ended passed");
    twice.is_broken("I6: it was passed");
}

#[test]
fn a_missing_or_contradicting_ending_event_is_reported() {
    let mut made = taken_over();
    let ending: Event = made.facts.told.pop().unwrap();
    made.is_broken("I1: its ending event was never published");
    made.facts.told.push(ending.clone());
    made.facts.told.push(ending.clone());
    made.holds();
    made.facts.told.push(Event { seq: Some(9), ..ending });
    made.is_broken("I1: its ending was recorded as");
}

#[test]
fn an_unexpected_ending_is_reported() {
    let mut made = taken_over();
    made.facts.plans[0].outcome = Outcome::Failed;
    made.is_broken("E: it ended passed");
}

#[test]
fn a_write_of_an_older_owner_is_reported() {
    let late = taken_over().with(|revision, record| {
        if revision == 21 {
            record.epoch = Some(protocol::id::Epoch(FIRST));
        }
    });
    late.is_broken("I2: epoch 10 wrote at 21");
}

#[test]
fn a_result_of_an_older_owner_is_reported() {
    let used = taken_over().with(|revision, record| {
        if revision >= 22 {
            record.steps[1].epoch = Some(protocol::id::Epoch(FIRST));
        }
    });
    used.is_broken("I2: step 1 passed at 22 by a result of epoch Some(10)");
}

#[test]
fn epochs_that_do_not_increase_are_reported() {
    let mut made = taken_over();
    made.owner(5, NODE);
    made.is_broken("I2: its epochs are");
}

#[test]
fn a_status_that_goes_backwards_is_reported() {
    let back = taken_over().with(|revision, record| {
        if revision == 21 {
            record.status = Status::Pending;
        }
    });
    back.is_broken("I6: it was running, and then pending");
}

#[test]
fn a_passed_step_that_runs_again_is_reported() {
    let mut made = taken_over();
    made.ran(0, 21);
    made.is_broken("I3: step 0 started (start 7) after it had passed at 12");
    made.is_broken("I3: step 0 started 2 times, but is recorded with attempt 1");
}

#[test]
fn a_step_that_starts_after_the_ending_is_reported() {
    let mut made = taken_over();
    made.ran(1, 22);
    made.is_broken("I3: step 1 started after the run had ended at 22");
}

#[test]
fn a_step_end_event_that_differs_from_the_record_is_reported() {
    let mut made = taken_over();
    let completed = json!({
        "step": "0", "attempt": 1, "exit-code": 0, "duration-ms": 1, "stdout-bytes": 3,
        "stderr-bytes": 0,
    });
    made.tell(event(FIRST, 1, "StepCompleted", &completed));
    made.is_broken("I5: the event of step 0 counts (3, 0) bytes, and the record (0, 0)");
}

#[test]
fn a_missing_step_is_reported() {
    let forgets = taken_over().with(|revision, record| {
        if revision == 21 {
            record.steps.clear();
        }
    });
    forgets.is_broken("I3: 1 steps had passed, but only 0 at 21");
}

#[test]
fn a_step_that_starts_before_its_predecessor_passed_is_reported() {
    let mut made = taken_over();
    made.ran(1, 11);
    made.is_broken("I3: step 1 had started when 0 passed");
    let early = taken_over().with(|revision, record| {
        if revision == 13 {
            record.steps[0].status = StepStatus::Started;
        }
    });
    early.is_broken("I3: at 13 a step is recorded as started");
}

#[test]
fn overlapping_steps_are_reported() {
    let mut made = taken_over();
    // A step of a killed owner overlaps with the next attempt.
    made.facts.executions[1].ended = Some(6);
    made.is_broken("O: steps 1 and 1");
    made.facts.executions[1].ended = None;
    made.is_broken("O: steps 1 and 1");
}

#[test]
fn a_result_that_contains_work_of_an_earlier_attempt_is_reported() {
    let mut made = taken_over();
    made.facts.told[3].message = "did 0 1 1".into();
    made.is_broken("I3: the last step found");
}

#[test]
fn an_ignored_stop_is_reported() {
    let mut made = taken_over();
    let stop = json!({ "by": NODE, "at": "2026-01-01T00:00:00.000Z" });
    made.change(15, names::STOPS, Some(&stop));
    made.is_broken("I8: its stop was recorded at 15");
}

#[test]
fn a_gap_in_the_events_is_reported() {
    let mut made = taken_over();
    made.facts.told.remove(2);
    made.is_broken("I5: epoch 20 ended with event 3, and events [1] are missing");
}

#[test]
fn an_event_after_the_ending_is_reported() {
    let mut made = taken_over();
    made.tell(event(SECOND, 4, "PipelineRunning", &json!({})));
    made.is_broken("I5: epoch 20 has event 4 after its ending event");
    let mut made = taken_over();
    made.tell(event(30, 0, "PipelineRunning", &json!({})));
    made.is_broken("I5: it ended in epoch 20, but there are events of");
}

#[test]
fn a_repeated_event_with_different_content_is_reported() {
    let mut made = taken_over();
    made.tell(event(SECOND, 1, "PipelineStopping", &json!({})));
    made.is_broken("I5: event 1 of epoch 20 was published as");
}

#[test]
fn missing_output_bytes_are_reported() {
    let mut made = taken_over();
    made.facts.told[3].message = "did 0".into();
    made.is_broken("I5: step 1 wrote 8 bytes, but 6 were published");
    let mut made = taken_over();
    made.facts.told.remove(3);
    made.log(SECOND, 2, "1", 3, "did 0 1");
    made.is_broken("I5: the output of step 1 is missing from 0 on");
}

#[test]
fn unpublished_output_of_a_lost_owner_is_not_a_violation() {
    // The first owner ran the first step and was lost before it had published all output.
    let mut made = taken_over().with(|revision, record| {
        if revision >= 12 {
            record.steps[0].stdout_bytes = 100;
        }
    });
    made.log(FIRST, 1, "0", 0, "a part");
    made.holds();
}

#[test]
fn too_many_losses_are_reported() {
    let lost = taken_over().with(|revision, record| {
        if revision == 21 {
            record.losses = 5;
        }
    });
    lost.is_broken("I10: it was lost 5 times");
}

#[test]
fn a_loss_is_reported_if_workers_only_drain() {
    let mut lost = taken_over().with(|revision, record| {
        if revision >= 20 {
            record.losses = 1;
        }
    });
    lost.holds();
    lost.facts.is_gentle = true;
    lost.is_broken("R: it was lost at 20");
}

#[test]
fn leftover_objects_and_worker_mishaps_are_reported() {
    let mut made = taken_over();
    made.facts.left.push("container 1 is left".into());
    made.facts.mishaps.push("worker 1 exited on its own".into());
    made.is_broken("I4: container 1 is left");
    made.is_broken("W: worker 1 exited on its own");
}
