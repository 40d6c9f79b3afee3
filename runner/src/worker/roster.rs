//! The runs that this worker drives, and how they are reached.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use protocol::id::RunId;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use crate::ports::{StopLevel, StopSignal};
use crate::rules::run::{Input, StopWhy};

/// How a run is reached.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    /// Facts from outside.
    pub(super) inputs: UnboundedSender<Input>,
    /// Reaches what runs at once, also while the drive waits for the broker.
    pub(super) stop: StopSignal,
    /// The same, for a hand-over: steps that must not run twice do not listen to it.
    pub(super) leave: StopSignal,
    /// The longest kill-grace among the steps of the run; none before it is driven.
    pub(super) longest_grace: Option<Duration>,
}

/// The runs that this worker drives or is about to claim.
#[derive(Debug, Default)]
pub(super) struct Roster {
    runs: Mutex<BTreeMap<RunId, Handle>>,
    /// A run was struck.
    struck: Notify,
}

impl Roster {
    fn runs(&self) -> std::sync::MutexGuard<'_, BTreeMap<RunId, Handle>> {
        // A map of handles is whole whatever panicked.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a run. It is entered before it is claimed, so that no stop falls between its claim and
    /// its drive. `false`: it is there already.
    pub(super) fn enter(&self, run: &RunId, handle: Handle) -> bool {
        let mut runs = self.runs();
        if runs.contains_key(run) {
            return false;
        }
        runs.insert(run.clone(), handle);
        true
    }

    /// Strikes a run.
    pub(super) fn strike(&self, run: &RunId) {
        self.runs().remove(run);
        self.struck.notify_waiters();
    }

    /// Whether no run is driven. One that is about to be claimed is not.
    pub(super) fn is_idle(&self) -> bool {
        self.runs().values().all(|handle| handle.longest_grace.is_none())
    }

    /// Resolves when no run is driven.
    ///
    /// # Cancel safety
    /// Safe.
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

    /// The runs, in order.
    pub(super) fn ids(&self) -> Vec<RunId> {
        self.runs().keys().cloned().collect()
    }

    /// Asks a run to stop, where it is one of ours.
    pub(super) fn ask_stop(&self, run: &RunId, why: StopWhy, grace: Duration) {
        if let Some(handle) = self.runs().get(run) {
            ask(handle, why, grace);
        }
    }

    /// Notes that a run is driven from now on, and the longest kill-grace among its steps.
    pub(super) fn drive(&self, run: &RunId, longest_grace: Duration) {
        if let Some(handle) = self.runs().get_mut(run) {
            handle.longest_grace = Some(longest_grace);
        }
    }

    /// Asks every run to stop. Returns how long their steps may take for that.
    pub(super) fn ask_all(&self, why: &StopWhy, grace: Duration) -> Duration {
        let runs = self.runs();
        for handle in runs.values() {
            ask(handle, why.clone(), grace);
        }
        longest_grace(&runs, grace)
    }

    /// Asks every run to end here, and to continue elsewhere. Returns how long their steps may take for
    /// that.
    pub(super) fn hand_over_all(&self, grace: Duration) -> Duration {
        let runs = self.runs();
        for handle in runs.values() {
            // A drive that is gone has nothing to hand over.
            drop(handle.inputs.send(Input::HandOverAsked { grace }));
            handle.leave.raise(StopLevel::Stop { grace });
        }
        longest_grace(&runs, grace)
    }

    /// Whether a run is there.
    pub(super) fn has(&self, run: &RunId) -> bool {
        self.runs().contains_key(run)
    }

    /// Kills what runs, without grace: the lease is lost.
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

/// The reason goes first, so that the drive knows it before it sees the step end.
fn ask(handle: &Handle, why: StopWhy, grace: Duration) {
    // A drive that is gone needs no stop.
    drop(handle.inputs.send(Input::StopAsked(why)));
    handle.stop.raise(StopLevel::Stop { grace });
}
