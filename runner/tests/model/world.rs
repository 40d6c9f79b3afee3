//! What there is: the store, the queue of starts, the engines and the workers, for one run.

use std::collections::BTreeSet;

/// A revision of the store. An owner key's create-revision is the epoch.
pub(crate) type Rev = u8;
/// A worker, by its place in [`World::workers`].
pub(crate) type Place = usize;

/// A run has so many steps.
pub(crate) const STEPS: u8 = 2;
/// So many owners may be lost without a newly committed step.
pub(crate) const MAX_LOSSES: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Status {
    Pending,
    Running,
    Passed,
    Failed,
    Stopped,
}

impl Status {
    pub(crate) fn is_ended(self) -> bool {
        matches!(self, Self::Passed | Self::Failed | Self::Stopped)
    }
}

/// The event of a run's end. An epoch ends a run at most once, so its epoch stands for its `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ending {
    pub(crate) epoch: Rev,
    pub(crate) status: Status,
}

/// The run record, without what no decision depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) status: Status,
    /// The ending that is decided, and not recorded yet.
    pub(crate) cause: Option<Status>,
    /// Filled in by an owner's first write.
    pub(crate) epoch: Option<Rev>,
    pub(crate) attempt: u8,
    pub(crate) losses: u8,
    pub(crate) released: bool,
    /// So many steps have passed and are kept.
    pub(crate) kept: u8,
    /// The engine that holds the image of the last of them.
    pub(crate) image: Option<usize>,
    /// The step that is recorded as started.
    pub(crate) started: Option<u8>,
    pub(crate) ending_event: Option<Ending>,
}

impl Record {
    /// That of a start which was just claimed.
    pub(crate) fn new() -> Self {
        Self {
            status: Status::Pending,
            cause: None,
            epoch: None,
            attempt: 1,
            losses: 0,
            released: false,
            kept: 0,
            image: None,
            started: None,
            ending_event: None,
        }
    }
}

/// A lease belongs to one life of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Lease {
    pub(crate) worker: Place,
    pub(crate) life: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub(crate) lease: Lease,
    pub(crate) created: Rev,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stored {
    pub(crate) record: Record,
    pub(crate) modified: Rev,
}

/// The keys of the run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) revision: Rev,
    pub(crate) record: Option<Stored>,
    pub(crate) owner: Option<Owner>,
    pub(crate) open: bool,
    pub(crate) seen: bool,
    pub(crate) stop: bool,
}

/// What a transaction is for, and so what it demands beside the record's revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Of a start. `stopped`: it is claimed to be ended as stopped.
    Claim {
        stopped: bool,
    },
    /// Of a run without an owner. `go_on`: not to be ended, so nobody may have stopped it.
    ClaimOrphan {
        go_on: bool,
    },
    Save,
    /// An ending; one other than `stopped` demands that no stop stands.
    End,
    HandOver,
    LetGo,
}

impl Kind {
    pub(crate) fn is_claim(self) -> bool {
        matches!(self, Self::Claim { .. } | Self::ClaimOrphan { .. })
    }
}

/// A transaction that writes the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Write {
    pub(crate) kind: Kind,
    /// Of the writer.
    pub(crate) lease: Lease,
    /// What it is fenced with; none where it is a claim.
    pub(crate) epoch: Option<Rev>,
    /// What it was computed from; none where there is to be no record.
    pub(crate) modified: Option<Rev>,
    pub(crate) record: Record,
}

/// A container of a step. Its name is its engine and its step, so there is one of each at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Container {
    pub(crate) engine: usize,
    pub(crate) step: u8,
    /// A label: of the owner that made it. Within an epoch a step is made once, so a container is
    /// known by step and epoch together, as by its id.
    pub(crate) epoch: Rev,
    pub(crate) runs: bool,
}

/// Where the drive of a run has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// Takes up what an earlier owner has left, and ends what that one left running.
    Adopting,
    /// The container is to be made and its start recorded, then the gate is opened.
    Starting {
        made: bool,
        recorded: bool,
    },
    Running,
    /// A step that must not run twice still runs, and the run is to be handed over once it has ended.
    Draining,
    /// The end of that step is to be recorded; then the run is handed over.
    Leaving,
    /// The last step's end is to be recorded, with the ending that follows where it is decided.
    Closing,
    /// The ending is decided.
    Ending,
    /// It is recorded.
    Publishing,
    LettingGo,
    HandingOver,
    /// The lease was lost: nothing more is begun.
    Abandoned,
}

/// One run in the hands of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Drive {
    pub(crate) epoch: Rev,
    pub(crate) modified: Rev,
    /// As it is to be written next.
    pub(crate) record: Record,
    pub(crate) phase: Phase,
    /// A write was sent and not answered.
    pub(crate) unknown: bool,
}

/// What a run without an owner is claimed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    Conclude,
    EndStopped,
    GoOn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    Idle,
    /// A start was delivered. `stopped`: a look has shown a stop.
    Claiming {
        stopped: bool,
    },
    /// A run without an owner was found stopped; its record is to be read again.
    EndingOrphan,
    /// A run without an owner was found with this record.
    Rescuing {
        found: Stored,
        purpose: Purpose,
    },
    Driving(Drive),
}

/// A worker. A crash begins its next life, as does a lease that is taken anew.
///
/// That a worker sleeps is no state of its own: one that sleeps is one that takes no turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Worker {
    pub(crate) life: u8,
    /// Its lease has run out, whether it knows or not.
    pub(crate) lease_gone: bool,
    /// It counts its lease as lost, and winds up.
    pub(crate) lost: bool,
    /// It holds a start that it has not acknowledged.
    pub(crate) message: bool,
    /// The run went with a lease of its own: to take it again is no loss.
    pub(crate) own_lost: bool,
    pub(crate) task: Task,
}

impl Worker {
    pub(crate) fn in_life(life: u8) -> Self {
        Self {
            life,
            lease_gone: false,
            lost: false,
            message: false,
            own_lost: false,
            task: Task::Idle,
        }
    }
}

/// How often what may go wrong does, and how often people interfere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    pub(crate) crashes: u8,
    /// A worker is paused for longer than its lease, and wakes late.
    pub(crate) pauses: u8,
    /// A worker loses its lease by its own clock.
    pub(crate) partitions: u8,
    /// A write is not answered: it has landed, or lands later.
    pub(crate) unanswered: u8,
    /// A start comes again because its acknowledgement was lost.
    pub(crate) redeliveries: u8,
    pub(crate) stops: u8,
    pub(crate) drains: u8,
    pub(crate) failures: u8,
    /// The record of a run that was let go is removed while its start may still come again.
    pub(crate) removals: u8,
}

/// What must never happen, and is seen in the moment it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Slip {
    EpochsShrink,
    TwoOwners,
    ForeignWrite,
    EndedRecordChanged,
    StopIgnored,
    CauseIgnored,
    BegunAfterTooManyLosses,
    StepRanAgain,
    StepRanUnrecorded,
    NewerContainerEnded,
    TwoEndingEvents,
    CalledAgain,
}

/// What has happened, as far as the state does not show it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct History {
    pub(crate) last_epoch: Rev,
    /// So many endings were recorded.
    pub(crate) endings: u8,
    pub(crate) published: Option<Ending>,
    /// The ending was published more than once.
    pub(crate) published_again: bool,
    pub(crate) handed_over: bool,
    pub(crate) step_failed: bool,
    /// A step that must not run twice was begun, and its outcome is unknown.
    pub(crate) in_doubt: bool,
    /// The steps that were begun, if they must not run twice.
    pub(crate) begun: BTreeSet<u8>,
    /// The most losses that a record has counted.
    pub(crate) losses: u8,
    pub(crate) slips: BTreeSet<Slip>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) store: Store,
    /// Starts that wait in the queue, all of one run.
    pub(crate) queue: u8,
    /// A write that was sent and has not arrived.
    pub(crate) late: Option<Write>,
    /// Sorted.
    pub(crate) containers: Vec<Container>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) left: Faults,
    pub(crate) history: History,
}

impl World {
    /// One start is in the queue, and nothing is known of it.
    pub(crate) fn new(workers: usize, faults: Faults) -> Self {
        Self {
            store: Store {
                revision: 0,
                record: None,
                owner: None,
                open: false,
                seen: false,
                stop: false,
            },
            queue: 1,
            late: None,
            containers: Vec::new(),
            workers: vec![Worker::in_life(0); workers],
            left: faults,
            history: History::default(),
        }
    }

    pub(crate) fn lease_of(&self, worker: Place) -> Lease {
        Lease { worker, life: self.workers[worker].life }
    }

    pub(crate) fn slip(&mut self, slip: Slip) {
        self.history.slips.insert(slip);
    }

    pub(crate) fn owns(&self, epoch: Rev) -> bool {
        self.store.owner.is_some_and(|owner| owner.created == epoch)
    }

    pub(crate) fn is_ours(&self, worker: Place) -> bool {
        self.store.owner.is_some_and(|owner| owner.lease == self.lease_of(worker))
    }

    pub(crate) fn has_slipped(&self, slip: Slip) -> bool {
        self.history.slips.contains(&slip)
    }

    /// How the run has ended.
    pub(crate) fn ended(&self) -> Option<Status> {
        let status = self.store.record?.record.status;
        status.is_ended().then_some(status)
    }

    /// Whether the run has had more than one owner.
    pub(crate) fn is_taken_over(&self) -> bool {
        self.store.record.is_some_and(|stored| stored.record.attempt > 1)
    }

    /// Whether a worker that has not given the run up drives it so.
    pub(crate) fn is_driven(&self, so: impl Fn(&Drive) -> bool) -> bool {
        self.workers.iter().any(|worker| match &worker.task {
            Task::Driving(drive) => !worker.lost && so(drive),
            Task::Idle | Task::Claiming { .. } | Task::EndingOrphan | Task::Rescuing { .. } => {
                false
            }
        })
    }

    /// Whether two containers of a step run at once, of which that is so.
    pub(crate) fn runs_twice(&self, so: impl Fn(&Container, &Container) -> bool) -> bool {
        let running: Vec<&Container> = self.containers.iter().filter(|c| c.runs).collect();
        let beside = |n: usize, one: &Container| {
            running.iter().skip(n + 1).any(|other| one.step == other.step && so(one, other))
        };
        running.iter().enumerate().any(|(n, one)| beside(n, one))
    }
}
