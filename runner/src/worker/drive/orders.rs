//! Carries out the orders of the rules.

use std::sync::Arc;

use protocol::id::StepPosition;
use protocol::run::{RunRecord, StepRecord};
use tokio::time::Instant;

use super::ledger::{WriteError, WriteExtra};
use super::progress::ended;
use super::state::Drive;
use super::{job_log, operation};
use crate::ports::StopLevel;
use crate::rules::run::{Effect, EventDraft, KeptStep};

/// What follows on the orders of one fact.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Performed {
    Resume,
    Finish,
    Release,
}

impl Drive {
    /// Carries out orders in sequence.
    pub(super) async fn perform(&mut self, effects: Vec<Effect>) -> Result<Performed, WriteError> {
        for effect in effects {
            match self.carry_out(effect).await? {
                Performed::Resume => {}
                end @ (Performed::Finish | Performed::Release) => return Ok(end),
            }
        }
        Ok(Performed::Resume)
    }

    async fn carry_out(&mut self, effect: Effect) -> Result<Performed, WriteError> {
        let grace = self.shared.options.kill_grace;
        match effect {
            Effect::Save(record) => self.save(*record).await?,
            Effect::Emit(draft) => self.emit(draft).await,
            Effect::Prepare => self.prepare(),
            Effect::Adopt(kept) => self.adopt(kept),
            Effect::Push(position) => self.push(position),
            Effect::Fetch(position) => self.fetch(position),
            Effect::Start(position) => {
                let secrets = self.look_up_secrets(position).await;
                self.start(position, secrets);
            }
            Effect::OpenGate(position) => self.open_gate(position),
            Effect::Upload(position) => self.upload(position),
            Effect::Commit(position) => self.commit(position),
            Effect::Discard(position) => self.discard(position).await,
            Effect::Interrupt => self.signals.stop.raise(StopLevel::Stop { grace }),
            Effect::InterruptRepeatable => self.signals.leave.raise(StopLevel::Stop { grace }),
            Effect::InterruptStep(position) => self.raise(position, StopLevel::Stop { grace }),
            Effect::KillStep(position) => self.raise(position, StopLevel::Kill),
            Effect::SetTimer(timer, after) => {
                self.progress.timers.push((timer, Instant::now() + after));
            }
            Effect::CancelTimer(timer) => {
                self.progress.timers.retain(|(other, _)| *other != timer);
            }
            Effect::Finish => return Ok(Performed::Finish),
            Effect::Release => return Ok(Performed::Release),
        }
        Ok(Performed::Resume)
    }

    async fn save(&mut self, mut record: RunRecord) -> Result<(), WriteError> {
        let (_, last_seq) = self.emitter.last(&self.heartbeat).await;
        // A step that is started again is no longer closed.
        let ended = ended(&record.steps);
        self.progress.closed.retain(|step| ended.contains(step));
        for record in [&mut record, self.run.record_mut()] {
            record.last_seq = last_seq;
            let open = |step: &&mut StepRecord| !self.progress.closed.contains(&step.name);
            record.steps.iter_mut().filter(open).for_each(|step| step.last_seq = last_seq);
        }
        self.ledger.save(&self.heartbeat, &record, WriteExtra::Nothing).await?;
        self.progress.closed = ended;
        Ok(())
    }

    async fn emit(&self, draft: EventDraft) {
        let draft = self.masked(draft);
        job_log::progress(self.run.record(), &draft);
        self.emitter.emit(&self.heartbeat, draft).await;
    }

    fn prepare(&mut self) {
        let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
        let stop = self.signals.leave.clone();
        let again = self.run.record().attempt > 1;
        self.begin(None, Box::pin(operation::prepare(shared, scope, stop, again)));
    }

    fn adopt(&mut self, kept: Vec<KeptStep>) {
        let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
        let stop = self.signals.leave.clone();
        self.begin(None, Box::pin(operation::adopt(shared, scope, kept, stop)));
    }

    fn open_gate(&mut self, position: StepPosition) {
        let step = self.progress.steps.get_mut(&position);
        if let Some(gate) = step.and_then(|step| step.gate.take()) {
            // The receiver is gone if the container could not be created, which is reported later.
            gate.send(true).ok();
        }
    }

    async fn discard(&mut self, position: StepPosition) {
        let step = self.progress.steps.get_mut(&position);
        let Some(left) = step.and_then(|step| step.left.take()) else { return };
        let _waits = self.heartbeat.waits();
        self.shared.ports.executor.discard(&self.scope, left).await;
    }

    /// Asks the step at a position to end.
    fn raise(&self, position: StepPosition, level: StopLevel) {
        if let Some(step) = self.progress.steps.get(&position) {
            step.stop.raise(level);
        }
    }
}
