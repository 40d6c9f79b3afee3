//! Files of prunner in a cluster. Each test names the row of prunner's table that it covers.

mod lost;

use std::path::{Path, PathBuf};

use protocol::dialect::{Dialect, parse_as};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::place::{TestEnv, in_time};
use crate::reader::{self, Reader};

const LOCAL: (&str, &str) = ("BOB_EXECUTORS", "local");

/// The pipeline of a file, as `plan` shows it.
fn pipeline(keys: &str) -> Value {
    let file = format!(
        "pipelines: {{ p: {{ env: {{ A: pipeline, B: pipeline, C: pipeline }}, {keys} }} }}"
    );
    let parsed = parse_as(Some(Dialect::Prunner), Some("pipelines.yml"), file.as_bytes());
    assert!(parsed.diagnostics.is_empty(), "{file}\n{:#?}", parsed.diagnostics);
    serde_json::to_value(&parsed.pipelines[0]).unwrap()
}

/// A run in progress.
struct Run<'a> {
    place: &'a TestEnv,
    id: String,
}

/// Submits a pipeline with variables.
async fn submit<'a>(place: &'a TestEnv, name: &str, pipeline: &Value, vars: &Value) -> Run<'a> {
    let id = place.run(name);
    let body = json!({ "run-id": id, "pipeline": pipeline, "vars": vars });
    place.publish("bob.jobs", "pipeline/start", &body).await;
    Run { place, id }
}

impl Run<'_> {
    /// Waits for its end and returns its events and its record.
    async fn ended(&self) -> (Vec<Value>, Value) {
        let events = reader::events_of(self.place, &self.id).await;
        (events, self.place.keys.settled(&self.id).await)
    }

    /// Waits for an event of a step.
    async fn sees(&self, reason: &str, step: &str) {
        let is_it = |event: &Value| {
            event["run-id"] == self.id && event["reason"] == reason && event["step"] == step
        };
        Reader::new(self.place).await.find(is_it).await;
    }
}

fn lines(events: &[Value], step: &str) -> String {
    let of_step = reader::outputs(events).remove(&(step.to_owned(), "stdout".to_owned()));
    String::from_utf8(of_step.unwrap_or_default()).unwrap()
}

/// The state of each task in a record, sorted by name. Tasks that never started are missing.
fn states(record: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let steps = record["steps"].as_array().unwrap().iter();
    let mut states: Vec<_> =
        steps.map(|step| (text(&step["name"]), text(&step["status"]))).collect();
    states.sort();
    states
}

fn are(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, status)| ((*name).to_owned(), (*status).to_owned())).collect()
}

/// The exit code of a task's command.
fn exit_code(record: &Value, task: &str) -> Value {
    let steps = record["steps"].as_array().unwrap();
    let found = steps.iter().find(|step| step["name"] == task);
    found.unwrap_or_else(|| panic!("no task {task}: {record}"))["exit-code"].clone()
}

fn how(record: &Value) -> (&str, &str) {
    let text = |key: &str| record[key].as_str().unwrap_or_default();
    (text("status"), text("cause"))
}

fn message(record: &Value) -> &str {
    record["message"].as_str().unwrap_or_default()
}

/// A file of the test, for scripts that use its absolute path.
fn file(place: &TestEnv, name: &str) -> PathBuf {
    place.dir.path().join(name)
}

/// Writes the ids of two processes, one with a session of its own and one without.
fn begets(pids: &Path) -> String {
    let pids = pids.display();
    format!(
        "setsid sleep 1000 & one=$!; sleep 1000 & echo $one $! > {pids}.new; mv {pids}.new {pids}"
    )
}

/// Waits until all processes recorded by `begets` are gone.
async fn all_gone(pids: &Path) {
    let pids = std::fs::read_to_string(pids).unwrap();
    let is_there = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    };
    let gone = async {
        while pids.split_whitespace().any(is_there) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    in_time("the processes of a task have ended", gone).await;
    assert_eq!(pids.split_whitespace().count(), 2, "{pids}");
}

// Rows: D3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_run_in_parallel_and_wait_for_their_dependencies() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let server = place.serve(&[LOCAL]).await;
    // Each of the two waits for the other.
    let meet = |own: &str, other: &str| {
        format!("{{ script: ['touch {own}; until [ -e {other} ]; do sleep 0.05; done'] }}")
    };
    let pipeline = pipeline(&format!(
        "tasks: {{ left: {}, right: {}, both: {{ depends_on: [left, right] }}, \
         last: {{ depends_on: [both], script: [ls] }} }}",
        meet("l", "r"),
        meet("r", "l")
    ));
    let run = submit(&place, "beside", &pipeline, &json!({})).await;
    let (events, record) = run.ended().await;
    assert_eq!(how(&record), ("passed", ""), "{record}");
    reader::assert_gapless(&events);
    assert_eq!(lines(&events, "last"), "l\nr\n", "tasks of a run share its directory");
    let passed = ["both", "last", "left", "right"].map(|task| (task, "passed"));
    assert_eq!(states(&record), are(&passed), "a task without a script is one too");
    server.end().await;
}

// Rows: D3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prunner_file_is_submitted_as_one_run() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let server = place.serve(&[LOCAL]).await;
    place.write("pipelines.yml", "pipelines: { p: { tasks: { t: { script: [echo of it] } } } }");
    let id = place.id_of(&["submit", "pipelines.yml", "--alone"]).await;
    let (events, record) = Run { place: &place, id }.ended().await;
    assert_eq!(how(&record), ("passed", ""), "{record}");
    assert_eq!(lines(&events, "t"), "of it\n");
    server.end().await;
}

// Rows: D4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_use_variables_and_a_missing_one_fails_its_task() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let server = place.serve(&[LOCAL]).await;
    let says = "echo {{ .tag }} {{ .number }} {{ .yes }} {{ .empty | default `none` }} \
                {{ .odd | quote }}; echo {{ .__jobID }} ${tag-unset}";
    let of = |script: &str| pipeline(&format!("tasks: {{ t: {{ script: [{script:?}] }} }}"));
    let vars = json!({
        "tag": "v1", "number": 7, "yes": true, "empty": "", "odd": "{{ .tag }} 'x; exit 9",
    });
    let run = submit(&place, "said", &of(says), &vars).await;
    let (events, record) = run.ended().await;
    assert_eq!(how(&record), ("passed", ""), "{record}");
    let said = format!("v1 7 true none {{{{ .tag }}}} 'x; exit 9\n{} unset\n", run.id);
    assert_eq!(lines(&events, "t"), said, "values are not rendered and not in the environment");

    let lacks = pipeline(
        "tasks: { t: { script: [echo before, 'echo {{ .tag }}'], allow_failure: true }, \
         u: { depends_on: [t], script: [echo after] } }",
    );
    let run = submit(&place, "lacks", &lacks, &json!({})).await;
    let (events, record) = run.ended().await;
    assert_eq!(
        how(&record),
        ("failed", "template"),
        "a failed template is never allowed: {record}"
    );
    assert!(message(&record).contains("needs a variable tag"), "{record}");
    assert_eq!(lines(&events, "t"), "", "a script is rendered before any of it runs");
    assert_eq!(states(&record), are(&[("t", "failed")]));

    let run = submit(&place, "takes", &of("echo"), &json!({ "__jobID": "mine" })).await;
    let (_, record) = run.ended().await;
    assert_eq!(how(&record), ("failed", "rejected"), "{record}");
    assert!(message(&record).contains("__jobID"), "the name is reserved: {record}");
    server.end().await;
}

// Rows: D5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environments_of_pipeline_and_task_override_the_workers_in_that_order() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let of_worker = ["B", "C", "D", "TASK_NAME"].map(|name| (name, "worker"));
    let server = place.serve(&[&[LOCAL], of_worker.as_slice()].concat()).await;
    let pipeline = pipeline(
        "tasks: { t: { env: { C: task }, script: ['echo $A $B $C $D $TASK_NAME ${BOB_EXECUTORS-no}'] }, \
         u: { env: { TASK_NAME: mine }, script: ['echo $A $B $C $D $TASK_NAME'] } }",
    );
    let run = submit(&place, "environment", &pipeline, &json!({ "A": "variable" })).await;
    let (events, record) = run.ended().await;
    assert_eq!(how(&record), ("passed", ""), "{record}");
    assert_eq!(lines(&events, "t"), "pipeline pipeline task worker t no\n");
    assert_eq!(lines(&events, "u"), "pipeline pipeline pipeline worker mine\n");
    server.end().await;
}

// Rows: D4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_can_iterate_over_lists() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let server = place.serve(&[LOCAL]).await;
    let script = "for x in {{ range .files }}{{ . | quote }} {{ end }}; do echo \"$x\"; done; \
                  echo {{ .deep.name }} {{ .none | default `d` }} {{ .tag }}";
    let pipeline = pipeline(&format!("tasks: {{ t: {{ script: [{script:?}] }} }}"));
    let id = place.run("lists");
    let params = json!({
        "files": ["a b", "{{ .tag }}"], "deep": { "name": "n" }, "none": [], "tag": "param",
    });
    let vars = json!({ "tag": "var" });
    let body = json!({ "run-id": id, "pipeline": pipeline, "vars": vars, "params": params });
    place.publish("bob.jobs", "pipeline/start", &body).await;
    let definition = format!("bob.run.definition/{id}");
    let (events, record) = Run { place: &place, id }.ended().await;
    assert_eq!(how(&record), ("passed", ""), "{record}");
    let definition = place.keys.get(&definition).await.unwrap();
    assert_eq!(definition["params"], params, "the values of the start are stored");
    assert_eq!(lines(&events, "t"), "a b\n{{ .tag }}\nn d param\n");
    server.end().await;
}

// Rows: D6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variable_files_override_the_worker_and_the_pipeline_overrides_them() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let (first, second) = (file(&place, "first.env"), file(&place, "second.env"));
    std::fs::write(&first, "A=file\nD=first\nE=first\nBOB_X=ours\n").unwrap();
    std::fs::write(&second, "E='of second'\n").unwrap();
    let missing = file(&place, "missing.env");
    let named = [&first, &missing, &second].map(|path| path.display().to_string()).join(",");
    let of_worker = [("D", "worker"), ("E", "worker"), ("F", "worker")];
    let settings = [[LOCAL].as_slice(), &[("BOB_ENV_FILES", &named)], &of_worker].concat();
    let server = place.serve(&settings).await;
    let pipeline = pipeline("tasks: { t: { script: ['echo $A $D $E $F ${BOB_X-none}'] } }");
    let run = submit(&place, "files", &pipeline, &json!({})).await;
    let (events, record) = run.ended().await;
    assert_eq!(how(&record), ("passed", ""), "{record}");
    assert_eq!(lines(&events, "t"), "pipeline first of second worker none\n");
    server.end().await;
}

/// A task that fails once another one runs, that other task, one that depends on both, and one that
/// depends on neither.
const ONE_FAILS: &str = "tasks: { \
    early: { script: [echo] }, \
    fails: { depends_on: [early], script: ['until [ -e up ]; do sleep 0.05; done; exit 4'] }, \
    runs: { depends_on: [early], script: ['touch up; WAIT'] }, \
    after: { depends_on: [fails], script: [echo] }, \
    beside: { depends_on: [runs], script: [echo] } }";

// Rows: D13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_task_ends_the_running_ones_and_no_other_task_starts() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let server = place.serve(&[LOCAL]).await;
    let pipeline = pipeline(&ONE_FAILS.replace("WAIT", "exec sleep 1000"));
    let run = submit(&place, "fast", &pipeline, &json!({})).await;
    let (_, record) = run.ended().await;
    assert_eq!(how(&record), ("failed", "exit-code"), "a failure is not a stop: {record}");
    assert!(message(&record).contains("step fails: exit code 4"), "the first failure: {record}");
    let left = [("early", "passed"), ("fails", "failed"), ("runs", "stopped")];
    assert_eq!(states(&record), are(&left), "the other tasks never started");
    assert_eq!((exit_code(&record, "early"), exit_code(&record, "fails")), (json!(0), json!(4)));
    for step in record["steps"].as_array().unwrap() {
        assert!(step["started-at"].is_string() && step["completed-at"].is_string(), "{step}");
    }
    server.end().await;
}

// Rows: D13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn if_running_tasks_continue_only_dependents_of_the_failed_one_are_skipped() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let server = place.serve(&[LOCAL]).await;
    let go = file(&place, "go");
    let waits = format!("until [ -e {} ]; do sleep 0.05; done", go.display());
    let tasks = ONE_FAILS.replace("WAIT", &waits);
    let pipeline = pipeline(&format!("continue_running_tasks_after_failure: true, {tasks}"));
    let run = submit(&place, "on", &pipeline, &json!({})).await;
    run.sees("StepCompleted", "fails").await;
    // Let the other task end only after the failure is published.
    std::fs::write(go, "").unwrap();
    let (_, record) = run.ended().await;
    assert_eq!(how(&record), ("failed", "exit-code"), "{record}");
    assert!(message(&record).contains("step fails: exit code 4"), "{record}");
    let left = [("beside", "passed"), ("early", "passed"), ("fails", "failed"), ("runs", "passed")];
    assert_eq!(states(&record), are(&left), "only `after` never began");
    server.end().await;
}

// Rows: D14
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_is_allowed_to_fail_runs_its_whole_script_and_its_dependents_run() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let server = place.serve(&[LOCAL]).await;
    let pipeline = pipeline(
        "tasks: { t: { script: [echo one, exit 3, echo two], allow_failure: true }, \
         u: { depends_on: [t], script: [echo after] } }",
    );
    let run = submit(&place, "allowed", &pipeline, &json!({})).await;
    let (events, record) = run.ended().await;
    assert_eq!(how(&record), ("passed", ""), "{record}");
    assert_eq!((lines(&events, "t"), lines(&events, "u")), ("one\ntwo\n".into(), "after\n".into()));
    assert_eq!(states(&record), are(&[("t", "failed"), ("u", "passed")]));
    assert_eq!(exit_code(&record, "t"), 3, "the last failure is reported");
    server.end().await;
}

// Rows: D15
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_error_receives_the_failure_and_does_not_change_the_result() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let server = place.serve(&[LOCAL]).await;
    let script = "echo {{ .failedTaskName }} {{ .failedTaskExitCode }} \
                  {{ .failedTaskStdout | quote }} {{ .failedTaskStderr | quote }} \
                  {{ .tag }} $A $D; exit 9";
    let last = format!("on_error: {{ env: {{ D: own }}, script: [{script:?}] }}");
    let fails = pipeline(&format!(
        "tasks: {{ t: {{ script: ['echo out {{{{ `{{{{` }}}}; echo err >&2; exit 5'] }} }}, {last}"
    ));
    let vars = json!({ "tag": "v1" });
    let run = submit(&place, "fails", &fails, &vars).await;
    let (events, record) = run.ended().await;
    assert_eq!(lines(&events, "on_error"), "t 5 out {{\n err\n v1 pipeline own\n");
    assert_eq!(how(&record), ("failed", "exit-code"), "{record}");
    assert!(message(&record).contains("step t: exit code 5"), "{record}");
    assert_eq!(states(&record), are(&[("on_error", "failed"), ("t", "failed")]));
    assert_eq!(exit_code(&record, "on_error"), 9, "its own exit code is recorded");

    let fine = pipeline(&format!("tasks: {{ t: {{ script: [echo] }} }}, {last}"));
    let (_, record) = submit(&place, "fine", &fine, &vars).await.ended().await;
    assert_eq!(how(&record), ("passed", ""), "{record}");
    assert_eq!(states(&record), are(&[("t", "passed")]), "it does not run if nothing fails");

    let long =
        pipeline(&format!("tasks: {{ t: {{ script: [echo begun, 'exec sleep 1000'] }} }}, {last}"));
    let run = submit(&place, "stopped", &long, &vars).await;
    run.sees("Log", "t").await;
    place.stop(&run.id).await;
    let (_, record) = run.ended().await;
    assert_eq!(how(&record), ("stopped", "user"), "{record}");
    assert_eq!(states(&record), are(&[("t", "stopped")]), "`on_error` does not run after a stop");
    server.end().await;
}

// Rows: D16
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_every_process_that_the_tasks_started() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let server = place.serve(&[LOCAL]).await;
    let (left, right) = (file(&place, "left"), file(&place, "right"));
    let task = |pids: &Path| format!("{{ script: ['{}; echo begun; wait'] }}", begets(pids));
    let pipeline =
        pipeline(&format!("tasks: {{ left: {}, right: {} }}", task(&left), task(&right)));
    let run = submit(&place, "group", &pipeline, &json!({})).await;
    run.sees("Log", "left").await;
    run.sees("Log", "right").await;
    place.stop(&run.id).await;
    let (_, record) = run.ended().await;
    all_gone(&left).await;
    all_gone(&right).await;
    assert_eq!(how(&record), ("stopped", "user"), "{record}");
    assert_eq!(states(&record), are(&[("left", "stopped"), ("right", "stopped")]));
    server.end().await;
}

// Rows: D16
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_interrupted_and_then_killed_after_its_own_grace() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    // With the worker's grace the run would not end in time.
    let server = place.serve(&[LOCAL, ("BOB_KILL_GRACE_SECONDS", "3600")]).await;
    let (heard, up) = (file(&place, "heard"), file(&place, "up"));
    let pipeline = pipeline(&format!(
        "tasks: {{ \
         heeds: {{ script: [\"trap 'touch {heard}; exit 7' INT; echo up; while :; do sleep 0.1; done\"] }}, \
         ignores: {{ script: [\"trap '' INT TERM; touch {up}; echo up; while :; do sleep 0.1; done\"] }} }}",
        heard = heard.display(),
        up = up.display(),
    ));
    let run = submit(&place, "interrupt", &pipeline, &json!({})).await;
    run.sees("Log", "heeds").await;
    run.sees("Log", "ignores").await;
    place.stop(&run.id).await;
    let (_, record) = run.ended().await;
    assert_eq!(how(&record), ("stopped", "user"), "{record}");
    assert!(heard.exists(), "it was interrupted");
    assert_eq!(states(&record), are(&[("heeds", "stopped"), ("ignores", "stopped")]));
    server.end().await;
}
