//! Drives one run: reports facts to the rules and carries out their orders. Makes no decisions.

mod attempt;
mod collect;
mod create;
mod emitter;
mod facts;
mod finish;
mod give_up;
mod job_log;
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

use self::give_up::DriveError;
use self::ledger::WriteError;
use self::operation::Completion;
use self::orders::Performed;
pub use self::render::RenderInline;
pub(super) use self::state::{Drive, Signals};
use super::lost::Lost;
use super::release::{prove_ended, release};
use super::watchdog::{Failed, waits, watched};
use crate::ports::StopLevel;
use crate::rules::run::{Effect, Input, Run, joined, may_be_joined};

/// How many facts are joined into one write at most: etcd accepts 128 operations in a transaction, and
/// each fact can add a callback.
const MOST_JOINED: usize = 30;

enum Next {
    Input(Input),
    Done(Option<usize>, Completion),
    Lost,
}

impl Drive {
    /// Spawns the drive with the orders that `first` returns. A live worker must not own a run that it
    /// does not drive.
    ///
    /// If the drive panics, its run is released at once, to be claimed again and ended. If the drive
    /// stalls, its run is released as if the worker had died.
    pub(super) fn spawn(mut self, first: impl FnOnce(&mut Run, Millis) -> Vec<Effect>) {
        let now = self.shared.ports.host.now();
        let first = first(&mut self.run, now);
        let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
        let run = scope.run.clone();
        let (stop, claim) = (self.signals.stop.clone(), self.ledger.claim().clone());
        let lost = self.held.lost.clone();
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            let driven = Box::pin(self.drive(first));
            let driven = watched(&shared.tasks, shared.watchdog.span(), driven).await;
            let Err(cause) = driven else { return };
            error!(run.id = %run, %cause, "the drive of run {run} is out of order; this is a fault of bob-runner");
            stop.raise(StopLevel::Kill);
            shared.ports.events.discard(&run, claim.epoch);
            let is_gone_on_with = match cause {
                Failed::StoodStill(_) => shared.options.rescue,
                // The next drive would panic too.
                Failed::Panicked(_) => false,
            };
            if !is_gone_on_with {
                // Added to the list before the release and kept in the roster until then. Otherwise
                // this worker's own rescue could find the run without an owner and resume it.
                let why = "its worker failed; the worker's log says how".to_owned();
                shared.put_lost(Lost::new(run.clone(), Cause::Engine, why));
            }
            prove_ended(&shared, &scope).await;
            release(&shared, &claim, &lost).await;
            shared.roster.remove(&run);
        });
    }

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
        while let Some(fact) = next {
            let input = match fact {
                Next::Input(input) => input,
                Next::Done(_, Completion::OwnershipLost) => {
                    return Err(DriveError::Write(WriteError::InDoubt));
                }
                Next::Done(_, Completion::EngineAway(why)) => return Err(DriveError::Engine(why)),
                Next::Done(at, done) => self.input_of(at, done),
                Next::Lost => return Err(DriveError::Write(WriteError::Lost)),
            };
            let list = self.run.on(self.shared.ports.host.now(), input);
            let goes_on = may_be_joined(&list);
            lists.push(list);
            for (output, note) in std::mem::take(&mut self.progress.notes) {
                output.note(&note).await;
            }
            let joins = goes_on && lists.len() < MOST_JOINED;
            next = if joins { self.next().now_or_never() } else { None };
        }
        Ok(joined(lists))
    }

    async fn next(&mut self) -> Next {
        let _waits = waits();
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
            () = self.held.lost.cancelled() => Next::Lost,
            Some(input) = self.signals.inputs.recv() => Next::Input(input),
            Some((at, done)) = self.doing.next() => Next::Done(at, done),
            timer = expired => {
                self.progress.timers.retain(|(other, _)| *other != timer);
                Next::Input(Input::Expired(timer))
            }
        }
    }
}
