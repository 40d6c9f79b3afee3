//! Outputs of steps on the host, stored by `run`.

use super::*;

/// Runs a pipeline of one local step with these keys. Returns its exit code and events.
fn run_step(run: &str, keys: &str) -> (TestDir, Option<i32>, Vec<Value>) {
    let place = TestDir::new(&format!(
        "{{group: g, name: n, steps: [{{name: a, executor: local, {keys}}}]}}"
    ));
    let (code, events) = place.events(&["--run-id", run], &[]);
    (place, code, events)
}

fn stored(place: &TestDir, run: &str, path: &str) -> Option<String> {
    std::fs::read_to_string(place.path("outputs/g/n").join(run).join("a").join(path)).ok()
}

#[test]
fn an_output_is_relative_to_the_working_directory_of_its_step() {
    let (place, code, events) = run_step(
        "r-outputs-1",
        "script: ['mkdir -p out/deep', 'echo x > out/deep/f', 'echo no > $JOB_WORKDIR/other'],
         outputs: [{path: 'out/**', layout: relative}, {path: other, missing: ignore}]",
    );
    assert_eq!(code, Some(0), "{events:#?}");
    assert_eq!(stored(&place, "r-outputs-1", "out/deep/f").as_deref(), Some("x\n"), "{events:#?}");
    assert_eq!(stored(&place, "r-outputs-1", "other"), None);
}

#[test]
fn an_output_can_refer_to_the_job_directory() {
    let (place, code, events) = run_step(
        "r-outputs-2",
        "script: ['echo x > $JOB_WORKDIR/f', 'echo 2 > f'],
         outputs: [{path: '*', layout: relative, relative-to: job-dir}]",
    );
    assert_eq!(code, Some(0), "{events:#?}");
    assert_eq!(stored(&place, "r-outputs-2", "f").as_deref(), Some("x\n"), "{events:#?}");
}

#[test]
fn the_result_file_of_a_step_can_be_in_its_working_directory() {
    let (_place, code, events) = run_step(
        "r-outputs-3",
        "script: ['echo ''{\"data\": 7}'' > result.json'], outputs: [{path: result.json}]}, {
         name: b, executor: local, needs: [a], template: dollar, script: ['echo got ${a.data}']",
    );
    assert_eq!(code, Some(0), "{events:#?}");
    assert_eq!(lines_of(&events, "b"), ["got 7"]);
}

#[test]
fn a_required_output_that_is_missing_fails_its_step() {
    let (_place, code, events) =
        run_step("r-outputs-4", "script: ['true'], outputs: [{path: f, missing: fail}]");
    let last = events.last().unwrap();
    assert!(code == Some(1) && last["cause"] == "artifact", "{last}");
}

#[test]
fn a_step_without_its_own_directory_has_no_outputs_in_it() {
    let place = TestDir::new(
        "{group: g, name: n, image: i, steps: [{cmd: 'true',
          outputs: [{path: f, relative-to: job-dir}]}]}",
    );
    let said = place.command(&["validate", "pipeline.yaml"]).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    assert_eq!(said.status.code(), Some(65), "{text}");
    assert!(text.contains("the step has no directory of its own"), "{text}");
}
