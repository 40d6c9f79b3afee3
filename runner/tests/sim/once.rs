//! A step that must not run twice, when its run changes its owner.

use std::time::Duration;

use protocol::run::{Cause, Status};

use crate::cluster::{PlayedHistory, play};
use crate::plan::{FaultEvent, Plan, RunPlan};

const SECOND: Duration = Duration::from_secs(1);

/// Three steps. The middle one acts on another system.
fn calling(millis: u64) -> Plan {
    let call = format!("call {millis} 0");
    Plan::quiet(vec![RunPlan::new("r0", &["work 10 0", &call, "work 10 0"])])
}

fn kept(plan: Plan) -> PlayedHistory {
    let played = play(Plan { traced: true, ..plan });
    let trace = played.world.trace().join("\n");
    assert!(played.broken.is_empty(), "{:#?}\n{trace}", played.broken);
    played
}

/// Both workers drain while the middle step runs.
fn drained(millis: u64, abort: bool) -> PlayedHistory {
    kept(
        calling(millis)
            .blow(2 * SECOND, FaultEvent::Drain { worker: 0, abort })
            .blow(2 * SECOND, FaultEvent::Drain { worker: 1, abort }),
    )
}

#[test]
fn a_call_finishes_during_a_hand_over_and_is_sent_once() {
    let played = drained(3_000, true);
    let record = played.record("r0");
    assert_eq!((record.status, record.attempt, record.losses), (Status::Passed, 2, 0));
    assert_eq!((played.began("r0", 1), played.began("r0", 2)), (1, 1));
}

#[test]
fn a_call_that_outlasts_the_drain_ends_its_run_lost() {
    for abort in [false, true] {
        let played = drained(60_000, abort);
        let record = played.record("r0");
        assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Lost)));
        assert_eq!((played.began("r0", 1), played.began("r0", 2)), (1, 0));
        assert_eq!(record.attempt, 1, "the first owner must record the end");
    }
}

#[test]
fn a_call_whose_worker_dies_is_in_doubt_and_ends_its_run_lost() {
    let crash = |worker| FaultEvent::Crash { worker };
    let plan = calling(60_000).blow(2 * SECOND, crash(0)).blow(2 * SECOND, crash(1));
    let played = kept(plan);
    let record = played.record("r0");
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Lost)));
    assert_eq!(played.began("r0", 1), 1);
}

#[test]
fn an_owner_keeps_its_claim_until_its_steps_have_ended() {
    // The worker loses its lease while its engine is unreachable. The store answers again before
    // the lease expires, and there is a worker on another engine.
    let run = RunPlan::new("r0", &["work 60000 0"]);
    let plan = Plan { workers: 1, engines: 2, ..Plan::quiet(vec![run]) }
        .blow(SECOND, FaultEvent::Join { place: 1 })
        .blow(2 * SECOND, FaultEvent::EngineAway { engine: 0, span: 30 * SECOND })
        .blow(2 * SECOND, FaultEvent::StoreAway(6 * SECOND));
    let played = kept(plan);
    let trace = played.world.trace().join("\n");
    assert_eq!(played.record("r0").status, Status::Passed, "{trace}");
    let mut executed: Vec<_> =
        played.world.engines.iter().flat_map(crate::engine::Engine::journal).collect();
    executed.sort_by_key(|executed| executed.began);
    assert_eq!(executed.len(), 2, "{trace}");
    assert!(executed[0].ended.is_some_and(|ended| ended <= executed[1].began), "{trace}");
}
