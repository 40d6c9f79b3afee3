//! Each row of the crash table (ARCHITECTURE.md) as one history.

use std::time::Duration;

use protocol::id::StepName;
use protocol::run::{Cause, Status, StepStatus};

use crate::cluster::{PlayedHistory, STALL_TIMEOUT, play};
use crate::plan::{EffectSide, Fault, FaultEvent, Plan, Rule, RunPlan};
use crate::world::lock;

const SECOND: Duration = Duration::from_secs(1);
/// Longer than a lease.
const LONG: Duration = Duration::from_secs(35);

/// Three steps. The middle one takes five seconds.
fn three() -> RunPlan {
    RunPlan::new("r0", &["work 10 0", "work 5000 0", "work 10 0"])
}

/// Plays a history in which every rule must be used and the invariants must hold.
fn kept(plan: Plan) -> PlayedHistory {
    let played = play(Plan { traced: true, ..plan });
    let trace = played.world.trace().join("\n");
    assert!(played.broken.is_empty(), "{:#?}\n{trace}", played.broken);
    assert!(played.world.every_rule_was_used(), "nothing went wrong\n{trace}");
    played
}

/// A history of [`three`] with one fault.
fn with(site: &'static str, side: EffectSide, fault: Fault) -> PlayedHistory {
    kept(Plan::quiet(vec![three()]).with(Rule::new(site, side, fault)))
}

fn passed(played: &PlayedHistory, attempt: u32, losses: u32) {
    let record = played.record("r0");
    let came = (record.status, record.attempt, played.losses("r0"));
    let trace = played.world.trace().join("\n");
    assert_eq!(came, (Status::Passed, attempt, losses), "{trace}");
}

#[test]
fn a_death_before_the_claim_leaves_the_message_to_another_worker() {
    let played = with("claim", EffectSide::Before, Fault::Crash);
    passed(&played, 1, 0);
    assert_eq!(played.began("r0", 0), 1);
}

#[test]
fn a_death_between_the_claim_and_the_ack_runs_nothing_twice() {
    let played = with("claim", EffectSide::After, Fault::Crash);
    passed(&played, 2, 1);
    assert_eq!(played.told("r0", "CommandIgnored").len(), 1, "the message was redelivered");
    assert_eq!(played.began("r0", 0), 1);
}

#[test]
fn a_death_during_a_step_resumes_after_the_last_commit() {
    let played = kept(
        Plan::quiet(vec![three()])
            .blow(2 * SECOND, FaultEvent::Crash { worker: 0 })
            .blow(2 * SECOND, FaultEvent::Crash { worker: 1 }),
    );
    assert_eq!(played.record("r0").status, Status::Passed);
    assert_eq!(played.began("r0", 0), 1, "the first step had been committed");
    assert_eq!(played.began("r0", 1), 2);
    let resumed = played.told("r0", "PipelineRunResumed");
    assert_eq!(resumed.len(), 1, "{resumed:?}");
}

#[test]
fn containers_that_outlive_their_worker_end_before_their_step_runs_again() {
    // The step takes longer than the lease. An invariant checks that executions do not overlap.
    let run = RunPlan::new("r0", &["work 60000 0"]);
    let played = kept(
        Plan::quiet(vec![run])
            .with(Rule::new("start", EffectSide::Before, Fault::Slow(SECOND)))
            .blow(3 * SECOND, FaultEvent::Crash { worker: 0 })
            .blow(3 * SECOND, FaultEvent::Crash { worker: 1 }),
    );
    assert_eq!(played.began("r0", 0), 2);
}

#[test]
fn the_next_owner_publishes_an_ending_whose_owner_died_before_its_event() {
    let played = with("end", EffectSide::After, Fault::Crash);
    passed(&played, 1, 0);
    assert!(!played.told("r0", "PipelineSuccessful").is_empty());
}

#[test]
fn a_death_after_the_ending_event_repeats_that_event_and_no_other() {
    let played = with("let-go", EffectSide::Before, Fault::Crash);
    passed(&played, 1, 0);
    assert_eq!(played.told("r0", "PipelineSuccessful").len(), 2);
}

#[test]
fn an_unavailable_engine_costs_its_run_one_loss_however_many_workers_share_it() {
    let away = FaultEvent::EngineAway { engine: 0, span: 60 * SECOND };
    let plan = Plan { workers: 6, ..Plan::quiet(vec![three()]) };
    let played = kept(plan.blow(2 * SECOND, away));
    passed(&played, 2, 1);
    assert_eq!((played.began("r0", 0), played.began("r0", 1)), (1, 2));
}

#[test]
fn a_paused_worker_that_wakes_late_changes_nothing() {
    for site in ["claim", "save", "save-started", "start", "wait", "commit", "end", "let-go"] {
        for side in [EffectSide::Before, EffectSide::After] {
            if matches!((site, side), ("start", EffectSide::After) | ("wait", EffectSide::Before)) {
                continue;
            }
            let played = with(site, side, Fault::Pause(LONG));
            assert_eq!(played.record("r0").status, Status::Passed, "{side:?} {site}");
        }
    }
}

#[test]
fn a_dropped_broker_connection_ends_no_run() {
    let played = kept(
        Plan::quiet(vec![three()])
            .blow(SECOND, FaultEvent::BrokerCut)
            .blow(SECOND, FaultEvent::StreamAway(10 * SECOND)),
    );
    passed(&played, 1, 0);
}

#[test]
fn a_store_that_is_unavailable_longer_than_the_lease_costs_no_loss() {
    let plan = Plan { workers: 1, ..Plan::quiet(vec![three()]) };
    let played = kept(plan.blow(SECOND, FaultEvent::StoreAway(20 * SECOND)));
    let record = played.record("r0");
    assert_eq!((record.status, played.losses("r0")), (Status::Passed, 0));
    assert!(record.attempt > 1);
}

#[test]
fn a_lease_that_ends_early_costs_no_loss() {
    let plan = Plan { workers: 1, ..Plan::quiet(vec![three()]) };
    let played = kept(plan.blow(2 * SECOND, FaultEvent::LeaseGone { worker: 0 }));
    passed(&played, 2, 0);
}

#[test]
fn a_lease_that_is_granted_too_late_is_not_used() {
    let plan = Plan { workers: 1, ..Plan::quiet(vec![three()]) };
    let played = kept(plan.with(Rule::new("grant", EffectSide::After, Fault::Slow(9 * SECOND))));
    passed(&played, 1, 0);
}

#[test]
fn a_command_waits_while_the_store_is_unavailable_and_is_not_dead_lettered() {
    let run = RunPlan { at: 3 * SECOND, ..three() };
    let played = kept(Plan::quiet(vec![run]).blow(2 * SECOND, FaultEvent::StoreAway(30 * SECOND)));
    passed(&played, 1, 0);
}

#[test]
fn a_transaction_with_an_unknown_outcome_takes_effect_once() {
    for site in ["claim", "save", "save-started", "end", "let-go"] {
        for side in [EffectSide::Before, EffectSide::After] {
            passed(&with(site, side, Fault::Break), 1, 0);
        }
    }
    let taken_over = |side| {
        kept(
            Plan::quiet(vec![three()])
                .with(Rule::new("start", EffectSide::Before, Fault::Crash).nth(2))
                .with(Rule::new("claim-orphan", side, Fault::Break)),
        )
    };
    passed(&taken_over(EffectSide::Before), 2, 1);
    passed(&taken_over(EffectSide::After), 2, 1);
}

#[test]
fn a_run_whose_worker_died_waits_for_a_slot() {
    let long = RunPlan::new("r1", &["work 40000 0"]);
    let plan = Plan { workers: 2, slots: 1, replaced: false, ..Plan::quiet(vec![three(), long]) };
    let played = kept(plan.with(Rule::new("start", EffectSide::Before, Fault::Crash).nth(3)));
    let record = played.record("r0");
    assert_eq!(record.status, Status::Passed);
    assert_eq!(played.record("r1").status, Status::Passed);
}

#[test]
fn a_handed_over_run_resumes_at_once_without_a_loss() {
    let plan = Plan::quiet(vec![three()])
        .blow(2 * SECOND, FaultEvent::Drain { worker: 0, abort: true })
        .blow(2 * SECOND, FaultEvent::Drain { worker: 1, abort: true });
    let played = kept(plan);
    passed(&played, 2, 0);
    let resumed = played.told("r0", "PipelineRunResumed");
    let from = resumed.first().map(|event| event.message.clone()).unwrap_or_default();
    assert!(from.contains("handed it over"), "{resumed:?}");
    let at = resumed.first().map(|event| event.at.0 % 1_000_000).unwrap_or_default();
    assert!(at < 5_000, "the run must not wait for a lease to expire: {at} ms");
}

#[test]
fn a_hand_over_with_a_lost_response_happens_once() {
    for side in [EffectSide::Before, EffectSide::After] {
        let plan = Plan::quiet(vec![three()])
            .with(Rule::new("hand-over", side, Fault::Break))
            .blow(2 * SECOND, FaultEvent::Drain { worker: 0, abort: true })
            .blow(2 * SECOND, FaultEvent::Drain { worker: 1, abort: true });
        passed(&kept(plan), 2, 0);
    }
}

#[test]
fn a_death_in_the_middle_of_a_hand_over_leaves_it_to_the_lease() {
    let plan = Plan::quiet(vec![three()])
        .with(Rule::new("hand-over", EffectSide::Before, Fault::Crash))
        .blow(2 * SECOND, FaultEvent::Drain { worker: 0, abort: true })
        .blow(2 * SECOND, FaultEvent::Drain { worker: 1, abort: true });
    passed(&kept(plan), 2, 1);
}

#[test]
fn a_watch_that_falls_behind_restarts_from_a_new_scan() {
    let plan = Plan::quiet(vec![three()])
        .blow(SECOND, FaultEvent::Compact)
        .with(Rule::new("start", EffectSide::Before, Fault::Crash).nth(2));
    passed(&kept(plan), 2, 1);
}

#[test]
fn a_run_restarts_from_its_first_step_if_its_engine_is_lost() {
    let plan = Plan { engines: 2, replaced: false, ..Plan::quiet(vec![three()]) };
    let played = kept(plan.with(Rule::new("start", EffectSide::Before, Fault::Crash).nth(2)));
    passed(&played, 2, 1);
    assert_eq!(played.began("r0", 0), 2);
    let resumed = played.told("r0", "PipelineRunResumed");
    let first = StepName::position(0);
    let repeats = resumed.iter().any(|event| match &event.reason {
        protocol::event::Reason::PipelineRunResumed { cause, repeats, .. } => {
            cause == "image-lost" && repeats.contains(&first)
        }
        _ => false,
    });
    assert!(repeats, "{resumed:?}");
}

/// Two workers on two engines, and a registry.
fn with_a_registry() -> Plan {
    Plan { engines: 2, registry: true, replaced: false, ..Plan::quiet(vec![three()]) }
}

#[test]
fn a_run_resumes_from_the_registry_if_its_engine_is_lost() {
    let crash = Rule::new("wait", EffectSide::After, Fault::Crash).nth(2);
    let played = kept(with_a_registry().with(crash));
    passed(&played, 2, 1);
    assert_eq!((played.began("r0", 0), played.began("r0", 1)), (1, 2));
}

#[test]
fn a_checkpoint_that_was_not_pushed_in_time_costs_its_step() {
    // The engine is lost when the first step's image is in the registry and the second one's is
    // not.
    let run = RunPlan::new("r0", &["work 10 0", "work 1000 0", "work 5000 0"]);
    let plan = Plan { runs: vec![run], ..with_a_registry() }
        .with(Rule::new("push", EffectSide::Before, Fault::Slow(60 * SECOND)).nth(2))
        .with(Rule::new("wait", EffectSide::After, Fault::Crash).nth(3));
    let played = kept(plan);
    passed(&played, 2, 1);
    assert_eq!((played.began("r0", 0), played.began("r0", 1), played.began("r0", 2)), (1, 2, 2));
}

#[test]
fn a_failed_push_is_retried() {
    let plan = with_a_registry()
        .with(Rule::new("push", EffectSide::Before, Fault::Break))
        .with(Rule::new("wait", EffectSide::After, Fault::Crash).nth(2));
    let played = kept(plan);
    assert_eq!(played.began("r0", 0), 1);
}

#[test]
fn a_hand_over_waits_for_pushes_to_the_registry() {
    let plan = Plan { workers: 1, ..with_a_registry() }
        .with(Rule::new("push", EffectSide::Before, Fault::Slow(10 * SECOND)))
        .blow(SECOND, FaultEvent::Join { place: 1 })
        .blow(2 * SECOND, FaultEvent::Leave { worker: 0 });
    let played = kept(plan);
    passed(&played, 2, 0);
    assert_eq!(played.began("r0", 0), 1);
}

/// The workers' errors about their own tasks.
fn out_of_order(played: &PlayedHistory) -> Vec<String> {
    lock(&played.world.out_of_order).iter().map(ToString::to_string).collect()
}

#[test]
fn a_stalled_or_failed_loop_ends_the_lease_of_its_worker_and_others_continue() {
    for (site, nth, of, attempt, losses) in [
        ("claim", 1, "the intake of starts", 1, 0),
        // The worker that owns the run is the one whose task fails.
        ("keep-alive", 1, "the renewal of the lease", 2, 1),
    ] {
        let fault = if site == "claim" { Fault::Hang } else { Fault::Panic };
        let plan = Plan { workers: 1, ..Plan::quiet(vec![three()]) };
        let played = kept(plan.with(Rule::new(site, EffectSide::Before, fault).nth(nth)));
        passed(&played, attempt, losses);
        let told = out_of_order(&played);
        assert!(matches!(&told[..], [one] if one.starts_with(of)), "{told:?}");
    }
}

#[test]
fn a_stalled_drive_is_aborted_and_costs_its_run_a_loss() {
    for site in ["save", "save-started", "save-ended", "end", "let-go"] {
        let played = with(site, EffectSide::Before, Fault::Hang);
        let losses = if site == "let-go" { 0 } else { 1 };
        passed(&played, 1 + losses, losses);
        assert!(out_of_order(&played).is_empty(), "the worker must not exit");
    }
}

#[test]
fn a_long_outage_of_a_service_is_not_a_stall_of_the_loops() {
    let long = STALL_TIMEOUT * 3;
    let engine = FaultEvent::EngineAway { engine: 0, span: long };
    for blow in [FaultEvent::StoreAway(long), FaultEvent::StreamAway(long), engine] {
        let run = || RunPlan::new("r0", &["work 10 0", "work 600000 0", "work 10 0"]);
        let plan =
            Plan { slots: 1, ..Plan::quiet(vec![run(), RunPlan { name: "r1".into(), ..run() }]) };
        // An invariant checks that the watchdog ended no worker.
        let played = kept(plan.blow(2 * SECOND, blow));
        assert_eq!(played.record("r0").status, Status::Passed, "{blow:?}");
    }
}

/// One step, two concurrent ones of five seconds each, and one that builds on the second of them.
fn fork() -> RunPlan {
    let steps = ["work 10 0", "work 5000 0", "work 5000 0", "work 10 0"];
    RunPlan::new("r0", &steps).forked(&[&[], &[0], &[0], &[1, 2]])
}

#[test]
fn a_death_during_two_parallel_steps_reruns_both_but_no_passed_step() {
    let played = kept(
        Plan::quiet(vec![fork()])
            .blow(2 * SECOND, FaultEvent::Crash { worker: 0 })
            .blow(2 * SECOND, FaultEvent::Crash { worker: 1 }),
    );
    assert_eq!(played.record("r0").status, Status::Passed);
    let began: Vec<usize> = (0..4).map(|position| played.began("r0", position)).collect();
    assert_eq!(began, [1, 2, 2, 1]);
}

#[test]
fn parallel_steps_are_handed_over_together() {
    let plan = Plan { slots: 1, ..Plan::quiet(vec![fork()]) };
    let plan = plan.with(Rule::new("wait", EffectSide::After, Fault::Pause(SECOND)).nth(2));
    let played = kept(
        plan.blow(2 * SECOND, FaultEvent::Drain { worker: 0, abort: true })
            .blow(2 * SECOND, FaultEvent::Drain { worker: 1, abort: true }),
    );
    passed(&played, 2, 0);
    assert_eq!((played.began("r0", 0), played.began("r0", 3)), (1, 1));
}

#[test]
fn a_failing_parallel_step_ends_the_other_one_and_the_run() {
    let steps = ["work 10 0", "work 1000 3", "work 600000 0"];
    let played = kept(Plan::quiet(vec![RunPlan::new("r0", &steps).forked(&[&[], &[0], &[0]])]));
    let record = played.record("r0");
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::ExitCode)));
    assert_eq!(record.steps[2].status, StepStatus::Stopped);
}

#[test]
fn a_run_that_loses_every_worker_eventually_fails() {
    let mut plan = Plan::quiet(vec![three()]);
    for _ in 0..4 {
        // The first step is committed. The second one never succeeds.
        plan = plan.with(Rule::new("start", EffectSide::Before, Fault::Crash).nth(2));
    }
    let played = kept(plan);
    let record = played.record("r0");
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Lost)));
}

#[test]
fn a_run_that_restarts_and_loses_every_worker_eventually_fails() {
    let run = RunPlan { on_lost: Some("restart"), ..three() };
    let mut plan = Plan::quiet(vec![run]);
    for times in 0..4 {
        // Each owner repeats the first step and dies in the second one.
        plan = plan.with(Rule::new("start", EffectSide::Before, Fault::Crash).nth(2 + times));
    }
    let record = kept(plan).record("r0");
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Lost)));
}

#[test]
fn a_run_that_always_costs_its_only_worker_the_lease_eventually_fails() {
    let run = RunPlan::new("r0", &["work 10 0", "work 600000 0"]);
    let mut plan = Plan { workers: 1, ..Plan::quiet(vec![run]) };
    for times in 1..=7 {
        plan = plan.blow(20 * times * SECOND, FaultEvent::LeaseGone { worker: 0 });
    }
    let record = kept(plan).record("r0");
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Lost)));
    // Three losses are allowed, and the fourth one is too many.
    assert_eq!((record.reclaims, record.losses), (7, 4));
    assert_eq!(record.steps.first().map(|step| step.status), Some(StepStatus::Passed));
}
