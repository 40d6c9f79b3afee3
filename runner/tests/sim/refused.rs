//! A store that rejects writes while reads and lease renewals work.

use std::time::Duration;

use protocol::run::{Cause, Status};

use crate::cluster::{PlayedHistory, STANDS_STILL, play};
use crate::plan::{FaultEvent, Plan, RunPlan};
use crate::world::lock;

const SECOND: Duration = Duration::from_secs(1);
/// Longer than a task may stall, and longer than 20 requeues would take.
const LONG: Duration = STANDS_STILL.saturating_mul(3);

fn kept(plan: Plan) -> PlayedHistory {
    let played = play(Plan { traced: true, ..plan });
    let trace = played.world.trace().join("\n");
    assert!(played.broken.is_empty(), "{:#?}\n{trace}", played.broken);
    let fault = lock(&played.world.out_of_order).first().map(ToString::to_string);
    assert_eq!(fault, None, "no worker exits by itself");
    played
}

#[test]
fn a_worker_whose_writes_are_refused_waits_while_its_runs_continue() {
    let long = RunPlan::new("r0", &["work 10 0", "work 600000 0", "work 10 0"]);
    let late = RunPlan::new("late", &["work 10 0"]).at(5);
    let plan = Plan { workers: 1, ..Plan::quiet(vec![long, late]) };
    let played = kept(plan.blow(2 * SECOND, FaultEvent::WritesRefused(LONG)));
    for name in ["r0", "late"] {
        let record = played.record(name);
        assert_eq!((record.status, record.attempt), (Status::Passed, 1), "{name}");
    }
    assert_eq!(played.began("r0", 1), 1, "its step was not interrupted");
}

#[test]
fn a_step_that_ends_while_writes_are_refused_is_recorded_afterwards() {
    let run = RunPlan::new("r0", &["work 10 0", "work 5000 0", "work 10 0"]);
    let played = kept(Plan::quiet(vec![run]).blow(2 * SECOND, FaultEvent::WritesRefused(LONG)));
    let record = played.record("r0");
    assert_eq!((record.status, record.attempt), (Status::Passed, 1));
    assert_eq!(played.began("r0", 1), 1);
}

#[test]
fn a_stop_waits_and_takes_effect_once_it_can_be_recorded() {
    let running = RunPlan::new("r0", &["work 10 0", "work 3600000 0"]).stopped_at(5);
    // It waits behind a long run and is stopped before any worker knows it.
    let queued = RunPlan::new("queued", &["work 10 0"]).at(4).stopped_at(6);
    let plan = Plan { workers: 1, slots: 1, ..Plan::quiet(vec![running, queued]) };
    let played = kept(plan.blow(2 * SECOND, FaultEvent::WritesRefused(LONG)));
    for name in ["r0", "queued"] {
        let record = played.record(name);
        assert_eq!((record.status, record.cause), (Status::Stopped, Some(Cause::User)), "{name}");
    }
    assert_eq!(played.began("queued", 0), 0, "it never ran");
}

#[test]
fn a_waiting_stop_survives_lost_leases() {
    let running = RunPlan::new("r0", &["work 10 0", "work 3600000 0"]).stopped_at(5);
    let mut plan = Plan { workers: 1, ..Plan::quiet(vec![running]) }
        .blow(4 * SECOND, FaultEvent::StoreAway(2 * LONG));
    for times in 0..30 {
        plan = plan.blow(SECOND * 20 * (times + 1), FaultEvent::LeaseGone { worker: 0 });
    }
    let record = kept(plan).record("r0");
    assert_eq!((record.status, record.cause), (Status::Stopped, Some(Cause::User)));
}

#[test]
fn a_worker_that_drains_while_writes_are_refused_exits_in_time() {
    let run = RunPlan::new("r0", &["work 10 0"]).at(5);
    let plan = Plan { replaced: false, ..Plan::quiet(vec![run]) }
        .blow(2 * SECOND, FaultEvent::WritesRefused(LONG))
        .blow(10 * SECOND, FaultEvent::Leave { worker: 0 });
    assert_eq!(kept(plan).record("r0").status, Status::Passed);
}
