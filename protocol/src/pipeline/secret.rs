//! Finds the secrets that stand in a definition itself, so that nobody is shown them.

use serde_json::{Map, Value};

use super::handover::Token;
use super::{Pipeline, Step};

/// The keys of `with` whose texts are secrets, at any depth.
const SECRET: [&str; 5] = ["token_secret", "api_token", "api_key", "password", "cipassword"];

/// What is shown in the place of a secret.
const MASK: &str = "***";

/// Whether a text of that key is a secret.
fn is_secret(key: &str) -> bool {
    SECRET.contains(&key.replace('-', "_").to_lowercase().as_str())
}

/// Whether it is the secret itself, and not a reference to where it is found.
fn is_literal(text: &str) -> bool {
    let inside = text.strip_prefix("${").and_then(|text| text.strip_suffix('}'));
    !text.is_empty() && text != MASK && inside.is_none_or(|inside| inside.contains("${"))
}

/// What is done with each secret, which comes with its path.
type Found<'a> = &'a mut dyn FnMut(String, &mut String);

fn visit(value: &mut Value, path: &str, found: Found<'_>) {
    match value {
        Value::Object(entries) => visit_all(entries, path, found),
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                visit(item, &format!("{path}[{index}]"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn visit_all(entries: &mut Map<String, Value>, path: &str, found: Found<'_>) {
    for (key, value) in entries {
        let path = format!("{path}.{key}");
        if let (Value::String(text), true) = (&mut *value, is_secret(key)) {
            if is_literal(text) {
                found(path, text);
            }
        } else {
            visit(value, &path, found);
        }
    }
}

impl Step {
    fn visit_secrets(&mut self, path: &str, found: Found<'_>) {
        visit_all(&mut self.with, &format!("{path}.with"), found);
        if let Some(Token::Literal(text)) =
            self.callback.as_mut().and_then(|callback| callback.secret.as_mut())
            && is_literal(text)
        {
            found(format!("{path}.callback.secret"), text);
        }
    }
}

impl Pipeline {
    /// The definition as people may see it: each secret that is written out in it is masked.
    #[must_use]
    pub fn masked(&self) -> Self {
        let mut masked = self.clone();
        masked.visit_secrets(&mut |_path, text| MASK.clone_into(text));
        masked
    }

    /// The paths of the secrets that are written out in it.
    #[must_use]
    pub fn literal_secrets(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.clone().visit_secrets(&mut |path, _text| paths.push(path));
        paths
    }

    fn visit_secrets(&mut self, found: Found<'_>) {
        for (position, step) in self.steps.iter_mut().enumerate() {
            step.visit_secrets(&format!("steps[{position}]"), found);
        }
        if let Some(step) = &mut self.on_error {
            step.visit_secrets("on-error", found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_is_written_out_is_masked_and_one_that_is_named_is_not() {
        let definition = serde_json::json!({
            "group": "g", "name": "n", "steps": [{
                "name": "a",
                "executor": "proxmox",
                "with": {
                    "token_secret": "s3cret",
                    "api-key": "${login.data.key}",
                    "params": [{ "password": "s3cret" }, { "password": "" }],
                    "api_token": { "secret-name": "pve" },
                },
                "callback": { "url": "http://h", "secret": "s3cret" },
            }],
        });
        let pipeline: Pipeline = serde_json::from_value(definition).unwrap();
        assert_eq!(
            pipeline.literal_secrets(),
            [
                "steps[0].with.token_secret",
                "steps[0].with.params[0].password",
                "steps[0].callback.secret"
            ]
        );
        let masked = serde_json::to_string(&pipeline.masked()).unwrap();
        assert!(!masked.contains("s3cret"), "{masked}");
        assert!(masked.contains("login.data.key") && masked.contains("pve"), "{masked}");
        assert!(!format!("{:?}", pipeline.steps[0].callback).contains("s3cret"));
        assert!(pipeline.masked().literal_secrets().is_empty());
    }
}
