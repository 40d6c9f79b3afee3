//! Ends a run, in this order (ADR 0003): publish its logs, record the ending, publish it, remove
//! the run's resources, release the claim.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use protocol::event::Event;
use protocol::id::RunId;
use protocol::pipeline::Pipeline;
use protocol::quantity::Span;
use protocol::run::{Cause, RunRecord, Status};
use tracing::{error, info, warn};

use super::emitter::Dropped;
use super::job_log;
use super::ledger::{WriteError, WriteExtra};
use super::state::Drive;
use crate::ports::{StoreError, Ticket};
use crate::rules::run::{EventDraft, Input, StopWhy};
use crate::worker::long_lease::LongLease;
use crate::worker::places::Places;
use crate::worker::retry::Retry;
use crate::worker::shared::Shared;
use crate::worker::watchdog::Heartbeat;

/// The maximum delay of a run's end by its external logger.
const LOGGER_WAIT: Duration = Duration::from_secs(10);
/// The maximum delay of a run's end, and of its slot's release, by an unavailable stream.
const STREAM_WAIT: Duration = Duration::from_secs(30);
/// The maximum time that a hand-over waits for the stream. Events that are not confirmed by then
/// are published later, or by the next worker with the same disk.
const HAND_OVER_STREAM_WAIT: Duration = Duration::from_secs(5);
/// The maximum delay of a slot's release by the removal of the run's resources.
const REMOVAL_WAIT: Duration = Duration::from_secs(20);
/// The number of attempts to remove a run's resources.
const DESTROY_TRIES: u32 = 5;
/// The pause after the first of them, and the longest pause.
const REMOVE_FIRST: Duration = Duration::from_millis(200);
const REMOVE_MOST: Duration = Duration::from_millis(3200);

impl Drive {
    /// Ends the run. The end of the worker does not interrupt this.
    pub(super) async fn finish(&mut self) -> Result<(), WriteError> {
        if self.met_a_full_disk() {
            // Before the slot is free, because the next run would meet the full disk too.
            self.shared.room.note_full();
        }
        // A run that ends needs no checkpoints, and its existing ones are removed.
        self.pushes.stop(&self.heartbeat).await;
        self.close_feed().await;
        let (last, _) = self.emitter.last(&self.heartbeat).await;
        let in_time = self.confirmed_within(last, STREAM_WAIT).await?;
        if !in_time {
            // The ending is recorded anyway. The claim is kept until the stream has the event.
            self.slot = None;
        }
        let event = self.record_ending().await?;
        job_log::end(self.run.record(), &event.message);
        let ticket = self.emitter.emit_recorded(&self.heartbeat, event).await;
        self.after_ending(ticket).await
    }

    /// Writes the ending, with its event inside the record. A stop that is recorded before that changes
    /// the ending.
    async fn record_ending(&mut self) -> Result<Event, WriteError> {
        loop {
            let draft = self.run.ending().unwrap_or_else(|| EventDraft {
                reason: protocol::event::Reason::PipelineFailed {
                    cause: protocol::run::Cause::Engine,
                    exit_code: None,
                },
                message: format!("run {} ended", self.scope.run),
                step: None,
                severity: None,
            });
            let event = self.emitter.next_event(&self.heartbeat, self.masked(draft)).await;
            let mut record = self.run.record().clone();
            record.last_seq = event.seq;
            record.ending_event = Some(Box::new(event.clone()));
            let also = match record.status {
                Status::Stopped => WriteExtra::DropStop,
                Status::Pending
                | Status::Initializing
                | Status::Initialized
                | Status::Running
                | Status::Passed
                | Status::Failed => WriteExtra::DemandNoStop,
            };
            self.leave_place().await?;
            match self.ledger.save(&self.heartbeat, &record, also).await {
                Ok(()) => return Ok(event),
                // It is read again. Another run of the pipeline has started or ended.
                Err(WriteError::PlacesChanged) => {}
                Err(WriteError::StopFound) => {
                    let now = self.shared.ports.host.now();
                    let why = self.recorded_stop();
                    // It orders `Finish`, which is in progress already.
                    drop(self.run.stop_now(now, &why));
                }
                Err(cause) => return Err(cause),
            }
        }
    }

    /// Prepares the wait list without this run, which the write of the ending includes.
    async fn leave_place(&mut self) -> Result<(), WriteError> {
        let has_list =
            |pipeline: &&Pipeline| pipeline.admission.is_some() && self.shared.options.rescue;
        let policy = self.pipeline().filter(has_list);
        let Some(id) = policy.and_then(|pipeline| pipeline.id().ok()) else { return Ok(()) };
        let host = Arc::clone(&self.shared.ports.host);
        let store = Arc::clone(&self.shared.ports.store);
        let run = &self.scope.run;
        let read = || async {
            match Places::read(&*store, &id).await {
                Ok(places) => ControlFlow::Break(Some(places)),
                Err(cause) if cause.is_invalid_request() => {
                    error!(run.id = %run, %cause, "run {run} ends and keeps its place: delete the key of the wait list when no run of the \
                         pipeline is in progress");
                    ControlFlow::Break(None)
                }
                Err(cause) => {
                    warn!(run.id = %run, %cause, "the end of run {run} waits");
                    ControlFlow::Continue(())
                }
            }
        };
        let read = Retry::of_store(&*host, &self.heartbeat).until(&self.held.lost, read).await;
        let mut places = read.ok_or(WriteError::Lost)?;
        if let Some(places) = &mut places {
            places.end(run, host.now());
        }
        self.ledger.set_places(places);
        Ok(())
    }

    /// Returns why the run is stopped, after the store has shown its stop key. The key proves that a
    /// user requested it; the watch may know the reason.
    fn recorded_stop(&mut self) -> StopWhy {
        let mut why = StopWhy::User { reason: None };
        while let Ok(input) = self.signals.inputs.try_recv() {
            if let Input::StopAsked(user @ (StopWhy::User { .. } | StopWhy::Replaced { .. })) =
                input
            {
                why = user;
            }
        }
        why
    }

    /// Hands the run over to another worker. Its events are published, no step is running, and the
    /// write that records the release deletes the owner key. A stop that arrives meanwhile remains
    /// for the next owner.
    pub(super) async fn hand_over(&mut self) -> Result<(), WriteError> {
        if let Some(feed) = self.feed.take() {
            let leaving = self.shared.leaving.clone();
            let dropped = {
                let _waits = self.heartbeat.waits();
                leaving.run_until_cancelled(feed.finish(LOGGER_WAIT)).await
            };
            match dropped {
                Some(0) => {}
                Some(bytes) => self.report_logger_dropped(bytes).await,
                None => {
                    let run = &self.scope.run;
                    warn!(run.id = %run, "the logger of run {run} might lack text: the worker ended first");
                }
            }
        }
        let (last, _) = self.emitter.last(&self.heartbeat).await;
        if !self.confirmed_within(last, HAND_OVER_STREAM_WAIT).await? {
            let run = &self.scope.run;
            warn!(run.id = %run, "run {run} is handed over before the stream has confirmed all of its events");
        }
        // An owner on another engine resumes from the registry.
        self.pushes.done(&self.heartbeat).await;
        while let Ok(input) = self.signals.inputs.try_recv() {
            if matches!(input, Input::Pushed { .. }) {
                // It gives no more orders. The write below includes the digest.
                drop(self.run.on(self.shared.ports.host.now(), input));
            }
        }
        let (_, last_seq) = self.emitter.last(&self.heartbeat).await;
        let record = RunRecord { last_seq, ..self.run.record().clone() };
        self.ledger.save(&self.heartbeat, &record, WriteExtra::HandOver).await?;
        info!(run.id = %self.scope.run, "run {} is handed over", self.scope.run);
        Ok(())
    }

    /// Completes a run whose ending is recorded. Publishes its event as recorded, with the epoch
    /// and `seq` of the owner that ended it.
    pub(super) async fn conclude(&mut self) -> Result<(), WriteError> {
        let ticket = match self.run.record().ending_event.clone() {
            Some(event) => self.emitter.emit_recorded(&self.heartbeat, *event).await,
            None => Some(Ticket::default()),
        };
        self.after_ending(ticket).await
    }

    /// Reports the events that the publisher did not accept before the worker ended.
    pub(super) async fn report_dropped(&self) {
        let Dropped { events, bytes } = self.emitter.dropped(&self.heartbeat).await;
        if events > 0 {
            let run = &self.scope.run;
            warn!(
                run.id = %run, events, bytes,
                "{events} events of run {run} are lost: the broker does not take them, and neither memory nor BOB_SPILL_BYTES leaves room for them"
            );
        }
    }

    fn met_a_full_disk(&self) -> bool {
        self.run.record().cause == Some(Cause::NoSpace)
    }

    /// `ticket` is that of the ending event, or `None` if the publisher did not accept it.
    async fn after_ending(&mut self, ticket: Option<Ticket>) -> Result<(), WriteError> {
        let shared = Arc::clone(&self.shared);
        let mut destroyed = {
            let run = self.scope.run.clone();
            // Without disk space, images are not kept for the retention.
            let kept = self.shared.options.keeps_images
                && !self.met_a_full_disk()
                && self.run.record().pipeline.as_ref().is_some_and(|it| it.retention.is_some());
            self.shared.tasks.spawn(async move { remove(&shared, &run, kept).await })
        };
        let is_published = match ticket {
            Some(ticket) => self.is_ending_published(ticket).await?,
            None if self.held.lost.is_cancelled() => return Err(WriteError::Lost),
            None => false,
        };
        if !is_published {
            // The open key stays with the record, and the owner key expires with the lease.
            let run = &self.scope.run;
            info!(run.id = %run, "the end of run {run} is recorded; the next worker publishes it");
            return Ok(());
        }
        let removed = {
            let _waits = self.heartbeat.waits();
            tokio::time::timeout(REMOVAL_WAIT, &mut destroyed).await
        };
        if removed.is_err() {
            // A slow engine must not delay other runs.
            self.slot = None;
            let _waits = self.heartbeat.waits();
            drop(destroyed.await);
        }
        if self.met_a_full_disk() {
            self.shared.room.look_now();
        }
        // Once published, the ending event is no longer needed in the record.
        let record = RunRecord { ending_event: None, ..self.run.record().clone() };
        let host = Arc::clone(&self.shared.ports.host);
        let mut retry = Retry::of_store(&*host, &self.heartbeat);
        loop {
            let also = self.final_leases().await?;
            match self.ledger.save(&self.heartbeat, &record, also).await {
                Err(WriteError::Refused(StoreError::LeaseGone(_))) => {
                    self.record_lease().forget().await;
                    self.shared.seen.forget().await;
                }
                done => return done,
            }
            if retry.pause(&self.held.lost).await.is_break() {
                return Err(WriteError::Lost);
            }
        }
    }

    /// Returns the lease of the run's record after its end.
    fn record_lease(&self) -> Arc<LongLease> {
        let pipeline = self.run.record().pipeline.as_ref();
        let retention = pipeline.and_then(|pipeline| pipeline.retention);
        self.shared.records.lasting(retention.map(Span::as_duration))
    }

    /// Returns the leases for the last write, retrying until the store grants them.
    async fn final_leases(&self) -> Result<WriteExtra, WriteError> {
        let ports = &self.shared.ports;
        let attempt = || async {
            let taken = async {
                let record = self.record_lease().current(&*ports.store, &*ports.host).await?;
                let seen = self.shared.seen.current(&*ports.store, &*ports.host).await?;
                Ok::<_, StoreError>(WriteExtra::LetGo { record, seen })
            };
            match taken.await {
                Ok(also) => ControlFlow::Break(Ok(also)),
                Err(cause) if cause.is_invalid_request() => {
                    ControlFlow::Break(Err(WriteError::Refused(cause)))
                }
                Err(cause) => {
                    warn!(run.id = %self.scope.run, %cause, "a record waits");
                    ControlFlow::Continue(())
                }
            }
        };
        let lost = &self.held.lost;
        let retry = Retry::of_store(&*ports.host, &self.heartbeat).until(lost, attempt);
        lost.run_until_cancelled(retry).await.flatten().unwrap_or(Err(WriteError::Lost))
    }

    async fn close_feed(&mut self) {
        let record = self.run.record();
        let line = match record.status {
            Status::Passed => "run successful".to_owned(),
            Status::Failed => {
                format!("run failed: {}", record.message.as_deref().unwrap_or_default())
            }
            Status::Stopped
            | Status::Pending
            | Status::Initializing
            | Status::Initialized
            | Status::Running => "run stopped".to_owned(),
        };
        self.log_line(&line);
        let Some(feed) = self.feed.take() else { return };
        let bytes = {
            let _waits = self.heartbeat.waits();
            feed.finish(LOGGER_WAIT).await
        };
        if bytes > 0 {
            self.report_logger_dropped(bytes).await;
        }
    }

    /// Reports text that the run's logger did not accept.
    async fn report_logger_dropped(&self, bytes: u64) {
        let logger = self.run.record().logger.as_ref().map(ToString::to_string);
        let message = format!(
            "logger {} did not take {bytes} bytes of run {} in time; the stream has them",
            logger.unwrap_or_default(),
            self.scope.run
        );
        let reason = protocol::event::Reason::LoggerDropped { bytes };
        self.emitter
            .emit(&self.heartbeat, EventDraft { reason, message, step: None, severity: None })
            .await;
    }

    /// Waits until the stream has confirmed an event, or the worker ends. Holds the slot for a while
    /// alone.
    async fn is_published(&mut self, ticket: Ticket) -> Result<bool, WriteError> {
        if self.confirmed_within(ticket, STREAM_WAIT).await? {
            return Ok(true);
        }
        self.slot = None;
        self.confirmed_or_leaving(ticket).await
    }

    /// Like [`Self::is_published`], for the ending event. Emits it again as long as its copy on disk
    /// cannot be read: readers must learn that the run has ended.
    async fn is_ending_published(&mut self, mut ticket: Ticket) -> Result<bool, WriteError> {
        loop {
            let is_published = self.is_published(ticket).await?;
            if !self.shared.ports.events.is_unreadable(ticket) {
                return Ok(is_published);
            }
            let Some(event) = self.run.record().ending_event.clone() else { return Ok(false) };
            let Some(again) = self.emitter.emit_recorded(&self.heartbeat, *event).await else {
                return Ok(false);
            };
            ticket = again;
        }
    }

    /// Returns whether the stream confirms an event within this time and before the worker ends.
    async fn confirmed_within(&self, ticket: Ticket, wait: Duration) -> Result<bool, WriteError> {
        let confirmed = self.confirmed_or_leaving(ticket);
        tokio::time::timeout(wait, confirmed).await.unwrap_or(Ok(false))
    }

    async fn confirmed_or_leaving(&self, ticket: Ticket) -> Result<bool, WriteError> {
        tokio::select! {
            biased;
            confirmed = self.confirmed(ticket) => confirmed.map(|()| true),
            () = self.shared.leaving.cancelled() => Ok(false),
        }
    }

    async fn confirmed(&self, ticket: Ticket) -> Result<(), WriteError> {
        let _waits = self.heartbeat.waits();
        loop {
            let confirmed = tokio::select! {
                biased;
                () = self.held.lost.cancelled() => return Err(WriteError::Lost),
                confirmed = self.shared.ports.events.confirmed(ticket) => confirmed,
            };
            match confirmed {
                Ok(()) => return Ok(()),
                Err(cause) => {
                    warn!(run.id = %self.scope.run, %cause, "the stream has not confirmed yet");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// Removes the run's resources. `kept`: its images are kept for its `retention`.
async fn remove(shared: &Shared, run: &RunId, kept: bool) {
    let executor = &shared.ports.executor;
    // This task has no watchdog: the drive waits for it, and is idle meanwhile.
    let heartbeat = Heartbeat::unwatched();
    let mut retry = Retry::new(&*shared.ports.host, &heartbeat, REMOVE_FIRST, REMOVE_MOST);
    for _ in 0..DESTROY_TRIES {
        let removed = if kept { executor.clear(run).await } else { executor.destroy(run).await };
        match removed {
            Ok(()) => return,
            Err(cause) => warn!(run.id = %run, %cause, "what the run made is not all removed"),
        }
        retry.wait().await;
    }
}
