//! The secrets of a run. They are looked up right before a step starts and masked in events, logs
//! and records. All other data that leaves the worker is searched for them.

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

/// The maximum size of a command in an event, in bytes. A script can be 512 KiB long, and each attempt
/// publishes it.
const MAX_COMMAND_BYTES: usize = 4096;

impl Drive {
    /// Looks up the secrets of steps that were started by an earlier owner or in the parent run, so
    /// that they are masked. Failed lookups are retried before the next step starts.
    pub(super) async fn recall_secrets(&mut self) {
        if let Err(why) = self.look_up_earlier_secrets().await {
            warn!(run.id = %self.scope.run, "{why}");
        }
    }

    async fn look_up_earlier_secrets(&mut self) -> Result<(), String> {
        let _waits = self.heartbeat.waits();
        let (mut values, mut failed, mut first_error) = (Vec::new(), Vec::new(), None);
        let mut purposes: HashMap<StepPosition, Purpose> = HashMap::new();
        for (position, step, secret_use) in std::mem::take(&mut self.secrets.pending) {
            let purpose =
                purposes.entry(position).or_insert_with(|| self.purpose_of_secrets(position));
            match look_up(&*self.shared.ports.secrets, &secret_use, purpose).await {
                Ok(secret) => values.push(secret.value),
                Err(why) => {
                    first_error.get_or_insert_with(|| (step.clone(), why));
                    failed.push((position, step, secret_use));
                }
            }
        }
        self.secrets.pending = failed;
        self.secrets.add(values.into_iter()).await?;
        let Some((step, why)) = first_error else { return Ok(()) };
        Err(format!(
            "an earlier owner of run {} gave step {step} a secret that this worker cannot mask: {why}",
            self.scope.run
        ))
    }

    /// Looks up the secrets of a step, before the event of its start is published.
    pub(super) async fn look_up_secrets(&mut self, position: StepPosition) -> Result<(), String> {
        if !self.secrets.pending.is_empty() {
            self.look_up_earlier_secrets().await?;
        }
        let Some(step) = self.step(position).filter(|step| !step.secrets.is_empty()) else {
            return Ok(());
        };
        let (name, uses) = (step.name.clone(), step.secrets.clone());
        let purpose = self.purpose_of_secrets(position);
        let _waits = self.heartbeat.waits();
        let with_step = |why| format!("step {name}: {why}");
        let mut secrets = Vec::with_capacity(uses.len());
        for secret_use in &uses {
            let secret = look_up(&*self.shared.ports.secrets, secret_use, &purpose).await;
            let secret = secret.map_err(with_step)?;
            if secret.value.expose().len() < SHORTEST {
                warn!(
                    run.id = %self.scope.run, step.name = %name, secret.name = secret.name,
                    "secret {} has fewer than {SHORTEST} bytes: it is not masked", secret.name
                );
            }
            secrets.push(secret);
        }
        let added = self.secrets.add(secrets.iter().map(|secret| secret.value.clone())).await;
        added.map_err(with_step)?;
        self.progress.steps.entry(position).or_default().secrets = secrets;
        Ok(())
    }

    /// Returns the purpose for which a step's secrets are looked up.
    fn purpose_of_secrets(&self, position: StepPosition) -> Purpose {
        let record = self.run.record();
        // The destination can refer to earlier results. If they are missing, the step does not start.
        let filled = job::filled(record, position).and_then(Result::ok);
        let to = filled.and_then(|step| destination::of_step(&step)).into();
        let (group, pipeline) = (record.group.clone(), record.name.clone());
        Purpose { group, pipeline, trusted: record.trusted, to }
    }

    fn secrets_of(&self, position: StepPosition) -> &[StepSecret] {
        self.progress.steps.get(&position).map(|step| &*step.secrets).unwrap_or_default()
    }

    /// Returns the `with` of a step in which the values of secrets replace their names.
    pub(super) fn with_secrets(
        &self,
        position: StepPosition,
        step: &Step,
    ) -> Result<Map<String, Value>, String> {
        let value_of = |name: &str| {
            let secret = self.secrets_of(position).iter().find(|secret| secret.name == name)?;
            String::from_utf8(secret.value.expose().to_vec()).ok()
        };
        named::filled(&step.with, &value_of).map_err(|name| {
            format!("step {}: secret {name} was not given to it, or is not valid UTF-8", step.name)
        })
    }

    /// Returns the secrets of a step for its executor, including the search for secrets.
    pub(super) fn executor_secrets(&self, position: StepPosition) -> StepSecrets {
        StepSecrets { granted: self.secrets_of(position).to_vec(), ..self.secret_search() }
    }

    /// Returns only the search for secrets in what an ended step left.
    pub(super) fn secret_search(&self) -> StepSecrets {
        StepSecrets { granted: Vec::new(), forbidden: self.secrets.mask().forbidden() }
    }

    /// Masks an event before it is published, and shortens the command of a step.
    pub(super) fn masked(&self, mut draft: EventDraft) -> EventDraft {
        draft.message = self.secrets.mask().text(&draft.message);
        if let Reason::StepStarted { command, .. } = &mut draft.reason {
            // Mask first: the end of a shortened command could be a part of a secret, which the mask
            // would not find.
            *command = shortened(self.secrets.mask().text(command), MAX_COMMAND_BYTES);
        }
        draft
    }
}
