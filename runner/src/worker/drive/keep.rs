//! Keeps what operations produced, for later operations.

use protocol::id::StepPosition;

use super::completion::{Completed, Product};
use super::state::Drive;
use crate::ports::StepOutcome;
use crate::rules::run::Input;

impl Drive {
    /// Keeps what an operation produced, and returns the fact for the rules.
    pub(super) fn keep(&mut self, completed: Completed) -> Input {
        let Completed { mut fact, product } = completed;
        match product {
            Product::Nothing => {}
            Product::Base(workspace) => self.progress.base = Some(workspace),
            Product::Committed(workspaces) => self.progress.kept.extend(workspaces),
            Product::Fetched(position, workspace) => {
                self.progress.steps.entry(position).or_default().on = Some(workspace);
            }
            Product::Exited(position, ran) => self.keep_outcome(position, ran),
        }
        if let Input::Broke(_, broke) = &mut fact {
            broke.message = self.secrets.mask().text(&broke.message);
        }
        fact
    }

    fn keep_outcome(&mut self, position: StepPosition, ran: StepOutcome) {
        let step = self.progress.steps.entry(position).or_default();
        step.left = Some(ran.workspace);
        if let Some(result) = ran.result
            && let Err(why) = self.run.record_result(position, result)
        {
            self.progress.notes.extend(step.output.clone().map(|output| (output, why)));
        }
        if ran.exit.code == 0 {
            // Only the output of a failed step is needed later.
            step.output = None;
        }
    }
}
