//! Displays a run of `run FILE` until it ends: events, signals and failures.

use std::time::Duration;

use anyhow::Error;
use futures::StreamExt as _;
use protocol::event::{Event, Reason};
use protocol::id::RunId;
use protocol::names;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::exit::{Exit, Failure};
use super::job;
use super::run_view::RunView;
use super::signals::Signals;
use crate::app::{Ended, HereRun};
use crate::client::Reader;

/// Interval between redraws of the elapsed times.
const FRAME: Duration = Duration::from_millis(250);
/// How long blocked output can delay the exit after a stopped run.
const UNREAD: Duration = Duration::from_secs(2);

/// A run on display.
pub(super) struct Session<'s> {
    run: &'s RunId,
    reader: Reader,
    /// The exit code of the first signal.
    signal: Option<Exit>,
    files: Option<job::Files>,
    view: RunView,
    signals: Signals,
}

/// Why following a run ended.
pub(super) enum Outcome {
    /// The run has ended.
    Ended,
    /// The run was stopped and has ended, but its output is blocked.
    Unread,
    /// The start was rejected, with this message.
    Rejected(String),
    /// The store or the worker failed.
    Failed(Failure),
    /// A second signal arrived.
    Killed(Exit),
}

impl<'s> Session<'s> {
    pub(super) fn new(
        run: &'s RunId,
        view: RunView,
        signals: Signals,
        files: Option<job::Files>,
    ) -> Self {
        Self { run, reader: Reader::new(run.clone()), signal: None, files, view, signals }
    }

    /// Displays the run until it ends.
    pub(super) async fn follow(&mut self, here: &mut HereRun) -> Outcome {
        let mut frames = frames();
        if let Some(warning) = &here.warning {
            self.view.report(&format!("warning: {warning}"));
        }
        while self.reader.ending().is_none() {
            let has_room = self.view.writer.has_room();
            tokio::select! {
                // Events that are not displayed yet stay in the run's store.
                message = here.events.next(), if has_room => {
                    let outcome = match message {
                        Some(Ok(message)) => self.on(message.event()),
                        Some(Err(cause)) => Some(self.failed(&cause.to_string())),
                        None => Some(self.failed("its event stream has ended")),
                    };
                    if let Some(outcome) = outcome {
                        return outcome;
                    }
                }
                () = self.view.writer.room(), if !has_room => {}
                signal = self.signals.next() => match self.signal.replace(signal) {
                    None => {
                        self.view.report("stopping the run; a second signal ends the program at once");
                        if let Err(cause) = here.stop("interrupted").await {
                            return self.failed(&format!("it cannot be stopped: {cause:#}"));
                        }
                    }
                    Some(_) => return Outcome::Killed(signal),
                },
                failure = here.store.failed() => return Outcome::Failed(Error::from(failure).into()),
                () = here.store.start_exhausted() => {
                    return Outcome::Rejected(format!(
                        "its start was returned to the queue {} times without success",
                        names::DELIVERY_LIMIT
                    ));
                }
                worked = &mut here.worker => {
                    let why = match worked {
                        Ok(Ok(())) => "its worker has ended".to_owned(),
                        Ok(Err(fault)) => fault.to_string(),
                        Err(cause) => format!("its worker has failed: {cause}"),
                    };
                    return self.failed(&why);
                }
                () = here.store.ended(), if self.signal.is_some() && !has_room => {
                    if !self.view.writer.flushed_unless_stuck(UNREAD).await {
                        return Outcome::Unread;
                    }
                }
                _ = frames.tick() => self.view.tick(),
            }
        }
        Outcome::Ended
    }

    fn failed(&self, why: &str) -> Outcome {
        Outcome::Failed(Failure::new(Exit::Failed, format!("run {} has failed: {why}", self.run)))
    }

    /// Displays an event. Returns an outcome if the start was rejected.
    fn on(&mut self, event: Option<Event>) -> Option<Outcome> {
        let event = event?;
        // This store receives no other start.
        let is_own = event.run_id.as_ref().is_none_or(|run| run == self.run);
        if is_own && matches!(event.reason, Reason::CommandRejected { .. }) {
            return Some(Outcome::Rejected(event.message));
        }
        let item = self.reader.on(event)?;
        if let Some(files) = &mut self.files {
            files.on(&item);
        }
        self.view.show(&item);
        None
    }

    /// Releases the run's resources and returns the exit of the program.
    pub(super) async fn end(mut self, here: HereRun, outcome: Outcome) -> Result<Exit, Failure> {
        let remains = here.remains();
        let run = self.run;
        match outcome {
            Outcome::Failed(failure) => self.abandon(here, failure, &remains).await,
            Outcome::Killed(signal) => self.killed(signal, &remains).await,
            Outcome::Ended | Outcome::Unread | Outcome::Rejected(_) => {
                let over = tokio::select! {
                    over = here.end() => over,
                    signal = self.signals.next() => return self.killed(signal, &remains).await,
                };
                self.report(&over);
                match outcome {
                    Outcome::Unread => Err(Failure::new(
                        self.signal.unwrap_or(Exit::Stopped),
                        format!("run {run} was stopped, and not all of its output was read"),
                    )),
                    Outcome::Rejected(why) => {
                        Err(Failure::new(Exit::Invalid, format!("run {run} was rejected: {why}")))
                    }
                    Outcome::Ended | Outcome::Failed(_) | Outcome::Killed(_) => self.ended().await,
                }
            }
        }
    }

    /// Reports what remains to be said after the run.
    fn report(&mut self, over: &Ended) {
        for callback in &over.undelivered {
            self.view.report(&format!(
                "the callback to {callback} was not delivered within 10 s of the end of the run; it is \
                 not tried again"
            ));
        }
        for run in &over.swept {
            self.view.report(&format!("removed what run {run} left when its process was killed"));
        }
        if let Some(kept) = over.kept {
            let (run, seconds) = (self.run, kept.as_secs());
            self.view.report(&format!(
                "what the steps left is kept for {seconds} s: see `bob-runner diff {run} STEP`, \
                 `bob-runner shell {run}` and `bob-runner rerun {run}`"
            ));
        }
    }

    async fn ended(mut self) -> Result<Exit, Failure> {
        let Some(ending) = self.reader.ending() else { return Ok(Exit::Failed) };
        self.view.end(&self.reader.missing());
        let exit = self.signal.unwrap_or_else(|| Exit::of_run(ending.status));
        tokio::select! {
            () = self.view.writer.flushed() => {}
            // The run has left nothing behind.
            signal = self.signals.next() => return Ok(signal),
        }
        ended(self.view.writer.unwritten(), self.run, exit)
    }

    /// Ends a run whose ending cannot be recorded.
    async fn abandon(
        mut self,
        here: HereRun,
        failure: Failure,
        remains: &str,
    ) -> Result<Exit, Failure> {
        let removed = tokio::select! {
            removed = here.abandon() => removed,
            signal = self.signals.next() => return self.killed(signal, remains).await,
        };
        self.view.tick();
        self.view.writer.flushed_unless_stuck(UNREAD).await;
        let Err(cause) = removed else { return Err(failure) };
        let message = failure.message.map(|message| format!("{message}; {cause}{remains}"));
        Err(Failure { message, ..failure })
    }

    /// Ends the program at once.
    async fn killed(mut self, signal: Exit, remains: &str) -> Result<Exit, Failure> {
        self.view.report(&format!("run {} was killed{remains}", self.run));
        self.view.writer.flushed_unless_stuck(UNREAD).await;
        Ok(signal)
    }
}

fn frames() -> Interval {
    let mut frames = interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
    frames
}

/// The exit of the program after a run with this result.
fn ended(unwritten: Option<Failure>, run: &RunId, exit: Exit) -> Result<Exit, Failure> {
    // A closed pipe has no message.
    let Some(cause) = unwritten.and_then(|failure| failure.message) else {
        return Ok(exit);
    };
    let exit = if exit == Exit::Ok { Exit::Failed } else { exit };
    Err(Failure::new(exit, format!("run {run} has ended, and not all of it was shown: {cause}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(unwritten: Option<Failure>, exit: Exit) -> Result<Exit, Failure> {
        super::ended(unwritten, &"r-1".parse().unwrap(), exit)
    }

    #[test]
    fn a_run_that_could_not_be_shown_reports_that_and_does_not_pass() {
        let full = || Some(Failure::new(Exit::Failed, "cannot write to standard output: full"));
        let failure = ended(full(), Exit::Ok).unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.unwrap().ends_with("cannot write to standard output: full"));
        assert_eq!(ended(full(), Exit::Stopped).unwrap_err().exit, Exit::Stopped);
        assert_eq!(ended(None, Exit::Ok), Ok(Exit::Ok));
        let gone = Some(Failure::already_reported(Exit::Ok));
        assert_eq!(ended(gone, Exit::Stopped), Ok(Exit::Stopped), "no one can receive it");
    }
}
