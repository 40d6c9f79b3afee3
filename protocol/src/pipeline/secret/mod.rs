//! Finds clear-text secrets in a definition, so that they can be masked or rejected.

mod name;
#[cfg(test)]
mod tests;
mod text;

use std::fmt::Write as _;

use serde_json::{Map, Value};

use self::name::{is_secret, is_secret_text, is_secret_variable};
use self::text::{MASK, is_literal, without_parameters};
use super::handover::Token;
use super::{Pipeline, Step, Vars};
use crate::budget::shortened;

pub use self::name::is_secret_header;

/// The key of the headers of an `http` step.
const HEADERS: &str = "headers";
/// Key of a reference to a secret that is stored elsewhere.
const NAMED: &str = "secret-name";

/// Maximum number of paths that are reported.
const MAX_PATHS: usize = 1000;
/// Maximum length of a key in a reported path, in bytes.
const MAX_KEY: usize = 64;

/// A place in a definition: a part of a path, and the parts before it.
#[derive(Clone, Copy)]
struct PathPlace<'a> {
    above: Option<&'a Self>,
    part: PathPart<'a>,
}

#[derive(Clone, Copy)]
enum PathPart<'a> {
    Key(&'a str),
    Index(usize),
}

impl<'a> PathPlace<'a> {
    fn root(key: &'a str) -> Self {
        Self { above: None, part: PathPart::Key(key) }
    }

    fn key(&'a self, key: &'a str) -> Self {
        Self { above: Some(self), part: PathPart::Key(key) }
    }

    fn index(&'a self, index: usize) -> Self {
        Self { above: Some(self), part: PathPart::Index(index) }
    }

    /// The path, such as `steps[2].with.password`. Long keys are shortened.
    fn path(&self) -> String {
        let mut path = self.above.map(Self::path).unwrap_or_default();
        match self.part {
            PathPart::Key(key) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(&shortened(key.to_owned(), MAX_KEY));
            }
            PathPart::Index(index) => {
                // Writing to a String cannot fail.
                let _infallible = write!(path, "[{index}]");
            }
        }
        path
    }
}

/// Masks clear-text secrets, and collects their paths.
#[derive(Default)]
struct Masker {
    /// The first [`MAX_PATHS`].
    paths: Vec<String>,
}

impl Masker {
    fn report(&mut self, place: &PathPlace<'_>) {
        if self.paths.len() < MAX_PATHS {
            self.paths.push(place.path());
        }
    }

    /// Masks the secrets in a value. If `is_one`, every text and number in it is a secret.
    /// Recursion is bounded by the depth limit for documents.
    fn value(&mut self, value: &mut Value, place: &PathPlace<'_>, is_one: bool) {
        match value {
            Value::Object(entries) => {
                let is_name = entries.len() == 1 && entries.contains_key(NAMED);
                for (key, value) in entries {
                    let is_one = (is_one && !is_name) || is_secret_entry(key, value);
                    self.value(value, &place.key(key), is_one);
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.value(item, &place.index(index), is_one);
                }
            }
            Value::String(text) => self.text(text, place, is_one),
            Value::Number(_) if is_one => {
                *value = MASK.into();
                self.report(place);
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Masks a text that is a secret, or the secrets in a text that is a URL, a form or JSON.
    fn text(&mut self, text: &mut String, place: &PathPlace<'_>, is_one: bool) {
        let masked = if is_one {
            is_literal(text).then(|| MASK.to_owned())
        } else {
            without_parameters(text).or_else(|| without_json(text))
        };
        if let Some(masked) = masked {
            *text = masked;
            self.report(place);
        }
    }

    fn with(&mut self, with: &mut Map<String, Value>, place: &PathPlace<'_>) {
        for (key, value) in with {
            let place = place.key(key);
            if key == HEADERS
                && let Value::Object(headers) = value
            {
                for (name, value) in headers {
                    self.value(value, &place.key(name), is_secret_header(name));
                }
            } else {
                self.value(value, &place, is_secret_entry(key, value));
            }
        }
    }

    fn step(&mut self, step: &mut Step, place: &PathPlace<'_>) {
        self.with(&mut step.with, &place.key("with"));
        let Some(callback) = &mut step.callback else { return };
        let place = place.key("callback");
        self.text(&mut callback.url, &place.key("url"), false);
        if let Some(Token::Literal(text)) = &mut callback.secret {
            self.text(text, &place.key("secret"), true);
        }
    }

    fn pipeline(&mut self, pipeline: &mut Pipeline) {
        let place = PathPlace::root("resources");
        for (position, resource) in pipeline.resources.iter_mut().enumerate() {
            let place = place.index(position);
            let place = place.key("params");
            for (name, value) in &mut resource.params {
                self.text(value, &place.key(name), is_secret_text(name));
            }
        }
        let place = PathPlace::root("steps");
        for (position, step) in pipeline.steps.iter_mut().enumerate() {
            self.step(step, &place.index(position));
        }
        if let Some(step) = &mut pipeline.on_error {
            self.step(step, &PathPlace::root("on-error"));
        }
    }

    fn variables(&mut self, vars: &mut Vars) {
        let place = PathPlace::root("vars");
        for (name, value) in vars {
            self.text(value, &place.key(name), is_secret_variable(name));
        }
    }
}

/// Whether every text and number in the value of a key is a secret.
fn is_secret_entry(key: &str, value: &Value) -> bool {
    match value {
        Value::Object(_) | Value::Array(_) => is_secret(key),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => is_secret_text(key),
    }
}

/// Masks the clear-text secrets in a text that is a JSON object. Returns `None` if there are none.
fn without_json(text: &str) -> Option<String> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let mut value = serde_json::from_str(text).ok()?;
    let mut masker = Masker::default();
    masker.value(&mut value, &PathPlace::root(""), false);
    (!masker.paths.is_empty()).then(|| value.to_string())
}

/// Whether `{secret-name: NAME}` can stand at a path that [`Pipeline::literal_secrets`] returns. It
/// cannot replace a part of a URL or a body, and resources have no secrets.
#[must_use]
pub fn can_name_secret(path: &str) -> bool {
    let is_text = [".url", ".body"].iter().any(|end| path.ends_with(end));
    !is_text && !path.starts_with("resources[")
}

impl Pipeline {
    /// Returns the definition for display. Clear-text secrets are masked, and so are variables
    /// whose names suggest a secret.
    #[must_use]
    pub fn masked(&self) -> Self {
        let mut masked = self.without_literal_secrets();
        let mut masker = Masker::default();
        masker.variables(&mut masked.vars);
        for step in masked.steps.iter_mut().chain(masked.on_error.as_deref_mut()) {
            masker.variables(&mut step.vars);
        }
        masked
    }

    /// Returns the definition with clear-text secrets masked. Variables are kept.
    #[must_use]
    pub fn without_literal_secrets(&self) -> Self {
        let mut without = self.clone();
        Masker::default().pipeline(&mut without);
        without
    }

    /// The paths of the clear-text secrets, 1,000 at most.
    #[must_use]
    pub fn literal_secrets(&self) -> Vec<String> {
        let mut masker = Masker::default();
        masker.pipeline(&mut self.clone());
        masker.paths
    }
}

/// Masks a stored definition for display. Keys that this version does not know are kept.
pub fn mask_stored_definition(definition: &mut Map<String, Value>) {
    let (mut masker, place) = (Masker::default(), PathPlace::root(""));
    mask_stored_vars(definition);
    let resources = definition.get_mut("resources").and_then(Value::as_array_mut);
    resources.into_iter().flatten().filter_map(Value::as_object_mut).for_each(mask_stored_vars);
    for (key, value) in definition {
        let steps = match key.as_str() {
            "steps" => value.as_array_mut().map(Vec::as_mut_slice).unwrap_or_default(),
            "on-error" | "on_error" => std::slice::from_mut(value),
            _ => continue,
        };
        for step in steps.iter_mut().filter_map(Value::as_object_mut) {
            mask_stored_vars(step);
            if let Some(Value::Object(with)) = step.get_mut("with") {
                masker.with(with, &place);
            }
            if let Some(callback) = step.get_mut("callback") {
                masker.value(callback, &place, false);
            }
        }
    }
}

/// Masks a stored run record for display.
pub fn mask_stored_run(record: &mut Value) {
    let Value::Object(record) = record else { return };
    mask_stored_vars(record);
    if let Some(Value::Object(definition)) = record.get_mut("pipeline") {
        mask_stored_definition(definition);
    }
}

/// Masks the `vars` and `params` of an object.
fn mask_stored_vars(of: &mut Map<String, Value>) {
    let (mut masker, place) = (Masker::default(), PathPlace::root(""));
    let vars = ["vars", "params"];
    let vars = of.iter_mut().filter(|(key, _)| vars.contains(&key.as_str()));
    for (name, value) in vars.filter_map(|(_, vars)| vars.as_object_mut()).flatten() {
        let is_one = is_secret_variable(name) && is_secret_entry(name, value);
        masker.value(value, &place, is_one);
    }
}
