//! The actions that are possible in each state.

use stateright::{Model, Property};

use super::properties;
use super::world::{Drive, Lease, Phase, Task, Worker, WorkerIndex, World};
use super::{LeftOutRule, Protocol};

/// The outcome of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Given,
    /// The write was applied and its answer is lost.
    Lost,
    /// The write takes longer than its writer waits.
    Late,
}

/// An action. The number is that of the acting worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Deliver(WorkerIndex),
    Claim(WorkerIndex, Answer),
    Ack(WorkerIndex),
    /// An acknowledgement is lost, so the broker delivers the start again. Two actions in one.
    AckLost(WorkerIndex),
    LookFindsOrphan(WorkerIndex),
    ClaimOrphan(WorkerIndex, Answer),
    /// A stop command arrives.
    StopAsked(WorkerIndex),
    EndOrphan(WorkerIndex),
    /// Takes over an earlier owner's image and ends its containers.
    Adopt(WorkerIndex),
    MakeContainer(WorkerIndex),
    /// Records a decision: a start with the previous commit, the last commit, or a cause.
    Save(WorkerIndex, Answer),
    OpenGate(WorkerIndex),
    /// The step exited with 0 and is committed.
    StepExited(WorkerIndex),
    StepFailed(WorkerIndex),
    /// The owner sees the stop.
    StopSeen(WorkerIndex),
    HandOverAsked(WorkerIndex),
    /// A step that must not run twice did not end within the drain.
    Overdue(WorkerIndex),
    HandOver(WorkerIndex, Answer),
    End(WorkerIndex, Answer),
    /// Publishes the ending and removes the run's objects from this engine.
    PublishEnding(WorkerIndex),
    LetGo(WorkerIndex, Answer),
    LateWriteLands,
    /// The worker is paused until its lease has expired. Its next actions happen after it wakes up.
    Pause(WorkerIndex),
    /// The worker considers its lease lost.
    LeaseLost(WorkerIndex),
    /// It has killed its steps and revoked its lease, and takes a new one.
    Abandon(WorkerIndex),
    LeaseExpires(Lease),
    /// It dies and restarts as another node.
    Crash(WorkerIndex),
    /// Retention removes the record of a released run.
    RemoveRecord,
}

impl Protocol {
    /// The workers that may act. Among identical workers only the first one acts, because the
    /// others' actions would differ only by name.
    fn actors<'a>(&self, world: &'a World) -> impl Iterator<Item = (WorkerIndex, &'a Worker)> {
        let engines = self.engines;
        let named = |at: WorkerIndex| {
            let lease = world.lease_of(at);
            world.store.owner.is_some_and(|owner| owner.lease.worker == lease.worker)
                || world.late.is_some_and(|late| late.lease.worker == lease.worker)
        };
        world.workers.iter().enumerate().filter(move |(at, worker)| {
            let like = |other: WorkerIndex| world.workers[other] == **worker && !named(other);
            named(*at) || !(0..*at).any(|other| other % engines == at % engines && like(other))
        })
    }

    /// Actions that happen by themselves. Without any, the state of the run is final.
    pub(crate) fn work(&self, world: &World, actions: &mut Vec<Action>) {
        for (place, worker) in self.actors(world) {
            if worker.lost {
                actions.push(Action::Abandon(place));
            } else if worker.lease_gone {
                actions.push(Action::LeaseLost(place));
            }
            if may_ack(worker) {
                actions.push(Action::Ack(place));
            }
            if let Some(write) = self.write_due(worker) {
                actions.push(write(place, Answer::Given));
            }
            if !worker.lease_gone && !worker.lost {
                under_lease(world, place, actions);
            }
            match (worker.task, worker.lost) {
                (Task::Driving(drive), false) => self.drive(world, (place, drive.phase), actions),
                (Task::Driving(drive), true) => self.linger((place, drive.phase), actions),
                (Task::EndingOrphan, false) => actions.push(Action::EndOrphan(place)),
                (_, _) => {}
            }
        }
        if world.late.is_some() {
            actions.push(Action::LateWriteLands);
        }
        let owned = world.store.owner.map(|owner| owner.lease);
        let sent = world.late.filter(|late| late.kind.is_claim()).map(|late| late.lease);
        for lease in [owned, sent.filter(|lease| owned != Some(*lease))].into_iter().flatten() {
            let worker = &world.workers[lease.worker];
            if worker.life != lease.life || worker.lost {
                actions.push(Action::LeaseExpires(lease));
            }
        }
    }

    /// The actions of a drive except its writes.
    fn drive(&self, world: &World, (at, phase): (WorkerIndex, Phase), actions: &mut Vec<Action>) {
        match phase {
            Phase::Adopting => actions.push(Action::Adopt(at)),
            Phase::Starting { made: false, .. } => self.linger((at, phase), actions),
            Phase::Starting { made: true, recorded } => {
                if recorded || self.flaw == LeftOutRule::StartsUnrecorded {
                    actions.push(Action::OpenGate(at));
                }
            }
            Phase::Running => {
                actions.push(Action::StepExited(at));
                if world.store.stop {
                    actions.push(Action::StopSeen(at));
                }
            }
            Phase::Draining => {
                actions.extend([Action::StepExited(at), Action::Overdue(at)]);
                if world.store.stop {
                    actions.push(Action::StopSeen(at));
                }
            }
            Phase::Publishing => actions.push(Action::PublishEnding(at)),
            Phase::Closing
            | Phase::Leaving
            | Phase::Ending
            | Phase::LettingGo
            | Phase::HandingOver
            | Phase::Abandoned => {}
        }
    }

    /// Actions already requested from the engine. They happen even if the lease is lost.
    fn linger(&self, (at, phase): (WorkerIndex, Phase), actions: &mut Vec<Action>) {
        match phase {
            Phase::Adopting => actions.push(Action::Adopt(at)),
            Phase::Starting { made: false, recorded } => {
                if !recorded || self.flaw == LeftOutRule::MakesWhileItRecords {
                    actions.push(Action::MakeContainer(at));
                }
            }
            Phase::Starting { made: true, .. }
            | Phase::Running
            | Phase::Draining
            | Phase::Leaving
            | Phase::Closing
            | Phase::Ending
            | Phase::Publishing
            | Phase::LettingGo
            | Phase::HandingOver
            | Phase::Abandoned => {}
        }
    }

    /// Faults, and actions of people.
    fn faults(&self, world: &World, actions: &mut Vec<Action>) {
        let left = world.left;
        for (place, worker) in self.actors(world) {
            let busy = worker.task != Task::Idle || worker.message;
            if worker.lost || !busy && left.stops == 0 {
                continue;
            }
            if left.redeliveries > 0 && may_ack(worker) {
                actions.push(Action::AckLost(place));
            }
            if left.unanswered > 0
                && let Some(write) = self.write_due(worker)
            {
                actions.push(write(place, Answer::Lost));
                if world.late.is_none() {
                    actions.push(write(place, Answer::Late));
                }
            }
            if left.crashes > 0 && busy {
                actions.push(Action::Crash(place));
            }
            if left.pauses > 0 && busy && !worker.lease_gone {
                actions.push(Action::Pause(place));
            }
            if left.partitions > 0 && busy && !worker.lease_gone {
                actions.push(Action::LeaseLost(place));
            }
            if left.stops > 0 && !worker.lease_gone {
                actions.push(Action::StopAsked(place));
            }
            if let Task::Driving(Drive { phase: Phase::Running, .. }) = worker.task {
                if left.drains > 0 {
                    actions.push(Action::HandOverAsked(place));
                }
                if left.failures > 0 {
                    actions.push(Action::StepFailed(place));
                }
            }
        }
        if left.removals > 0 && !world.store.open && world.store.record.is_some() {
            actions.push(Action::RemoveRecord);
        }
    }

    /// The pending write of a worker.
    fn write_due(&self, worker: &Worker) -> Option<fn(WorkerIndex, Answer) -> Action> {
        if worker.lost {
            return None;
        }
        let drive = match worker.task {
            Task::Claiming { .. } => return (!worker.lease_gone).then_some(Action::Claim),
            Task::Rescuing { .. } => return (!worker.lease_gone).then_some(Action::ClaimOrphan),
            Task::Driving(drive) => drive,
            Task::Idle | Task::EndingOrphan => return None,
        };
        match drive.phase {
            Phase::Starting { made, recorded: false } => {
                let due = made || self.flaw == LeftOutRule::MakesWhileItRecords;
                (due && self.flaw != LeftOutRule::StartsUnrecorded).then_some(Action::Save)
            }
            Phase::Closing | Phase::Leaving => Some(Action::Save),
            Phase::Ending => Some(Action::End),
            Phase::LettingGo => Some(Action::LetGo),
            Phase::HandingOver => Some(Action::HandOver),
            Phase::Adopting
            | Phase::Starting { recorded: true, .. }
            | Phase::Running
            | Phase::Draining
            | Phase::Publishing
            | Phase::Abandoned => None,
        }
    }
}

fn may_ack(worker: &Worker) -> bool {
    worker.message && !worker.lost && !matches!(worker.task, Task::Claiming { .. })
}

/// Actions of a worker with a valid lease. After its expiry the worker could do the same, but no
/// write would be applied.
fn under_lease(world: &World, at: WorkerIndex, actions: &mut Vec<Action>) {
    let worker = &world.workers[at];
    let takes = matches!(worker.task, Task::Idle | Task::Driving(_)) && !worker.message;
    if takes && world.queue > 0 {
        actions.push(Action::Deliver(at));
    }
    match worker.task {
        Task::Idle => {
            // An owner key of this node without a drive is a claim whose answer was lost.
            let unowned = world.store.owner.is_none() || world.is_ours(at);
            if world.store.open && unowned {
                actions.push(Action::LookFindsOrphan(at));
            }
        }
        Task::Claiming { .. } | Task::Rescuing { .. } | Task::EndingOrphan | Task::Driving(_) => {}
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.workers, self.faults)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        self.work(world, actions);
        // In a final state, a fault would only show that nothing follows it.
        if !actions.is_empty() {
            self.faults(world, actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        self.perform(&mut next, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(self)
    }
}
