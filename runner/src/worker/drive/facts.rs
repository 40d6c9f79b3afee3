//! Reports the completions of operations to the rules as facts.

use protocol::run::Cause;

use super::operation::Completion;
use super::state::Drive;
use crate::ports::Exit;
use crate::rules::run::{Exited, Input};

impl Drive {
    /// Converts the completion of an operation to a fact.
    pub(super) fn input_of(&mut self, at: Option<usize>, done: Completion) -> Input {
        let mask = self.secrets.mask();
        let broke = |cause, message: String, exit_code, said| {
            let message = mask.text(&message);
            Input::Broke { at, cause, message, exit_code, said }
        };
        let position = at.unwrap_or_default();
        let progress = &mut self.progress;
        match done {
            Completion::Prepared(workspace) => {
                progress.base = Some(workspace);
                Input::Prepared
            }
            Completion::Adopted(had, missing) => {
                progress.kept.extend(had);
                Input::Adopted { missing }
            }
            Completion::Fetched(workspace) => {
                progress.steps.entry(position).or_default().on = Some(workspace);
                Input::Fetched(position)
            }
            Completion::Ran(ran, stdout_bytes, stderr_bytes) => {
                let step = progress.steps.entry(position).or_default();
                step.left = Some(ran.left);
                let Exit { code, oom } = ran.exit;
                if let Some(result) = ran.result
                    && let Err(why) = self.run.record_result(position, result)
                {
                    progress.notes.extend(step.output.clone().map(|output| (output, why)));
                }
                if code == 0 {
                    // Only the output of a failed step is needed later.
                    step.output = None;
                }
                Input::Exited(position, Exited { code, oom, stdout_bytes, stderr_bytes })
            }
            Completion::Uploaded => Input::Uploaded(position),
            Completion::Committed(workspace) => {
                let image = workspace.image().unwrap_or_default().to_owned();
                progress.kept.insert(position, workspace);
                let engine = self.shared.engine.id.clone();
                Input::Committed { position, image, engine }
            }
            Completion::Broke(cause, message, exit_code) => broke(cause, message, exit_code, None),
            Completion::BrokeSaying(cause, message, exit_code, said) => {
                broke(cause, message, exit_code, Some(said))
            }
            // `follow` has handled these and releases the run.
            Completion::OwnershipLost | Completion::EngineAway(_) => {
                broke(Cause::Lost, "the run is let go".to_owned(), None, None)
            }
        }
    }
}
