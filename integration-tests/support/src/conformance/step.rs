//! Steps for tests.

use protocol::id::StepName;
use protocol::pipeline::{ExecutorKind, Limits, Shell, Vars};
use serde_json::{Map, Value};

use runner::ports::{Script, StepEnd, StepSecrets, StepSpec};

/// Builds a step for a test. Everything that is not set has its default: the first attempt, no
/// command, no settings, no limits and no secrets.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct StepBuilder(StepSpec);

impl StepBuilder {
    /// Starts a step. Its name is its position.
    pub fn new(position: usize, executor: ExecutorKind) -> Self {
        Self(StepSpec {
            name: StepName::position(position),
            position,
            attempt: 1,
            executor,
            words: Vec::new(),
            script: None,
            entrypoint: None,
            env: Vars::new(),
            work_dir: None,
            network: None,
            limits: Limits::default(),
            with: Map::new(),
            secrets: StepSecrets::default(),
            end: StepEnd::default(),
        })
    }

    /// Sets the command.
    pub fn words(self, words: &[&str]) -> Self {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        Self(StepSpec { words, ..self.0 })
    }

    /// Sets a script of programs, which ends at the first program that fails.
    pub fn script(self, shell: Shell, programs: &[&str]) -> Self {
        let programs = programs.iter().map(|&program| program.to_owned()).collect();
        Self(StepSpec { script: Some(Script { shell, programs, goes_on: false }), ..self.0 })
    }

    /// Sets the environment.
    pub fn env(self, env: Vars) -> Self {
        Self(StepSpec { env, ..self.0 })
    }

    /// Sets the network.
    pub fn network(self, network: &str) -> Self {
        Self(StepSpec { network: Some(network.to_owned()), ..self.0 })
    }

    /// Sets the limits.
    pub fn limits(self, limits: Limits) -> Self {
        Self(StepSpec { limits, ..self.0 })
    }

    /// Sets the executor's own settings.
    pub fn with(self, with: Map<String, Value>) -> Self {
        Self(StepSpec { with, ..self.0 })
    }

    /// The step.
    #[must_use]
    pub fn build(self) -> StepSpec {
        self.0
    }
}
