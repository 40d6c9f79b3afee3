//! The published schemas agree with the parser and with serialized values.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jsonschema::Validator;
use protocol::command::{self, decode};
use protocol::definition;
use protocol::dialect::{parse, pipeline_from_json};
use protocol::run::{RunRecord, Status};
use protocol::schema::{SchemaName, schema};
use protocol::time::{Millis, Timestamp};
use serde_json::{Value, json};

fn golden(ending: &str) -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<_> = ["bob", "job"]
        .into_iter()
        .flat_map(|folder| fs::read_dir(golden.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(ending))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn faults(schema: &Validator, value: &Value) -> Vec<String> {
    schema.iter_errors(value).map(|e| format!("{e} at {}", e.instance_path())).collect()
}

#[test]
fn every_schema_is_valid_and_names_its_dialect() {
    let mut ids = BTreeSet::new();
    for what in SchemaName::ALL {
        let schema = schema(what);
        assert_eq!(what.as_str().parse::<SchemaName>().unwrap(), what);
        if what == SchemaName::Asyncapi {
            continue;
        }
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        ids.insert(schema["$id"].as_str().unwrap().to_owned());
        assert!(jsonschema::meta::is_valid(&schema), "{what}");
    }
    assert_eq!(ids.len(), 4);
    assert!("pipelines".parse::<SchemaName>().is_err());
}

#[test]
fn every_plan_matches_the_schema() {
    let schema = jsonschema::validator_for(&schema(SchemaName::Pipeline)).unwrap();
    for path in golden(".plan.json") {
        let faults = faults(&schema, &read(&path));
        assert!(faults.is_empty(), "{}: {faults:?}", path.display());
    }
}

#[test]
fn schema_and_parser_agree_on_json_pipelines() {
    let schema = jsonschema::validator_for(&schema(SchemaName::Pipeline)).unwrap();
    let pipeline = |change: fn(&mut Value)| {
        let mut pipeline = json!({
            "group": "dev", "name": "x", "image": "docker.io/library/busybox",
            "steps": [{ "cmd": "true" }, { "cmd": ["a", 1] }],
        });
        change(&mut pipeline);
        pipeline
    };
    let good: [fn(&mut Value); 9] = [
        |_| {},
        |p| p["vars"] = json!({ "A": "a", "B": 1.5, "C": true }),
        |p| p["on_lost"] = "resume".into(),
        |p| p["on-lost"] = "fail".into(),
        |p| p["timeout"] = 90.into(),
        |p| p["timeout"] = "1h30m".into(),
        |p| p["steps"][0]["needs-resource"] = Value::Null,
        |p| p["quotas"] = json!({ "requests": { "mem": "1G" }, "limits": { "cpu": 1 } }),
        |p| p["steps"] = json!([]),
    ];
    for (index, change) in good.into_iter().enumerate() {
        let value = pipeline(change);
        assert!(pipeline_from_json(&value).is_ok(), "good {index}: {value}");
        assert!(faults(&schema, &value).is_empty(), "good {index}: {:?}", faults(&schema, &value));
    }
    let bad: [fn(&mut Value); 20] = [
        |p| p["image"] = "a b".into(),
        |p| p["steps"][0]["cmd"] = json!([]),
        |p| p["steps"][0]["cmd"] = "".into(),
        |p| p["steps"][0]["cmd"] = "  ".into(),
        |p| p["vars"] = json!({ "A=B": "a" }),
        |p| p["vars"] = json!({ "": "a" }),
        |p| drop(p.as_object_mut().unwrap().remove("steps")),
        |p| p["group"] = "a:b".into(),
        |p| p["name"] = "".into(),
        |p| p["name"] = 7.into(),
        |p| p["imgae"] = "x".into(),
        |p| p["vars"] = json!({ "A": null }),
        |p| p["vars"] = json!({ "A": ["a"] }),
        |p| p["timeout"] = "soon".into(),
        |p| p["timeout"] = 0.into(),
        |p| p["pull"] = "maybe".into(),
        |p| p["quotas"] = json!({ "limits": { "cpu": 1.5 } }),
        |p| p["quotas"] = json!({ "limits": { "mem": "1k" } }),
        |p| p["steps"][0]["cmd"] = 7.into(),
        |p| p["steps"][0]["name"] = "-x".into(),
    ];
    for (index, change) in bad.into_iter().enumerate() {
        let value = pipeline(change);
        assert!(pipeline_from_json(&value).is_err(), "bad {index}: {value}");
        assert!(!faults(&schema, &value).is_empty(), "bad {index}: {value}");
    }
}

#[test]
fn schema_and_decoder_agree_on_commands() {
    let whole = schema(SchemaName::Command);
    let inline = json!({ "group": "d", "name": "x", "image": "i", "steps": [] });
    let cases = [
        (command::START, json!({ "group": "d", "name": "x" }), true),
        (command::START, json!({ "run-id": "r-1", "pipeline": inline, "backoff": 2000 }), true),
        (command::START, json!({ "run_id": "r-1", "group": "d", "name": "x", "more": 1 }), true),
        (command::START, json!({ "group": "d", "name": "x", "vars": { "A": 1.5 } }), true),
        (command::START, json!({ "group": "d", "name": "x", "logger": null }), true),
        (command::START, json!({ "group": "d", "pipeline": inline }), false),
        (command::START, json!({ "group": "d" }), false),
        (command::START, json!({}), false),
        (command::START, json!([]), false),
        (command::START, json!({ "run-id": "x", "group": "d", "name": "x" }), false),
        (command::START, json!({ "pipeline": { "group": "d", "more": 1 } }), false),
        (command::START, json!({ "group": "d", "name": "x", "vars": { "A": [] } }), false),
        (command::START, json!({ "group": "d", "name": "x", "logger": "a/b" }), false),
        (command::START, json!({ "group": "d", "name": "x", "partition": 1 }), false),
        (command::STOP, json!({ "run-id": "r-1" }), true),
        (command::STOP, json!({ "run_id": "r-1", "reason": "enough" }), true),
        (command::STOP, json!({ "reason": "enough" }), false),
        (command::STOP, json!({ "run-id": 1 }), false),
        (command::PAUSE, json!({ "group": "d", "name": "x", "at": 1 }), true),
        (command::UNPAUSE, json!({ "group": "d", "name": "x" }), true),
        (command::UNPAUSE, json!({ "group": "d" }), false),
        (command::PAUSE, json!({ "group": "d", "name": "x", "at": "now" }), false),
    ];
    for (kind, body, good) in cases {
        let decoded = decode(Some(kind), None, body.to_string().as_bytes());
        assert_eq!(decoded.is_ok(), good, "{kind} {body}: {decoded:?}");
        let mut one = whole.clone();
        let keys = one.as_object_mut().unwrap();
        keys.remove("anyOf");
        keys.insert("$ref".into(), format!("#/$defs/{}", kind.replace('/', "-")).into());
        let faults = faults(&jsonschema::validator_for(&one).unwrap(), &body);
        assert_eq!(faults.is_empty(), good, "{kind} {body}: {faults:?}");
    }
}

#[test]
fn a_run_record_matches_its_schema() {
    let schema = jsonschema::validator_for(&schema(SchemaName::Run)).unwrap();
    for path in golden(".plan.json") {
        let pipeline = serde_json::from_value(read(&path)).unwrap();
        let record = RunRecord {
            group: "dev".into(),
            name: "x".into(),
            run_id: "r-1".parse().unwrap(),
            status: Status::Pending,
            cause: None,
            message: None,
            logger: None,
            vars: protocol::pipeline::Vars::from([("A".to_owned(), "1".to_owned())]),
            params: serde_json::from_value(json!({ "list": [1, "a", null] })).unwrap(),
            pipeline: Some(pipeline),
            node: None,
            epoch: None,
            parent: None,
            attempt: 1,
            losses: 0,
            reclaims: 0,
            furthest: 0,
            attempts: indexmap::IndexMap::from([("3".parse().unwrap(), 2)]),
            last_seq: None,
            released: None,
            scheduled_at: Timestamp(Millis(1_700_000_000_000)),
            initiated_at: None,
            initialized_at: None,
            started_at: None,
            completed_at: None,
            steps: Vec::new(),
            ending_event: None,
            trusted: false,
            rest: serde_json::Map::new(),
        };
        let stored = serde_json::to_value(&record).unwrap();
        let definition = record.definition().unwrap().unwrap();
        let read = definition::read(stored.to_string().as_bytes(), Some(&definition)).unwrap();
        assert_eq!((read.record, read.unknown_key), (record, None));
        // As in records of older versions, and as `show` prints them.
        let mut whole = stored.clone();
        let parts: Value = serde_json::from_slice(&definition).unwrap();
        whole.as_object_mut().unwrap().extend(parts.as_object().unwrap().clone());
        for value in [stored, whole] {
            let faults = faults(&schema, &value);
            assert!(faults.is_empty(), "{value}: {faults:?}");
        }
    }
}

/// Every `$ref` in a document.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match (key.as_str(), value) {
                    ("$ref", Value::String(reference)) => found.push(reference),
                    (_, value) => references(value, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_reference_in_a_schema_resolves() {
    for what in SchemaName::ALL {
        let document = schema(what);
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty(), "{what}");
        for reference in found {
            let target = document.pointer(reference.strip_prefix('#').unwrap());
            assert!(target.is_some(), "{what}: {reference}");
        }
    }
}

#[test]
fn the_asyncapi_document_names_every_queue_and_every_type() {
    let document = schema(SchemaName::Asyncapi).to_string();
    for name in [
        "bob.direct",
        "bob.dlx",
        "bob.jobs",
        "bob.control",
        "bob.jobs.{node}",
        "bob.dlq",
        "bob.event-stream",
        "pipeline/start",
        "pipeline/stop",
        "pipeline/pause",
        "pipeline/unpause",
    ] {
        assert!(document.contains(&format!("\"{name}\"")), "{name}");
    }
}

#[test]
fn schema_and_parser_agree_on_yaml_files() {
    for path in golden(".yaml") {
        let parsed = parse(path.to_str(), &fs::read(&path).unwrap());
        for pipeline in parsed.pipelines {
            let json = serde_json::to_value(&pipeline).unwrap();
            assert_eq!(pipeline_from_json(&json).unwrap(), pipeline);
        }
    }
}
