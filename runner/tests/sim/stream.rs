//! An in-memory event stream. Each process publishes in order and at least once.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use protocol::event::Event;
use protocol::id::{Epoch, RunId};
use runner::ports::{EventStream, Events, EventsError, Position, Ticket};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::plan::EffectSide;
use crate::world::{Process, Signal, lock};

#[derive(Default)]
pub struct Stream {
    told: Mutex<Vec<Event>>,
    away_until: Mutex<Option<Instant>>,
    longest_away: Mutex<Duration>,
    /// The epochs with events that a process had not published when it died.
    lost: Mutex<BTreeSet<(RunId, Epoch)>>,
}

impl Stream {
    pub fn told(&self) -> Vec<Event> {
        lock(&self.told).clone()
    }

    pub fn go_away(&self, span: Duration) {
        *lock(&self.away_until) = Some(Instant::now() + span);
        let mut longest = lock(&self.longest_away);
        *longest = span.max(*longest);
    }

    /// Returns true if the owner of an epoch died before it had published all its events.
    pub fn has_lost(&self, run: &RunId, epoch: Epoch) -> bool {
        lock(&self.lost).contains(&(run.clone(), epoch))
    }

    /// The longest outage.
    pub fn longest_away(&self) -> Duration {
        *lock(&self.longest_away)
    }
}

#[derive(Default)]
struct Outbox {
    waiting: VecDeque<(u64, Event)>,
    next: u64,
}

/// The stream as seen by one process.
pub struct Handle {
    process: Arc<Process>,
    outbox: Mutex<Outbox>,
    filled: Notify,
    confirmed: Signal<u64>,
}

impl Handle {
    pub fn new(process: &Arc<Process>) -> Arc<Self> {
        let handle = Arc::new(Self {
            process: Arc::clone(process),
            outbox: Mutex::default(),
            filled: Notify::new(),
            confirmed: Signal::new(0),
        });
        tokio::spawn(Arc::clone(&handle).publish());
        tokio::spawn(Arc::clone(&handle).note_losses());
        handle
    }

    /// Notes what is lost with the process.
    async fn note_losses(self: Arc<Self>) {
        self.process.dies().await;
        let outbox = lock(&self.outbox);
        let lost = outbox
            .waiting
            .iter()
            .filter_map(|(_, event)| Some((event.run_id.clone()?, event.epoch?)));
        lock(&self.process.world.stream.lost).extend(lost);
    }

    async fn publish(self: Arc<Self>) {
        loop {
            let batch: Vec<(u64, Event)> = lock(&self.outbox).waiting.iter().cloned().collect();
            let Some(&(last, _)) = batch.last() else {
                // Every accepted event is published or was discarded.
                let all = lock(&self.outbox).next;
                self.confirmed.set(all);
                self.filled.notified().await;
                continue;
            };
            let world = &self.process.world;
            let away = *lock(&world.stream.away_until);
            if let Some(until) = away.filter(|until| *until > Instant::now()) {
                tokio::time::sleep_until(until).await;
                continue;
            }
            if self.process.pass("tell", EffectSide::Before).await.is_err() {
                continue;
            }
            // Events discarded meanwhile are not published.
            let now: Vec<(u64, Event)> = {
                let outbox = lock(&self.outbox);
                outbox.waiting.iter().take_while(|(ticket, _)| *ticket <= last).cloned().collect()
            };
            for (_, event) in &now {
                world.say(|| {
                    let at = (event.epoch, event.seq, &event.reason);
                    format!("w{} tells {at:?}", self.process.number)
                });
                lock(&world.stream.told).push(event.clone());
            }
            // The confirm is lost, so the event is published again.
            if self.process.pass("tell", EffectSide::After).await.is_err() {
                continue;
            }
            lock(&self.outbox).waiting.retain(|(ticket, _)| *ticket > last);
            self.confirmed.set(last.max(self.confirmed.get()));
        }
    }
}

#[async_trait]
impl Events for Handle {
    async fn emit(&self, event: Event) -> Result<Ticket, EventsError> {
        self.process.lives().await;
        let ticket = {
            let mut outbox = lock(&self.outbox);
            outbox.next += 1;
            let ticket = outbox.next;
            outbox.waiting.push_back((ticket, event));
            ticket
        };
        self.filled.notify_one();
        Ok(Ticket(ticket))
    }

    async fn confirmed(&self, ticket: Ticket) -> Result<(), EventsError> {
        self.confirmed.wait_for(|confirmed| confirmed >= ticket.0).await;
        self.process.lives().await;
        Ok(())
    }

    fn discard(&self, run: &RunId, up_to: Epoch) {
        let goes = |event: &Event| {
            event.run_id.as_ref() == Some(run)
                && event.epoch.is_some_and(|epoch| epoch <= up_to)
                && !event.reason.is_ending()
        };
        lock(&self.outbox).waiting.retain(|(_, event)| !goes(event));
        self.filled.notify_one();
    }

    async fn end(&self) -> Result<Option<u64>, EventsError> {
        let told = lock(&self.process.world.stream.told).len();
        Ok((told as u64).checked_sub(1))
    }

    async fn follow(&self, _from: Position) -> Result<EventStream, EventsError> {
        Err(EventsError::Closed)
    }
}
