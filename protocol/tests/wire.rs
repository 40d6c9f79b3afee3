//! The tables of `docs/wire.md` contain exactly the names in the types.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod tables;

use protocol::definition::RunDefinition;
use protocol::event::{Event, Kind, Severity};
use protocol::id::{NodeId, PipelineId, RunId, StepPosition};
use protocol::pipeline::ExecutorKind;
use protocol::run::{
    Cause, NodeEntry, Open, OwnerEntry, Registered, RunRecord, Status, StepRecord, StepStatus,
    StopEntry, StoredPipeline,
};
use protocol::schema::{SchemaName, schema};
use protocol::wait_list::WaitList;
use protocol::{command, names};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use tables::{Table, check, code, list, table};

#[test]
fn the_tables_of_the_wire_contract_match_the_types() {
    let mut all = vec![objects(), commands(), fields_of_start(), keys(), reasons(), executors()];
    all.extend(records());
    all.extend(pipelines());
    all.extend(constants_of_names());
    check("protocol/", &all);
}

fn names_of(table: &str, names: impl IntoIterator<Item = String>) -> Table {
    tables::names(table, names.into_iter().map(|name| code(&name)))
}

/// The schema of a type as it is written.
fn written<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// The schema of a type as it is read.
fn read<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12();
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// Objects that have a table of their own.
const APART: [&str; 4] = ["Step", "Pipeline", "Event", "StepRecord"];

/// The properties of an object. `?` marks those that can be missing.
fn fields(object: &Value) -> Vec<String> {
    let required = |name: &str| {
        let is_in = |object: &Value| {
            object["required"].as_array().is_some_and(|all| all.iter().any(|it| it == name))
        };
        // A required key with two spellings.
        let either = object["allOf"].as_array().into_iter().flatten();
        let mut either = either.flat_map(|all| all["anyOf"].as_array().into_iter().flatten());
        is_in(object) || either.any(is_in)
    };
    let properties = object["properties"].as_object().unwrap();
    let mut found: Vec<String> = Vec::new();
    let mut known: Vec<String> = Vec::new();
    for name in properties.keys() {
        // The other spelling of a key comes after the one that is written.
        if known.contains(&name.replace('_', "-")) || known.contains(&name.replace('-', "_")) {
            continue;
        }
        known.push(name.clone());
        let mark = if required(name) { "" } else { "?" };
        found.push(format!("{name}{mark}"));
    }
    found
}

/// The properties of an object, each followed by those of the object in it, by their path.
fn deep_fields(root: &Value, object: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    for field in fields(object) {
        found.push(format!("{path}{field}"));
        let name = field.trim_end_matches('?');
        let property = &object["properties"][name];
        let many = property.get("items").is_some();
        let Some((target, inner)) = target_of(root, property) else { continue };
        if inner.get("properties").is_some() && !APART.contains(&target) {
            let path = format!("{path}{name}{}.", if many { "[]" } else { "" });
            found.extend(deep_fields(root, inner, &path));
        }
    }
    found
}

/// The definition that a property refers to, and its name.
fn target_of<'a>(root: &'a Value, property: &'a Value) -> Option<(&'a str, &'a Value)> {
    let either = property["anyOf"].as_array().into_iter().flatten();
    let places = [property, &property["items"]].into_iter().chain(either);
    let reference = places.into_iter().find_map(|place| place["$ref"].as_str())?;
    let target = root.pointer(reference.trim_start_matches('#'))?;
    Some((reference.rsplit('/').next()?, target))
}

/// The words of an enumeration.
fn words(schema: &Value) -> Vec<String> {
    let own = [schema];
    let all = schema["oneOf"].as_array().into_iter().flatten().chain(own);
    let words = all.flat_map(|one| {
        let listed = one["enum"].as_array().into_iter().flatten();
        listed.chain(one.get("const")).filter_map(Value::as_str).map(str::to_owned)
    });
    words.collect()
}

/// The constants of `names.rs`: the name and the text of each.
fn constants() -> Vec<(&'static str, &'static str)> {
    let source = include_str!("../src/names.rs");
    let constant = |line: &'static str| {
        let (name, text) = line.strip_prefix("pub const ")?.split_once(": &str = \"")?;
        Some((name, text.strip_suffix("\";")?))
    };
    let constants: Vec<_> = source.lines().filter_map(constant).collect();
    assert!(constants.len() > 30, "the constants are written in another way");
    constants
}

/// Constants that no table lists as they are: a content type, the common prefix of two keys, and a
/// file that is listed with its directory.
const UNLISTED: [&str; 3] = ["CONTENT_TYPE", "OPEN_AND_OWNERS", "LOG_ARCHIVE"];

/// The only key that is not the prefix of several.
const SINGLE_KEY: &str = "RETENTION";

fn is_object(constant: &str) -> bool {
    ["EXCHANGE", "_QUEUE", "_STREAM"].iter().any(|ending| constant.ends_with(ending))
}

fn objects() -> Table {
    let all = constants().into_iter().filter(|(name, _)| is_object(name));
    let of_node = names::node_queue(&NodeId::from_stored("<node>"));
    names_of("protocol/objects", all.map(|(_, text)| text.to_owned()).chain([of_node]))
}

fn constants_of_names() -> Vec<Table> {
    let (mut headers, mut labels, mut paths) = (Vec::new(), Vec::new(), Vec::new());
    for (name, text) in constants() {
        if name.starts_with("HEADER_") {
            headers.push(text.to_owned());
        } else if name.starts_with("LABEL_") {
            labels.push(text.to_owned());
        } else if name.ends_with("_PATH") {
            paths.push(text.to_owned());
        } else {
            let is_key = text.ends_with('/') || name == SINGLE_KEY;
            let is_listed = is_object(name) || is_key || UNLISTED.contains(&name);
            assert!(is_listed, "{name} of names.rs is in no table of docs/wire.md");
        }
    }
    vec![
        names_of("protocol/headers", headers),
        names_of("protocol/labels", labels),
        names_of("protocol/paths", paths),
    ]
}

fn body(kind: &str) -> (Value, String) {
    (schema(SchemaName::Command), format!("/$defs/{}", kind.replace('/', "-")))
}

fn commands() -> Table {
    let row = |kind: &str, queue: &str| {
        let (root, at) = body(kind);
        vec![code(kind), code(queue), list(fields(root.pointer(&at).unwrap()))]
    };
    let rows = [
        row(command::START, names::JOBS_QUEUE),
        row(command::STOP, names::CONTROL_QUEUE),
        row(command::PAUSE, names::CONTROL_QUEUE),
        row(command::UNPAUSE, names::CONTROL_QUEUE),
    ];
    let known = schema(SchemaName::Command)["anyOf"].as_array().unwrap().len();
    assert_eq!(rows.len(), known, "a command is missing here");
    table("protocol/commands", rows)
}

fn fields_of_start() -> Table {
    let (root, at) = body(command::START);
    names_of(
        "protocol/fields of pipeline/start",
        deep_fields(&root, root.pointer(&at).unwrap(), ""),
    )
}

fn keys() -> Table {
    let run: RunId = "r-1".parse().unwrap();
    let of_run = |key: String| key.replace("r-1", "<run-id>");
    let pipeline = PipelineId::new("<group>", "<name>").unwrap();
    let callback =
        names::callback_key(&run, StepPosition::new(7), 1).replace("7-1", "<position>-<stage>");
    let registered = list(fields(&written::<Registered>()));
    let link = |text: &str, to: &str| format!("the [{text}](#{to})");
    let stored = list(fields(&written::<StoredPipeline>()));
    let rows = [
        (names::pipeline_key(&pipeline), format!("the [definition](#5-pipelines), {stored}")),
        (of_run(names::run_key(&run)), link("run record", "the-run-record")),
        (of_run(names::definition_key(&run)), list(fields(&read::<RunDefinition>()))),
        (of_run(names::open_key(&run)), list(fields(&written::<Open>()))),
        (of_run(names::owner_key(&run)), list(fields(&written::<OwnerEntry>()))),
        (of_run(names::stop_key(&run)), list(fields(&written::<StopEntry>()))),
        (of_run(names::seen_key(&run)), "empty".to_owned()),
        (of_run(callback), link("outbox entry", "the-outbox-of-callbacks")),
        (names::wait_key(&pipeline), link("wait list", "wait-lists")),
        (names::RETENTION.to_owned(), list(fields(&written::<OwnerEntry>()))),
        (names::node_key(&NodeId::from_stored("<node>")), link("node", "nodes")),
        (format!("{}<name>", names::PROVIDERS), registered.clone()),
        (format!("{}<name>", names::STORES), registered.clone()),
        (format!("{}<name>", names::LOGGERS), registered),
    ];
    for (name, prefix) in constants().into_iter().filter(|(_, text)| text.ends_with('/')) {
        let is_listed = rows.iter().any(|(key, _)| key.starts_with(prefix));
        assert!(is_listed, "key {name} is missing here");
    }
    table("protocol/keys", rows.map(|(key, value)| vec![code(&key), value]))
}

fn records() -> Vec<Table> {
    let all = |schema: Value| deep_fields(&schema, &schema, "");
    let event = fields(&written::<Event>()).into_iter().chain(["reason".to_owned()]);
    vec![
        names_of("protocol/run record", all(written::<RunRecord>())),
        names_of("protocol/step entry", all(written::<StepRecord>())),
        names_of("protocol/wait list", all(written::<WaitList>())),
        names_of("protocol/node", all(written::<NodeEntry>())),
        names_of("protocol/run statuses", words(&written::<Status>())),
        names_of("protocol/step statuses", words(&written::<StepStatus>())),
        names_of("protocol/causes", words(&written::<Cause>())),
        names_of("protocol/event", event),
    ]
}

fn reasons() -> Table {
    let root = written::<Event>();
    let variants = root["oneOf"].as_array().unwrap();
    let rows = variants.iter().map(|variant| {
        let added: Vec<String> = fields(variant).into_iter().filter(|it| it != "reason").collect();
        let (severities, kind) = severities(&root, variant);
        let reason = variant["properties"]["reason"]["const"].as_str().unwrap();
        vec![code(reason), severities, format!("{kind:?}"), list(added)]
    });
    table("protocol/reasons", rows)
}

/// The severities and the kind of a reason. An exit code can make a difference.
fn severities(root: &Value, variant: &Value) -> (String, Kind) {
    let properties = variant["properties"].as_object().unwrap();
    let mut least = json!({ "at": 0, "type": "Normal", "kind": "Runner", "message": "" });
    for field in fields(variant).iter().filter(|field| !field.ends_with('?')) {
        least[field] = sample(root, &properties[field]);
    }
    let codes: &[Option<i32>] =
        if properties.contains_key("exit-code") { &[Some(0), Some(1), None] } else { &[None] };
    let mut found: Vec<Severity> = Vec::new();
    let mut kind = None;
    for code in codes {
        let mut event: Map<String, Value> = least.as_object().unwrap().clone();
        event.extend(code.map(|code| ("exit-code".to_owned(), code.into())));
        let event: Event = serde_json::from_value(event.into()).unwrap();
        let severity = event.reason.severity();
        if !found.contains(&severity) {
            found.push(severity);
        }
        kind = Some(event.reason.kind());
    }
    let found: Vec<String> = found.iter().map(|severity| format!("{severity:?}")).collect();
    (found.join(", "), kind.unwrap())
}

/// A value that fits a schema.
fn sample(root: &Value, property: &Value) -> Value {
    if property.get("items").is_some() {
        return json!([]);
    }
    let target = target_of(root, property).map_or(property, |(_, target)| target);
    if let Some(word) = words(target).first() {
        return word.clone().into();
    }
    match target["type"].as_str() {
        Some("integer") => 0.into(),
        Some("string") => "a".into(),
        other => panic!("no sample of {other:?}: {property}"),
    }
}

fn pipelines() -> Vec<Table> {
    let root = schema(SchemaName::Pipeline);
    let step = deep_fields(&root, &root["$defs"]["Step"], "");
    vec![
        names_of("protocol/pipeline", deep_fields(&root, &root, "")),
        names_of("protocol/step", step),
    ]
}

fn executors() -> Table {
    let row = |kind: ExecutorKind| vec![code(kind.as_str()), list(kind.capabilities().with_keys)];
    table("protocol/executors", ExecutorKind::ALL.map(row))
}
