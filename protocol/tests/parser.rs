//! The parser accepts arbitrary bytes, and all forms of a pipeline have the same meaning.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "parser/strategies.rs"]
mod strategies;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use protocol::command;
use protocol::dialect::{parse, pipeline_faults_json, pipeline_from_json};
use protocol::pipeline::Pipeline;
use serde_json::Value;

use strategies::pipeline;

/// Writes a value as YAML in block style, as a person would.
fn block(value: &Value, indent: usize, out: &mut String) {
    let margin = "  ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                write!(out, "\n{margin}{}:", quoted(key)).unwrap();
                block(value, indent + 1, out);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for value in list {
                write!(out, "\n{margin}-").unwrap();
                block(value, indent + 1, out);
            }
        }
        Value::String(text) => write!(out, " {}", quoted(text)).unwrap(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            write!(out, " {value}").unwrap()
        }
    }
}

/// A text in double quotes, escaped for both JSON and YAML.
fn quoted(text: &str) -> String {
    Value::from(text).to_string().chars().fold(String::new(), |mut out, c| {
        if c.is_control() || c == '\u{feff}' || matches!(c, '\u{2028}' | '\u{2029}') {
            write!(out, "\\u{:04x}", u32::from(c)).unwrap();
        } else {
            out.push(c);
        }
        out
    })
}

/// Texts that are almost pipelines.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for folder in ["bob", "job", "prunner", "faults", "other"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
        for entry in fs::read_dir(folder).unwrap() {
            seeds.push(fs::read(entry.unwrap().path()).unwrap());
        }
    }
    seeds.retain(|seed| !seed.is_empty());
    seeds
}

/// One change to a text: position, number of bytes to remove, and their replacement.
type Edit = (Index, usize, Vec<u8>);

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let piece = prop_oneof![
        Just(Vec::new()),
        vec(any::<u8>(), 1..4),
        select(vec![
            "\n", "  ", "\t", ":", "- ", "[", "]", "{", "}", "\"", "'", "&a ", "*a", "!x ", "#",
            "null", "0", "-1", "1e9", "<<: ", "---\n", "\\u", "\u{feff}", "|", ">", "? ", ", ",
        ])
        .prop_map(|piece: &str| piece.as_bytes().to_vec()),
    ];
    vec((any::<Index>(), 0_usize..6, piece), 1..6)
}

fn edited(mut text: Vec<u8>, edits: Vec<Edit>) -> Vec<u8> {
    for (index, cut, piece) in edits {
        let from = index.index(text.len() + 1);
        let to = (from + cut).min(text.len());
        text.splice(from..to, piece);
    }
    text
}

/// Parses bytes as every format and checks that the results are consistent.
fn read_in_every_way(bytes: &[u8]) {
    for name in [None, Some("a.json"), Some("a.yaml"), Some("ci-job-queue")] {
        let parsed = parse(name, bytes);
        assert!(!(parsed.pipelines.is_empty() && parsed.diagnostics.is_empty()));
        for fault in &parsed.diagnostics {
            assert!(fault.line > 0 && fault.column > 0, "{fault:?}");
            assert!(fault.message.chars().count() < 400, "{fault:?}");
            assert!(!fault.message.contains('\n'), "{fault:?}");
            assert_eq!(fault.file.as_deref(), name);
        }
        for pipeline in parsed.pipelines {
            assert_eq!(pipeline_from_json(&serde_json::to_value(&pipeline).unwrap()), Ok(pipeline));
        }
    }
    for kind in [command::START, command::STOP, command::PAUSE, "other"] {
        drop(command::decode(Some(kind), Some("id"), bytes));
    }
    if let Ok(value) = serde_json::from_slice(bytes) {
        drop(pipeline_faults_json(&value));
    }
}

proptest! {
    #[test]
    fn parsing_arbitrary_bytes_does_not_panic(bytes in vec(any::<u8>(), 0..200)) {
        read_in_every_way(&bytes);
    }

    #[test]
    fn parsing_arbitrary_text_does_not_panic(text in "[\\PC\n\t]{0,80}") {
        read_in_every_way(text.as_bytes());
    }

    #[test]
    fn parsing_a_damaged_pipeline_does_not_panic(seed in select(seeds()), edits in edits()) {
        read_in_every_way(&edited(seed, edits));
    }

    #[test]
    fn a_pipeline_round_trips_through_json(pipeline in pipeline()) {
        let value = serde_json::to_value(&pipeline).unwrap();
        prop_assert_eq!(&pipeline_faults_json(&value), &Ok(pipeline.clone()));
        prop_assert_eq!(&serde_json::from_value::<Pipeline>(value.clone()).unwrap(), &pipeline);
        let read = parse(Some("plan.json"), value.to_string().as_bytes());
        prop_assert_eq!(read.pipelines, [pipeline]);
    }

    #[test]
    fn a_pipeline_is_the_same_in_json_and_in_yaml(pipeline in pipeline()) {
        let value = serde_json::to_value(&pipeline).unwrap();
        let mut text = String::new();
        block(&value, 0, &mut text);
        let read = parse(Some("a.yaml"), text.as_bytes());
        prop_assert_eq!(&read.pipelines, &[pipeline], "{}\n{:?}", text, read.diagnostics);
    }

    #[test]
    fn a_pipeline_in_a_message_is_the_same(pipeline in pipeline()) {
        let body = serde_json::json!({ "pipeline": pipeline });
        let decoded = command::decode(Some(command::START), None, body.to_string().as_bytes());
        let Ok(command::Command::Start(start)) = decoded else {
            return Err(TestCaseError::fail(format!("{decoded:?}")));
        };
        prop_assert_eq!(start.target, command::Target::Inline(Box::new(pipeline)));
    }

    #[test]
    fn unsupported_keys_are_reported_and_never_ignored(pipeline in pipeline()) {
        let body = serde_json::to_vec(&pipeline).unwrap();
        let steps = pipeline.steps.iter().chain(pipeline.on_error.as_deref());
        let later = steps.into_iter().any(|step| {
            (!step.secrets.is_empty() && !step.executor.capabilities().takes_secrets)
                || (step.outputs.iter().any(|it| it.is_of_files()) && !step.executor.capabilities().has_files)
        });
        let read = parse(None, &body);
        prop_assert_eq!(read.is_refused(), later);
    }
}

/// A pipeline of `count` steps, the last of which has these `needs`.
fn needing(count: usize, needs: &[String]) -> Value {
    let mut steps: Vec<Value> = (0..count)
        .map(|at| serde_json::json!({ "name": format!("build-{at}"), "cmd": "x", "needs": [] }))
        .collect();
    steps[count - 1]["needs"] = serde_json::json!(needs);
    serde_json::json!({ "group": "g", "name": "n", "image": "i", "steps": steps })
}

#[test]
fn only_the_first_of_many_unknown_names_are_compared_with_the_known_ones() {
    let unknown: Vec<String> = (0..5000).map(|at| format!("biuld-{at}")).collect();
    let faults = pipeline_faults_json(&needing(2000, &unknown)).unwrap_err();
    assert_eq!(faults.len(), unknown.len());
    assert_eq!(faults[0].hint.as_deref(), Some("did you mean \"build-0\"?"));
    assert_eq!(faults[faults.len() - 1].hint, None);
}

#[test]
fn a_pipeline_with_too_many_needs_is_rejected_with_the_limit() {
    let needs = |count| vec!["build-0".to_owned(); count];
    assert!(pipeline_faults_json(&needing(2, &needs(50_000))).is_ok());
    let faults = pipeline_faults_json(&needing(2, &needs(50_001))).unwrap_err();
    let messages: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
    assert_eq!(messages, ["the steps have 50001 `needs`, expected at most 50000"]);
}

#[test]
fn a_step_with_too_many_outputs_is_rejected_with_the_limit() {
    let with_outputs = |count: usize| {
        let outputs: Vec<Value> =
            (0..count).map(|at| serde_json::json!({ "path": format!("{at}/*") })).collect();
        let mut pipeline = needing(1, &[]);
        pipeline["steps"][0]["outputs"] = outputs.into();
        pipeline_faults_json(&pipeline)
    };
    assert_eq!(with_outputs(1000).unwrap().steps[0].outputs.len(), 1000);
    let faults = with_outputs(1001).unwrap_err();
    assert_eq!(faults[0].message, "`outputs` has 1001 items, expected at most 1000");
}
