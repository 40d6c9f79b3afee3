//! Messages to people about a failed step on this host.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// Runs local steps. Returns the exit code, and the standard error of the program and the steps.
fn run_steps(steps: &str, files: &[(&str, &str)]) -> (Option<i32>, String) {
    let place = TestDir::new(&format!("{{group: g, name: n, steps: [{steps}]}}"));
    for (name, text) in files {
        std::fs::write(place.path(name), text).unwrap();
        std::fs::set_permissions(place.path(name), Permissions::from_mode(0o755)).unwrap();
    }
    let said = place.run(&[]).output().unwrap();
    (said.status.code(), String::from_utf8(said.stderr).unwrap())
}

#[test]
fn a_shell_error_in_a_script_starts_with_the_name_of_the_step() {
    for (script, wanted) in [
        ("shell: bash, script: [\"\\nnosuch\"]", "test: line 2: nosuch: command not found"),
        ("shell: bash, script: ['true', nosuch]", "test: line 1: nosuch: command not found"),
        ("script: [\"\\nnosuch\"]", "test: 2: "),
        ("script: ['true', nosuch]", "test: 1: "),
    ] {
        let (code, said) = run_steps(&format!("{{name: test, executor: local, {script}}}"), &[]);
        assert_eq!(code, Some(1), "{script}: {said}");
        assert!(said.lines().any(|line| line.starts_with(wanted)), "{script}: {said}");
        assert!(!said.contains("step-0-1"), "{script}: {said}");
    }
}

#[test]
fn a_script_has_no_arguments_and_its_text_is_not_in_an_argument_list() {
    for shell in ["sh", "bash"] {
        let (code, said) = run_steps(
            &format!(
                "{{name: a, executor: local, shell: {shell}, script: [
                   '[ $# = 0 ] || exit 3; tr \"\\0\" \" \" < /proc/$$/cmdline | grep -q s3cret-text && exit 4; true'
                 ]}}"
            ),
            &[],
        );
        assert_eq!(code, Some(0), "{shell}: {said}");
    }
}

#[test]
fn a_script_runs_without_cat() {
    let bin = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/sh", bin.path().join("sh")).unwrap();
    let path = bin.path().display();
    for script in ["'exit 7'", "'true', 'exit 7'"] {
        let step =
            format!("{{name: a, executor: local, vars: {{PATH: {path}}}, script: [{script}]}}");
        let (code, said) = run_steps(&step, &[]);
        assert!(code == Some(1) && said.contains("exit code 7"), "{said}");
        assert!(!said.contains("cat"), "{said}");
    }
}

#[test]
fn a_step_is_named_once_in_the_message_of_its_failure() {
    let (code, said) = run_steps("{executor: local, script: ['true'], secrets: [token]}", &[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("step 0: there is no secret token"), "{said}");
    assert!(!said.contains("step 0: step 0"), "{said}");
}

#[test]
fn a_command_that_cannot_be_executed_is_reported_with_the_reason() {
    let files = [
        ("crlf", "#!/bin/sh\r\necho\r\n"),
        ("lost", "#!/no/such/interpreter -x\necho\n"),
        ("text", "echo\n"),
        ("other", "\u{7f}ELF is not a program"),
    ];
    for (cmd, wanted) in [
        ("./crlf", "the first line of `./crlf` ends with a carriage return (CRLF)"),
        ("./lost", "the interpreter /no/such/interpreter of `./lost` does not exist"),
        ("./text", "`./text` is neither a binary nor a script with a `#!` line"),
        ("./other", "`./other` is built for another processor"),
        ("./none", "`./none` does not exist"),
        ("nosuch", "`nosuch` does not exist"),
    ] {
        let (code, said) = run_steps(&format!("{{executor: local, cmd: [{cmd}]}}"), &files);
        assert_eq!(code, Some(1), "{cmd}: {said}");
        let wanted = format!("step 0: its command cannot be started: {wanted}");
        assert!(said.contains(&wanted), "{cmd}: {said}");
    }
}

#[test]
fn a_step_that_kills_its_process_group_leader_fails() {
    let begun = Instant::now();
    let place = TestDir::new(
        "{group: g, name: n, steps: [{executor: local, cmd: [
           sh, -c, 'kill -KILL $PPID; touch killed; sleep 300 & setsid sleep 300']}]}",
    );
    let (code, events) = place.events(&[], &[]);
    let last = events.last().unwrap();
    assert_eq!(code, Some(1), "{last}");
    let message = last["message"].as_str().unwrap();
    let wanted = "step 0: its process group leader was killed (SIGKILL)";
    assert!(message.contains(wanted), "{message}");
    assert_eq!((&last["cause"], &last["exit-code"]), (&"exit-code".into(), &137.into()));
    assert!(begun.elapsed() < Duration::from_secs(100), "its leftover processes were not ended");
}
