//! The secrets that the steps of a run were given so far, and their mask.

use std::collections::HashMap;

use protocol::id::{StepName, StepPosition};
use protocol::pipeline::{Pipeline, SecretUse, Step};
use protocol::run::{RunRecord, StepStatus};

use super::mask::RunMask;
use crate::ports::{Purpose, Secret, Secrets, StepSecret};
use crate::rules::mask::Mask;

/// The secrets given to the run's steps so far, by this owner or an earlier one. A later step can
/// print what an earlier one left.
#[derive(Debug, Default)]
pub(super) struct RunSecrets {
    values: Vec<Secret>,
    /// Secrets of steps started by an earlier owner that this owner has not yet looked up.
    pub(super) pending: Vec<(StepPosition, StepName, SecretUse)>,
    mask: RunMask,
}

impl RunSecrets {
    /// Creates the secrets of a newly claimed run. Those of started steps must be looked up.
    pub(super) fn of(record: &RunRecord) -> Self {
        let steps = record.pipeline.iter().flat_map(Pipeline::steps_by_position);
        let begun = record.steps.iter().filter(|step| step.status != StepStatus::Pending);
        let by_name: HashMap<&StepName, (StepPosition, &Step)> =
            steps.map(|(position, step)| (&step.name, (position, step))).collect();
        let begun = begun.filter_map(|begun| by_name.get(&begun.name).copied());
        let pending = begun.flat_map(|(position, step)| {
            let secrets = step.secrets.iter();
            secrets.map(move |secret| (position, step.name.clone(), secret.clone()))
        });
        Self { pending: pending.collect(), ..Self::default() }
    }

    /// Returns the mask of the run.
    pub(super) fn mask(&self) -> RunMask {
        self.mask.clone()
    }

    /// Adds values to the mask.
    pub(super) async fn add(&mut self, values: impl Iterator<Item = Secret>) -> Result<(), String> {
        let known = self.values.len();
        for value in values {
            if !self.values.contains(&value) {
                self.values.push(value);
            }
        }
        if self.values.len() == known {
            return Ok(());
        }
        let values = self.values.clone();
        // This takes a while for a large secret.
        let mask = tokio::task::spawn_blocking(move || {
            Mask::new(values.iter().map(|value| value.expose()))
        });
        let mask = mask.await.map_err(|cause| format!("secrets cannot be masked: {cause}"))?;
        self.mask.set(mask.map_err(|cause| cause.to_string())?);
        Ok(())
    }
}

/// Looks up a secret. An error is a message for users.
pub(super) async fn look_up(
    from: &dyn Secrets,
    asked: &SecretUse,
    purpose: &Purpose,
) -> Result<StepSecret, String> {
    let name = asked.name();
    let value = from.get(name, purpose).await.map_err(|cause| cause.to_string())?;
    let Some(value) = value else {
        let places = from.places(name);
        let looked = if places.is_empty() {
            "this worker has none; set BOB_SECRETS_DIR".to_owned()
        } else {
            format!("it was looked for in {}", places.join(", "))
        };
        return Err(format!("there is no secret {name}: {looked}"));
    };
    if asked.env().is_some() && value.expose().contains(&0) {
        return Err(format!(
            "secret {name} contains a NUL byte and cannot be a variable: take it as a file"
        ));
    }
    let env = asked.env().map(str::to_owned);
    Ok(StepSecret { name: name.to_owned(), env, value })
}
