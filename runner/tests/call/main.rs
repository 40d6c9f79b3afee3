//! Steps that call APIs, with servers that record requests. Each step is parsed from a file, as a
//! user writes it.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]
#![expect(clippy::disallowed_methods, reason = "tests may spawn tasks")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use protocol::dialect::{Dialect, parse_as};
use protocol::event::LogStream;
use protocol::id::Epoch;
use protocol::pipeline::{PullPolicy, Step};
use runner::egress::Policy;
use runner::exec::NamedFiles;
use runner::exec::call::{Options, Times, all};
use runner::ports::{ExecError, Gate, LogSink, Remote, RunScope, StepOutcome, StopSignal};
use serde_json::Value;
use test_support::conformance::StepBuilder;

mod contract;
mod effects;
mod files;
mod http;
mod jobs;
mod lexware;
mod proxmox;
mod reach;
mod rows;
mod server;
mod sevdesk;
mod tls;

/// The steps of a file in the given dialect. Features that this version does not support yet are
/// not an error here.
fn steps(dialect: Dialect, text: &str) -> Vec<Step> {
    let parsed = parse_as(Some(dialect), Some("jobs.yml"), text.as_bytes());
    let pipeline = parsed.pipelines.into_iter().next();
    pipeline.unwrap_or_else(|| panic!("{text}\n{:?}", parsed.diagnostics)).steps
}

/// The parser's errors for a job.
fn faults(text: &str) -> String {
    let parsed = parse_as(Some(Dialect::Job), Some("jobs.yml"), text.as_bytes());
    assert!(parsed.pipelines.is_empty(), "{text}");
    let said: Vec<String> = parsed.diagnostics.iter().map(ToString::to_string).collect();
    said.join("\n")
}

/// A job of an executor with these keys in `product`.
fn job(executor: &str, kind: &str, product: &str) -> Step {
    let text = format!("{{executor: {executor}, type: {kind}, product: {{{product}}}}}");
    steps(Dialect::Job, &text).remove(0)
}

/// A step of a Bob pipeline.
fn bob(executor: &str, with: &str) -> Step {
    let text =
        format!("{{group: g, name: n, steps: [{{executor: {executor}, with: {{{with}}}}}]}}");
    steps(Dialect::Bob, &text).remove(0)
}

/// Options with minimal pauses.
fn options() -> Options {
    let short = Duration::from_millis(1);
    let times =
        Times { again: short, looks: (short, short), lexware_gap: short, ..Times::default() };
    Options { policy: Policy::unrestricted(), named: NamedFiles::any(), files: None, times }
}

#[derive(Default)]
struct Sink(Mutex<(String, String)>);

#[async_trait]
impl LogSink for Sink {
    async fn write(&self, stream: LogStream, bytes: Bytes) {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let mut both = self.0.lock();
        match stream {
            LogStream::Stdout => both.0.push_str(&text),
            LogStream::Stderr | LogStream::Bob => both.1.push_str(&text),
        }
    }
}

/// The outcome of a step.
#[derive(Debug)]
struct StepResult {
    code: i32,
    result: Value,
    out: String,
    err: String,
}

impl StepResult {
    /// The data of a step that passed.
    fn data(&self) -> &Value {
        assert_eq!((self.code, &self.result["success"]), (0, &Value::Bool(true)), "{self:?}");
        assert_eq!(self.result["error"], "", "{self:?}");
        &self.result["data"]
    }

    /// The error of a step that failed, which its output must contain as well.
    fn error(&self) -> &str {
        assert_ne!(self.code, 0, "{self:?}");
        assert_eq!(self.result["success"], false, "{self:?}");
        let said = self.result["error"].as_str().unwrap();
        assert!(self.err.ends_with(&format!("{said}\n")), "{self:?}");
        said
    }
}

async fn attempt(
    step: &Step,
    options: &Options,
    gate: Gate,
    stop: &StopSignal,
) -> Result<StepResult, ExecError> {
    let scope = RunScope {
        run: "r-call".parse().unwrap(),
        epoch: Epoch(1),
        cluster: "test".into(),
        image: String::new(),
        pull: PullPolicy::Never,
        has_own_images: false,
    };
    let spec = StepBuilder::new(0, step.executor).env(step.vars.clone()).with(step.with.clone());
    let spec = spec.build();
    let found = all(options).into_iter().find(|(kind, _)| *kind == step.executor);
    let remote: Arc<dyn Remote> = found.unwrap().1;
    let sink = Arc::new(Sink::default());
    let out = Arc::clone(&sink);
    let StepOutcome { exit, result, .. } = remote.run_step(&scope, &spec, gate, out, stop).await?;
    let (out, err) = sink.0.lock().clone();
    Ok(StepResult { code: exit.code, result: result.unwrap(), out, err })
}

async fn run_with(step: &Step, options: &Options) -> StepResult {
    attempt(step, options, Gate::open(), &StopSignal::default()).await.unwrap()
}

async fn run(step: &Step) -> StepResult {
    run_with(step, &options()).await
}

/// Why a step was rejected before anything was sent.
async fn refused(step: &Step) -> String {
    let done = attempt(step, &options(), Gate::open(), &StopSignal::default()).await;
    let error = done.unwrap_err();
    assert!(matches!(error, ExecError::Unsupported(_)), "{error}");
    error.to_string()
}
