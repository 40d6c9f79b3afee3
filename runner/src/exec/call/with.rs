//! What a step tells its executor, read by key. Every fault is found before anything is sent.

use std::time::Duration;

use protocol::quantity::Span;
use serde_json::{Map, Value};

use crate::exec::with::has_known_keys;
use crate::ports::{ExecError, StepSpec};

/// The `with` of a step.
#[derive(Clone, Copy)]
pub(super) struct With<'a> {
    step: &'a StepSpec,
}

impl<'a> With<'a> {
    /// The `with` of a step that has nothing to run here, and no key that is not known.
    pub(super) fn of(step: &'a StepSpec) -> Result<Self, ExecError> {
        let (with, executor) = (Self { step }, step.executor.as_str());
        if !step.words.is_empty() || step.script.is_some() {
            let why = format!("a step of executor {executor} is a call and runs no command");
            return Err(with.bad(&why));
        }
        has_known_keys(step.name.as_str(), step.executor, &step.with)
            .map_err(ExecError::Unsupported)?;
        Ok(with)
    }

    /// What cannot be done, with the step's name before it.
    pub(super) fn bad(self, what: &str) -> ExecError {
        ExecError::Unsupported(format!("step {}: {what}", self.step.name))
    }

    /// What stands at a key; empty is not there.
    pub(super) fn get(self, key: &str) -> Option<&'a Value> {
        self.step.with.get(key).filter(|value| !value.is_null() && value.as_str() != Some(""))
    }

    fn mismatch(self, key: &str, expected: &str) -> ExecError {
        self.bad(&format!("`{key}` is not {expected}"))
    }

    /// A text that need not be there.
    pub(super) fn text(self, key: &str) -> Result<Option<&'a str>, ExecError> {
        let text = |value: &'a Value| value.as_str().ok_or_else(|| self.mismatch(key, "a text"));
        self.get(key).map(text).transpose()
    }

    /// A text that must be there.
    pub(super) fn must(self, key: &str) -> Result<&'a str, ExecError> {
        self.text(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn missing(self, key: &str) -> ExecError {
        self.bad(&format!("`{key}` is missing"))
    }

    /// The address of the service: what `base_url` names, else the usual one.
    pub(super) fn base_url(self) -> Result<&'a str, ExecError> {
        let usual = self.step.executor.usual_service().unwrap_or_default();
        Ok(self.text("base_url")?.unwrap_or(usual))
    }

    /// The name of something, which may be written as a number.
    pub(super) fn id(self, key: &str) -> Result<Option<String>, ExecError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {
                Err(self.mismatch(key, "a number or a text"))
            }
        }
    }

    /// The same, where it must be there.
    pub(super) fn must_id(self, key: &str) -> Result<String, ExecError> {
        self.id(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn switch(self, key: &str) -> Result<Option<bool>, ExecError> {
        let switch =
            |value: &Value| value.as_bool().ok_or_else(|| self.mismatch(key, "true or false"));
        self.get(key).map(switch).transpose()
    }

    pub(super) fn span(self, key: &str) -> Result<Option<Duration>, ExecError> {
        let span = |value: &Value| {
            let span = serde_json::from_value::<Span>(value.clone());
            let span = span.map_err(|cause| self.bad(&format!("`{key}`: {cause}")))?;
            Ok(span.as_duration())
        };
        self.get(key).map(span).transpose()
    }

    pub(super) fn map(self, key: &str) -> Result<Option<&'a Map<String, Value>>, ExecError> {
        let map = |value: &'a Value| value.as_object().ok_or_else(|| self.mismatch(key, "a map"));
        self.get(key).map(map).transpose()
    }

    /// The same, where it must be there.
    pub(super) fn must_map(self, key: &str) -> Result<&'a Map<String, Value>, ExecError> {
        self.map(key)?.ok_or_else(|| self.missing(key))
    }
}
