//! Finds clear-text secrets in a definition, so that they can be masked or rejected.

use serde_json::{Map, Value};

use super::handover::Token;
use super::{Pipeline, Step, Vars};

/// Keys of `with`, at any depth, whose values are secrets.
const SECRET: [&str; 15] = [
    "token_secret",
    "api_token",
    "api_key",
    "password",
    "passwd",
    "cipassword",
    "passphrase",
    "secret",
    "token",
    "access_token",
    "refresh_token",
    "client_secret",
    "private_key",
    "secret_key",
    "access_key",
];

/// Last words of header names whose values are secrets.
const SECRET_HEADER: [&str; 10] = [
    "auth",
    "authorization",
    "cookie",
    "token",
    "key",
    "apikey",
    "secret",
    "password",
    "signature",
    "credential",
];

/// Headers that end with such a word but are not secret.
const OPEN_HEADERS: [&str; 3] = ["idempotency-key", "sec-websocket-key", "surrogate-key"];

/// Name endings of variables whose values are probably secrets.
const SECRET_VARIABLE: [&str; 12] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "api_key",
    "access_key",
    "private_key",
    "secret_key",
    "credential",
    "credentials",
];

/// Replacement for a secret.
const MASK: &str = "***";

/// The key of the headers of an `http` step.
const HEADERS: &str = "headers";
/// Key of a reference to a secret that is stored elsewhere.
const NAMED: &str = "secret-name";

/// Whether the value of this key in `with` is a secret.
fn is_secret(key: &str) -> bool {
    SECRET.contains(&key.replace('-', "_").to_lowercase().as_str())
}

/// Whether the value of this header is a secret.
#[must_use]
pub fn is_secret_header(name: &str) -> bool {
    let name = name.to_lowercase();
    let last = name.rsplit(['-', '_']).next().unwrap_or_default();
    let is_secret = SECRET_HEADER.iter().any(|word| last.ends_with(word));
    is_secret && !OPEN_HEADERS.iter().any(|open| name.ends_with(open))
}

/// Whether the value of this variable is probably a secret.
fn is_secret_variable(name: &str) -> bool {
    let name = name.replace('-', "_").to_lowercase();
    SECRET_VARIABLE.iter().any(|word| name.ends_with(word))
}

/// Whether a text is a clear-text secret rather than a reference to an earlier result. A scheme
/// before the reference is allowed: `Bearer ${login.data.token}`.
fn is_literal(text: &str) -> bool {
    let reference = match text.split_once(' ') {
        Some((scheme, rest)) if scheme.chars().all(char::is_alphanumeric) => rest,
        Some(_) | None => text,
    };
    let inside = reference.strip_prefix("${").and_then(|text| text.strip_suffix('}'));
    !text.is_empty() && text != MASK && inside.is_none_or(|inside| inside.contains("${"))
}

/// Callback for each secret and its path.
type Found<'a> = &'a mut dyn FnMut(String, &mut Value);

/// Visits the secrets in a value. If `is_one`, the whole value is a secret.
fn visit(value: &mut Value, path: &str, is_one: bool, found: Found<'_>) {
    match value {
        Value::Object(entries) => {
            let is_name = entries.len() == 1 && entries.contains_key(NAMED);
            for (key, value) in entries {
                let path = format!("{path}.{key}");
                visit(value, &path, (is_one && !is_name) || is_secret(key), found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                visit(item, &format!("{path}[{index}]"), is_one, found);
            }
        }
        Value::String(text) if is_one && is_literal(text) => found(path.to_owned(), value),
        Value::Number(_) if is_one => found(path.to_owned(), value),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Recursion is bounded by the depth limit for documents.
fn visit_with(with: &mut Map<String, Value>, path: &str, found: Found<'_>) {
    for (key, value) in with {
        let path = format!("{path}.{key}");
        if key == HEADERS
            && let Value::Object(headers) = value
        {
            for (name, value) in headers {
                visit(value, &format!("{path}.{name}"), is_secret_header(name), found);
            }
        } else {
            visit(value, &path, is_secret(key), found);
        }
    }
}

impl Step {
    fn visit_secrets(&mut self, path: &str, found: Found<'_>) {
        visit_with(&mut self.with, &format!("{path}.with"), found);
        if let Some(Token::Literal(text)) =
            self.callback.as_mut().and_then(|callback| callback.secret.as_mut())
            && is_literal(text)
        {
            let mut value = Value::from(text.as_str());
            found(format!("{path}.callback.secret"), &mut value);
            if let Value::String(changed) = value {
                *text = changed;
            }
        }
    }
}

impl Pipeline {
    /// Returns the definition for display. Clear-text secrets are masked, and so are variables and
    /// parameters whose names suggest a secret.
    #[must_use]
    pub fn masked(&self) -> Self {
        let mut masked = self.without_literal_secrets();
        mask_vars(&mut masked.vars);
        for resource in &mut masked.resources {
            mask_vars(&mut resource.params);
        }
        for step in masked.steps.iter_mut().chain(masked.on_error.as_deref_mut()) {
            mask_vars(&mut step.vars);
        }
        masked
    }

    /// Returns the definition with clear-text secrets masked. Variables are kept.
    #[must_use]
    pub fn without_literal_secrets(&self) -> Self {
        let mut without = self.clone();
        without.visit_secrets(&mut |_path, value| *value = MASK.into());
        without
    }

    /// The paths of all clear-text secrets.
    #[must_use]
    pub fn literal_secrets(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.clone().visit_secrets(&mut |path, _value| paths.push(path));
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

fn mask_vars(vars: &mut Vars) {
    for (name, value) in vars {
        if is_secret_variable(name) && is_literal(value) {
            MASK.clone_into(value);
        }
    }
}

/// Masks a stored definition for display. Keys that this version does not know are kept.
pub fn mask_stored_definition(definition: &mut Map<String, Value>) {
    let mut mask = |_path: String, value: &mut Value| *value = MASK.into();
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
                visit_with(with, "", &mut mask);
            }
            let callback = step.get_mut("callback").and_then(Value::as_object_mut);
            if let Some(secret) = callback.and_then(|callback| callback.get_mut("secret")) {
                visit(secret, "", true, &mut mask);
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
    let vars = ["vars", "params"];
    let vars = of.iter_mut().filter(|(key, _)| vars.contains(&key.as_str()));
    for (name, value) in vars.filter_map(|(_, vars)| vars.as_object_mut()).flatten() {
        visit(value, "", is_secret_variable(name), &mut |_path, value| *value = MASK.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn definition() -> Value {
        json!({
            "group": "g", "name": "n",
            "vars": { "DB_PASSWORD": "s3cret", "USER": "bob", "TOKEN": "${login.token}" },
            "resources": [{
                "name": "src", "type": "external", "provider": "git",
                "params": { "repo": "r", "access_token": "s3cret" },
            }],
            "steps": [{
                "name": "a",
                "executor": "http",
                "vars": { "api-token": "s3cret" },
                "with": {
                    "token_secret": "s3cret",
                    "api-key": "${login.data.key}",
                    "params": [{ "password": "s3cret" }, { "password": "" }, { "password": 12_345_678 }],
                    "api_token": { "secret-name": "pve" },
                    "headers": {
                        "Authorization": "Bearer s3cret",
                        "X-Api-Key": "s3cret",
                        "Cookie": "${login.data.cookie}",
                        "Proxy-Authorization": "Bearer ${login.data.token}",
                        "Idempotency-Key": "order-7",
                        "Author": "bob",
                    },
                    "json": { "tokens": ["shown"], "secret": ["s3cret"], "client-secret": { "of": "s3cret" } },
                },
                "callback": { "url": "http://h", "secret": "s3cret" },
            }],
            "on-error": { "name": "b", "with": { "password": "s3cret" } },
        })
    }

    const PATHS: [&str; 9] = [
        "steps[0].with.token_secret",
        "steps[0].with.params[0].password",
        "steps[0].with.params[2].password",
        "steps[0].with.headers.Authorization",
        "steps[0].with.headers.X-Api-Key",
        "steps[0].with.json.secret[0]",
        "steps[0].with.json.client-secret.of",
        "steps[0].callback.secret",
        "on-error.with.password",
    ];

    #[test]
    fn literal_secrets_are_masked_and_references_are_not() {
        let pipeline: Pipeline = serde_json::from_value(definition()).unwrap();
        assert_eq!(pipeline.literal_secrets(), PATHS);
        let masked = serde_json::to_string(&pipeline.masked()).unwrap();
        assert!(!masked.contains("s3cret") && !masked.contains("12345678"), "{masked}");
        for shown in ["login.data.key", "pve", "order-7", "shown", "login.token", "bob"] {
            assert!(masked.contains(shown), "{shown}: {masked}");
        }
        assert!(!format!("{:?}", pipeline.steps[0].callback).contains("s3cret"));
        assert!(pipeline.masked().literal_secrets().is_empty());
    }

    #[test]
    fn variables_are_kept_when_literal_secrets_are_removed() {
        let pipeline: Pipeline = serde_json::from_value(definition()).unwrap();
        let without = pipeline.without_literal_secrets();
        assert_eq!(without.vars, pipeline.vars);
        assert!(without.literal_secrets().is_empty());
    }

    #[test]
    fn stored_records_are_masked_and_keep_unknown_keys() {
        let mut record = json!({
            "run-id": "r-1", "later": { "kept": true },
            "vars": { "GITHUB_TOKEN": "s3cret", "BRANCH": "main" },
            "params": { "password": ["s3cret"], "count": 3 },
            "pipeline": definition(),
        });
        record["pipeline"]["later"] = json!("kept");
        mask_stored_run(&mut record);
        let shown = record.to_string();
        assert!(!shown.contains("s3cret") && !shown.contains("12345678"), "{shown}");
        assert_eq!(record["later"], json!({ "kept": true }));
        assert_eq!(record["pipeline"]["later"], json!("kept"));
        assert_eq!(record["vars"], json!({ "GITHUB_TOKEN": MASK, "BRANCH": "main" }));
        assert_eq!(record["params"], json!({ "password": [MASK], "count": 3 }));
        assert_eq!(record["pipeline"]["steps"][0]["with"]["headers"]["Author"], json!("bob"));
    }
}
