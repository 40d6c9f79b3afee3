//! Properties that must hold in every state.

use stateright::Property;

use super::world::{MAX_LOSSES, Status, Violation, World};
use super::{OnLost, Protocol};

pub(crate) const ONE_ENDING: &str = "at most one ending is recorded";
pub(crate) const ENDED_FOR_GOOD: &str = "an ended run keeps its status";
pub(crate) const FENCED: &str = "only the owner's writes land";
pub(crate) const ONE_OWNER: &str = "a run has one owner, and epochs grow";
pub(crate) const STOPS_HOLD: &str = "a run that was stopped ends stopped";
pub(crate) const CAUSES_HOLD: &str = "an ending that was decided is the one that is recorded";
pub(crate) const NOT_AGAIN: &str = "a step that is recorded as done does not run again";
pub(crate) const IN_ORDER: &str = "a step is started after it and the one before it are recorded";
pub(crate) const ONE_AT_ONCE: &str = "two containers of a step never run at once on one engine";
pub(crate) const NEWER_STAYS: &str = "steps of a newer owner are not touched";
pub(crate) const LOSSES_CAPPED: &str = "no step starts after too many losses";
pub(crate) const FAILS_FOR_A_REASON: &str =
    "a run fails only if a step failed or is in doubt, or too many owners were lost";
pub(crate) const CALLED_ONCE: &str = "a run-once step starts once";
pub(crate) const ONE_EVENT: &str = "every ending event of a run is the same";
pub(crate) const SETTLED: &str =
    "at rest, the run has ended, its ending is published, and nothing of it is left";

/// A predicate on states.
pub(crate) type Condition = fn(&Protocol, &World) -> bool;

const ALWAYS: &[(&str, Condition)] = &[
    (ONE_ENDING, |_, world| world.history.endings <= 1),
    (ENDED_FOR_GOOD, |_, world| !world.has_slipped(Violation::EndedRecordChanged)),
    (FENCED, |_, world| !world.has_slipped(Violation::ForeignWrite)),
    (ONE_OWNER, |_, world| {
        !world.has_slipped(Violation::TwoOwners) && !world.has_slipped(Violation::EpochsShrink)
    }),
    (STOPS_HOLD, |_, world| !world.has_slipped(Violation::StopIgnored)),
    (CAUSES_HOLD, |_, world| !world.has_slipped(Violation::CauseIgnored)),
    (NOT_AGAIN, |_, world| !world.has_slipped(Violation::StepRanAgain)),
    (IN_ORDER, |_, world| !world.has_slipped(Violation::StepRanUnrecorded)),
    (ONE_AT_ONCE, |_, world| !world.runs_twice(|one, other| one.engine == other.engine)),
    (NEWER_STAYS, |_, world| !world.has_slipped(Violation::NewerContainerEnded)),
    (LOSSES_CAPPED, |_, world| !world.has_slipped(Violation::BegunAfterTooManyLosses)),
    (FAILS_FOR_A_REASON, fails_for_a_reason),
    (CALLED_ONCE, |_, world| !world.has_slipped(Violation::CalledAgain)),
    (ONE_EVENT, |_, world| !world.has_slipped(Violation::TwoEndingEvents)),
    (SETTLED, is_settled),
];

/// All properties, and the states that `model` must reach.
pub(crate) fn of(model: &Protocol) -> Vec<Property<Protocol>> {
    let always = ALWAYS.iter().map(|(name, holds)| Property::always(name, *holds));
    let sights = model.comes_across.iter();
    always.chain(sights.map(|sight| Property::sometimes(sight.what, sight.is_seen))).collect()
}

fn fails_for_a_reason(model: &Protocol, world: &World) -> bool {
    let losses = if model.on_lost == OnLost::Fail { 0 } else { MAX_LOSSES };
    world.ended() != Some(Status::Failed)
        || world.history.step_failed
        || world.history.in_doubt
        || world.history.losses > losses
}

fn is_settled(model: &Protocol, world: &World) -> bool {
    let mut work = Vec::new();
    model.work(world, &mut work);
    let store = &world.store;
    let record_is_final =
        store.record.is_none_or(|s| s.record.status.is_ended() && s.record.ending_event.is_none());
    !work.is_empty()
        || world.history.endings == 1
            && world.history.published.is_some()
            && record_is_final
            && store.owner.is_none()
            && !store.open
            && !store.stop
            // A dead worker's containers on another engine are left to that engine's janitor, and
            // so are containers that never started.
            && (model.engines > 1 || !world.containers.iter().any(|c| c.runs))
}
