//! The immutable parts of a run: its definition, and the values that its start has set.
//!
//! They are stored under a key of their own and never rewritten, so that recording a step stays a
//! small write. In memory, they are fields of [`RunRecord`], which are skipped when a record is
//! serialized.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::pipeline::{Params, Pipeline, Vars};
use crate::quantity::Span;
use crate::run::RunRecord;

/// The immutable parts of a run, as stored under their own key.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct RunDefinition {
    /// The pipeline as it was when the run was accepted. `None` if the pipeline was unknown.
    #[serde(default)]
    pub pipeline: Option<Pipeline>,
    /// Variables set by the start. They override those of the pipeline.
    #[serde(default)]
    pub vars: Vars,
    /// Template values set by the start. They override the variables.
    #[serde(default)]
    pub params: Params,
}

/// A [`RunDefinition`] whose parts are borrowed from a record.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct BorrowedDefinition<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pipeline: Option<&'a Pipeline>,
    #[serde(skip_serializing_if = "Vars::is_empty")]
    vars: &'a Vars,
    #[serde(skip_serializing_if = "Params::is_empty")]
    params: &'a Params,
}

impl RunRecord {
    /// Serializes the immutable parts. Returns `None` if all of them are empty. The run then needs no
    /// key for them.
    ///
    /// # Errors
    /// Never in practice, because every part can be represented as JSON.
    pub fn definition(&self) -> serde_json::Result<Option<Vec<u8>>> {
        let Self { pipeline, vars, params, .. } = self;
        if pipeline.is_none() && vars.is_empty() && params.is_empty() {
            return Ok(None);
        }
        let definition = BorrowedDefinition { pipeline: pipeline.as_ref(), vars, params };
        serde_json::to_vec(&definition).map(Some)
    }
}

/// A record as read from the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The record, including its immutable parts.
    pub record: RunRecord,
    /// The path of the first key in the definition that this version does not know. Only a worker
    /// that knows the key can drive the run.
    pub unknown_key: Option<String>,
    /// The immutable parts, if an older version stored them inside the record. Unknown keys are
    /// preserved. The next owner writes this value under the key for the immutable parts.
    pub inline: Option<Vec<u8>>,
}

/// Parses a record, and the value stored under the key for its immutable parts, if there is one.
///
/// # Errors
/// If either value is malformed.
pub fn read(record: &[u8], definition: Option<&[u8]>) -> serde_json::Result<Stored> {
    let is_in_pipeline = |key: &str| key.starts_with("pipeline.");
    let (parsed, unknown_key): (RunRecord, _) = parse_with_unknown_key(record, is_in_pipeline)?;
    if parsed.pipeline.is_some() || !parsed.vars.is_empty() || !parsed.params.is_empty() {
        return Ok(Stored { record: parsed, unknown_key, inline: Some(extract_inline(record)?) });
    }
    let Some(definition) = definition else {
        return Ok(Stored { record: parsed, unknown_key: None, inline: None });
    };
    let (parts, unknown_key): (RunDefinition, _) = parse_with_unknown_key(definition, |_| true)?;
    let RunDefinition { pipeline, vars, params } = parts;
    let record = RunRecord { pipeline, vars, params, ..parsed };
    Ok(Stored { record, unknown_key, inline: None })
}

/// Returns the base image of a run, given its record and the value stored under the key for its
/// immutable parts. Returns `None` if the run has no base image, or if the JSON is invalid.
///
/// All other fields are ignored, so that this also works for values that a later version has written.
#[must_use]
pub fn image_of(record: &[u8], definition: Option<&[u8]>) -> Option<String> {
    #[derive(Deserialize)]
    struct Definition {
        image: Option<String>,
    }
    #[derive(Deserialize)]
    struct Parts {
        pipeline: Option<Definition>,
    }
    let image = |json: &[u8]| serde_json::from_slice::<Parts>(json).ok()?.pipeline?.image;
    image(record).or_else(|| image(definition?))
}

/// How long, and how many, runs of a pipeline are kept, as its definition says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetentionKeys {
    /// The pipeline's `retention`.
    pub period: Option<Span>,
    /// The pipeline's `retention-count`.
    pub count: Option<u32>,
}

impl RetentionKeys {
    /// Reads the keys of a definition. A malformed value counts as missing, and all other keys are
    /// ignored, so that this also works for definitions that a later version has written.
    #[must_use]
    pub fn of(definition: &[u8]) -> Self {
        RawRetentionKeys::parse(definition).map_or_else(Self::default, RawRetentionKeys::keys)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawRetentionKeys {
    #[serde(default)]
    retention: Value,
    #[serde(default)]
    retention_count: Value,
}

impl RawRetentionKeys {
    fn parse(definition: &[u8]) -> Option<Self> {
        serde_json::from_slice(definition).ok()
    }

    fn keys(self) -> RetentionKeys {
        RetentionKeys {
            period: Span::deserialize(self.retention).ok(),
            count: u32::deserialize(self.retention_count).ok(),
        }
    }
}

/// Returns the retention keys of a run's definition. The arguments are those of [`image_of`].
#[must_use]
pub fn retention_of(record: &[u8], definition: Option<&[u8]>) -> RetentionKeys {
    #[derive(Deserialize)]
    struct Parts {
        pipeline: Option<RawRetentionKeys>,
    }
    let keys = |json: &[u8]| serde_json::from_slice::<Parts>(json).ok()?.pipeline;
    let keys = keys(record).or_else(|| keys(definition?));
    keys.map_or_else(RetentionKeys::default, RawRetentionKeys::keys)
}

/// Returns the mounts of all steps of a run, as written by the author. The arguments are those of
/// [`image_of`], and all other fields are ignored in the same way.
#[must_use]
pub fn mounts_of(record: &[u8], definition: Option<&[u8]>) -> Vec<String> {
    let mounts = |json: &[u8]| {
        let json: Value = serde_json::from_slice(json).ok()?;
        let steps = json.get("pipeline")?.get("steps")?.as_array()?;
        let mounts = steps.iter().filter_map(|step| step.get("with")?.get("mounts")?.as_array());
        Some(mounts.flatten().filter_map(Value::as_str).map(str::to_owned).collect())
    };
    mounts(record).or_else(|| mounts(definition?)).unwrap_or_default()
}

/// Parses JSON. Also returns the path of the first unknown key for which `is_relevant` returns
/// `true`.
fn parse_with_unknown_key<T: DeserializeOwned>(
    json: &[u8],
    is_relevant: impl Fn(&str) -> bool,
) -> serde_json::Result<(T, Option<String>)> {
    let mut unknown_key = None;
    let mut json = serde_json::Deserializer::from_slice(json);
    let parsed = serde_ignored::deserialize(&mut json, |path| {
        // `serde_ignored` adds a segment `?` to the path for each `Option`.
        let key = path.to_string().replace(".?", "");
        if unknown_key.is_none() && is_relevant(&key) {
            unknown_key = Some(key);
        }
    })?;
    json.end()?;
    Ok((parsed, unknown_key))
}

/// Extracts the immutable parts from a record that an older version has written, unchanged.
fn extract_inline(record: &[u8]) -> serde_json::Result<Vec<u8>> {
    let mut record: Map<String, Value> = serde_json::from_slice(record)?;
    record.retain(|key, _| ["pipeline", "vars", "params"].contains(&key.as_str()));
    serde_json::to_vec(&record)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bytes(value: &Value) -> Vec<u8> {
        value.to_string().into_bytes()
    }

    fn record() -> Value {
        json!({
            "group": "g", "name": "n", "run-id": "r-1", "status": "running", "attempt": 1,
            "scheduled-at": "2026-01-01T00:00:00.000Z",
            "steps": [{ "name": "a", "status": "passed", "attempt": 1, "mood": "good" }],
            "tags": ["x"],
        })
    }

    fn definition() -> Value {
        json!({
            "pipeline": { "group": "g", "name": "n", "steps": [{ "name": "a", "cmd": "x" }] },
            "vars": { "A": "1" }, "params": { "list": [1] },
        })
    }

    #[test]
    fn the_image_of_a_run_is_found_in_values_of_any_version() {
        let later = json!({
            "pipeline": { "image": "busybox", "steps": 7, "shape": {} }, "status": "dreaming",
        });
        let later = bytes(&later);
        assert_eq!(image_of(b"{}", Some(&later)).as_deref(), Some("busybox"));
        assert_eq!(image_of(&later, None).as_deref(), Some("busybox"));
        assert_eq!(image_of(b"[]", Some(b"[")), None);
    }

    #[test]
    fn the_retention_of_a_run_is_found_in_values_of_any_version() {
        let keys = json!({ "retention": "2h", "retention-count": 3, "shape": {} });
        let found = RetentionKeys { period: "2h".parse().ok(), count: Some(3) };
        assert_eq!(RetentionKeys::of(&bytes(&keys)), found);
        let later = bytes(&json!({ "pipeline": keys, "status": "dreaming" }));
        assert_eq!(retention_of(b"{}", Some(&later)), found);
        assert_eq!(retention_of(&later, None), found);
        let malformed = bytes(&json!({ "retention": {}, "retention-count": 4 }));
        assert_eq!(RetentionKeys::of(&malformed), RetentionKeys { period: None, count: Some(4) });
        assert_eq!(retention_of(b"{}", None), RetentionKeys::default());
    }

    #[test]
    fn a_record_contains_its_definition_but_is_serialized_without_it() {
        let stored = read(&bytes(&record()), Some(&bytes(&definition()))).unwrap();
        assert_eq!((stored.unknown_key, stored.inline), (None, None));
        let record = stored.record;
        assert_eq!(record.pipeline.as_ref().map(|pipeline| pipeline.steps.len()), Some(1));
        assert_eq!((record.vars.len(), record.params.len()), (1, 1));
        let written = serde_json::to_value(&record).unwrap();
        for key in ["pipeline", "vars", "params"] {
            assert!(written.get(key).is_none(), "{written}");
        }
        let reread = read(&bytes(&written), record.definition().unwrap().as_deref()).unwrap();
        assert_eq!(reread.record, record);
    }

    #[test]
    fn fields_of_later_versions_are_preserved() {
        let stored = read(&bytes(&record()), None).unwrap();
        let written = serde_json::to_value(&stored.record).unwrap();
        assert_eq!(written["tags"], json!(["x"]));
        assert_eq!(written["steps"][0]["mood"], json!("good"));
    }

    #[test]
    fn the_definition_inside_a_record_of_an_older_version_is_read() {
        let (mut old, mut parts) = (record(), definition());
        parts["pipeline"]["steps"][0]["later"] = json!(true);
        for (key, part) in parts.as_object().unwrap() {
            old[key] = part.clone();
        }
        let stored = read(&bytes(&old), None).unwrap();
        assert_eq!(stored.unknown_key.as_deref(), Some("pipeline.steps.0.later"));
        let inline: Value = serde_json::from_slice(&stored.inline.unwrap()).unwrap();
        assert_eq!(inline, parts);
        assert!(stored.record.rest.contains_key("tags"));
    }

    #[test]
    fn an_unknown_key_of_a_definition_is_reported() {
        let mut parts = definition();
        parts["pipeline"]["steps"][0]["later"] = json!(true);
        let stored = read(&bytes(&record()), Some(&bytes(&parts))).unwrap();
        assert_eq!(stored.unknown_key.as_deref(), Some("pipeline.steps.0.later"));
        parts = definition();
        parts["later"] = json!(true);
        let stored = read(&bytes(&record()), Some(&bytes(&parts))).unwrap();
        assert_eq!(stored.unknown_key.as_deref(), Some("later"));
    }

    #[test]
    fn a_run_of_an_unknown_pipeline_has_no_definition_key() {
        let stored = read(&bytes(&record()), None).unwrap();
        assert_eq!(stored.record.definition().unwrap(), None);
    }
}
