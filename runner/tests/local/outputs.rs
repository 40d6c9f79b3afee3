//! Outputs of steps on the host, as stored by `run FILE`.

use super::*;

/// Runs a pipeline with one local step, `a`, which has these keys. Returns the directory of the
/// pipeline, the exit code and the events.
fn run_step(run: &str, keys: &str) -> (TestDir, Option<i32>, Vec<Value>) {
    let dir = TestDir::new(&format!(
        "{{group: g, name: n, steps: [{{name: a, executor: local, {keys}}}]}}"
    ));
    let (code, events) = dir.events(&["--run-id", run], &[]);
    (dir, code, events)
}

/// The content of a stored output of step `a`.
fn stored(dir: &TestDir, run: &str, path: &str) -> Option<String> {
    std::fs::read_to_string(dir.path("outputs/g/n").join(run).join("a").join(path)).ok()
}

#[test]
fn an_output_is_relative_to_the_working_directory_of_its_step() {
    let (dir, code, events) = run_step(
        "r-outputs-1",
        "script: ['mkdir -p out/deep', 'echo x > out/deep/f', 'echo no > $JOB_WORKDIR/other'],
         outputs: [{path: 'out/**', layout: relative}, {path: other, missing: ignore}]",
    );
    assert_eq!(code, Some(0), "{events:#?}");
    assert_eq!(stored(&dir, "r-outputs-1", "out/deep/f").as_deref(), Some("x\n"), "{events:#?}");
    assert_eq!(stored(&dir, "r-outputs-1", "other"), None);
}

#[test]
fn an_output_can_be_relative_to_the_job_directory() {
    let (dir, code, events) = run_step(
        "r-outputs-2",
        "script: ['echo x > $JOB_WORKDIR/f', 'echo 2 > f'],
         outputs: [{path: '*', layout: relative, relative-to: job-dir}]",
    );
    assert_eq!(code, Some(0), "{events:#?}");
    assert_eq!(stored(&dir, "r-outputs-2", "f").as_deref(), Some("x\n"), "{events:#?}");
}

#[test]
fn the_result_file_of_a_step_can_be_in_its_working_directory() {
    // The keys close step `a` and open a second step.
    let (_dir, code, events) = run_step(
        "r-outputs-3",
        "script: ['echo ''{\"data\": 7}'' > result.json'], outputs: [{path: result.json}]}, {
         name: b, executor: local, needs: [a], template: dollar, script: ['echo got ${a.data}']",
    );
    assert_eq!(code, Some(0), "{events:#?}");
    assert_eq!(lines_of(&events, "b"), ["got 7"]);
}

#[test]
fn a_required_output_that_is_missing_fails_its_step() {
    let (_dir, code, events) =
        run_step("r-outputs-4", "script: ['true'], outputs: [{path: f, missing: fail}]");
    let last = events.last().unwrap();
    assert!(code == Some(1) && last["cause"] == "artifact", "{last}");
}

#[test]
fn an_output_relative_to_the_job_directory_is_rejected_if_the_step_has_none() {
    let dir = TestDir::new(
        "{group: g, name: n, image: i, steps: [{cmd: 'true',
          outputs: [{path: f, relative-to: job-dir}]}]}",
    );
    let output = dir.command(&["validate", "pipeline.yaml"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(65), "{text}");
    assert!(text.contains("the step has no `$JOB_WORKDIR`"), "{text}");
}
