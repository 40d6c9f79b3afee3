//! The immutable parts of a run: its definition and the values given at the start.
//!
//! They are stored under their own key and never rewritten, so that recording a step stays a small
//! write. In memory they are fields of [`RunRecord`], which does not serialize them.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::pipeline::{Params, Pipeline, Vars};
use crate::run::RunRecord;

/// Value of the key for a run's immutable parts.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct RunDefinition {
    /// The definition when the run was accepted. Absent if the pipeline was unknown.
    #[serde(default)]
    pub pipeline: Option<Pipeline>,
    /// Variables given at the start. They override the pipeline's.
    #[serde(default)]
    pub vars: Vars,
    /// Template values given at the start. They override the variables.
    #[serde(default)]
    pub params: Params,
}

/// [`RunDefinition`] borrowed from a record.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Borrowed<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pipeline: Option<&'a Pipeline>,
    #[serde(skip_serializing_if = "Vars::is_empty")]
    vars: &'a Vars,
    #[serde(skip_serializing_if = "Params::is_empty")]
    params: &'a Params,
}

impl RunRecord {
    /// Serializes the immutable parts. Returns `None` if there are none, and then no key is needed.
    ///
    /// # Errors
    /// Never in practice, because every part is valid JSON.
    pub fn definition(&self) -> serde_json::Result<Option<Vec<u8>>> {
        let Self { pipeline, vars, params, .. } = self;
        if pipeline.is_none() && vars.is_empty() && params.is_empty() {
            return Ok(None);
        }
        serde_json::to_vec(&Borrowed { pipeline: pipeline.as_ref(), vars, params }).map(Some)
    }
}

/// A record as read from the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The record, including its immutable parts.
    pub record: RunRecord,
    /// The first key of the definition that this version does not know. Only a worker that knows
    /// the key can drive the run.
    pub unknown: Option<String>,
    /// The immutable parts as an older version stored them inside the record, with unknown keys
    /// preserved. This is the value to write under their own key.
    pub inline: Option<Vec<u8>>,
}

/// Parses a record and the value of the key for its immutable parts.
///
/// # Errors
/// If one of them is malformed.
pub fn read(record: &[u8], definition: Option<&[u8]>) -> serde_json::Result<Stored> {
    let (read, unknown): (RunRecord, _) = with_unknown(record, |key| key.starts_with(PIPELINE))?;
    if read.pipeline.is_some() || !read.vars.is_empty() || !read.params.is_empty() {
        return Ok(Stored { record: read, unknown, inline: Some(inline(record)?) });
    }
    let Some(definition) = definition else {
        return Ok(Stored { record: read, unknown: None, inline: None });
    };
    let (parts, unknown): (RunDefinition, _) = with_unknown(definition, |_| true)?;
    let RunDefinition { pipeline, vars, params } = parts;
    let record = RunRecord { pipeline, vars, params, ..read };
    Ok(Stored { record, unknown, inline: None })
}

/// The base image of a run, from its record and the key of its immutable parts. Everything else is
/// ignored, so that entries of later versions can be read. `None`: it has none, or the JSON is
/// invalid.
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

/// The mounts of the steps of a run, as written, from its record and the key of its immutable
/// parts. Everything else is ignored, as for [`image_of`].
#[must_use]
pub fn mounts_of(record: &[u8], definition: Option<&[u8]>) -> Vec<String> {
    let mounts = |json: &[u8]| {
        let json: Value = serde_json::from_slice(json).ok()?;
        let steps = json.get("pipeline")?.get("steps")?.as_array()?;
        let mounts = steps.iter().filter_map(|step| step.get("with")?.get("mounts")?.as_array());
        let texts = mounts.flatten().filter_map(Value::as_str).map(str::to_owned);
        Some(texts.collect())
    };
    mounts(record).or_else(|| mounts(definition?)).unwrap_or_default()
}

const PIPELINE: &str = "pipeline.";

/// Parses JSON and returns the first unknown key for which `counts` returns `true`.
fn with_unknown<T: DeserializeOwned>(
    json: &[u8],
    counts: impl Fn(&str) -> bool,
) -> serde_json::Result<(T, Option<String>)> {
    let mut unknown = None;
    let mut json = serde_json::Deserializer::from_slice(json);
    let read = serde_ignored::deserialize(&mut json, |path| {
        // `serde_ignored` marks an optional value with `?` in the path.
        let key = path.to_string().replace(".?", "");
        if unknown.is_none() && counts(&key) {
            unknown = Some(key);
        }
    })?;
    json.end()?;
    Ok((read, unknown))
}

/// Extracts the immutable parts from a record of an older version, unchanged.
fn inline(record: &[u8]) -> serde_json::Result<Vec<u8>> {
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
    fn the_image_of_a_run_is_found_in_any_kind_of_entry() {
        let later = json!({
            "pipeline": { "image": "busybox", "steps": 7, "shape": {} }, "status": "dreaming",
        });
        let later = bytes(&later);
        assert_eq!(image_of(b"{}", Some(&later)).as_deref(), Some("busybox"));
        assert_eq!(image_of(&later, None).as_deref(), Some("busybox"));
        assert_eq!(image_of(b"[]", Some(b"[")), None);
    }

    #[test]
    fn a_record_contains_its_definition_but_is_written_without_it() {
        let stored = read(&bytes(&record()), Some(&bytes(&definition()))).unwrap();
        assert_eq!((stored.unknown, stored.inline), (None, None));
        let of_run = stored.record;
        assert_eq!(of_run.pipeline.as_ref().map(|pipeline| pipeline.steps.len()), Some(1));
        assert_eq!((of_run.vars.len(), of_run.params.len()), (1, 1));
        let written = serde_json::to_value(&of_run).unwrap();
        for key in ["pipeline", "vars", "params"] {
            assert!(written.get(key).is_none(), "{written}");
        }
        let again = read(&bytes(&written), of_run.definition().unwrap().as_deref()).unwrap();
        assert_eq!(again.record, of_run);
    }

    #[test]
    fn fields_of_later_versions_are_kept() {
        let stored = read(&bytes(&record()), None).unwrap();
        let written = serde_json::to_value(&stored.record).unwrap();
        assert_eq!(written["tags"], json!(["x"]));
        assert_eq!(written["steps"][0]["mood"], json!("good"));
    }

    #[test]
    fn a_record_of_an_older_version_contains_its_own_definition() {
        let (mut old, mut parts) = (record(), definition());
        parts["pipeline"]["steps"][0]["later"] = json!(true);
        for (key, part) in parts.as_object().unwrap() {
            old[key] = part.clone();
        }
        let stored = read(&bytes(&old), None).unwrap();
        assert_eq!(stored.unknown.as_deref(), Some("pipeline.steps.0.later"));
        let inline: Value = serde_json::from_slice(&stored.inline.unwrap()).unwrap();
        assert_eq!(inline, parts);
        assert!(stored.record.rest.contains_key("tags"));
    }

    #[test]
    fn a_definition_with_an_unknown_key_is_reported() {
        let mut parts = definition();
        parts["pipeline"]["steps"][0]["later"] = json!(true);
        let stored = read(&bytes(&record()), Some(&bytes(&parts))).unwrap();
        assert_eq!(stored.unknown.as_deref(), Some("pipeline.steps.0.later"));
        parts = definition();
        parts["later"] = json!(true);
        let stored = read(&bytes(&record()), Some(&bytes(&parts))).unwrap();
        assert_eq!(stored.unknown.as_deref(), Some("later"));
    }

    #[test]
    fn a_run_of_an_unknown_pipeline_has_no_definition_key() {
        let stored = read(&bytes(&record()), None).unwrap();
        assert_eq!(stored.record.definition().unwrap(), None);
    }
}
