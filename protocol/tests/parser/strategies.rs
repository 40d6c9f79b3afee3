//! Random pipelines.

use indexmap::IndexMap;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use protocol::id::{RegisteredName, StepName, StepPosition};
use protocol::pipeline::{
    Admission, Artifact, Backoff, Callback, Cmd, EndSignal, ExecutorKind, FailureMode, Graph,
    Layout, Limits, Missing, OnLogLimit, OnLost, Output, OutputKind, Pipeline, Place, PullPolicy,
    Quotas, RelativeTo, Requests, Resource, ResourceKind, Retry, RetryOn, SecretUse, Shell, Step,
    Strategy as Strategy_, Template, Token, Vars, When,
};
use protocol::quantity::{Cpu, Memory, Span};
use serde_json::Value;

pub(crate) fn vars() -> impl Strategy<Value = Vars> {
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

fn artifact() -> impl Strategy<Value = Artifact> {
    ("[a-z.]{1,8}x", "[a-z][a-z/.]{0,8}x", registered())
        .prop_filter("leaves the directory", |(_, path, _)| !path.contains(".."))
        .prop_map(|(name, path, store)| Artifact { name, path, store })
}

fn retry() -> impl Strategy<Value = Retry> {
    let backoff = select(vec![Backoff::Exponential, Backoff::Constant]);
    let on = vec(select(vec![RetryOn::Failure, RetryOn::Lost]), 1..3);
    (1_u32..=100, option::of(span()), on, backoff)
        .prop_map(|(attempts, delay, on, backoff)| Retry { attempts, delay, on, backoff })
}

fn secret() -> impl Strategy<Value = SecretUse> {
    prop_oneof![
        "[a-z-]{1,8}".prop_map(SecretUse::File),
        ("[a-z-]{1,8}", "[A-Z_][A-Z_0-9]{0,7}")
            .prop_map(|(name, env)| SecretUse::Var { name, env }),
    ]
}

/// A step without references to other parts. Its name can be its position.
pub(crate) fn step() -> impl Strategy<Value = Step> {
    let executor = select(vec![ExecutorKind::Podman, ExecutorKind::Ssh, ExecutorKind::Http]);
    let when = select(vec![When::Passed, When::Ended]);
    let signal = select(EndSignal::NAMED.map(|(_, signal)| signal).to_vec());
    let grace = (1_u64..=3_600_000).prop_map(|millis| Span::from_millis(millis).unwrap());
    let times = (option::of(span()), option::of(signal), option::of(grace));
    let rest = (network(), pull(), times, option::of(retry()), executor, when, any::<bool>());
    (work(), vars(), option::of(artifact()), rest, vec(secret(), 0..2), handover()).prop_map(
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
        let mut images = graph.images_before(StepPosition::new(position));
        if let (Some(first), Some(_), true) =
            (images.next(), images.next(), tied[position].is_on_image())
        {
            tied[position].from = Some(tied[first.index()].name.clone());
        }
    }
    tied
}

/// A valid pipeline that uses every feature.
pub(crate) fn pipeline() -> impl Strategy<Value = Pipeline> {
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
