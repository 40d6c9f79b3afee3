//! The secrets of a step: looked up right before it starts, kept out of all that is said of it, and
//! looked for in what it leaves.

use std::sync::Arc;

use protocol::event::Reason;
use protocol::pipeline::{SecretUse, Step};
use serde_json::{Map, Value};
use tracing::warn;

use super::drive::Drive;
use super::watchdog::waits;
use crate::ports::{Destination, Forbidden, Given, Purpose, Search, Secrets, StepSecrets};
use crate::rules::mask::{Finder, Mask, SHORTEST};
use crate::rules::run::Draft;
use crate::rules::{destination, job, named};

/// The secrets of a step that is on its way.
#[derive(Debug, Clone)]
pub(super) struct Hidden {
    given: Vec<Given>,
    pub(super) mask: Arc<Mask>,
}

/// What finds the secrets of a step in what it leaves.
#[derive(Debug)]
struct Masked(Arc<Mask>);

impl Forbidden for Masked {
    fn search(&self) -> Box<dyn Search> {
        Box::new(Finding(Finder::new(Arc::clone(&self.0))))
    }
}

struct Finding(Finder);

impl Search for Finding {
    fn finds(&mut self, bytes: &[u8]) -> bool {
        self.0.finds(bytes)
    }
}

/// The destination of a secret that is sent to this host, or to no host in particular.
pub(super) fn to_host(host: Option<(String, u16)>) -> Destination {
    host.map_or(Destination::Anywhere, |(host, port)| Destination::Host { host, port })
}

/// Looks secrets up; a sentence where one cannot be had.
async fn looked_up(
    from: &dyn Secrets,
    uses: &[SecretUse],
    purpose: &Purpose,
) -> Result<Hidden, String> {
    let mut given = Vec::with_capacity(uses.len());
    for asked in uses {
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
                "secret {name} holds a NUL byte and can be no variable: take it as a file"
            ));
        }
        let env = asked.env().map(str::to_owned);
        given.push(Given { name: name.to_owned(), env, value });
    }
    let mask = Mask::new(given.iter().map(|given| given.value.expose()));
    Ok(Hidden { mask: Arc::new(mask.map_err(|cause| cause.to_string())?), given })
}

impl Drive {
    /// Looks up what a step is given, before anything is said of its start.
    pub(super) async fn look_up_secrets(&mut self, position: usize) -> Result<(), String> {
        let Some(step) = self.step(position).filter(|step| !step.secrets.is_empty()) else {
            return Ok(());
        };
        let (name, uses) = (step.name.clone(), step.secrets.clone());
        let purpose = self.purpose_of_secrets(position);
        let _waits = waits();
        let hidden = looked_up(&*self.shared.ports.secrets, &uses, &purpose).await;
        let hidden = hidden.map_err(|why| format!("step {name}: {why}"))?;
        for given in hidden.given.iter().filter(|given| given.value.expose().len() < SHORTEST) {
            warn!(
                run.id = %self.scope.run, step.name = %name, secret.name = given.name,
                "secret {} has fewer than {SHORTEST} bytes: it is not masked", given.name
            );
        }
        self.progress.steps.entry(position).or_default().hidden = Some(hidden);
        Ok(())
    }

    /// The purpose of a step's secrets.
    fn purpose_of_secrets(&self, position: usize) -> Purpose {
        let record = self.run.record();
        // The address can contain results of earlier steps. If they cannot be filled in, the step does
        // not start.
        let filled = job::filled(record, position).and_then(Result::ok);
        let to = to_host(filled.and_then(|step| destination::of_step(&step)));
        Purpose { group: record.group.clone(), pipeline: record.name.clone(), to }
    }

    fn hidden(&self, position: usize) -> Option<&Hidden> {
        self.progress.steps.get(&position)?.hidden.as_ref()
    }

    /// What hides the secrets of a step; none where it has none.
    pub(super) fn mask_of(&self, position: usize) -> Option<Arc<Mask>> {
        self.hidden(position).map(|hidden| Arc::clone(&hidden.mask))
    }

    /// What the executor of a step has to know, with secrets in the place of their names.
    pub(super) fn with_secrets(
        &self,
        position: usize,
        step: &Step,
    ) -> Result<Map<String, Value>, String> {
        let value_of = |name: &str| {
            let given = self.hidden(position)?.given.iter().find(|given| given.name == name)?;
            String::from_utf8(given.value.expose().to_vec()).ok()
        };
        named::filled(&step.with, &value_of).map_err(|name| {
            format!("step {}: secret {name} is not given to it, or is no text", step.name)
        })
    }

    /// What a step is handed.
    pub(super) fn secrets_given(&self, position: usize) -> StepSecrets {
        let given = self.hidden(position).map(|hidden| hidden.given.clone()).unwrap_or_default();
        StepSecrets { given, ..self.secrets_left(position) }
    }

    /// What has to be looked for in what a step left.
    pub(super) fn secrets_left(&self, position: usize) -> StepSecrets {
        let forbidden = self.mask_of(position).map(|mask| Arc::new(Masked(mask)) as _);
        StepSecrets { given: Vec::new(), forbidden }
    }

    /// An event as it may be published.
    pub(super) fn masked(&self, mut draft: Draft) -> Draft {
        let pipeline = self.pipeline();
        let at = draft.step.as_ref().and_then(|(name, _)| {
            let steps = &pipeline?.steps;
            // That of `on-error` stands behind the last.
            Some(steps.iter().position(|step| step.name == *name).unwrap_or(steps.len()))
        });
        if let Some(mask) = at.and_then(|at| self.mask_of(at)) {
            draft.message = mask.text(&draft.message);
            if let Reason::StepStarted { command, .. } = &mut draft.reason {
                *command = mask.text(command);
            }
        }
        draft
    }
}
