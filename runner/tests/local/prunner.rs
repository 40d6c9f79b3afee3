//! Files of prunner with `run FILE`. Each test names the rows of prunner's table that it covers.

use super::*;

fn place(tasks: &str) -> TestDir {
    TestDir::new(&format!("pipelines: {{ p: {{ env: {{ A: pipeline, B: pipeline }}, {tasks} }} }}"))
}

/// The message of the run's ending event.
fn ending(events: &[Value]) -> &str {
    events.last().and_then(|event| event["message"].as_str()).unwrap_or_default()
}

// Rows: D3
#[test]
fn tasks_run_in_parallel_and_wait_for_their_dependencies() {
    // Each of the two waits for the other.
    let meet = |own: &str, other: &str| {
        format!("{{ script: ['touch {own}; until [ -e {other} ]; do sleep 0.01; done'] }}")
    };
    let place = place(&format!(
        "tasks: {{ left: {}, right: {}, both: {{ depends_on: [left, right] }}, \
         last: {{ depends_on: [both], script: [ls] }} }}",
        meet("l", "r"),
        meet("r", "l")
    ));
    let (code, events) = place.events(&[], &[]);
    assert_eq!(code, Some(0), "{events:#?}");
    assert_eq!(began(&events), ["left", "right", "last"]);
    assert_eq!(lines_of(&events, "last"), ["l", "pipeline.yaml", "r"]);
}

// Rows: D4
#[test]
fn scripts_use_variables_and_a_missing_one_fails_despite_allow_failure() {
    let of = |script: &str| place(&format!("tasks: {{ t: {{ script: [{script:?}] }} }}"));
    let tag = ["--var", "tag=v1", "--var", "empty=", "--var", "odd={{ .tag }} 'x"];
    let said = of("echo {{ .tag }} {{ .empty | default `none` }} {{ .odd | quote }}");
    let (code, events) = said.events(&tag, &[]);
    assert_eq!((code, lines_of(&events, "t")), (Some(0), vec!["v1 none {{ .tag }} 'x".to_owned()]));
    let (_, events) = of("echo {{ .__jobID }} ${tag-unset}").events(&tag, &[]);
    let run = events[0]["run-id"].as_str().unwrap();
    assert_eq!(lines_of(&events, "t"), [format!("{run} unset")], "they are not in the environment");
    let missing = place("tasks: { t: { script: ['echo {{ .tag }}'], allow_failure: true } }");
    let (code, events) = missing.events(&[], &[]);
    assert_eq!(code, Some(1), "a failed template is never allowed");
    assert!(ending(&events).contains("needs a variable tag"), "{events:#?}");
    let (code, events) =
        of("echo {{ .tag }}").events(&["--var", "tag=x", "--var", "__jobID=y"], &[]);
    assert!(code == Some(1) && ending(&events).contains("__jobID"), "{events:#?}");
}

// Rows: D5
#[test]
fn the_environments_of_pipeline_and_task_override_that_of_the_process() {
    let place = place(
        "tasks: { t: { env: { B: task }, script: ['echo $A $B $C $D $TASK_NAME'] }, \
         u: { env: { TASK_NAME: mine }, script: ['echo $A $B $C $TASK_NAME'] } }",
    );
    let process = [("A", "process"), ("B", "process"), ("C", "process")];
    let (code, events) = place.events(&[], &process);
    assert_eq!(code, Some(0));
    assert_eq!(lines_of(&events, "t"), ["pipeline task process t"]);
    assert_eq!(lines_of(&events, "u"), ["pipeline pipeline process mine"]);
}

/// A task that fails once another one runs, that other task, and one that depends on it.
const ONE_FAILS: &str = "tasks: { \
    fails: { script: ['until [ -e up ]; do sleep 0.01; done; exit 4'] }, \
    runs: { script: ['touch up; WAIT'] }, \
    after: { depends_on: [fails], script: [echo] }, \
    beside: { depends_on: [runs], script: [echo] } }";

// Rows: D13
#[test]
fn a_failing_task_ends_the_running_ones_or_lets_them_continue() {
    let fast = place(&ONE_FAILS.replace("WAIT", "exec sleep 1000"));
    let (code, events) = fast.events(&[], &[]);
    assert_eq!(code, Some(1));
    assert_eq!(began(&events), ["fails", "runs"], "no other step starts");
    assert!(ending(&events).contains("step fails: exit code 4"), "{}", ending(&events));
    let slow = ONE_FAILS.replace("WAIT", "while [ -e pipeline.yaml ]; do sleep 0.2; break; done");
    let on = place(&format!("continue_running_tasks_after_failure: true, {slow}"));
    let (code, events) = on.events(&[], &[]);
    assert_eq!(code, Some(1));
    assert_eq!(began(&events), ["fails", "runs", "beside"], "only its dependents are skipped");
    assert!(ending(&events).contains("step fails: exit code 4"), "{}", ending(&events));
}

// Rows: D14
#[test]
fn a_task_that_is_allowed_to_fail_runs_its_whole_script_and_its_dependents_run() {
    let place = place(
        "tasks: { t: { script: [echo one, exit 3, echo two], allow_failure: true }, \
         u: { depends_on: [t], script: [echo after] } }",
    );
    let (code, events) = place.events(&[], &[]);
    assert_eq!(code, Some(0), "{events:#?}");
    assert_eq!(lines_of(&events, "t"), ["one", "two"]);
    assert_eq!(lines_of(&events, "u"), ["after"]);
    let completed = |event: &&Value| event["reason"] == "StepCompleted" && event["step"] == "t";
    assert_eq!(
        events.iter().find(completed).unwrap()["exit-code"],
        3,
        "the last failure is reported"
    );
}

// Rows: D15
#[test]
fn on_error_receives_the_failure_and_does_not_change_the_result() {
    let script = "echo {{ .failedTaskName }} {{ .failedTaskExitCode }} \
                  {{ .failedTaskStdout | quote }} {{ .failedTaskStderr | quote }} $A; exit 9";
    let place = place(&format!(
        "tasks: {{ t: {{ script: ['echo out; echo err >&2; exit 5'] }} }}, \
         on_error: {{ script: [{script:?}] }}"
    ));
    let (code, events) = place.events(&[], &[]);
    assert_eq!(code, Some(1));
    assert_eq!(lines_of(&events, "on_error"), ["t 5 out", " err", " pipeline"]);
    assert!(ending(&events).contains("step t: exit code 5"), "{}", ending(&events));
    let fine = TestDir::new(
        "pipelines: { p: { tasks: { t: { script: [echo] } }, on_error: { script: [echo] } } }",
    );
    assert_eq!(began(&fine.events(&[], &[]).1), ["t"], "it does not run if nothing fails");
}

// Rows: D6
#[test]
fn variable_files_override_the_process_and_the_pipeline_overrides_them() {
    let place = place("tasks: { t: { script: ['echo $A $C $D $E $BOB_X'] } }");
    let put = |name: &str, text: &str| std::fs::write(place.path(name), text).unwrap();
    put(".env", "A=file\nC=file\nD=first\nBOB_X=ours\n");
    put(".env.local", "D=local\n");
    put("other", "D=other\nE='of other'\n");
    let process = [("A", "process"), ("C", "process"), ("E", "process")];
    let said = |typed: &[&str], variables: &[(&str, &str)]| {
        let all: Vec<_> = process.iter().chain(variables).copied().collect();
        let (code, events) = place.events(typed, &all);
        assert_eq!(code, Some(0), "{events:#?}");
        lines_of(&events, "t")
    };
    assert_eq!(said(&[], &[]), ["pipeline file local process"]);
    let other = ["--env-files", "missing", "--env-files", "other"];
    assert_eq!(said(&other, &[]), ["pipeline process other of other"]);
    assert_eq!(said(&[], &[("PRUNNER_ENV_FILES", "other,.env")]), ["pipeline file first of other"]);
    for none in [&said(&["--env-files", ""], &[]), &said(&[], &[("PRUNNER_ENV_FILES", "")])] {
        assert_eq!(*none, ["pipeline process process"]);
    }
}

// Rows: D6
#[test]
fn an_invalid_variable_file_is_reported_with_its_line_and_nothing_runs() {
    let place = place("tasks: { t: { script: ['touch ran'] } }");
    std::fs::write(place.path(".env"), "A=1\nhunter2 and more\n").unwrap();
    let said = place.run(&[]).output().unwrap();
    let err = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(65), "{err}");
    assert!(err.contains(".env: line 2") && !err.contains("hunter2"), "{err}");
    assert!(!place.path("ran").exists());
    let bob = TestDir::new("{group: g, name: n, steps: [{name: a, executor: local, cmd: env}]}");
    std::fs::write(bob.path(".env"), "A=1\nnothing\n").unwrap();
    assert_eq!(
        bob.run(&[]).output().unwrap().status.code(),
        Some(0),
        "a Bob pipeline does not read `.env`"
    );
    assert_eq!(bob.run(&["--env-files", ".env"]).output().unwrap().status.code(), Some(2));
}

// Rows: D16
#[test]
fn a_task_that_ignores_the_interrupt_is_killed_after_its_own_grace() {
    let place = place(
        "tasks: { \
         fails: { script: ['until [ -e up ]; do sleep 0.01; done; exit 4'] }, \
         ignores: { script: [\"trap '' INT TERM; touch up; while :; do sleep 0.1; done\"] } }",
    );
    // With the worker's grace the run would not end in time.
    let (code, events) = place.events(&[], &[("BOB_KILL_GRACE_SECONDS", "3600")]);
    assert_eq!(code, Some(1), "{events:#?}");
    assert!(ending(&events).contains("step fails: exit code 4"), "{}", ending(&events));
}

// Rows: D16
#[test]
fn an_interrupt_reaches_a_task_and_all_its_processes() {
    let place = TestDir::new(
        "{group: g, name: n, steps: [
          {name: fails, executor: local, needs: [],
           script: ['until [ -e up ]; do sleep 0.01; done; exit 4']},
          {name: heeds, executor: local, needs: [], shell: bash, stop-signal: INT, kill-grace: 1h,
           script: ['trap \"touch term\" TERM; trap \"touch child; exit 7\" INT;
             bash -c \"trap \\\"touch grandchild; exit\\\" INT; touch up; while :; do sleep 0.1; done\";
             while :; do sleep 0.1; done']}]}",
    );
    let (code, events) = place.events(&[], &[]);
    assert_eq!(code, Some(1), "{events:#?}");
    let seen = ["child", "grandchild", "term"].map(|name| place.path(name).exists());
    assert_eq!(seen, [true, true, false], "{events:#?}");
}

// Rows: D4
#[test]
fn scripts_use_lists_and_other_values_which_are_not_rendered_themselves() {
    let script = "for x in {{ range .files }}{{ . | quote }} {{ end }}; do echo \"$x\"; done; \
                  echo {{ .deep.name }} {{ index .files 0 | quote }} {{ .none | default `d` }} \
                  {{ .tag }} ${files-unset}";
    let place = place(&format!("tasks: {{ t: {{ script: [{script:?}] }} }}"));
    let typed = [
        "--param",
        r#"files=["a b", "{{ .x }}"]"#,
        "--param",
        r#"deep={"name": "n"}"#,
        "--param",
        "none=[]",
        "--var",
        "tag=var",
        "--param",
        r#"tag="param""#,
    ];
    let (code, events) = place.events(&typed, &[]);
    assert_eq!(code, Some(0), "{events:#?}");
    assert_eq!(lines_of(&events, "t"), ["a b", "{{ .x }}", "n a b d param unset"]);
    let (code, events) = place.events(&["--param", "__jobID=1"], &[]);
    assert!(code == Some(1) && ending(&events).contains("__jobID"), "{events:#?}");
    assert!(began(&events).is_empty(), "it fails at the start");
    for bad in ["files=[", "files", "=1"] {
        let said = place.run(&["--param", bad]).output().unwrap();
        assert_eq!(said.status.code(), Some(2), "{bad}");
    }
}
