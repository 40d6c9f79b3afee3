//! Starts the drive of a claimed run.

use std::sync::Arc;

use protocol::event::{Reason, Severity};
use protocol::id::RunId;
use protocol::run::Cause;
use protocol::time::Millis;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::drive::{ClaimedRun, Signals};
use super::lease::HeldLease;
use super::records::Ownership;
use super::roster::Handle;
use super::shared::Shared;
use super::verdict::Verdict;
use crate::ports::StopSignal;
use crate::rules::run::{Effect, EventDraft, PreviousOwner, Run, StopWhy};

/// A place in the roster, reserved before the claim.
#[must_use = "a place that is neither used nor cancelled keeps its run from ever being taken here"]
pub(super) struct Launch {
    shared: Arc<Shared>,
    run: RunId,
    signals: Signals,
}

impl Launch {
    /// Enters the roster. Returns `None` if the run is there already.
    pub(super) fn enter(shared: &Arc<Shared>, run: &RunId) -> Option<Self> {
        let (tell, inputs) = mpsc::unbounded_channel();
        let stop = StopSignal::default();
        let leave = stop.part();
        let handle = Handle {
            inputs: tell.clone(),
            stop: stop.clone(),
            leave: leave.clone(),
            longest_grace: None,
        };
        let entered = shared.roster.enter(run, handle);
        let signals = Signals { stop, leave, inputs, tell };
        entered.then(|| Self { shared: Arc::clone(shared), run: run.clone(), signals })
    }

    /// Returns the place.
    pub(super) fn cancel(self) {
        self.shared.roster.remove(&self.run);
    }

    /// Drives a new run, and releases `slot` at its end. `named`: the sender chose the run ID.
    pub(super) fn drive_new(
        self,
        held: &HeldLease,
        owned: Ownership,
        (verdict, named): (Verdict, bool),
        slot: OwnedSemaphorePermit,
    ) {
        let scheduled = scheduled(&self.run, named);
        self.drive(held, owned, Some(slot), |run, now| {
            let mut first = vec![scheduled];
            first.extend(match verdict {
                Verdict::Run => run.begin(now),
                Verdict::Resume(_) => run.begin_after(now),
                Verdict::Refuse(cause, why) => run.refuse(now, cause, &why),
                Verdict::Stop(why) => run.stop_now(now, &why),
            });
            first
        });
    }

    /// Drives a run that has waited for a place.
    pub(super) fn drive_admitted(
        self,
        held: &HeldLease,
        owned: Ownership,
        slot: OwnedSemaphorePermit,
    ) {
        let has_steps = !owned.record.steps.is_empty();
        let scheduled = admitted(&self.run);
        self.drive(held, owned, Some(slot), |run, now| {
            let mut first = vec![scheduled];
            first.extend(if has_steps { run.begin_after(now) } else { run.begin(now) });
            first
        });
    }

    /// Resumes a run from an earlier owner.
    pub(super) fn resume(
        self,
        held: &HeldLease,
        owned: Ownership,
        past: PreviousOwner,
        slot: OwnedSemaphorePermit,
    ) {
        let max_losses = self.shared.options.max_losses;
        self.drive(held, owned, Some(slot), |run, now| run.resume(now, past, max_losses));
    }

    /// Ends an orphan as stopped.
    pub(super) fn end_stopped(self, held: &HeldLease, owned: Ownership, why: &StopWhy) {
        self.drive(held, owned, None, |run, now| run.stop_now(now, why));
    }

    /// Ends a run that this worker had lost as failed.
    pub(super) fn end_lost(self, held: &HeldLease, owned: Ownership, cause: Cause, why: &str) {
        self.drive(held, owned, None, |run, now| run.refuse(now, cause, why));
    }

    /// Completes a run whose ending is recorded.
    pub(super) fn conclude(self, held: &HeldLease, owned: Ownership) {
        self.drive(held, owned, None, |_, _| Vec::new());
    }

    fn drive(
        self,
        held: &HeldLease,
        owned: Ownership,
        slot: Option<OwnedSemaphorePermit>,
        first: impl FnOnce(&mut Run, Millis) -> Vec<Effect>,
    ) {
        let Self { shared, signals, .. } = self;
        ClaimedRun { shared, signals, held: held.clone(), owned, slot }.spawn(first);
    }
}

/// Follows the message about an accepted run whose ID the worker has generated.
pub(super) const UNNAMED: &str =
    " from a message without run-id and message_id: a lost acknowledgement can run it twice";

fn admitted(run: &RunId) -> Effect {
    let reason = Reason::PipelineRunScheduled { waiting: false };
    let message = format!("run {run} has got a place of its pipeline");
    Effect::Emit(EventDraft { reason, message, step: None, severity: None })
}

fn scheduled(run: &RunId, named: bool) -> Effect {
    let reason = Reason::PipelineRunScheduled { waiting: false };
    let (message, severity) = if named {
        (format!("run {run} was accepted"), None)
    } else {
        (format!("run {run} was accepted{UNNAMED}"), Some(Severity::Warning))
    };
    Effect::Emit(EventDraft { reason, message, step: None, severity })
}
