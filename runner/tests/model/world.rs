//! The state of the model for one run: the store, the queue of starts, the engines and the workers.

use std::collections::BTreeSet;

/// A revision of the store. The create revision of an owner key is the epoch.
pub(crate) type Revision = u8;
/// A worker's index in [`World::workers`].
pub(crate) type WorkerIndex = usize;

/// The number of steps of the run.
pub(crate) const STEPS: u8 = 2;
/// How many owners can be lost without a newly committed step.
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

/// A run's ending event. An epoch ends a run at most once, so the epoch stands for `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ending {
    pub(crate) epoch: Revision,
    pub(crate) status: Status,
}

/// The run record, reduced to the fields that decisions depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) status: Status,
    /// The cause, once an ending is decided and not yet recorded.
    pub(crate) cause: Option<Status>,
    /// Set by an owner's first write.
    pub(crate) epoch: Option<Revision>,
    pub(crate) attempt: u8,
    pub(crate) losses: u8,
    pub(crate) released: bool,
    /// The number of passed and committed steps.
    pub(crate) kept: u8,
    /// The engine with the last committed image.
    pub(crate) image: Option<usize>,
    /// The step that is recorded as started.
    pub(crate) started: Option<u8>,
    pub(crate) ending_event: Option<Ending>,
}

impl Record {
    /// The record of a start that was just claimed.
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

/// The lease of one life of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Lease {
    pub(crate) worker: WorkerIndex,
    pub(crate) life: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub(crate) lease: Lease,
    pub(crate) created: Revision,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stored {
    pub(crate) record: Record,
    pub(crate) modified: Revision,
}

/// The keys of the run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) revision: Revision,
    pub(crate) record: Option<Stored>,
    pub(crate) owner: Option<Owner>,
    pub(crate) open: bool,
    pub(crate) seen: bool,
    pub(crate) stop: bool,
}

/// The purpose of a transaction, which determines its conditions besides the record's revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum TxnPurpose {
    /// Claims a start. `stopped`: in order to end it as stopped.
    Claim {
        stopped: bool,
    },
    /// Claims an orphan. `go_on`: in order to continue it, which requires the absence of a stop.
    ClaimOrphan {
        go_on: bool,
    },
    Save,
    /// An ending. Except for `stopped`, it requires the absence of a stop.
    End,
    HandOver,
    LetGo,
}

impl TxnPurpose {
    pub(crate) fn is_claim(self) -> bool {
        matches!(self, Self::Claim { .. } | Self::ClaimOrphan { .. })
    }
}

/// A transaction that writes the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Write {
    pub(crate) kind: TxnPurpose,
    /// The writer's lease.
    pub(crate) lease: Lease,
    /// The fence. `None` for a claim.
    pub(crate) epoch: Option<Revision>,
    /// The revision it was computed from. `None` if the transaction requires the absence of a
    /// record.
    pub(crate) modified: Option<Revision>,
    pub(crate) record: Record,
}

/// A step's container. Its name has its engine and step, so there is at most one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Container {
    pub(crate) engine: usize,
    pub(crate) step: u8,
    /// The label with its creator's epoch. Within an epoch a step is created once, so step and
    /// epoch identify a container like its id.
    pub(crate) epoch: Revision,
    pub(crate) runs: bool,
}

/// The phase of a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// Taking over from an earlier owner and ending its containers.
    Adopting,
    /// The container is created and its start recorded. Then the gate is opened.
    Starting {
        made: bool,
        recorded: bool,
    },
    Running,
    /// A step that must not run twice is still running. The run is handed over after its end.
    Draining,
    /// The end of that step is to be recorded. Then the run is handed over.
    Leaving,
    /// The last step's end is to be recorded, with the ending that follows from it.
    Closing,
    /// The ending is decided.
    Ending,
    /// The ending is recorded.
    Publishing,
    LettingGo,
    HandingOver,
    /// The lease was lost. No new work is started.
    Abandoned,
}

/// A run driven by a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Drive {
    pub(crate) epoch: Revision,
    pub(crate) modified: Revision,
    /// The record for the next write.
    pub(crate) record: Record,
    pub(crate) phase: Phase,
    /// A write was sent and not answered.
    pub(crate) unknown: bool,
}

/// Why an orphan is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    Conclude,
    EndStopped,
    GoOn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    Idle,
    /// A start was delivered. `stopped`: the lookup found a stop.
    Claiming {
        stopped: bool,
    },
    /// An orphan was found stopped. Its record is to be read again.
    EndingOrphan,
    /// An orphan was found with this record.
    Rescuing {
        found: Stored,
        purpose: Purpose,
    },
    Driving(Drive),
}

/// A worker. A crash or a new lease begins its next life.
///
/// Sleeping is not a separate state: a sleeping worker takes no turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Worker {
    pub(crate) life: u8,
    /// Its lease has expired, whether it knows or not.
    pub(crate) lease_gone: bool,
    /// It considers its lease lost and is ending its work.
    pub(crate) lost: bool,
    /// It has a start that it has not acknowledged.
    pub(crate) message: bool,
    /// It lost the run with its own lease, so claiming it again does not count as a loss.
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

/// How often each fault and each intervention can still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    pub(crate) crashes: u8,
    /// A worker is paused for longer than its lease and wakes up late.
    pub(crate) pauses: u8,
    /// A worker loses its lease by its own clock.
    pub(crate) partitions: u8,
    /// A write is not answered. It is applied at once or later.
    pub(crate) unanswered: u8,
    /// A start is delivered again because its acknowledgement was lost.
    pub(crate) redeliveries: u8,
    pub(crate) stops: u8,
    pub(crate) drains: u8,
    pub(crate) failures: u8,
    /// A released run's record is removed while its start can still be delivered again.
    pub(crate) removals: u8,
}

/// Violations, recorded when they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Violation {
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

/// Past events that the state does not show.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct History {
    pub(crate) last_epoch: Revision,
    /// The number of recorded endings.
    pub(crate) endings: u8,
    pub(crate) published: Option<Ending>,
    /// The ending was published more than once.
    pub(crate) published_again: bool,
    pub(crate) handed_over: bool,
    pub(crate) step_failed: bool,
    /// A step that must not run twice was started, and its outcome is unknown.
    pub(crate) in_doubt: bool,
    /// The started steps that must not run twice.
    pub(crate) begun: BTreeSet<u8>,
    /// The maximum number of losses in a record.
    pub(crate) losses: u8,
    pub(crate) slips: BTreeSet<Violation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) store: Store,
    /// The number of starts in the queue, all of the same run.
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
    /// The initial state: one start in the queue and an empty store.
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

    pub(crate) fn lease_of(&self, worker: WorkerIndex) -> Lease {
        Lease { worker, life: self.workers[worker].life }
    }

    pub(crate) fn slip(&mut self, slip: Violation) {
        self.history.slips.insert(slip);
    }

    pub(crate) fn owns(&self, epoch: Revision) -> bool {
        self.store.owner.is_some_and(|owner| owner.created == epoch)
    }

    pub(crate) fn is_ours(&self, worker: WorkerIndex) -> bool {
        self.store.owner.is_some_and(|owner| owner.lease == self.lease_of(worker))
    }

    pub(crate) fn has_slipped(&self, slip: Violation) -> bool {
        self.history.slips.contains(&slip)
    }

    /// The run's final status.
    pub(crate) fn ended(&self) -> Option<Status> {
        let status = self.store.record?.record.status;
        status.is_ended().then_some(status)
    }

    /// Whether the run has had more than one owner.
    pub(crate) fn is_taken_over(&self) -> bool {
        self.store.record.is_some_and(|stored| stored.record.attempt > 1)
    }

    /// Whether a worker that has not abandoned the run drives it in such a state.
    pub(crate) fn is_driven(&self, so: impl Fn(&Drive) -> bool) -> bool {
        self.workers.iter().any(|worker| match &worker.task {
            Task::Driving(drive) => !worker.lost && so(drive),
            Task::Idle | Task::Claiming { .. } | Task::EndingOrphan | Task::Rescuing { .. } => {
                false
            }
        })
    }

    /// Whether two such containers of one step run at the same time.
    pub(crate) fn runs_twice(&self, so: impl Fn(&Container, &Container) -> bool) -> bool {
        let running: Vec<&Container> = self.containers.iter().filter(|c| c.runs).collect();
        let beside = |n: usize, one: &Container| {
            running.iter().skip(n + 1).any(|other| one.step == other.step && so(one, other))
        };
        running.iter().enumerate().any(|(n, one)| beside(n, one))
    }
}
