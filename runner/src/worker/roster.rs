//! The runs that this worker drives, and access to them.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::id::RunId;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use crate::ports::{StopLevel, StopSignal};
use crate::rules::run::{Input, StopWhy};

/// Access to a run.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    /// Sends facts from outside.
    pub(super) inputs: UnboundedSender<Input>,
    /// Stops the run's steps at once, even while the drive waits for the broker.
    pub(super) stop: StopSignal,
    /// The same for a hand-over. Steps that must not run twice ignore it.
    pub(super) leave: StopSignal,
    /// The longest kill-grace of the run's steps. `None` until the run is driven.
    pub(super) longest_grace: Option<Duration>,
}

/// The runs that this worker drives or is about to claim.
#[derive(Debug, Default)]
pub(super) struct Roster {
    runs: Mutex<BTreeMap<RunId, Handle>>,
    /// Notified when a run is removed.
    struck: Notify,
}

impl Roster {
    fn runs(&self) -> parking_lot::MutexGuard<'_, BTreeMap<RunId, Handle>> {
        // A map of handles is consistent even after a panic.
        self.runs.lock()
    }

    /// Adds a run before it is claimed, so that no stop is missed between its claim and its drive.
    /// Returns false if it is there already.
    pub(super) fn enter(&self, run: &RunId, handle: Handle) -> bool {
        let mut runs = self.runs();
        if runs.contains_key(run) {
            return false;
        }
        runs.insert(run.clone(), handle);
        true
    }

    /// Removes a run.
    pub(super) fn remove(&self, run: &RunId) {
        self.runs().remove(run);
        self.struck.notify_waiters();
    }

    /// Returns true if no run is driven. Runs that are about to be claimed do not count.
    pub(super) fn is_idle(&self) -> bool {
        self.runs().values().all(|handle| handle.longest_grace.is_none())
    }

    /// Waits until no run is driven.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn idle(&self) {
        loop {
            let mut struck = std::pin::pin!(self.struck.notified());
            struck.as_mut().enable();
            if self.is_idle() {
                return;
            }
            struck.await;
        }
    }

    /// Returns the run IDs in order.
    pub(super) fn ids(&self) -> Vec<RunId> {
        self.runs().keys().cloned().collect()
    }

    /// Asks a run to stop, if this worker drives it.
    pub(super) fn ask_stop(&self, run: &RunId, why: StopWhy, grace: Duration) {
        if let Some(handle) = self.runs().get(run) {
            ask(handle, why, grace);
        }
    }

    /// Marks a run as driven and sets the longest kill-grace of its steps.
    pub(super) fn drive(&self, run: &RunId, longest_grace: Duration) {
        if let Some(handle) = self.runs().get_mut(run) {
            handle.longest_grace = Some(longest_grace);
        }
    }

    /// Asks every run to stop. Returns the time its steps may take to end.
    pub(super) fn ask_all(&self, why: &StopWhy, grace: Duration) -> Duration {
        let runs = self.runs();
        for handle in runs.values() {
            ask(handle, why.clone(), grace);
        }
        longest_grace(&runs, grace)
    }

    /// Asks every run to continue elsewhere. Returns the time its steps may take to end.
    pub(super) fn hand_over_all(&self, grace: Duration) -> Duration {
        let runs = self.runs();
        for handle in runs.values() {
            // A drive that has ended has nothing to hand over.
            drop(handle.inputs.send(Input::HandOverAsked { grace }));
            handle.leave.raise(StopLevel::Stop { grace });
        }
        longest_grace(&runs, grace)
    }

    /// Returns true if the run is in the roster.
    pub(super) fn has(&self, run: &RunId) -> bool {
        self.runs().contains_key(run)
    }

    /// Kills all steps without a grace, because the lease is lost.
    pub(super) fn kill_all(&self) {
        for handle in self.runs().values() {
            handle.stop.raise(StopLevel::Kill);
        }
    }
}

fn longest_grace(runs: &BTreeMap<RunId, Handle>, usual: Duration) -> Duration {
    runs.values()
        .filter_map(|handle| handle.longest_grace)
        .max()
        .map_or(usual, |own| own.max(usual))
}

/// Sends the reason first, so that the drive knows it before the step ends.
fn ask(handle: &Handle, why: StopWhy, grace: Duration) {
    // A drive that has ended needs no stop.
    drop(handle.inputs.send(Input::StopAsked(why)));
    handle.stop.raise(StopLevel::Stop { grace });
}
