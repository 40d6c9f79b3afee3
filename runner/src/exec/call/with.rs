//! Reads a step's `with` by key. Reports every error before the request is sent.

use std::time::Duration;

use protocol::quantity::Span;
use serde_json::{Map, Value};

use crate::exec::with::has_known_keys;
use crate::ports::{ExecError, StepSpec};

/// The `with` of a step.
#[derive(Clone, Copy)]
pub(super) struct StepArguments<'a> {
    step: &'a StepSpec,
}

impl<'a> StepArguments<'a> {
    /// Wraps the `with` of a step. Fails if the step has a command, a script or an unknown key.
    pub(super) fn of(step: &'a StepSpec) -> Result<Self, ExecError> {
        let (arguments, executor) = (Self { step }, step.executor.as_str());
        if !step.words.is_empty() || step.script.is_some() {
            let problem = format!("a step of executor {executor} is a call and runs no command");
            return Err(arguments.bad(&problem));
        }
        has_known_keys(step.name.as_str(), step.executor, &step.with)
            .map_err(ExecError::Unsupported)?;
        Ok(arguments)
    }

    /// An error that begins with the step's name.
    pub(super) fn bad(self, problem: &str) -> ExecError {
        ExecError::Unsupported(format!("step {}: {problem}", self.step.name))
    }

    /// The value of a key. Null and the empty string count as missing.
    pub(super) fn get(self, key: &str) -> Option<&'a Value> {
        self.step.with.get(key).filter(|value| !value.is_null() && value.as_str() != Some(""))
    }

    fn mismatch(self, key: &str, expected: &str) -> ExecError {
        self.bad(&format!("`{key}` is not {expected}"))
    }

    /// An optional string.
    pub(super) fn text(self, key: &str) -> Result<Option<&'a str>, ExecError> {
        let text = |value: &'a Value| value.as_str().ok_or_else(|| self.mismatch(key, "a string"));
        self.get(key).map(text).transpose()
    }

    /// A required string.
    pub(super) fn must(self, key: &str) -> Result<&'a str, ExecError> {
        self.text(key)?.ok_or_else(|| self.missing(key))
    }

    /// The error for a missing key.
    pub(super) fn missing(self, key: &str) -> ExecError {
        self.bad(&format!("`{key}` is missing"))
    }

    /// The URL of the service: `base_url` or, if it is missing, the executor's default.
    pub(super) fn base_url(self) -> Result<&'a str, ExecError> {
        let default = self.step.executor.capabilities().default_address.unwrap_or_default();
        Ok(self.text("base_url")?.unwrap_or(default))
    }

    /// An optional identifier, written as a string or as a number.
    pub(super) fn id(self, key: &str) -> Result<Option<String>, ExecError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {
                Err(self.mismatch(key, "a number or a string"))
            }
        }
    }

    /// A required identifier.
    pub(super) fn must_id(self, key: &str) -> Result<String, ExecError> {
        self.id(key)?.ok_or_else(|| self.missing(key))
    }

    /// An optional boolean.
    pub(super) fn switch(self, key: &str) -> Result<Option<bool>, ExecError> {
        let switch =
            |value: &Value| value.as_bool().ok_or_else(|| self.mismatch(key, "true or false"));
        self.get(key).map(switch).transpose()
    }

    /// An optional duration.
    pub(super) fn span(self, key: &str) -> Result<Option<Duration>, ExecError> {
        let span = |value: &Value| {
            let span = serde_json::from_value::<Span>(value.clone());
            let span = span.map_err(|cause| self.bad(&format!("`{key}`: {cause}")))?;
            Ok(span.as_duration())
        };
        self.get(key).map(span).transpose()
    }

    /// An optional map.
    pub(super) fn map(self, key: &str) -> Result<Option<&'a Map<String, Value>>, ExecError> {
        let map = |value: &'a Value| value.as_object().ok_or_else(|| self.mismatch(key, "a map"));
        self.get(key).map(map).transpose()
    }

    /// A required map.
    pub(super) fn must_map(self, key: &str) -> Result<&'a Map<String, Value>, ExecError> {
        self.map(key)?.ok_or_else(|| self.missing(key))
    }
}
