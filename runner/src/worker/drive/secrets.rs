//! The secrets of a run. They are looked up right before a step starts, masked in events, logs and
//! records, and searched for in all data that leaves the worker.

use std::collections::HashMap;

use protocol::budget::shortened;
use protocol::event::Reason;
use protocol::id::StepPosition;
use protocol::pipeline::Step;
use serde_json::{Map, Value};
use tracing::warn;

use super::run_secrets::look_up;
use super::state::Drive;
use crate::ports::{Purpose, StepSecret, StepSecrets};
use crate::rules::mask::SHORTEST;
use crate::rules::run::EventDraft;
use crate::rules::{destination, job, named};

/// The maximum size of a command in an event, in bytes. A script can have 512 KiB, and each attempt
/// publishes it.
const COMMAND_BYTES: usize = 4096;

impl Drive {
    /// Looks up the secrets of steps that were started by an earlier owner or in the parent run.
    /// Failed lookups are repeated before the next step starts.
    pub(super) async fn recall_secrets(&mut self) {
        if let Err(why) = self.settle_owed().await {
            warn!(run.id = %self.scope.run, "{why}");
        }
    }

    async fn settle_owed(&mut self) -> Result<(), String> {
        let _waits = self.heartbeat.waits();
        let (mut values, mut owed, mut missing) = (Vec::new(), Vec::new(), None);
        let mut purposes: HashMap<StepPosition, Purpose> = HashMap::new();
        for (position, step, secret) in std::mem::take(&mut self.secrets.owed) {
            let purpose =
                purposes.entry(position).or_insert_with(|| self.purpose_of_secrets(position));
            match look_up(&*self.shared.ports.secrets, &secret, purpose).await {
                Ok(given) => values.push(given.value),
                Err(why) => {
                    missing.get_or_insert_with(|| (step.clone(), why));
                    owed.push((position, step, secret));
                }
            }
        }
        self.secrets.owed = owed;
        self.secrets.add(values.into_iter()).await?;
        let Some((step, why)) = missing else { return Ok(()) };
        Err(format!(
            "step {step} was given a secret by an earlier owner of run {} that this worker cannot mask: {why}",
            self.scope.run
        ))
    }

    /// Looks up the secrets of a step, before its start is announced.
    pub(super) async fn look_up_secrets(&mut self, position: StepPosition) -> Result<(), String> {
        if !self.secrets.owed.is_empty() {
            self.settle_owed().await?;
        }
        let Some(step) = self.step(position).filter(|step| !step.secrets.is_empty()) else {
            return Ok(());
        };
        let (name, uses) = (step.name.clone(), step.secrets.clone());
        let purpose = self.purpose_of_secrets(position);
        let _waits = self.heartbeat.waits();
        let of_step = |why| format!("step {name}: {why}");
        let mut all = Vec::with_capacity(uses.len());
        for asked in &uses {
            let given = look_up(&*self.shared.ports.secrets, asked, &purpose).await;
            let given = given.map_err(of_step)?;
            if given.value.expose().len() < SHORTEST {
                warn!(
                    run.id = %self.scope.run, step.name = %name, secret.name = given.name,
                    "secret {} has fewer than {SHORTEST} bytes: it is not masked", given.name
                );
            }
            all.push(given);
        }
        let added = self.secrets.add(all.iter().map(|given| given.value.clone())).await;
        added.map_err(of_step)?;
        self.progress.steps.entry(position).or_default().given = all;
        Ok(())
    }

    /// Returns the purpose of a step's secrets.
    fn purpose_of_secrets(&self, position: StepPosition) -> Purpose {
        let record = self.run.record();
        // The address may refer to earlier results. If they are missing, the step does not start.
        let filled = job::filled(record, position).and_then(Result::ok);
        let to = filled.and_then(|step| destination::of_step(&step)).into();
        let (group, pipeline) = (record.group.clone(), record.name.clone());
        Purpose { group, pipeline, trusted: record.trusted, to }
    }

    fn given(&self, position: StepPosition) -> &[StepSecret] {
        self.progress.steps.get(&position).map(|step| &*step.given).unwrap_or_default()
    }

    /// Returns the `with` of a step with named secrets replaced by their values.
    pub(super) fn with_secrets(
        &self,
        position: StepPosition,
        step: &Step,
    ) -> Result<Map<String, Value>, String> {
        let value_of = |name: &str| {
            let given = self.given(position).iter().find(|given| given.name == name)?;
            String::from_utf8(given.value.expose().to_vec()).ok()
        };
        named::filled(&step.with, &value_of).map_err(|name| {
            format!("step {}: secret {name} is not given to it, or is not a string", step.name)
        })
    }

    /// Returns the secrets of a step for its executor.
    pub(super) fn secrets_given(&self, position: StepPosition) -> StepSecrets {
        StepSecrets { granted: self.given(position).to_vec(), ..self.secrets_left() }
    }

    /// Returns the search for secrets in the image of a step.
    pub(super) fn secrets_left(&self) -> StepSecrets {
        StepSecrets { granted: Vec::new(), forbidden: self.secrets.mask().forbidden() }
    }

    /// Masks an event before it is published, and shortens the command of a step.
    pub(super) fn masked(&self, mut draft: EventDraft) -> EventDraft {
        draft.message = self.secrets.mask().text(&draft.message);
        if let Reason::StepStarted { command, .. } = &mut draft.reason {
            // Masked before it is shortened, so that it cannot end with a part of a secret.
            *command = shortened(self.secrets.mask().text(command), COMMAND_BYTES);
        }
        draft
    }
}
