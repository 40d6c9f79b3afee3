//! How a run continues under its next owner.

use std::collections::{BTreeSet, HashSet};

use protocol::event::{Reason, Severity};
use protocol::id::{StepName, StepPosition};
use protocol::pipeline::{OnLost, Pipeline};
use protocol::run::{Cause, Released, Status, StepRecord, StepStatus};
use protocol::time::{Millis, Timestamp};

use super::board::StepState;
use super::facts::{Effect, KeptStep, PreviousOwner, about, effects, emit};
use super::state::{Interrupted, Phase, Resumption, Run};

impl Run {
    /// Resumes a run that an earlier owner had claimed.
    #[must_use = "effects that are dropped never happen"]
    pub fn resume(&mut self, now: Millis, past: PreviousOwner, max_losses: u32) -> Vec<Effect> {
        if self.phase != Phase::Claimed {
            return Vec::new();
        }
        if let Some(cause) = self.record.cause {
            return self.end_decided(now, cause);
        }
        if self.record.pipeline.is_none() {
            return self.end_without_definition(now);
        }
        if !past.handed_over && self.record.losses > max_losses {
            let why = format!(
                "it has lost {} workers since the last step that was kept, {} the last",
                self.record.losses, past.node
            );
            return self.end_failed(now, Cause::Lost, &why);
        }
        if let Some(ended) = self.may_not_go_on(now, &past) {
            return ended;
        }
        let of_past = |step: &&StepRecord| step.epoch == Some(past.epoch);
        let of_steps = self.record.steps.iter().filter(of_past).filter_map(|step| step.last_seq);
        let seq = of_steps.chain(past.last_seq).max();
        let starts_over = self.on_lost(&past) == OnLost::Restart;
        self.resumption = Some(Resumption { past: Some(past), seq, ..Resumption::default() });
        if starts_over {
            return self.start_over(now);
        }
        self.board.recorded(&self.record);
        self.failing = self.earlier_failure();
        let nothing_begins = self.is_ending();
        let repeated: Vec<StepPosition> = self
            .begun()
            .into_iter()
            .filter(|at| !nothing_begins && self.board.state(*at) == StepState::Waiting)
            .collect();
        repeated.into_iter().for_each(|position| self.forget(position));
        self.forget_started_on_error();
        if self.record.steps.is_empty() {
            return self.start_over(now);
        }
        let mut list = self.adopt();
        list.extend(self.run_timer(now));
        list
    }

    /// Returns what happens to a run that changed its owner.
    fn on_lost(&self, past: &PreviousOwner) -> OnLost {
        let Some(pipeline) = &self.record.pipeline else { return OnLost::Resume };
        let begun = |name: &StepName| self.record.steps.iter().any(|it| it.name == *name);
        // The files of such a step are on the previous owner's host.
        let is_on_host = pipeline.steps.iter().any(|step| step.is_on_host() && begun(&step.name));
        let usual = if is_on_host { OnLost::Restart } else { OnLost::Resume };
        // A hand-over is not a loss. A step's own `retry` on losses takes precedence over
        // `on-lost`.
        let is_asked = !past.handed_over && self.lost_attempts().is_empty();
        match pipeline.on_lost {
            Some(said) if is_asked || said == OnLost::Resume => said,
            Some(_) | None => usual,
        }
    }

    /// Ends a run that must not continue under another owner. A step with an unknown outcome that
    /// must not run twice ends it in any case.
    fn may_not_go_on(&mut self, now: Millis, past: &PreviousOwner) -> Option<Vec<Effect>> {
        if past.handed_over {
            let name = self.in_doubt()?;
            let why = self.doubt_message(&name, past, "ended during");
            return Some(self.end_failed(now, Cause::Lost, &why));
        }
        let exhausted = self.lost_attempts().into_iter().find(|(_, has_one_left)| !has_one_left);
        if let Some((step, _)) = exhausted {
            let why = format!(
                "its worker {} was lost in step {}, at attempt {}",
                past.node, step.name, step.attempt
            );
            return Some(self.end_failed(now, Cause::RetriesExhausted, &why));
        }
        let fails = self.on_lost(past) == OnLost::Fail;
        if let Some(name) = self.in_doubt() {
            let why = self.doubt_message(&name, past, "was lost in");
            return Some(self.end_failed(now, Cause::Lost, &why));
        }
        let why = format!("its worker {} was lost", past.node);
        fails.then(|| self.end_failed(now, Cause::Lost, &why))
    }

    /// Why a run with a step in doubt ends. If that step is the on-error step, the failure that
    /// started it is named as well.
    fn doubt_message(&self, name: &StepName, past: &PreviousOwner, how: &str) -> String {
        let earlier = self.failed_step().filter(|failed| failed.name != *name);
        let earlier = earlier.map(|failed| format!("; step {} had failed before", failed.name));
        format!(
            "its worker {} {how} step {name}: whether that took effect is not known, and it does not \
             say `idempotent: true`{}",
            past.node,
            earlier.unwrap_or_default()
        )
    }

    /// A step whose outcome is unknown and that must not run twice: it was started, did not end, and
    /// its effects cannot be undone. The on-error step counts too.
    fn in_doubt(&self) -> Option<StepName> {
        let pipeline = self.record.pipeline.as_ref()?;
        let started = self.record.steps.iter().filter(|it| it.status == StepStatus::Started);
        let step_of = |name: &StepName| pipeline.all_steps().find(|step| step.name == *name);
        let mut in_doubt =
            started.filter(|it| step_of(&it.name).is_some_and(|step| !step.may_repeat()));
        in_doubt.next().map(|record| record.name.clone())
    }

    /// Lets an on-error step that was started under an earlier owner, and did not end, run again.
    fn forget_started_on_error(&mut self) {
        let on_error =
            self.record.pipeline.as_ref().and_then(|pipeline| pipeline.on_error.as_ref());
        let Some(name) = on_error.map(|step| step.name.clone()) else { return };
        let repeated = self
            .remove_records(|record| record.name == name && record.status == StepStatus::Started);
        if let Some(resumption) = &mut self.resumption {
            resumption.repeats.extend(repeated);
        }
    }

    /// The positions of the steps that have a record, in its order.
    fn begun(&self) -> Vec<StepPosition> {
        let Some(pipeline) = &self.record.pipeline else { return Vec::new() };
        self.record.steps.iter().filter_map(|record| pipeline.position(&record.name)).collect()
    }

    /// Resets a step as if it had never started.
    fn forget(&mut self, position: StepPosition) {
        let Some(name) = self.step(position).map(|step| step.name.clone()) else { return };
        self.board.set(position, StepState::Waiting);
        self.remove_records(|record| record.name == name);
        if let Some(resumption) = &mut self.resumption {
            resumption.repeats.push(name);
        }
    }

    /// Orders the missing checkpoints that the next steps start from. The order is also given if
    /// there are none, because it ends what still runs of the run.
    fn adopt(&mut self) -> Vec<Effect> {
        self.phase = Phase::Adopting;
        let had = self.resumption.as_ref().map(|it| it.had.clone()).unwrap_or_default();
        let wanted = self.needed_images().into_iter().flatten().filter(|at| !had.contains(at));
        let kept = wanted.filter_map(|position| {
            let step = self.recorded(position)?;
            Some(KeptStep { position, image: step.image.clone()?, digest: step.digest.clone() })
        });
        vec![Effect::Adopt(kept.collect())]
    }

    /// Returns the steps whose images the remaining steps start from. `None` is the base image.
    fn needed_images(&self) -> BTreeSet<Option<StepPosition>> {
        let Some(pipeline) = &self.record.pipeline else { return BTreeSet::new() };
        let images = self.record.steps.iter().filter(|step| step.image.is_some());
        let images: HashSet<&StepName> = images.map(|step| &step.name).collect();
        let has_image =
            |at: StepPosition| self.step(at).is_some_and(|step| images.contains(&step.name));
        let origins = self.board.origins(has_image);
        let to_come = pipeline.steps_by_position().filter(|(at, step)| {
            let is_to_come = self.board.state(*at) == StepState::Waiting && !self.is_ending();
            step.is_on_image() && is_to_come
        });
        let last = pipeline.on_error.as_deref().filter(|step| step.is_on_image());
        let first = last.map(|_| None);
        to_come.map(|(at, _)| origins.get(at.index()).copied().flatten()).chain(first).collect()
    }

    fn recorded(&self, position: StepPosition) -> Option<&StepRecord> {
        let step = self.step(position)?;
        self.record.steps.iter().find(|record| record.name == step.name)
    }

    /// Starts the run after the recorded steps, which a parent run committed.
    #[must_use = "effects that are dropped never happen"]
    pub fn begin_after(&mut self, now: Millis) -> Vec<Effect> {
        if self.phase != Phase::Claimed {
            return Vec::new();
        }
        self.board.recorded(&self.record);
        self.resumption = Some(Resumption::default());
        let mut list = self.adopt();
        self.record.status = Status::Initializing;
        self.record.initiated_at = Some(now.into());
        let run = &self.record.run_id;
        let started = emit(Reason::StartPipelineRun, format!("run {run} starts"));
        list.extend([self.save(), started]);
        list.extend(self.run_timer(now));
        list
    }

    fn start_over(&mut self, now: Millis) -> Vec<Effect> {
        let begun = |name: &StepName| self.record.steps.iter().any(|it| it.name == *name);
        let mut steps = self.record.pipeline.iter().flat_map(Pipeline::all_steps);
        let once = steps.find(|step| !step.may_repeat() && begun(&step.name));
        let once = once.map(|step| step.name.clone());
        drop(steps);
        if let Some(name) = once {
            let why = format!("it would start from the top, and step {name} must not run again");
            return self.end_failed(now, Cause::Lost, &why);
        }
        let begun = self.remove_records(|_| true);
        if let Some(resumption) = &mut self.resumption {
            resumption.repeats.extend(begun);
        }
        self.board.recorded(&self.record);
        self.phase = Phase::Preparing;
        self.record.status = Status::Initializing.at_least(self.record.status);
        self.record.initiated_at.get_or_insert(Timestamp(now));
        let mut list = vec![Effect::Prepare, self.save()];
        list.extend(self.resumed());
        self.resumption = None;
        list.extend(self.image_pull());
        list.extend(self.run_timer(now));
        list
    }

    /// The requested checkpoints are available, except those in `missing`.
    pub(super) fn adopted(&mut self, now: Millis, missing: &[StepPosition]) -> Vec<Effect> {
        if self.phase != Phase::Adopting {
            return Vec::new();
        }
        if let Some(ended) = self.end_interrupted(now) {
            return ended;
        }
        let asked: Vec<StepPosition> = self.needed_images().into_iter().flatten().collect();
        let (gone, there): (Vec<StepPosition>, Vec<StepPosition>) =
            asked.into_iter().partition(|at| missing.contains(at));
        if !gone.is_empty() {
            if let (Some(parent), None) = (&self.record.parent, self.previous_owner()) {
                // The user asked to continue from the parent's steps, not to start over.
                let why = format!(
                    "the images of run {} that its steps start from are gone",
                    parent.run_id
                );
                return self.end_failed(now, Cause::ImageLost, &why);
            }
            if let Some(resumption) = &mut self.resumption {
                resumption.image_lost = true;
                resumption.had.extend(there);
            }
            gone.into_iter().for_each(|position| self.forget(position));
            return if self.record.steps.is_empty() { self.start_over(now) } else { self.adopt() };
        }
        if self.needed_images().contains(&None) {
            self.phase = Phase::Preparing;
            let mut list = vec![Effect::Prepare];
            list.extend(self.image_pull());
            return list;
        }
        self.phase = Phase::Going;
        self.record.initialized_at.get_or_insert(Timestamp(now));
        self.record.started_at.get_or_insert(Timestamp(now));
        let told = self.resumed_events().unwrap_or_default();
        self.advance(now, told)
    }

    fn previous_owner(&self) -> Option<&PreviousOwner> {
        self.resumption.as_ref()?.past.as_ref()
    }

    /// Returns the events to publish once all checkpoints are available. `None`: not a resumption.
    pub(super) fn resumed_events(&mut self) -> Option<Vec<Effect>> {
        self.resumption.as_ref()?;
        let mut told: Vec<Effect> = self.resumed().into_iter().collect();
        if self.previous_owner().is_none() {
            let running = format!("run {} is running", self.record.run_id);
            told.push(emit(Reason::PipelineRunning, running));
        }
        let run = &self.record.run_id;
        told.extend(self.record.steps.iter().map(|step| completed_before(step, run)));
        self.resumption = None;
        Some(told)
    }

    /// Returns the event about the new owner.
    fn resumed(&mut self) -> Option<Effect> {
        let from_top = self.record.steps.is_empty();
        let on_error = self.record.pipeline.as_ref().map(Pipeline::on_error_position);
        let position = self.board.next().or(on_error).unwrap_or(StepPosition::new(0));
        let named = self.step(position).map(|step| step.name.clone());
        let from_step = named.unwrap_or_else(|| StepName::position(position.index()));
        let Resumption { past, seq, image_lost, repeats, .. } = self.resumption.clone()?;
        let past = past?;
        let run = &self.record.run_id;
        let why = if past.handed_over {
            format!("{} handed it over", past.node)
        } else {
            format!("{} was lost", past.node)
        };
        let gone = "and an image that it would continue from is gone";
        let message = match (image_lost, from_top) {
            (true, true) => format!("run {run} starts from the top: {why}, {gone}"),
            (true, false) => format!("run {run} continues at step {from_step}: {why}, {gone}"),
            (false, _) => format!("run {run} continues at step {from_step}: {why}"),
        };
        let handed_over = past.handed_over;
        let cause = match image_lost {
            true => Cause::ImageLost.to_string(),
            false if handed_over => "handed-over".to_owned(),
            false => Cause::Lost.to_string(),
        };
        let reason = Reason::PipelineRunResumed {
            from_step,
            previous_node: past.node,
            previous_epoch: past.epoch,
            previous_seq: seq,
            cause,
            repeats,
        };
        let mut resumed = emit(reason, message);
        if let Effect::Emit(draft) = &mut resumed {
            draft.severity = Some(if handed_over { Severity::Normal } else { Severity::Warning });
        }
        Some(resumed)
    }

    pub(super) fn is_handed_over(&self) -> bool {
        matches!(self.interrupted, Some(Interrupted::HandOver | Interrupted::Overdue(_)))
    }

    /// Releases the run for another worker. A started step stays started in the record; the next
    /// owner runs it again.
    pub(super) fn release(&mut self) -> Vec<Effect> {
        self.phase = Phase::Ended;
        self.record.released = self
            .record
            .node
            .clone()
            .map(|by| Released { by, reason: "its worker ends".to_owned() });
        effects([Effect::Release])
    }
}

/// Repeats the event of a step that ended under an earlier owner.
fn completed_before(step: &StepRecord, run: &protocol::id::RunId) -> Effect {
    let took = match (step.started_at, step.completed_at) {
        (Some(Timestamp(from)), Some(Timestamp(to))) => u64::try_from(to.0 - from.0).unwrap_or(0),
        (_, _) => 0,
    };
    let mut completed = emit(
        Reason::StepCompleted {
            exit_code: step.exit_code,
            duration_ms: took,
            stdout_bytes: step.stdout_bytes,
            stderr_bytes: step.stderr_bytes,
            image: step.image.clone(),
            repeated: true,
        },
        format!("step {} of run {run} has passed before", step.name),
    );
    about(&mut completed, &step.name, step.attempt);
    completed
}
