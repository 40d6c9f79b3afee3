//! Numbers the events of one run and publishes them in that order.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use protocol::event::{Encoding, Event, LogStream, Reason};
use protocol::id::{Epoch, NodeId, RunId, StepName};
use protocol::run::RunRecord;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::ports::{Events, Host, Ticket};
use crate::rules::lines::Piece;
use crate::rules::run::EventDraft;
use crate::worker::watchdog::Heartbeat;

/// Publishes the events of one run under one epoch.
pub(super) struct Emitter {
    events: Arc<dyn Events>,
    host: Arc<dyn Host>,
    run: RunId,
    group: String,
    name: String,
    node: NodeId,
    epoch: Epoch,
    lost: CancellationToken,
    /// Cancelled when the ending worker stops waiting for the publisher.
    leaving: CancellationToken,
    /// Held from the numbering of an event until its acceptance, which keeps events in order.
    next: Mutex<Next>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Next {
    seq: u64,
    last: Ticket,
    dropped: Dropped,
}

/// Events that the publisher did not accept before the worker ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) events: u64,
    /// The size of their messages, mostly output of steps.
    pub(super) bytes: u64,
}

impl Emitter {
    pub(super) fn new(
        events: Arc<dyn Events>,
        host: Arc<dyn Host>,
        record: &RunRecord,
        owner: (NodeId, Epoch),
        lost: CancellationToken,
        leaving: CancellationToken,
    ) -> Self {
        Self {
            events,
            host,
            run: record.run_id.clone(),
            group: record.group.clone(),
            name: record.name.clone(),
            node: owner.0,
            epoch: owner.1,
            lost,
            leaving,
            next: Mutex::new(Next::default()),
        }
    }

    /// Publishes an event of the run. Waits while the publisher is full; has no effect once the run
    /// is lost. An event that the publisher does not accept before the worker ends is counted. It
    /// keeps its `seq`, so that readers see the gap.
    pub(super) async fn emit(&self, heartbeat: &Heartbeat, draft: EventDraft) {
        let _waits = heartbeat.waits();
        let mut next = self.next.lock().await;
        let event = self.event(next.seq, draft);
        self.hand_over(&mut next, event).await;
    }

    /// Publishes a text from a step's output.
    pub(super) async fn log(
        &self,
        heartbeat: &Heartbeat,
        step: (&StepName, u32),
        stream: LogStream,
        piece: Piece,
    ) {
        let (message, encoding) = match String::from_utf8(piece.bytes) {
            Ok(text) => (text, None),
            Err(no_text) => {
                let base64 = base64::engine::general_purpose::STANDARD.encode(no_text.as_bytes());
                (base64, Some(Encoding::Base64))
            }
        };
        let reason = Reason::Log { stream, offset: piece.offset, partial: piece.partial, encoding };
        let step = Some((step.0.clone(), step.1));
        self.emit(heartbeat, EventDraft { reason, message, step, severity: None }).await;
    }

    /// Returns the run's next event without publishing it, to be recorded with the ending.
    pub(super) async fn next_event(&self, heartbeat: &Heartbeat, draft: EventDraft) -> Event {
        let _waits = heartbeat.waits();
        let next = self.next.lock().await;
        self.event(next.seq, draft)
    }

    /// Publishes a recorded ending event, created by [`Self::next_event`] or an earlier owner. Returns `None` if
    /// the publisher did not accept it.
    pub(super) async fn emit_recorded(
        &self,
        heartbeat: &Heartbeat,
        event: Event,
    ) -> Option<Ticket> {
        let _waits = heartbeat.waits();
        let mut next = self.next.lock().await;
        self.hand_over(&mut next, event).await.then_some(next.last)
    }

    /// Returns the events that the publisher did not accept.
    pub(super) async fn dropped(&self, heartbeat: &Heartbeat) -> Dropped {
        let _waits = heartbeat.waits();
        self.next.lock().await.dropped
    }

    /// Returns the ticket of the last event and the highest `seq` so far.
    pub(super) async fn last(&self, heartbeat: &Heartbeat) -> (Ticket, Option<u64>) {
        let _waits = heartbeat.waits();
        let next = self.next.lock().await;
        (next.last, next.seq.checked_sub(1))
    }

    fn event(&self, seq: u64, draft: EventDraft) -> Event {
        let mut event = Event::new(self.host.now(), draft.reason, draft.message);
        if let Some(severity) = draft.severity {
            event.severity = severity;
        }
        event.run_id = Some(self.run.clone());
        event.group = Some(self.group.clone());
        event.name = Some(self.name.clone());
        event.node = Some(self.node.clone());
        event.epoch = Some(self.epoch);
        event.seq = Some(seq);
        if let Some((step, attempt)) = draft.step {
            event.step = Some(step);
            event.attempt = Some(attempt);
        }
        event
    }

    /// Returns false if the publisher did not accept the event.
    async fn hand_over(&self, next: &mut Next, event: Event) -> bool {
        loop {
            let taken = tokio::select! {
                biased;
                () = self.lost.cancelled() => return false,
                taken = self.events.emit(event.clone()) => taken,
                () = self.leaving.cancelled() => break,
            };
            let cause = match taken {
                Ok(ticket) => {
                    next.seq += 1;
                    next.last = ticket;
                    return true;
                }
                Err(cause) => cause,
            };
            warn!(run.id = %self.run, %cause, "an event waits");
            tokio::select! {
                biased;
                () = self.lost.cancelled() => return false,
                () = self.leaving.cancelled() => break,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        next.seq += 1;
        next.dropped.events += 1;
        next.dropped.bytes += event.message.len() as u64;
        false
    }
}
