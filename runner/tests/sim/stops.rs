//! A stop in every state of a run.

use std::time::Duration;

use protocol::run::{Cause, Status};

use crate::cluster::{PlayedHistory, play};
use crate::plan::{EffectSide, Fault, FaultEvent, Plan, Rule, RunPlan};

const SECOND: Duration = Duration::from_secs(1);

/// Plays a history whose run `r0` is stopped by a user and ends in time.
fn stopped(plan: Plan) -> PlayedHistory {
    let played = play(Plan { traced: true, ..plan });
    let trace = played.world.trace().join("\n");
    assert!(played.broken.is_empty(), "{:#?}\n{trace}", played.broken);
    assert!(played.world.every_rule_was_used(), "{trace}");
    let record = played.record("r0");
    assert_eq!((record.status, record.cause), (Status::Stopped, Some(Cause::User)), "{trace}");
    played
}

/// A run of two steps that is stopped after two seconds while a site is delayed by ten.
fn while_it_is(site: &'static str) -> PlayedHistory {
    let run = RunPlan::new("r0", &["work 10 0", "work 10 0"]).moving().stopped_at(2);
    let rule = Rule::new(site, EffectSide::Before, Fault::Slow(10 * SECOND));
    stopped(Plan::quiet(vec![run]).with(rule))
}

#[test]
fn a_queued_run_is_stopped_on_delivery() {
    let other = RunPlan::new("other", &["work 10000 0"]);
    let run = RunPlan::new("r0", &["work 10 0"]).at(1).stopped_at(2);
    let plan = Plan { workers: 1, slots: 1, ..Plan::quiet(vec![other, run]) };
    let played = stopped(plan);
    assert_eq!(played.began("r0", 0), 0);
}

#[test]
fn a_run_that_waits_for_a_retry_can_be_stopped() {
    let run = RunPlan { retry: 5, ..RunPlan::new("r0", &["work 10 7"]).stopped_at(5) };
    let played = stopped(Plan::quiet(vec![run]));
    assert!(played.began("r0", 0) >= 2, "the step must have been retried");
}

#[test]
fn a_run_that_pulls_its_image_can_be_stopped() {
    assert_eq!(while_it_is("prepare").began("r0", 0), 0);
}

#[test]
fn a_run_that_fetches_a_resource_can_be_stopped() {
    assert_eq!(while_it_is("fetch").began("r0", 0), 0);
}

#[test]
fn a_running_step_can_be_stopped() {
    let run = RunPlan::new("r0", &["work 60000 0", "work 10 0"]).stopped_at(2);
    assert_eq!(stopped(Plan::quiet(vec![run])).began("r0", 1), 0);
}

#[test]
fn a_step_that_ignores_signals_is_killed() {
    let run = RunPlan::new("r0", &["stubborn 60000", "work 10 0"]).stopped_at(2);
    assert_eq!(stopped(Plan::quiet(vec![run])).began("r0", 1), 0);
}

#[test]
fn a_run_that_uploads_an_artifact_can_be_stopped() {
    assert_eq!(while_it_is("upload").began("r0", 1), 0);
}

#[test]
fn a_run_that_commits_a_step_is_stopped_after_the_commit() {
    assert_eq!(while_it_is("commit").began("r0", 1), 0);
}

#[test]
fn a_stop_during_the_commit_of_the_last_step_ends_the_run_as_stopped() {
    let run = RunPlan::new("r0", &["work 10 0"]).stopped_at(2);
    let rule = Rule::new("commit", EffectSide::Before, Fault::Slow(10 * SECOND));
    stopped(Plan::quiet(vec![run]).with(rule));
}

#[test]
fn a_handed_over_run_is_stopped_by_its_next_owner() {
    let run = RunPlan::new("r0", &["work 10 0", "work 60000 0"]).stopped_at(3);
    let plan = Plan::quiet(vec![run])
        .with(Rule::new("hand-over", EffectSide::Before, Fault::Slow(5 * SECOND)))
        .blow(2 * SECOND, FaultEvent::Drain { worker: 0, abort: true })
        .blow(2 * SECOND, FaultEvent::Drain { worker: 1, abort: true });
    stopped(plan);
}

#[test]
fn a_run_without_an_owner_is_stopped_without_a_slot() {
    let other = RunPlan::new("other", &["work 30000 0"]);
    let run = RunPlan::new("r0", &["work 60000 0"]).stopped_at(13);
    let plan = Plan { workers: 2, slots: 1, replaced: false, ..Plan::quiet(vec![other, run]) };
    let played = stopped(plan.with(Rule::new("start", EffectSide::Before, Fault::Crash).nth(2)));
    assert_eq!(played.record("other").status, Status::Passed);
}

#[test]
fn a_stop_whose_receiver_dies_still_takes_effect() {
    for side in [EffectSide::Before, EffectSide::After] {
        let run = RunPlan::new("r0", &["work 60000 0"]).stopped_at(2);
        stopped(Plan::quiet(vec![run]).with(Rule::new("stop", side, Fault::Crash)));
    }
}
