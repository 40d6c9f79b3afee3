//! Reads parts of a step that several dialects have in common: entrypoint, outputs, callbacks,
//! secrets and executor settings.

use serde_json::{Map, Number, Value as Json};

use super::bob::rules;
use super::reader::{Field, Keys, Reader};
use super::tree::{Node, Position, Value, quoted};
use crate::diagnostic::{Class, Diagnostic};
use crate::pipeline::{
    Callback, Layout, Missing, Output, OutputKind, Pattern, Pipeline, RelativeTo, SecretUse, Token,
    can_name_secret,
};

const OUTPUT: Keys =
    Keys { known: &["path", "type", "missing", "layout", "relative-to"], instead: &[] };
const ARTIFACT: Keys = Keys { known: &["path", "type", "missing", "layout"], instead: &[] };
const CALLBACK: Keys = Keys { known: &["url", "secret"], instead: &[] };
const SECRET: Keys = Keys {
    known: &["name", "env"],
    instead: &[
        ("secret-name", "did you mean `name`?"),
        ("var", "did you mean `env`?"),
        ("as", "did you mean `env`?"),
    ],
};
const SECRET_NAME: Keys =
    Keys { known: &["secret-name"], instead: &[("name", "did you mean `secret-name`?")] };

const TYPES: [(&str, OutputKind); 2] = [("file", OutputKind::File), ("dir", OutputKind::Dir)];
const MISSING: [(&str, Missing); 3] =
    [("ignore", Missing::Ignore), ("warn", Missing::Warn), ("fail", Missing::Fail)];
const LAYOUTS: [(&str, Layout); 2] = [("flat", Layout::Flat), ("relative", Layout::Relative)];
const BASE_DIRS: [(&str, RelativeTo); 2] =
    [("work-dir", RelativeTo::WorkDir), ("job-dir", RelativeTo::JobDir)];

/// Maximum number of outputs of a step. Each file that a step leaves is compared with all of them.
const MAX_OUTPUTS: usize = 1000;

/// Reads the outputs of a step. `has_job_dir`: whether the step has a directory of its own,
/// `$JOB_WORKDIR`.
pub(super) fn outputs(
    reader: &mut Reader,
    field: &Field<'_>,
    has_job_dir: bool,
) -> Option<Vec<Output>> {
    let items = output_list(reader, field)?;
    let read = |item: &Field<'_>| {
        let output = output(reader, item, &OUTPUT)?;
        if output.relative_to == RelativeTo::JobDir && !has_job_dir {
            let message = "the step has no `$JOB_WORKDIR`";
            reader.fault(item, message.to_owned(), Some("remove `relative-to`"));
            return None;
        }
        Some(output)
    };
    Some(items.iter().filter_map(read).collect())
}

/// Reads the artifacts of a job. Their paths are relative to `relative_to`.
pub(super) fn artifacts(
    reader: &mut Reader,
    field: &Field<'_>,
    relative_to: RelativeTo,
) -> Option<Vec<Output>> {
    let items = output_list(reader, field)?;
    let outputs = items.iter().filter_map(|item| output(reader, item, &ARTIFACT));
    Some(outputs.map(|output| Output { relative_to, ..output }).collect())
}

fn output_list<'a>(reader: &mut Reader, field: &Field<'a>) -> Option<Vec<Field<'a>>> {
    let items = reader.list(field)?;
    if items.len() > MAX_OUTPUTS {
        let message =
            format!("{} has {} items, expected at most {MAX_OUTPUTS}", field.name(), items.len());
        reader.fault(field, message, Some("select several files with one pattern"));
        return None;
    }
    Some(items)
}

fn output(reader: &mut Reader, field: &Field<'_>, keys: &Keys) -> Option<Output> {
    let fields = reader.map(field, keys)?;
    let path = reader
        .required(&fields, "path", "the files to store")
        .and_then(|field| pattern(reader, &field));
    Some(Output {
        kind: reader.optional(&fields, "type", |r, f| r.word(f, &TYPES)),
        missing: reader
            .optional(&fields, "missing", |r, f| r.word(f, &MISSING))
            .unwrap_or_default(),
        layout: reader.optional(&fields, "layout", |r, f| r.word(f, &LAYOUTS)).unwrap_or_default(),
        relative_to: reader
            .optional(&fields, "relative-to", |r, f| r.word(f, &BASE_DIRS))
            .unwrap_or_default(),
        path: path?,
    })
}

fn pattern(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    let path = reader.text(field)?;
    let Err(why) = Pattern::check(&path) else { return Some(path) };
    let last = field.path.rsplit('.').next().unwrap_or_default();
    reader.fault(field, format!("`{last}` {} {why}", quoted(&path)), None);
    None
}

/// Reads the words before a container's command. An empty list removes the entrypoint.
pub(super) fn entrypoint(reader: &mut Reader, field: &Field<'_>) -> Option<Vec<String>> {
    let items = reader.list(field)?;
    // Numbers and booleans become words as written.
    let word = |item: &Field<'_>| match item.node.scalar() {
        Some(text) => Some(text.to_owned()),
        None => reader.text(item),
    };
    // Read every item before returning, so that every fault is reported.
    let words: Vec<Option<String>> = items.iter().map(word).collect();
    let words: Vec<String> = words.into_iter().collect::<Option<_>>()?;
    if words.is_empty() {
        return Some(words);
    }
    if let Some(why) = rules::command(&words) {
        reader.fault(
            field,
            format!("{} {why}", field.name()),
            Some("write `[]` for no entrypoint"),
        );
        return None;
    }
    Some(words)
}

/// Reads a callback. Returns `None` if it has no URL or an empty one: the URL from the settings then
/// applies.
pub(super) fn callback(reader: &mut Reader, field: &Field<'_>) -> Option<Callback> {
    let fields = reader.map(field, &CALLBACK)?;
    let url = match fields.get("url") {
        Some(field) => url(reader, &field),
        None => Some(String::new()),
    };
    let secret = reader.optional(&fields, "secret", token);
    let url = url?;
    if url.is_empty() {
        if let (Some(field), Some(_)) = (fields.get("secret"), secret) {
            let message = "the secret is not used, because the callback has no `url`";
            reader.remark(Class::Warning, &field, message, Some("add a `url` to the callback"));
        }
        return None;
    }
    // An empty secret counts as absent.
    let secret = secret.filter(|secret| *secret != Token::Literal(String::new()));
    Some(Callback { url, secret })
}

/// Reads an HTTP URL. A fault never shows a URL with a user, because it can contain a password.
pub(super) fn url(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    let text = reader.text(field)?;
    let Some(why) = url_fault(&text) else {
        return Some(text);
    };
    let shown = if text.contains('@') { String::new() } else { format!(" {}", quoted(&text)) };
    reader.fault(field, format!("{}{shown} {why}", field.name()), None);
    None
}

/// Returns why a text is not an HTTP URL, as the rest of a sentence. An empty text and a reference
/// (`${...}`) have no fault here: callers handle the one, and the other is resolved later.
fn url_fault(url: &str) -> Option<&'static str> {
    if url.is_empty() || url.starts_with("${") {
        return None;
    }
    let Some((_, rest)) = url.split_once("://").filter(|(scheme, _)| is_http(scheme)) else {
        return Some("is not an address such as https://host/path");
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() {
        return Some("has no host");
    }
    if host.contains('@') {
        return Some("contains credentials, which belong in a secret");
    }
    let is_invalid = url.chars().any(|c| c.is_control() || c.is_whitespace());
    is_invalid.then_some("has a blank or a control character")
}

fn is_http(scheme: &str) -> bool {
    ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
}

/// Reads a secret, either its text or `{secret-name: NAME}`. A fault never shows its value.
pub(super) fn token(reader: &mut Reader, field: &Field<'_>) -> Option<Token> {
    match &field.node.value {
        Value::String(text) => Some(Token::Literal(text.clone())),
        Value::Map(_) => {
            let fields = reader.map(field, &SECRET_NAME)?;
            let name = reader.required(&fields, "secret-name", "the name of a stored secret")?;
            Some(Token::Named { name: reader.checked_text(&name, rules::file_name)? })
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::List(_) => {
            reader.mismatch(field, "a string in quotes or a `secret-name`", None);
            None
        }
    }
}

/// Reads the secrets of a step. Each is a name or `{name: NAME, env: VARIABLE}`.
pub(super) fn secrets(reader: &mut Reader, field: &Field<'_>) -> Option<Vec<SecretUse>> {
    let items = reader.list(field)?;
    Some(items.iter().filter_map(|item| secret(reader, item)).collect())
}

fn secret(reader: &mut Reader, field: &Field<'_>) -> Option<SecretUse> {
    let Value::Map(_) = &field.node.value else {
        return reader.checked_text(field, rules::file_name).map(SecretUse::File);
    };
    let fields = reader.map(field, &SECRET)?;
    let name = reader
        .required(&fields, "name", "the name of a stored secret")
        .and_then(|field| reader.checked_text(&field, rules::file_name));
    let env = reader
        .required(&fields, "env", "the variable for the secret")
        .and_then(|field| reader.checked_text(&field, rules::variable));
    Some(SecretUse::Var { name: name?, env: env? })
}

/// Reads a map of executor settings.
pub(super) fn object(reader: &mut Reader, field: &Field<'_>) -> Option<Map<String, Json>> {
    match json(field.node) {
        Json::Object(map) => Some(map),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => {
            reader.mismatch(field, "a map", None);
            None
        }
    }
}

/// Converts a node to JSON. A number that JSON cannot represent, such as `007`, becomes a string
/// with its original text. Recursion is bounded by the depth limit of the tree.
pub(crate) fn json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(text) => Json::Bool(text.eq_ignore_ascii_case("true")),
        Value::Number(text) => number(text).map_or_else(|| text.clone().into(), Json::Number),
        Value::String(text) => text.clone().into(),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => {
            entries.iter().map(|entry| (entry.key.clone(), json(&entry.value))).collect()
        }
    }
}

fn number(text: &str) -> Option<Number> {
    serde_json::from_str::<Number>(text).ok()?;
    if let Ok(whole) = text.parse::<i64>() {
        // A JSON integer cannot represent `-0`.
        return (whole != 0 || text == "0").then(|| whole.into());
    }
    match text.parse::<u64>() {
        Ok(whole) => Some(whole.into()),
        // Not parsed by `serde_json`, which can be wrong in the last digit.
        Err(_too_long_or_a_fraction) => Number::from_f64(text.parse().ok()?),
    }
}

/// The end of the warning about a secret in clear text in a file, after the path of its key.
pub const LITERAL_SECRET: &str = "is a secret in clear text";

/// Returns a warning for each clear-text secret. `place` maps a path in the model to the position
/// and the path in the document.
pub(super) fn literal_secrets(
    pipeline: &Pipeline,
    place: impl Fn(&str) -> (Position, String),
) -> Vec<Diagnostic> {
    let warn = |path: String| {
        let hint = if can_name_secret(&path) {
            "replace it by {secret-name: NAME}, and store the secret with the runner"
        } else {
            "{secret-name: NAME} is not possible here, so send the secret in a header"
        };
        let (at, path) = place(&path);
        let message = format!("`{path}` {LITERAL_SECRET}");
        let fault = at.fault(message, Some(hint));
        Diagnostic { class: Class::Warning, path, ..fault }
    };
    pipeline.literal_secrets().into_iter().map(warn).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_urls_without_credentials_are_accepted() {
        for bad in ["h", "ftp://h", "https://", "https:///x", "https://u:p@h", "https://h/a b"] {
            assert!(url_fault(bad).is_some(), "{bad:?} was accepted");
        }
        for good in ["", "HTTPS://h:8006", "http://h/x@y?z", "${a.b}/x"] {
            assert_eq!(url_fault(good), None, "{good}");
        }
    }

    #[test]
    fn a_number_that_json_cannot_represent_keeps_its_text() {
        for (text, json) in [("7", "7"), ("-7", "-7"), ("1.50", "1.5"), ("1e2", "100.0")] {
            assert_eq!(number(text).map(|number| number.to_string()).as_deref(), Some(json));
        }
        for text in ["007", "+1", ".5", "0x1f", "-0", ".inf", "1e999", "1_0"] {
            assert_eq!(number(text), None, "{text}");
        }
        assert_eq!(number("18446744073709551615"), Some(u64::MAX.into()));
    }
}
