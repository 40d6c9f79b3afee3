//! A model of run ownership that is checked in every order of events: claim, fence, takeover and
//! hand-over, with up to three workers and one run of two steps.
//!
//! Actions have the names of the worker's (`runner/src/worker`), and transactions have the same
//! conditions and changes. Images, logs, slots, pauses and the preference for an engine are left
//! out. A timer can fire at any time. So a worker that takes no turn while others do is paused, and
//! its next turn is its late waking. A check is bounded by its faults: the number of crashes,
//! pauses, lost answers and interventions.
//!
//! A worker creates a step's container while the write that records its start is in progress. It
//! checks its lease's clock when both are done. Here the write includes that check, so it comes
//! after the creation.
//!
//! Each check visits all states. A second part shows that the checks can fail: leaving out one rule
//! breaks the property that the rule protects.
#![allow(clippy::print_stdout, reason = "how much was checked is worth reading")]

mod actions;
mod driving;
mod moves;
mod once;
mod properties;
mod sights;
mod store;
mod world;

use std::collections::{BTreeSet, HashMap};

use sights::ReachableState;
use stateright::{Checker, HasDiscoveries, Model};
use world::{Faults, World};

/// How a pipeline treats a lost owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnLost {
    Resume,
    Fail,
}

/// A rule that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeftOutRule {
    None,
    /// A write does not compare the owner key.
    SavesAreNotFenced,
    /// A write does not compare the record's revision.
    SavesOverAnything,
    /// A start is claimed even if its run is recorded or was seen.
    ClaimsWhatIsKnown,
    /// A start is claimed if there is no record, even if its run was seen.
    ClaimsWhatWasRemoved,
    /// If the answer to an orphan's claim is lost, the claim is dropped. The next lookup finds it
    /// without knowing how the run was left.
    DropsAnUnansweredClaim,
    /// An orphan is claimed without comparing whether it has changed since it was found.
    TakesWhatIsOwned,
    /// The next owner ignores a recorded cause.
    ForgetsTheCause,
    /// The number of lost owners is not limited.
    GoesOnForEver,
    /// An ending does not require the absence of a stop.
    EndsDespiteAStop,
    /// A stopped run is claimed without checking whether another worker has ended it.
    EndsWhatHasEnded,
    /// An earlier owner's container is ended neither at the takeover nor when its name is needed.
    LeavesOlderContainers,
    /// Containers are ended whatever their epoch.
    EndsNewerContainers,
    /// A container can be created after its start is recorded, and so after the next owner has
    /// ended the existing ones. The lease is not checked.
    MakesWhileItRecords,
    /// The gate is opened before the start is recorded.
    StartsUnrecorded,
    /// The run is released before its ending is published.
    LetsGoBeforeItPublishes,
    /// A hand-over interrupts a step that must not run twice, and the next owner takes a hand-over
    /// as proof that nothing is in doubt.
    HandsOverInDoubt,
    /// The next owner of a lost run repeats a step in doubt.
    RepeatsInDoubt,
}

/// A model with its parameters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Protocol {
    workers: usize,
    /// The number of engines. Workers are assigned to them in turn.
    engines: usize,
    faults: Faults,
    on_lost: OnLost,
    /// Whether its steps must not run twice.
    once: bool,
    flaw: LeftOutRule,
    /// States that a check must reach.
    comes_across: &'static [ReachableState],
}

const NO_FAULTS: Faults = Faults {
    crashes: 0,
    pauses: 0,
    partitions: 0,
    unanswered: 0,
    redeliveries: 0,
    stops: 0,
    drains: 0,
    failures: 0,
    removals: 0,
};

/// Two workers on one engine.
const TWO: Protocol = Protocol {
    workers: 2,
    engines: 1,
    faults: NO_FAULTS,
    on_lost: OnLost::Resume,
    once: false,
    flaw: LeftOutRule::None,
    comes_across: &[],
};

/// Visits all states. Every property must hold in each, and every state in `comes_across` must be
/// reached.
fn holds(model: Protocol) {
    let faults = model.faults;
    let checker = model.checker().spawn_bfs().join();
    println!(
        "{} states, up to {} deep: {faults:?}",
        checker.unique_state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
}

/// Checks that a property fails if a rule is left out.
fn breaks(model: Protocol, property: &'static str) {
    let flaw = model.flaw;
    let found = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = model.checker().finish_when(found).spawn_bfs().join();
    let path = checker.assert_any_discovery(property).into_actions();
    println!("{flaw:?}: not {property:?} after {path:?}");
}

/// Checks that no state repeats, so that every order of events ends in a final state.
fn terminates(model: Protocol) {
    let next = |world: &World| model.next_states(world).into_iter();
    let first = World::new(model.workers, model.faults);
    // `false` if the state is on the current path.
    let mut done: HashMap<World, bool> = HashMap::from([(first.clone(), false)]);
    let mut path = vec![(next(&first), first)];
    while let Some((followers, world)) = path.last_mut() {
        let Some(follower) = followers.next() else {
            done.insert(world.clone(), true);
            path.pop();
            continue;
        };
        match done.get(&follower) {
            Some(is_done) => assert!(*is_done, "the state repeats: {follower:?}"),
            None => {
                done.insert(follower.clone(), false);
                path.push((next(&follower), follower));
            }
        }
    }
    println!("{} states, and none comes again", done.len());
}

#[test]
fn every_order_of_events_terminates() {
    let lost = Faults { crashes: 1, pauses: 1, ..NO_FAULTS };
    let stopped = Faults { crashes: 1, stops: 1, ..NO_FAULTS };
    let answers = Faults { redeliveries: 1, unanswered: 1, drains: 1, ..NO_FAULTS };
    for faults in [lost, stopped, answers] {
        terminates(Protocol { faults, ..TWO });
    }
}

#[test]
fn a_run_passes_without_faults() {
    holds(TWO);
}

#[test]
fn a_run_survives_two_crashes() {
    holds(Protocol {
        faults: Faults { crashes: 2, ..NO_FAULTS },
        comes_across: &[
            sights::PASSED_BY_THE_NEXT,
            sights::FAILED_BY_LOSSES,
            sights::OLDER_CONTAINER_RUNS,
            sights::ENDING_OF_AN_EARLIER_OWNER,
        ],
        ..TWO
    });
}

#[test]
fn a_former_owner_that_wakes_late_changes_nothing() {
    holds(Protocol {
        faults: Faults { pauses: 2, ..NO_FAULTS },
        comes_across: &[sights::WOKEN_LATE, sights::PUBLISHED_TWICE, sights::OLDER_CONTAINER_RUNS],
        ..TWO
    });
}

#[test]
fn three_workers_can_compete_for_one_run() {
    holds(Protocol {
        workers: 3,
        faults: Faults { crashes: 1, pauses: 1, ..NO_FAULTS },
        comes_across: &[sights::WOKEN_LATE, sights::PASSED_BY_THE_NEXT, sights::FAILED_BY_LOSSES],
        ..TWO
    });
}

#[test]
fn a_lease_that_its_own_worker_revoked_is_not_a_loss() {
    holds(Protocol {
        faults: Faults { partitions: 1, pauses: 1, ..NO_FAULTS },
        comes_across: &[sights::PASSED_WITHOUT_A_LOSS, sights::WOKEN_LATE],
        ..TWO
    });
}

#[test]
fn unanswered_writes_take_effect_at_most_once() {
    holds(Protocol {
        faults: Faults { unanswered: 2, pauses: 1, ..NO_FAULTS },
        comes_across: &[sights::OWN_CLAIM_UNKNOWN, sights::LATE_WRITE_OF_AN_EARLIER_OWNER],
        ..TWO
    });
}

#[test]
fn a_crash_a_pause_and_a_lost_response_can_coincide() {
    holds(Protocol {
        faults: Faults { crashes: 1, pauses: 1, unanswered: 1, ..NO_FAULTS },
        comes_across: &[sights::OWN_CLAIM_UNKNOWN, sights::WOKEN_LATE, sights::FAILED_BY_LOSSES],
        ..TWO
    });
}

#[test]
fn a_redelivered_start_is_recognized() {
    holds(Protocol {
        faults: Faults { redeliveries: 1, removals: 1, unanswered: 1, crashes: 1, ..NO_FAULTS },
        comes_across: &[
            sights::KNOWN_START,
            sights::KNOWN_AFTER_REMOVAL,
            sights::OWN_CLAIM_UNKNOWN,
        ],
        ..TWO
    });
}

#[test]
fn a_stop_ends_a_run_with_any_owner() {
    holds(Protocol {
        faults: Faults { stops: 1, crashes: 1, pauses: 1, ..NO_FAULTS },
        comes_across: &[sights::STOP_FOUND_AT_THE_END, sights::ENDING_OF_AN_EARLIER_OWNER],
        ..TWO
    });
}

#[test]
fn the_next_owner_does_not_run_a_failed_step_again() {
    holds(Protocol {
        faults: Faults { failures: 1, stops: 1, crashes: 1, ..NO_FAULTS },
        comes_across: &[sights::ENDED_AS_DECIDED, sights::ENDING_OF_AN_EARLIER_OWNER],
        ..TWO
    });
}

#[test]
fn a_handed_over_run_is_resumed() {
    holds(Protocol {
        faults: Faults { drains: 1, unanswered: 1, crashes: 1, ..NO_FAULTS },
        comes_across: &[sights::HANDED_OVER, sights::PASSED_WITHOUT_A_LOSS],
        ..TWO
    });
}

#[test]
fn a_hand_over_does_not_count_for_a_run_that_fails_after_one_loss() {
    holds(Protocol {
        on_lost: OnLost::Fail,
        faults: Faults { drains: 2, unanswered: 1, ..NO_FAULTS },
        comes_across: &[sights::HANDED_OVER, sights::PASSED_WITHOUT_A_LOSS],
        ..TWO
    });
}

#[test]
fn only_the_engine_of_the_owner_matters() {
    holds(Protocol {
        engines: 2,
        faults: Faults { crashes: 1, pauses: 1, ..NO_FAULTS },
        comes_across: &[
            sights::TWO_ENGINES_AT_ONCE,
            sights::PASSED_BY_THE_NEXT,
            sights::WOKEN_LATE,
        ],
        ..TWO
    });
}

#[test]
fn without_the_fence_a_former_owner_writes() {
    let faults = Faults { pauses: 1, ..NO_FAULTS };
    breaks(Protocol { flaw: LeftOutRule::SavesAreNotFenced, faults, ..TWO }, properties::FENCED);
}

#[test]
fn without_the_revision_of_the_record_a_late_write_undoes_the_ending() {
    let faults = Faults { unanswered: 1, ..NO_FAULTS };
    breaks(
        Protocol { flaw: LeftOutRule::SavesOverAnything, faults, ..TWO },
        properties::ENDED_FOR_GOOD,
    );
}

#[test]
fn claiming_a_known_run_runs_it_twice() {
    let faults = Faults { redeliveries: 1, ..NO_FAULTS };
    breaks(
        Protocol { flaw: LeftOutRule::ClaimsWhatIsKnown, faults, ..TWO },
        properties::ONE_ENDING,
    );
}

#[test]
fn without_the_seen_mark_a_run_is_claimed_again_after_its_record_expires() {
    let faults = Faults { redeliveries: 1, removals: 1, ..NO_FAULTS };
    breaks(
        Protocol { flaw: LeftOutRule::ClaimsWhatWasRemoved, faults, ..TWO },
        properties::ONE_ENDING,
    );
}

#[test]
fn an_unanswered_claim_that_is_not_retried_loses_the_hand_over() {
    let faults = Faults { drains: 1, unanswered: 1, ..NO_FAULTS };
    let model = Protocol { flaw: LeftOutRule::DropsAnUnansweredClaim, faults, ..TWO };
    breaks(Protocol { on_lost: OnLost::Fail, ..model }, properties::FAILS_FOR_A_REASON);
}

#[test]
fn an_unanswered_claim_that_is_not_retried_fails_on_a_redelivered_start() {
    let faults = Faults { crashes: 1, redeliveries: 1, unanswered: 1, ..NO_FAULTS };
    let model = Protocol { flaw: LeftOutRule::DropsAnUnansweredClaim, faults, ..TWO };
    breaks(model, properties::FAILS_FOR_A_REASON);
}

#[test]
fn an_unconditional_takeover_creates_two_owners() {
    let faults = Faults { crashes: 1, ..NO_FAULTS };
    breaks(Protocol { flaw: LeftOutRule::TakesWhatIsOwned, faults, ..TWO }, properties::ONE_OWNER);
}

#[test]
fn a_cause_that_is_not_recorded_lets_a_failed_run_pass() {
    let faults = Faults { failures: 1, crashes: 1, ..NO_FAULTS };
    breaks(Protocol { flaw: LeftOutRule::ForgetsTheCause, faults, ..TWO }, properties::CAUSES_HOLD);
}

#[test]
fn without_a_limit_on_losses_a_run_takes_down_every_worker() {
    let faults = Faults { crashes: 2, ..NO_FAULTS };
    breaks(Protocol { flaw: LeftOutRule::GoesOnForEver, faults, ..TWO }, properties::LOSSES_CAPPED);
}

#[test]
fn an_ending_that_does_not_check_for_a_stop_ignores_it() {
    let faults = Faults { stops: 1, ..NO_FAULTS };
    breaks(Protocol { flaw: LeftOutRule::EndsDespiteAStop, faults, ..TWO }, properties::STOPS_HOLD);
}

#[test]
fn an_unchecked_stop_of_an_ended_run_ends_it_twice() {
    let faults = Faults { stops: 1, crashes: 1, ..NO_FAULTS };
    let model = Protocol { flaw: LeftOutRule::EndsWhatHasEnded, faults, ..TWO };
    breaks(model, properties::ONE_ENDING);
    breaks(model, properties::ONE_EVENT);
}

#[test]
fn a_leftover_container_runs_beside_that_of_the_next_owner() {
    let faults = Faults { crashes: 1, ..NO_FAULTS };
    let model = Protocol { flaw: LeftOutRule::LeavesOlderContainers, faults, ..TWO };
    breaks(model, properties::ONE_AT_ONCE);
}

#[test]
fn a_former_owner_that_kills_any_container_fails_the_run_of_the_next_owner() {
    let model = Protocol { flaw: LeftOutRule::EndsNewerContainers, ..TWO };
    let paused = Faults { pauses: 1, ..NO_FAULTS };
    breaks(Protocol { faults: paused, ..model }, properties::NEWER_STAYS);
    // No pause is needed if the engine is slower than the lease.
    let partitioned = Faults { partitions: 1, ..NO_FAULTS };
    breaks(Protocol { faults: partitioned, ..model }, properties::FAILS_FOR_A_REASON);
}

#[test]
fn a_container_created_after_its_start_is_recorded_can_outlive_the_run() {
    let faults = Faults { pauses: 1, ..NO_FAULTS };
    breaks(
        Protocol { flaw: LeftOutRule::MakesWhileItRecords, faults, ..TWO },
        properties::NOT_AGAIN,
    );
}

#[test]
fn a_start_that_is_not_recorded_precedes_the_commit_of_the_last_step() {
    breaks(Protocol { flaw: LeftOutRule::StartsUnrecorded, ..TWO }, properties::IN_ORDER);
}

#[test]
fn a_run_released_before_its_ending_is_published_can_end_silently() {
    let faults = Faults { crashes: 1, ..NO_FAULTS };
    breaks(
        Protocol { flaw: LeftOutRule::LetsGoBeforeItPublishes, faults, ..TWO },
        properties::SETTLED,
    );
}
