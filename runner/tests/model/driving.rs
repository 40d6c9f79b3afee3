//! The actions of a run's owner.

use super::actions::Answer;
use super::moves::next_life;
use super::world::{
    Container, Drive, Ending, Phase, Revision, Status, Task, TxnPurpose, Violation, WorkerIndex,
    World, Write,
};
use super::{LeftOutRule, Protocol};

impl World {
    fn driving(&self, at: WorkerIndex) -> Option<Drive> {
        match self.workers[at].task {
            Task::Driving(drive) => Some(drive),
            Task::Idle | Task::Claiming { .. } | Task::EndingOrphan | Task::Rescuing { .. } => None,
        }
    }

    fn put(&mut self, at: WorkerIndex, drive: Drive) {
        self.workers[at].task = Task::Driving(drive);
    }

    /// The index of an owner's container for a step.
    fn container(&self, engine: usize, step: u8, epoch: Revision) -> Option<usize> {
        let wanted = |c: &Container| (c.engine, c.step, c.epoch) == (engine, step, epoch);
        self.containers.iter().position(wanted)
    }

    /// An owner of this epoch ends these containers.
    fn end_containers(&mut self, epoch: Revision, which: impl Fn(&Container) -> bool) {
        if self.containers.iter().any(|c| which(c) && c.epoch > epoch) {
            self.slip(Violation::NewerContainerEnded);
        }
        self.containers.retain(|c| !which(c));
    }

    /// Checks the order of events when a container starts.
    fn note_start(&mut self, step: u8, epoch: Revision) {
        let by_owner = self.owns(epoch);
        let Some(record) = self.store.record.map(|stored| stored.record) else {
            return self.slip(Violation::StepRanAgain);
        };
        if record.kept > step || !self.store.open {
            self.slip(Violation::StepRanAgain);
        }
        let recorded = record.started == Some(step) && record.epoch == Some(epoch);
        if record.kept < step || by_owner && !recorded {
            self.slip(Violation::StepRanUnrecorded);
        }
    }
}

impl Protocol {
    fn engine_of(&self, at: WorkerIndex) -> usize {
        at % self.engines
    }

    /// Whether a worker of this epoch may end a container.
    fn may_end(&self, container: &Container, epoch: Revision) -> bool {
        container.epoch <= epoch || self.flaw == LeftOutRule::EndsNewerContainers
    }

    pub(crate) fn end_own_container(&self, world: &mut World, at: WorkerIndex) {
        let engine = self.engine_of(at);
        if let Some(drive) = world.driving(at) {
            world.containers.retain(|c| c.engine != engine || c.epoch != drive.epoch);
        }
    }

    pub(crate) fn adopt(&self, world: &mut World, at: WorkerIndex) {
        let Some(mut drive) = world.driving(at) else { return };
        let (engine, epoch) = (self.engine_of(at), drive.epoch);
        if self.flaw != LeftOutRule::LeavesOlderContainers {
            world.end_containers(epoch, |c| c.engine == engine && self.may_end(c, epoch));
        }
        if world.workers[at].lost {
            drive.phase = Phase::Abandoned;
        } else {
            if drive.record.image.is_some_and(|held_by| held_by != engine) {
                // The image of the last step is not on this engine, so the run starts over.
                (drive.record.kept, drive.record.image) = (0, None);
            }
            drive.begin_step();
        }
        world.put(at, drive);
    }

    pub(crate) fn make_container(&self, world: &mut World, at: WorkerIndex) {
        let Some(mut drive) = world.driving(at) else { return };
        let (Phase::Starting { recorded, .. }, Some(step)) = (drive.phase, drive.record.started)
        else {
            return;
        };
        let (engine, epoch) = (self.engine_of(at), drive.epoch);
        let of_that_name = |c: &Container| c.engine == engine && c.step == step;
        let is_newer = |c: &Container| of_that_name(c) && !self.may_end(c, epoch);
        if world.containers.iter().any(is_newer) {
            // A newer owner uses the name, so this worker has lost the run.
            return self.close(world, at, Status::Failed);
        }
        if self.flaw != LeftOutRule::LeavesOlderContainers {
            world.end_containers(epoch, of_that_name);
        }
        world.containers.push(Container { engine, step, epoch, runs: false });
        world.containers.sort_unstable();
        drive.phase = Phase::Starting { made: true, recorded };
        world.put(at, drive);
    }

    pub(crate) fn open_gate(&self, world: &mut World, at: WorkerIndex) {
        let Some(mut drive) = world.driving(at) else { return };
        let Some(step) = drive.record.started else { return };
        let Some(found) = world.container(self.engine_of(at), step, drive.epoch) else {
            return self.close(world, at, Status::Failed);
        };
        world.containers[found].runs = true;
        if self.once && !world.history.begun.insert(step) {
            world.slip(Violation::CalledAgain);
        }
        // The next owner cannot end what a late worker starts on another engine.
        if self.engines == 1 || world.owns(drive.epoch) {
            world.note_start(step, drive.epoch);
        }
        drive.phase = Phase::Running;
        world.put(at, drive);
    }

    pub(crate) fn step_exited(&self, world: &mut World, at: WorkerIndex) {
        let Some(mut drive) = world.driving(at) else { return };
        let Some(step) = drive.record.started else { return };
        let engine = self.engine_of(at);
        let Some(found) = world.container(engine, step, drive.epoch) else {
            // Someone ended it, which looks like a killed step.
            return self.close(world, at, Status::Failed);
        };
        world.containers.remove(found);
        drive.record.kept = step + 1;
        drive.record.image = Some(engine);
        drive.record.losses = 0;
        if drive.phase == Phase::Draining {
            drive.record.started = None;
            drive.phase = Phase::Leaving;
        } else {
            drive.begin_step();
        }
        world.put(at, drive);
    }

    /// The step failed. Records its end together with the cause.
    pub(crate) fn close(&self, world: &mut World, at: WorkerIndex, cause: Status) {
        self.end_own_container(world, at);
        let Some(mut drive) = world.driving(at) else { return };
        drive.record.cause = Some(cause);
        drive.phase = if world.workers[at].lost { Phase::Abandoned } else { Phase::Closing };
        world.put(at, drive);
    }

    pub(crate) fn hand_over(&self, world: &mut World, at: WorkerIndex) {
        world.left.drains -= 1;
        let Some(mut drive) = world.driving(at) else { return };
        if self.once && self.flaw != LeftOutRule::HandsOverInDoubt {
            drive.phase = Phase::Draining;
            return world.put(at, drive);
        }
        self.end_own_container(world, at);
        drive.record.released = true;
        drive.phase = Phase::HandingOver;
        world.put(at, drive);
    }

    pub(crate) fn publish(&self, world: &mut World, at: WorkerIndex) {
        let Some(mut drive) = world.driving(at) else { return };
        if let Some(event) = drive.record.ending_event {
            match world.history.published.replace(event) {
                Some(before) if before != event => world.slip(Violation::TwoEndingEvents),
                Some(_) => world.history.published_again = true,
                None => {}
            }
        }
        let engine = self.engine_of(at);
        world.containers.retain(|c| c.engine != engine);
        drive.phase = Phase::LettingGo;
        if self.flaw == LeftOutRule::LetsGoBeforeItPublishes {
            world.workers[at].task = Task::Idle;
        } else {
            world.put(at, drive);
        }
    }

    /// A fenced write of the owner. It compares revisions and is repeated until it is answered.
    pub(crate) fn write(
        &self,
        world: &mut World,
        at: WorkerIndex,
        kind: TxnPurpose,
        answer: Answer,
    ) {
        let Some(mut drive) = world.driving(at) else { return };
        let mut record = drive.record;
        record.ending_event = match kind {
            TxnPurpose::End => Some(Ending { epoch: drive.epoch, status: record.status }),
            TxnPurpose::LetGo => None,
            TxnPurpose::Claim { .. }
            | TxnPurpose::ClaimOrphan { .. }
            | TxnPurpose::Save
            | TxnPurpose::HandOver => record.ending_event,
        };
        let write = Write {
            kind,
            lease: world.lease_of(at),
            epoch: Some(drive.epoch),
            modified: Some(drive.modified),
            record,
        };
        if self.unanswered(world, &write, answer) {
            drive.unknown = true;
            return world.put(at, drive);
        }
        if world.land(&write, self.flaw) {
            drive.modified = world.store.revision;
            return self.written(world, at, drive, &write);
        }
        let stored = world.store.record.filter(|_| world.owns(drive.epoch));
        let lets_go = matches!(kind, TxnPurpose::HandOver | TxnPurpose::LetGo);
        let as_sent = world.store.record.filter(|stored| stored.record == record);
        match (as_sent, stored) {
            // An earlier attempt was applied and only its answer was lost.
            (Some(landed), owned) if drive.unknown && (owned.is_some() || lets_go) => {
                drive.modified = landed.modified;
                self.written(world, at, drive, &write);
            }
            (_, None) => self.lost(world, at),
            (_, Some(stored)) => {
                if kind == TxnPurpose::End && record.status != Status::Stopped && world.store.stop {
                    drive.record.status = Status::Stopped;
                    drive.unknown = false;
                }
                drive.modified = stored.modified;
                world.put(at, drive);
            }
        }
    }

    fn written(&self, world: &mut World, at: WorkerIndex, mut drive: Drive, write: &Write) {
        drive.unknown = false;
        let lets_go_first = self.flaw == LeftOutRule::LetsGoBeforeItPublishes;
        match write.kind {
            TxnPurpose::Save => {
                if let Phase::Starting { made, .. } = drive.phase {
                    drive.phase = Phase::Starting { made, recorded: true };
                } else if drive.phase == Phase::Leaving {
                    drive.record.released = true;
                    drive.phase = Phase::HandingOver;
                } else {
                    drive.record.status = drive.record.cause.unwrap_or(Status::Passed);
                    drive.phase = Phase::Ending;
                }
            }
            TxnPurpose::End => {
                drive.record = write.record;
                drive.phase = if lets_go_first { Phase::LettingGo } else { Phase::Publishing };
            }
            TxnPurpose::LetGo if lets_go_first => drive.phase = Phase::Publishing,
            TxnPurpose::LetGo => {
                world.workers[at].task = Task::Idle;
                return;
            }
            // Its worker ends, and another node takes its place.
            TxnPurpose::HandOver => return next_life(world, at),
            TxnPurpose::Claim { .. } | TxnPurpose::ClaimOrphan { .. } => {}
        }
        world.put(at, drive);
    }

    /// Another worker owns the run. Kills its steps here and publishes nothing more.
    fn lost(&self, world: &mut World, at: WorkerIndex) {
        self.end_own_container(world, at);
        let worker = &mut world.workers[at];
        worker.own_lost = true;
        worker.task = Task::Idle;
    }
}
