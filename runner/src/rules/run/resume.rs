//! How a run goes on with its next owner.

use protocol::event::{Reason, Severity};
use protocol::id::StepName;
use protocol::pipeline::OnLost;
use protocol::run::{Cause, Released, Status, StepRecord};
use protocol::time::{Millis, Stamp};

use super::facts::{about, emit};
use super::{Effect, Interrupted, Kept, Past, Run, State, effects};

/// Where the owner before had come to.
#[derive(Debug, Clone)]
pub(super) struct Resumption {
    past: Past,
    /// The highest `seq` that it has recorded.
    seq: Option<u64>,
}

impl Run {
    /// Goes on with a run that an earlier owner had claimed.
    #[must_use = "effects that are dropped never happen"]
    pub fn resume(&mut self, now: Millis, past: Past, max_losses: u32) -> Vec<Effect> {
        if self.state != State::Claimed {
            return Vec::new();
        }
        if let Some(cause) = self.record.cause {
            return self.end_decided(now, cause);
        }
        let Some(pipeline) = &self.record.pipeline else {
            return self.end_without_definition(now);
        };
        // Who hands over has lost nothing.
        let on_lost = pipeline.on_lost.filter(|_| !past.handed_over).unwrap_or(OnLost::Resume);
        if !past.handed_over && self.record.losses > max_losses {
            let why = format!(
                "it has lost {} workers since the last step that was kept, {} the last",
                self.record.losses, past.node
            );
            return self.end_failed(now, Cause::Lost, &why, None);
        }
        let on_lost = match self.lost_attempt().filter(|_| !past.handed_over) {
            Some((_, true)) => OnLost::Resume,
            Some((step, false)) => {
                let why = format!(
                    "its worker {} was lost in step {}, at attempt {}",
                    past.node, step.name, step.attempt
                );
                return self.end_failed(now, Cause::RetriesExhausted, &why, None);
            }
            None => on_lost,
        };
        let kept = match on_lost {
            OnLost::Resume => self.record.kept_steps(),
            OnLost::Restart => 0,
            OnLost::Fail => {
                let why = format!("its worker {} was lost", past.node);
                return self.end_failed(now, Cause::Lost, &why, None);
            }
        };
        let of_past = |step: &&StepRecord| step.epoch == Some(past.epoch);
        let seq = self.record.steps.iter().filter(of_past).filter_map(|step| step.last_seq).max();
        self.tried =
            self.record.steps.iter().map(|step| (step.name.clone(), step.attempt)).collect();
        self.resumption = Some(Resumption { past, seq });
        let candidates = self.candidates(kept);
        if candidates.is_empty() {
            return self.start_over(now, None);
        }
        self.state = State::Adopting(kept);
        let mut list = vec![Effect::Adopt(candidates)];
        list.extend(self.run_timer(now));
        list
    }

    /// What it could go on from, the best first: what all of the kept steps left, wherever it can be
    /// had, else what some of them left that is in the registry.
    fn candidates(&self, kept: usize) -> Vec<Kept> {
        let steps = self.record.steps.iter().take(kept).enumerate().rev();
        let images = steps.filter_map(|(at, step)| {
            let (image, digest) = (step.image.clone()?, step.digest.clone());
            (at + 1 == kept || digest.is_some()).then_some(Kept { steps: at + 1, image, digest })
        });
        images.collect()
    }

    /// Begins after the steps that stand in its record: another run has left them.
    #[must_use = "effects that are dropped never happen"]
    pub fn begin_after(&mut self, now: Millis) -> Vec<Effect> {
        if self.state != State::Claimed {
            return Vec::new();
        }
        let kept = self.record.kept_steps();
        let candidates = self.candidates(kept).into_iter().take(1).collect();
        self.state = State::Adopting(kept);
        self.record.status = Status::Initializing;
        self.record.initiated_at = Some(now.into());
        let run = &self.record.run_id;
        let started = emit(Reason::StartPipelineRun, format!("run {run} starts"));
        let mut list = vec![Effect::Adopt(candidates), self.save(), started];
        list.extend(self.run_timer(now));
        list
    }

    fn start_over(&mut self, now: Millis, cause: Option<Cause>) -> Vec<Effect> {
        let repeats = self.record.steps.iter().map(|step| step.name.clone()).collect();
        self.record.steps.clear();
        self.state = State::Preparing;
        self.record.status = Status::Initializing.at_least(self.record.status);
        self.record.initiated_at.get_or_insert(Stamp(now));
        let mut list = vec![Effect::Prepare, self.save()];
        list.extend(self.resumed(0, cause, repeats));
        list.extend(self.image_pull());
        list.extend(self.run_timer(now));
        list
    }

    /// What the first `kept` steps have left is there.
    pub(super) fn adopted(&mut self, now: Millis, kept: usize) -> Vec<Effect> {
        let State::Adopting(all) = self.state else { return Vec::new() };
        let kept = kept.min(all);
        if let Some(ended) = self.end_interrupted(now, None) {
            return ended;
        }
        let again = self.record.steps.iter().skip(kept).map(|step| step.name.clone()).collect();
        self.record.steps.truncate(kept);
        let mounted = self.steps().iter().take(kept).filter_map(|step| step.needs_resource.clone());
        self.mounted = mounted.collect();
        self.record.initialized_at.get_or_insert(Stamp(now));
        self.record.started_at.get_or_insert(Stamp(now));
        let mut first: Vec<Effect> = self
            .resumed(kept, (kept < all).then_some(Cause::ImageLost), again)
            .into_iter()
            .collect();
        if self.resumption.is_none() {
            let running = format!("run {} is running", self.record.run_id);
            first.push(emit(Reason::PipelineRunning, running));
        }
        first.extend(
            self.record.steps.iter().map(|step| completed_before(step, &self.record.run_id)),
        );
        self.next_step(now, kept, first)
    }

    pub(super) fn image_lost(&mut self, now: Millis) -> Vec<Effect> {
        let State::Adopting(kept) = self.state else { return Vec::new() };
        if let Some(ended) = self.end_interrupted(now, None) {
            return ended;
        }
        match (&self.resumption, &self.record.parent) {
            // What is asked for is to go on, not to begin again.
            (None, Some(parent)) => {
                let why = format!("what {kept} steps of run {} left is gone", parent.run_id);
                self.end_failed(now, Cause::ImageLost, &why, None)
            }
            (_, _) => self.start_over(now, Some(Cause::ImageLost)),
        }
    }

    /// What is told of the new owner. `cause`: where it is neither of the two usual ones.
    fn resumed(&self, kept: usize, cause: Option<Cause>, repeats: Vec<StepName>) -> Option<Effect> {
        let Resumption { past, seq } = self.resumption.clone()?;
        let next = self.steps().get(kept);
        let from_step = next.map_or_else(|| StepName::position(kept), |step| step.name.clone());
        let run = &self.record.run_id;
        let why = if past.handed_over {
            format!("{} handed it over", past.node)
        } else {
            format!("{} was lost", past.node)
        };
        let message = match cause {
            Some(_) if kept == 0 => format!(
                "run {run} starts from the top: {why}, and the image of its last step is gone"
            ),
            Some(_) => format!(
                "run {run} goes on at step {from_step}: {why}, and the image of its last step is gone"
            ),
            None => format!("run {run} goes on at step {from_step}: {why}"),
        };
        let handed_over = past.handed_over;
        let cause = match cause {
            Some(cause) => cause.to_string(),
            None if handed_over => "handed-over".to_owned(),
            None => Cause::Lost.to_string(),
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
        self.interrupted == Some(Interrupted::HandOver)
    }

    /// Lets go of it for another worker. A step that is begun stays in the record as that: it is run
    /// again.
    pub(super) fn release(&mut self) -> Vec<Effect> {
        self.state = State::Ended;
        self.record.released = self
            .record
            .node
            .clone()
            .map(|by| Released { by, reason: "its worker ends".to_owned() });
        effects([Effect::Release])
    }
}

/// The end of a step under an earlier owner, told once more.
fn completed_before(step: &StepRecord, run: &protocol::id::RunId) -> Effect {
    let took = match (step.started_at, step.completed_at) {
        (Some(Stamp(from)), Some(Stamp(to))) => u64::try_from(to.0 - from.0).unwrap_or(0),
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
