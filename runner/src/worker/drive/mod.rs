//! Drives one run: reports facts to the rules and carries out their orders. Makes no decisions.

mod attempt;
mod collect;
mod completion;
mod create;
mod emitter;
mod finish;
mod give_up;
mod job_log;
mod keep;
mod ledger;
mod mask;
mod operation;
mod orders;
mod output;
mod progress;
mod push;
mod render;
mod run_secrets;
mod secrets;
mod start;
mod state;

use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _};
use protocol::run::Cause;
use protocol::time::Millis;
use tracing::error;

use self::completion::Completed;
pub(super) use self::create::ClaimedRun;
use self::give_up::DriveError;
use self::ledger::WriteError;
use self::orders::Performed;
pub use self::render::RenderInline;
use self::state::Drive;
pub(super) use self::state::Signals;
use super::lost::Lost;
use super::release::{prove_ended, release};
use super::watchdog::Heartbeat;
use super::watchdog::{Failed, Watched};
use crate::ports::StopLevel;
use crate::rules::run::{Effect, Input, Run, joined, may_be_joined};

/// How many facts are joined into one write at most: etcd accepts 128 operations in a transaction, and
/// each fact can add a callback.
const MOST_JOINED: usize = 30;

impl ClaimedRun {
    /// Drives the run in a task of its own, first with the orders that `first` returns. A live worker must
    /// not own a run that it does not drive.
    ///
    /// If the drive panics, its run is released at once, to be claimed again and ended. If the drive
    /// stalls, its run is released as if the worker had died.
    pub(super) fn spawn(self, first: impl FnOnce(&mut Run, Millis) -> Vec<Effect>) {
        let (shared, scope) = (Arc::clone(&self.shared), self.scope());
        let run = scope.run.clone();
        let (stop, claim) = (self.signals.stop.clone(), self.owned.claim.clone());
        let lost = self.held.lost.clone();
        let driven = Watched::new(|heartbeat| {
            let mut drive = self.into_drive(heartbeat);
            let now = drive.shared.ports.host.now();
            let first = first(&mut drive.run, now);
            Box::pin(drive.drive(first))
        });
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            let driven = driven.run(&shared.tasks, shared.watchdog.span()).await;
            let Err(cause) = driven else { return };
            error!(run.id = %run, %cause, "the drive of run {run} is out of order; this is a fault of bob-runner");
            stop.raise(StopLevel::Kill);
            shared.ports.events.discard(&run, claim.epoch);
            let is_resumed = match cause {
                Failed::Stalled(_) => shared.options.rescue,
                // The next drive would panic too.
                Failed::Panicked(_) => false,
            };
            if !is_resumed {
                // Added to the list before the release and kept in the roster until then. Otherwise
                // this worker's own rescue could find the run without an owner and resume it.
                let why = "its worker failed; the worker's log says how".to_owned();
                shared.put_lost(Lost::new(run.clone(), Cause::Engine, why));
            }
            // This task has no watchdog: it must release the run, however long that takes.
            let heartbeat = Heartbeat::unwatched();
            prove_ended(&shared, &heartbeat, &scope).await;
            release(&shared, &heartbeat, &claim, &lost).await;
            shared.roster.remove(&run);
        });
    }
}

impl Drive {
    /// Drives the run until it ends or is lost.
    async fn drive(mut self, first: Vec<Effect>) {
        let run_id = self.scope.run.clone();
        let ended = if self.run.record().status.is_ended() && first.is_empty() {
            self.conclude().await.map_err(DriveError::Write)
        } else {
            self.drive_to_its_end(first).await
        };
        if ended.is_ok() {
            self.shared.reclaims.forget(&run_id);
        }
        if let Err(cause) = ended {
            // The remaining work needs no slot.
            self.slot = None;
            self.abandon().await;
            if let Some(lost) = self.give_up_run(cause).await {
                self.shared.put_lost(lost);
            }
        }
        self.report_dropped().await;
        self.shared.roster.remove(&run_id);
    }

    async fn drive_to_its_end(&mut self, first: Vec<Effect>) -> Result<(), DriveError> {
        self.recall_secrets().await;
        let mut effects = first;
        loop {
            match self.perform(effects).await? {
                Performed::Resume => {}
                Performed::Finish => return Ok(self.finish().await?),
                Performed::Release => return Ok(self.hand_over().await?),
            }
            effects = self.follow().await?;
        }
    }

    /// Waits for a fact and returns the orders for it and all other pending facts. Steps that end
    /// together share one write of the record.
    async fn follow(&mut self) -> Result<Vec<Effect>, DriveError> {
        let mut lists = Vec::new();
        let mut next = Some(self.next().await);
        while let Some(completed) = next {
            let fact = self.keep(completed?);
            let list = self.run.on(self.shared.ports.host.now(), fact);
            let goes_on = may_be_joined(&list);
            lists.push(list);
            for (output, note) in std::mem::take(&mut self.progress.notes) {
                output.note_from(&self.heartbeat, &note).await;
            }
            let joins = goes_on && lists.len() < MOST_JOINED;
            next = if joins { self.next().now_or_never() } else { None };
        }
        Ok(joined(lists))
    }

    /// Waits for the next fact, from an operation, a timer or the rest of the worker.
    async fn next(&mut self) -> Result<Completed, DriveError> {
        let _waits = self.heartbeat.waits();
        let timer = self.progress.timers.iter().min_by_key(|(_, at)| *at).copied();
        let expired = async {
            match timer {
                Some((timer, at)) => {
                    tokio::time::sleep_until(at).await;
                    timer
                }
                None => std::future::pending().await,
            }
        };
        // Facts from outside come first: a stop must be known before the exit that it causes.
        tokio::select! {
            biased;
            () = self.held.lost.cancelled() => Err(DriveError::Write(WriteError::Lost)),
            Some(input) = self.signals.inputs.recv() => Ok(input.into()),
            Some(done) = self.doing.next() => done.map_err(DriveError::from),
            timer = expired => {
                self.progress.timers.retain(|(other, _)| *other != timer);
                Ok(Input::Expired(timer).into())
            }
        }
    }
}
