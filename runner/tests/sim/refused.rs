//! A store that rejects writes while reads and lease renewals work.

use std::time::Duration;

use protocol::run::{Cause, Status};

use crate::cluster::{PlayedHistory, STALL_TIMEOUT, play};
use crate::plan::{FaultEvent, Plan, RunPlan};
use crate::world::lock;

const SECOND: Duration = Duration::from_secs(1);
/// The length of an outage: longer than the watchdog lets a task stall, and longer than 20 requeues
/// take.
const OUTAGE: Duration = STALL_TIMEOUT.saturating_mul(3);

/// Plays a history. Panics if it violates an invariant, or if a worker exits by itself.
fn play_without_violations(plan: Plan) -> PlayedHistory {
    let played = play(Plan { traced: true, ..plan });
    let trace = played.world.trace().join("\n");
    assert!(played.broken.is_empty(), "{:#?}\n{trace}", played.broken);
    let fault = lock(&played.world.out_of_order).first().map(ToString::to_string);
    assert_eq!(fault, None, "a worker exited by itself");
    played
}

#[test]
fn a_worker_whose_writes_are_refused_waits_while_its_runs_continue() {
    let long = RunPlan::new("r0", &["work 10 0", "work 600000 0", "work 10 0"]);
    let late = RunPlan::new("late", &["work 10 0"]).at(5);
    let plan = Plan { workers: 1, ..Plan::quiet(vec![long, late]) };
    let played = play_without_violations(plan.blow(2 * SECOND, FaultEvent::WritesRefused(OUTAGE)));
    for name in ["r0", "late"] {
        let record = played.record(name);
        assert_eq!((record.status, record.attempt), (Status::Passed, 1), "{name}");
    }
    assert_eq!(played.began("r0", 1), 1, "the step must start only once");
}

#[test]
fn a_step_that_ends_while_writes_are_refused_is_recorded_afterwards() {
    let run = RunPlan::new("r0", &["work 10 0", "work 5000 0", "work 10 0"]);
    let played = play_without_violations(
        Plan::quiet(vec![run]).blow(2 * SECOND, FaultEvent::WritesRefused(OUTAGE)),
    );
    let record = played.record("r0");
    assert_eq!((record.status, record.attempt), (Status::Passed, 1));
    assert_eq!(played.began("r0", 1), 1);
}

#[test]
fn a_stop_waits_and_takes_effect_once_it_can_be_recorded() {
    let running = RunPlan::new("r0", &["work 10 0", "work 3600000 0"]).stopped_at(5);
    // This run waits behind a long one, and is stopped before any worker knows about it.
    let queued = RunPlan::new("queued", &["work 10 0"]).at(4).stopped_at(6);
    let plan = Plan { workers: 1, slots: 1, ..Plan::quiet(vec![running, queued]) };
    let played = play_without_violations(plan.blow(2 * SECOND, FaultEvent::WritesRefused(OUTAGE)));
    for name in ["r0", "queued"] {
        let record = played.record(name);
        assert_eq!((record.status, record.cause), (Status::Stopped, Some(Cause::User)), "{name}");
    }
    assert_eq!(played.began("queued", 0), 0, "the queued run must not start");
}

#[test]
fn a_waiting_stop_survives_lost_leases() {
    let running = RunPlan::new("r0", &["work 10 0", "work 3600000 0"]).stopped_at(5);
    let mut plan = Plan { workers: 1, ..Plan::quiet(vec![running]) }
        .blow(4 * SECOND, FaultEvent::StoreAway(2 * OUTAGE));
    for index in 0..30 {
        plan = plan.blow(SECOND * 20 * (index + 1), FaultEvent::LeaseGone { worker: 0 });
    }
    let record = play_without_violations(plan).record("r0");
    assert_eq!((record.status, record.cause), (Status::Stopped, Some(Cause::User)));
}

#[test]
fn a_worker_that_drains_while_writes_are_refused_exits_in_time() {
    let run = RunPlan::new("r0", &["work 10 0"]).at(5);
    let plan = Plan { replaced: false, ..Plan::quiet(vec![run]) }
        .blow(2 * SECOND, FaultEvent::WritesRefused(OUTAGE))
        .blow(10 * SECOND, FaultEvent::Leave { worker: 0 });
    assert_eq!(play_without_violations(plan).record("r0").status, Status::Passed);
}
