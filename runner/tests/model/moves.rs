//! The effect of each action, following the worker's code.

use super::actions::{Action, Answer};
use super::world::{
    Drive, MAX_LOSSES, Phase, Purpose, Record, STEPS, Status, Stored, Task, TxnPurpose, Worker,
    WorkerIndex, World, Write,
};
use super::{LeftOutRule, OnLost, Protocol};

impl Protocol {
    pub(crate) fn perform(&self, world: &mut World, action: Action) {
        match action {
            Action::Deliver(at) => deliver(world, at),
            Action::Claim(at, answer) => self.claim(world, at, answer),
            Action::Ack(at) => world.workers[at].message = false,
            Action::AckLost(at) => {
                world.left.redeliveries -= 1;
                world.workers[at].message = false;
                world.queue += 1;
            }
            Action::LookFindsOrphan(at) => look(world, at),
            Action::ClaimOrphan(at, answer) => self.claim_orphan(world, at, answer),
            Action::StopAsked(at) => stop(world, at),
            Action::EndOrphan(at) => end_orphan(world, at),
            Action::Adopt(at) => self.adopt(world, at),
            Action::MakeContainer(at) => self.make_container(world, at),
            Action::Save(at, answer) => self.write(world, at, TxnPurpose::Save, answer),
            Action::OpenGate(at) => self.open_gate(world, at),
            Action::StepExited(at) => self.step_exited(world, at),
            Action::StepFailed(at) => {
                world.left.failures -= 1;
                world.history.step_failed = true;
                self.close(world, at, Status::Failed);
            }
            Action::StopSeen(at) => self.close(world, at, Status::Stopped),
            Action::HandOverAsked(at) => self.hand_over(world, at),
            Action::Overdue(at) => {
                world.history.in_doubt = true;
                self.close(world, at, Status::Failed);
            }
            Action::HandOver(at, answer) => self.write(world, at, TxnPurpose::HandOver, answer),
            Action::End(at, answer) => self.write(world, at, TxnPurpose::End, answer),
            Action::PublishEnding(at) => self.publish(world, at),
            Action::LetGo(at, answer) => self.write(world, at, TxnPurpose::LetGo, answer),
            Action::LateWriteLands => {
                if let Some(late) = world.late.take() {
                    // No worker waits for its answer.
                    world.land(&late, self.flaw);
                }
            }
            Action::Pause(at) => {
                world.left.pauses -= 1;
                world.end_lease(world.lease_of(at));
            }
            Action::LeaseLost(at) => lease_lost(world, at),
            Action::Abandon(at) => self.abandon(world, at),
            Action::LeaseExpires(lease) => world.end_lease(lease),
            Action::Crash(at) => {
                world.left.crashes -= 1;
                next_life(world, at);
            }
            Action::RemoveRecord => {
                world.left.removals -= 1;
                world.store.record = None;
                world.store.revision += 1;
            }
        }
    }
}

fn deliver(world: &mut World, at: WorkerIndex) {
    world.queue -= 1;
    let worker = &mut world.workers[at];
    // If this worker drives the run, the start is known and acknowledged at once.
    if worker.task == Task::Idle {
        worker.message = true;
        worker.task = Task::Claiming { stopped: false };
    }
}

fn look(world: &mut World, at: WorkerIndex) {
    let Some(found) = world.store.record else { return };
    world.workers[at].task = if found.record.status.is_ended() {
        Task::Rescuing { found, purpose: Purpose::Conclude }
    } else if world.store.stop {
        Task::EndingOrphan
    } else {
        Task::Rescuing { found, purpose: Purpose::GoOn }
    };
}

/// Two transactions in the code. The second one demands that the record has not changed since the
/// first, and both are repeated if it has. So they count as one.
fn stop(world: &mut World, at: WorkerIndex) {
    world.left.stops -= 1;
    match world.store.record {
        None if world.store.seen => {}
        Some(stored) if stored.record.status.is_ended() => {}
        None => world.store.stop = true,
        Some(_) => {
            world.store.stop = true;
            if world.store.owner.is_none() && world.workers[at].task == Task::Idle {
                world.workers[at].task = Task::EndingOrphan;
            }
        }
    }
}

fn end_orphan(world: &mut World, at: WorkerIndex) {
    world.workers[at].task = match world.store.record {
        Some(found) => Task::Rescuing { found, purpose: Purpose::EndStopped },
        None => Task::Idle,
    };
}

fn lease_lost(world: &mut World, at: WorkerIndex) {
    let worker = &mut world.workers[at];
    if !worker.lease_gone {
        world.left.partitions -= 1;
    }
    worker.lost = true;
    match worker.task {
        Task::Driving(_) => worker.own_lost = true,
        // The claim might have been applied.
        Task::Claiming { .. } => {
            worker.own_lost = true;
            worker.task = Task::Idle;
        }
        Task::Rescuing { .. } | Task::EndingOrphan | Task::Idle => worker.task = Task::Idle,
    }
}

/// The worker restarts. Unacknowledged messages are delivered again, and its containers keep
/// running.
pub(crate) fn next_life(world: &mut World, at: WorkerIndex) {
    if world.workers[at].message {
        world.queue += 1;
    }
    world.workers[at] = Worker::in_life(world.workers[at].life + 1);
}

impl Protocol {
    /// Sends a write without an answer. `false` if this one is answered.
    pub(crate) fn unanswered(&self, world: &mut World, write: &Write, answer: Answer) -> bool {
        match answer {
            Answer::Given => return false,
            // The writer does not know whether it was applied.
            Answer::Lost => {
                world.land(write, self.flaw);
            }
            Answer::Late => world.late = Some(*write),
        }
        world.left.unanswered -= 1;
        true
    }

    fn claim(&self, world: &mut World, at: WorkerIndex, answer: Answer) {
        let Task::Claiming { stopped } = world.workers[at].task else { return };
        let write = Write {
            kind: TxnPurpose::Claim { stopped },
            lease: world.lease_of(at),
            epoch: None,
            modified: None,
            record: Record::new(),
        };
        if self.unanswered(world, &write, answer) {
            return;
        }
        let landed = world.land(&write, self.flaw);
        let ours = world.store.record.filter(|_| world.is_ours(at));
        world.workers[at].task = match (landed, ours) {
            (true, Some(stored)) => Task::Driving(begin(stored, stopped)),
            // This worker's claim, whose answer was lost.
            (false, Some(stored)) => adopt_claim(stored, world.store.stop),
            (false, None) if world.store.record.is_none() && !world.store.seen => {
                Task::Claiming { stopped: world.store.stop }
            }
            // The run is known. Only the acknowledgement is left.
            (_, None) => Task::Idle,
        };
    }

    fn claim_orphan(&self, world: &mut World, at: WorkerIndex, answer: Answer) {
        let Task::Rescuing { found, purpose } = world.workers[at].task else { return };
        let handed_over = found.record.released;
        let mut record = found.record;
        if !record.status.is_ended() {
            record.attempt += 1;
            record.epoch = None;
            record.released = false;
            let is_loss = purpose == Purpose::GoOn && !world.workers[at].own_lost && !handed_over;
            record.losses += u8::from(is_loss);
        }
        let write = Write {
            kind: TxnPurpose::ClaimOrphan { go_on: purpose == Purpose::GoOn },
            lease: world.lease_of(at),
            epoch: None,
            modified: Some(found.modified),
            record,
        };
        if self.unanswered(world, &write, answer) {
            if self.flaw == LeftOutRule::DropsAnUnansweredClaim {
                world.workers[at].task = Task::Idle;
            }
            return;
        }
        let landed = world.land(&write, self.flaw);
        // If it was rejected but this worker is the owner, an earlier attempt was applied.
        let ours = world.store.record.filter(|_| landed || world.is_ours(at));
        world.workers[at].task = match ours {
            Some(stored) => {
                let in_doubt = self.is_in_doubt(&stored.record, handed_over);
                world.history.in_doubt |= in_doubt && purpose == Purpose::GoOn;
                Task::Driving(self.resume(stored, purpose, handed_over))
            }
            None => Task::Idle,
        };
    }

    /// Whether a step that must not run twice has started and its outcome is unknown.
    fn is_in_doubt(&self, record: &Record, handed_over: bool) -> bool {
        let is_trusted = self.flaw == LeftOutRule::RepeatsInDoubt
            || self.flaw == LeftOutRule::HandsOverInDoubt && handed_over;
        self.once && record.started.is_some() && record.cause.is_none() && !is_trusted
    }

    fn resume(&self, stored: Stored, purpose: Purpose, handed_over: bool) -> Drive {
        let in_doubt = self.is_in_doubt(&stored.record, handed_over);
        let mut drive = driven(stored);
        let record = &mut drive.record;
        let capped = self.flaw != LeftOutRule::GoesOnForEver;
        let too_many = record.losses > MAX_LOSSES && capped || self.on_lost == OnLost::Fail;
        record.cause = record.cause.filter(|_| self.flaw != LeftOutRule::ForgetsTheCause);
        // Another worker might have ended it since the lookup.
        let ended = record.status.is_ended() && self.flaw != LeftOutRule::EndsWhatHasEnded;
        let ending = match (purpose, record.cause) {
            (Purpose::Conclude, _) => None,
            (Purpose::EndStopped, _) if ended => None,
            (Purpose::EndStopped, _) => Some(Status::Stopped),
            (Purpose::GoOn, Some(cause)) => Some(cause),
            (Purpose::GoOn, None) => {
                (in_doubt || too_many && !handed_over).then_some(Status::Failed)
            }
        };
        drive.phase = match ending {
            Some(status) => {
                record.status = status;
                Phase::Ending
            }
            None if record.status.is_ended() => Phase::Publishing,
            None => Phase::Adopting,
        };
        drive
    }

    fn abandon(&self, world: &mut World, at: WorkerIndex) {
        self.end_own_container(world, at);
        world.end_lease(world.lease_of(at));
        let own_lost = world.workers[at].own_lost;
        next_life(world, at);
        world.workers[at].own_lost = own_lost;
    }
}

fn driven(stored: Stored) -> Drive {
    let Stored { mut record, modified } = stored;
    // Only the claim has written it so far, so its revision is the epoch.
    record.epoch = Some(modified);
    Drive { epoch: modified, modified, record, phase: Phase::Adopting, unknown: false }
}

fn begin(stored: Stored, stopped: bool) -> Drive {
    let mut drive = driven(stored);
    if stopped {
        drive.record.status = Status::Stopped;
        drive.phase = Phase::Ending;
    } else if drive.record.attempt == 1 {
        drive.begin_step();
    }
    drive
}

/// A claim of this worker that it did not know of.
fn adopt_claim(stored: Stored, stopped: bool) -> Task {
    let fresh = stored.record.status == Status::Pending;
    if stored.record.status.is_ended() {
        return Task::Idle;
    }
    let mut drive = begin(stored, stopped);
    // A run that has started is not started again.
    if !stopped && !fresh {
        drive.record.status = Status::Failed;
        drive.phase = Phase::Ending;
    }
    Task::Driving(drive)
}

impl Drive {
    /// Starts the step after the committed ones, or ends the run.
    pub(crate) fn begin_step(&mut self) {
        self.record.status = Status::Running;
        self.record.started = (self.record.kept < STEPS).then_some(self.record.kept);
        self.phase = match self.record.started {
            Some(_) => Phase::Starting { made: false, recorded: false },
            None => Phase::Closing,
        };
    }
}
