//! The parser accepts arbitrary bytes, and all forms of a pipeline have the same meaning.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use indexmap::IndexMap;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use protocol::command;
use protocol::dialect::{parse, pipeline_faults_json, pipeline_from_json};
use protocol::id::{RegisteredName, StepName};
use protocol::pipeline::{
    Admission, Artifact, Backoff, Callback, Cmd, EndSignal, ExecutorKind, FailureMode, Graph,
    Layout, Limits, Missing, OnLogLimit, OnLost, Output, OutputKind, Pipeline, Place, PullPolicy,
    Quotas, RelativeTo, Requests, Resource, ResourceKind, Retry, RetryOn, SecretUse, Shell, Step,
    Strategy as Strategy_, Template, Token, Vars, When,
};
use protocol::quantity::{Cpu, Memory, Span};
use serde_json::Value;

fn vars() -> impl Strategy<Value = Vars> {
    btree_map("[A-Za-z_][A-Za-z0-9_. -]{0,8}", "[^\\x00]{0,12}", 0..3)
        .prop_map(|map| map.into_iter().collect())
}

fn span() -> impl Strategy<Value = Span> {
    (1..=Span::MAX_MILLIS).prop_map(|millis| Span::from_millis(millis).unwrap())
}

fn memory() -> impl Strategy<Value = Memory> {
    (1_u64..1 << 40).prop_map(|kibibytes| format!("{kibibytes}Ki").parse().unwrap())
}

fn registered() -> impl Strategy<Value = RegisteredName> {
    "[^\\x00-\\x1f\\x7f-\\x9f/]{1,12}".prop_map(|name| name.parse().unwrap())
}

fn network() -> impl Strategy<Value = Option<String>> {
    option::of(select(vec!["none", "host", "private", "pasta:-T,80", "my-net"]))
        .prop_map(|name| name.map(str::to_owned))
}

fn pull() -> impl Strategy<Value = Option<PullPolicy>> {
    option::of(select(vec![PullPolicy::Always, PullPolicy::Missing, PullPolicy::Never]))
}

fn resource() -> impl Strategy<Value = Resource> {
    let kind = select(vec![ResourceKind::External, ResourceKind::Internal]);
    ("[a-z é.-]{1,8}[a-z]", kind, registered(), vars()).prop_map(|(name, kind, provider, vars)| {
        let mut params = vars;
        if kind == ResourceKind::Internal {
            for (key, value) in [("group", "g"), ("name", "n"), ("run-id", "r-1")] {
                params.insert(key.to_owned(), value.to_owned());
            }
        }
        Resource { name, kind, provider, params }
    })
}

/// A command, or shell programs with their shell and template syntax.
fn work() -> impl Strategy<Value = (Option<Cmd>, Vec<String>, Option<Shell>, Option<Template>)> {
    let shell = option::of(select(vec![Shell::Sh, Shell::Bash]));
    let template = select(vec![Template::Go, Template::Dollar]);
    let script = (vec("[^\\x00]{0,12}", 1..3), shell, option::of(template));
    prop_oneof![
        cmd().prop_map(|cmd| (Some(cmd), Vec::new(), None, None)),
        script.prop_map(|(script, shell, template)| (None, script, shell, template)),
    ]
}

fn cmd() -> impl Strategy<Value = Cmd> {
    prop_oneof![
        "[a-z/]{1,6}( [^\\x00]{0,12})?".prop_map(Cmd::Line),
        ("[^\\x00]{1,6}", vec("[^\\x00]{0,8}", 0..3)).prop_map(|(program, mut words)| {
            words.insert(0, program);
            Cmd::Words(words)
        }),
    ]
}

/// Settings for the executor.
fn with() -> impl Strategy<Value = serde_json::Map<String, Value>> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e12..1e12_f64).prop_map(Value::from),
        "[^\\x00]{0,12}".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(2, 8, 3, |inner| {
        let map = btree_map("[a-z_]{1,8}", inner.clone(), 0..3);
        let map = map.prop_map(|map| map.into_iter().collect());
        prop_oneof![vec(inner, 0..3).prop_map(Value::from), map.prop_map(Value::Object)]
    });
    btree_map("[a-z_]{1,8}", value, 0..3).prop_map(|map| map.into_iter().collect())
}

/// The label, settings, outputs and callback of a step.
type Handover = (Option<String>, serde_json::Map<String, Value>, Vec<Output>, Option<Callback>);

fn handover() -> impl Strategy<Value = Handover> {
    let kind = option::of(select(vec![OutputKind::File, OutputKind::Dir]));
    let missing = select(vec![Missing::Ignore, Missing::Warn, Missing::Fail]);
    let layout = select(vec![Layout::Flat, Layout::Relative]);
    let output = ("[a-z*][a-z/*]{0,8}", kind, missing, layout);
    let output = output.prop_map(|(path, kind, missing, layout)| Output {
        path,
        kind,
        missing,
        layout,
        relative_to: RelativeTo::WorkDir,
    });
    let token = prop_oneof![
        "[^\\x00]{1,8}".prop_map(Token::Literal),
        "[a-z]{1,8}".prop_map(|name| Token::Named { name }),
    ];
    let callback = ("https?://[a-z]{1,8}(/[a-z]{0,4})?", option::of(token))
        .prop_map(|(url, secret)| Callback { url, secret });
    (option::of("[a-z]{1,8}"), with(), vec(output, 0..2), option::of(callback))
}

/// A step without references to other parts. Its name can be its position.
fn step() -> impl Strategy<Value = Step> {
    let artifact = ("[a-z.]{1,8}x", "[a-z][a-z/.]{0,8}x", registered())
        .prop_filter("leaves the directory", |(_, path, _)| !path.contains(".."))
        .prop_map(|(name, path, store)| Artifact { name, path, store });
    let backoff = select(vec![Backoff::Exponential, Backoff::Constant]);
    let retry = (
        1_u32..=100,
        option::of(span()),
        vec(select(vec![RetryOn::Failure, RetryOn::Lost]), 1..3),
        backoff,
    )
        .prop_map(|(attempts, delay, on, backoff)| Retry { attempts, delay, on, backoff });
    let executor = select(vec![ExecutorKind::Podman, ExecutorKind::Ssh, ExecutorKind::Http]);
    let when = select(vec![When::Passed, When::Ended]);
    let signal = select(EndSignal::NAMED.map(|(_, signal)| signal).to_vec());
    let grace = (1_u64..=3_600_000).prop_map(|millis| Span::from_millis(millis).unwrap());
    let times = (option::of(span()), option::of(signal), option::of(grace));
    let rest = (network(), pull(), times, option::of(retry), executor, when, any::<bool>());
    let secret = prop_oneof![
        "[a-z-]{1,8}".prop_map(SecretUse::File),
        ("[a-z-]{1,8}", "[A-Z_][A-Z_0-9]{0,7}")
            .prop_map(|(name, env)| SecretUse::Var { name, env }),
    ];
    (work(), vars(), option::of(artifact), rest, vec(secret, 0..2), handover()).prop_map(
        |((cmd, script, shell, template), vars, produces_artifact, rest, secrets, handover)| {
            let (label, with, outputs, callback) = handover;
            let (network, pull, times, retry, executor, when, allow_failure) = rest;
            let (timeout, signal, grace) = times;
            // Unknown keys are rejected, and null counts as absent.
            let with = if executor == ExecutorKind::Podman {
                label.iter().map(|label| ("label".to_owned(), label.clone().into())).collect()
            } else {
                let values = with.into_values().filter(|value| !value.is_null());
                executor
                    .capabilities()
                    .with_keys
                    .iter()
                    .map(|&key| key.to_owned())
                    .zip(values)
                    .collect()
            };
            let entrypoint = match shell.filter(|_| executor.capabilities().place == Place::Engine)
            {
                Some(Shell::Bash) => Some(vec!["tini".to_owned(), "--".to_owned()]),
                Some(Shell::Sh) => Some(Vec::new()),
                None => None,
            };
            let network = network.filter(|_| executor == ExecutorKind::Podman);
            Step {
                name: StepName::position(0),
                cmd,
                script,
                shell,
                entrypoint,
                template,
                when,
                allow_failure,
                on_log_limit: if allow_failure { OnLogLimit::Fail } else { OnLogLimit::Discard },
                from: None,
                vars,
                needs_resource: None,
                produces_artifact,
                network,
                pull,
                timeout,
                stop_signal: signal.filter(|_| executor.capabilities().has_signals),
                kill_grace: grace.filter(|_| !executor.capabilities().is_call()),
                retry,
                needs: None,
                executor,
                secrets,
                label,
                with,
                outputs,
                callback,
            }
        },
    )
}

fn admission() -> impl Strategy<Value = Admission> {
    let count = || option::of(1_u32..9);
    let partitioned = (count(), 1_u32..9).prop_map(|(concurrency, limit)| Admission {
        concurrency,
        limit: None,
        strategy: Strategy_::PartitionedReplace,
        partition_limit: Some(limit),
        start_delay: None,
    });
    let other = select(vec![Strategy_::Append, Strategy_::Replace]);
    let plain = (count(), count(), other, option::of(span())).prop_map(
        |(concurrency, limit, strategy, start_delay)| Admission {
            concurrency,
            limit,
            strategy,
            partition_limit: None,
            start_delay,
        },
    );
    prop_oneof![partitioned, plain]
}

fn quotas() -> impl Strategy<Value = Quotas> {
    let requests = option::of(memory()).prop_map(|mem| Requests { mem });
    let cpu = (0.001..=1.0_f64).prop_map(|share| Cpu::new(share).unwrap());
    let limits = (option::of(cpu), option::of(memory())).prop_map(|(cpu, mem)| Limits { cpu, mem });
    (option::of(requests), option::of(limits))
        .prop_map(|(requests, limits)| Quotas { requests, limits })
}

/// References of a step: its own name, its resource, and the steps it needs.
type Ties = (Option<String>, Option<Index>, Option<Vec<Index>>);

fn tied(steps: Vec<(Step, Ties)>, resources: &[Resource]) -> Vec<Step> {
    let mut tied: Vec<Step> = Vec::new();
    for (position, (mut step, (name, resource, needs))) in steps.into_iter().enumerate() {
        step.name = match name {
            Some(name) => format!("s{position} {name}").parse().unwrap(),
            None => StepName::position(position),
        };
        if let (Some(index), false) = (resource, resources.is_empty()) {
            step.needs_resource = Some(index.get(resources).name.clone());
        }
        step.needs = needs.map(|needs| match tied.as_slice() {
            [] => Vec::new(),
            before => needs.iter().map(|index| index.get(before).name.clone()).collect(),
        });
        tied.push(step);
        // A step that needs several images selects one.
        let graph = Graph::of(&tied);
        let mut images = graph.images_before(position);
        if let (Some(first), Some(_), true) =
            (images.next(), images.next(), tied[position].is_on_image())
        {
            tied[position].from = Some(tied[first].name.clone());
        }
    }
    tied
}

/// A valid pipeline that uses every feature.
fn pipeline() -> impl Strategy<Value = Pipeline> {
    let identity = ("[^\\x00-\\x1f\\x7f-\\x9f:]{1,12}", "[^\\x00-\\x1f\\x7f-\\x9f]{1,12}");
    let image = "[a-z0-9][a-z0-9./:@-]{0,20}";
    let ties = (
        option::of("[A-Za-z0-9._ -]{0,6}"),
        option::of(any::<Index>()),
        option::of(vec(any::<Index>(), 0..3)),
    );
    let lost = option::of(select(vec![OnLost::Resume, OnLost::Restart, OnLost::Fail]));
    let failure = select(vec![FailureMode::FailFast, FailureMode::Continue]);
    let rest = (network(), pull(), option::of(span()), lost, option::of(span()));
    let more = (failure, option::of(admission()), option::of(step()), option::of(1_u32..9));
    let rest = (rest, more);
    let steps = vec((step(), ties), 0..4);
    (identity, image, vars(), vec(resource(), 0..3), option::of(quotas()), rest, steps).prop_map(
        |((group, name), image, vars, resources, quotas, rest, steps)| {
            let resources: IndexMap<String, Resource> =
                resources.into_iter().map(|resource| (resource.name.clone(), resource)).collect();
            let resources: Vec<Resource> = resources.into_values().collect();
            let ((network, pull, timeout, on_lost, retention), more) = rest;
            let (failure, admission, on_error, retention_count) = more;
            let on_error = on_error.map(|step| {
                let name = StepName::try_from("on_error".to_owned()).unwrap();
                Box::new(Step { name, when: When::Passed, allow_failure: false, ..step })
            });
            let steps = tied(steps, &resources);
            Pipeline {
                group,
                name,
                image: Some(image),
                vars,
                resources,
                quotas,
                failure,
                admission,
                on_error,
                retention_count,
                network,
                pull,
                timeout,
                on_lost,
                retention,
                steps,
            }
        },
    )
}

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
        let among_runs = pipeline.admission.is_some() || pipeline.retention_count.is_some();
        let read = parse(None, &body);
        let warned = read.diagnostics.iter().any(|fault| fault.message.contains("a worker does not take it yet"));
        prop_assert_eq!(warned, among_runs);
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
