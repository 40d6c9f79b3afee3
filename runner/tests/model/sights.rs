//! States that a check must reach. Otherwise it would show less than it claims.

use super::properties::Condition;
use super::world::{Drive, Phase, Status, Task, Worker};

/// A state that must be reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReachableState {
    pub(crate) what: &'static str,
    pub(crate) is_seen: Condition,
}

pub(crate) const PASSED_BY_THE_NEXT: ReachableState = ReachableState {
    what: "a lost run passes with its next owner",
    is_seen: |_, world| world.ended() == Some(Status::Passed) && world.history.losses > 0,
};

pub(crate) const FAILED_BY_LOSSES: ReachableState = ReachableState {
    what: "a run fails after too many losses",
    is_seen: |_, world| world.ended() == Some(Status::Failed) && !world.history.step_failed,
};

pub(crate) const OLDER_CONTAINER_RUNS: ReachableState = ReachableState {
    what: "a step of an earlier owner still runs",
    is_seen: |_, world| {
        let claimed = world.store.owner.map(|owner| owner.created);
        world.containers.iter().any(|c| c.runs && Some(c.epoch) < claimed)
    },
};

pub(crate) const WOKEN_LATE: ReachableState = ReachableState {
    what: "a worker acts for a run that another one owns",
    is_seen: |_, world| {
        world.store.owner.is_some_and(|owner| world.is_driven(|drive| drive.epoch < owner.created))
    },
};

pub(crate) const LATE_WRITE_OF_AN_EARLIER_OWNER: ReachableState = ReachableState {
    what: "a write of an earlier owner is on its way",
    is_seen: |_, world| {
        let claimed = world.store.owner.map(|owner| owner.created);
        world.late.is_some_and(|late| late.epoch.is_some() && late.epoch < claimed)
    },
};

pub(crate) const OWN_CLAIM_UNKNOWN: ReachableState = ReachableState {
    what: "a worker does not know that it owns the run",
    is_seen: |_, world| {
        let asks = |task| matches!(task, Task::Claiming { .. } | Task::Rescuing { .. });
        let at = |(at, worker): (usize, &Worker)| asks(worker.task) && world.is_ours(at);
        world.workers.iter().enumerate().any(at)
    },
};

pub(crate) const KNOWN_START: ReachableState = ReachableState {
    what: "a start is redelivered while the run is in progress",
    is_seen: |_, world| world.queue > 0 && world.store.owner.is_some(),
};

pub(crate) const KNOWN_AFTER_REMOVAL: ReachableState = ReachableState {
    what: "a start is redelivered after its record has expired",
    is_seen: |_, world| world.queue > 0 && world.store.record.is_none() && world.store.seen,
};

pub(crate) const HANDED_OVER: ReachableState = ReachableState {
    what: "a run passes that was handed over",
    is_seen: |_, world| world.history.handed_over && world.ended() == Some(Status::Passed),
};

pub(crate) const PASSED_WITHOUT_A_LOSS: ReachableState = ReachableState {
    what: "a run passes with another owner, and no loss is counted",
    is_seen: |_, world| {
        let passed = world.ended() == Some(Status::Passed);
        passed && world.is_taken_over() && world.history.losses == 0
    },
};

pub(crate) const STOP_FOUND_AT_THE_END: ReachableState = ReachableState {
    what: "a stop arrives while the run is about to pass",
    is_seen: |_, world| {
        let is_passing = |d: &Drive| d.phase == Phase::Ending && d.record.status == Status::Passed;
        world.store.stop && world.is_driven(is_passing)
    },
};

pub(crate) const ENDED_AS_DECIDED: ReachableState = ReachableState {
    what: "an ending is recorded by the next owner",
    is_seen: |_, world| {
        let failed = world.ended() == Some(Status::Failed);
        failed && world.is_taken_over() && world.history.step_failed
    },
};

pub(crate) const ENDING_OF_AN_EARLIER_OWNER: ReachableState = ReachableState {
    what: "an ending is published by the next owner",
    is_seen: |_, world| {
        let ending = world.store.record.and_then(|s| s.record.ending_event);
        ending.is_some_and(|ending| world.is_driven(|drive| drive.epoch > ending.epoch))
    },
};

pub(crate) const PUBLISHED_TWICE: ReachableState = ReachableState {
    what: "an ending is published twice",
    is_seen: |_, world| world.history.published_again,
};

pub(crate) const TWO_ENGINES_AT_ONCE: ReachableState = ReachableState {
    what: "a step runs on two engines at once",
    is_seen: |_, world| world.runs_twice(|_, _| true),
};

pub(crate) const ENDED_IN_DOUBT: ReachableState = ReachableState {
    what: "the next owner ends a run over a step in doubt",
    is_seen: |_, world| {
        let failed = world.ended() == Some(Status::Failed);
        failed && world.history.in_doubt && world.is_taken_over()
    },
};

pub(crate) const DRAINED_IN_DOUBT: ReachableState = ReachableState {
    what: "an owner that drains ends its run over a step that still runs",
    is_seen: |_, world| {
        let failed = world.ended() == Some(Status::Failed);
        failed && world.history.in_doubt && !world.is_taken_over()
    },
};
