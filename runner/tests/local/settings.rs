//! Settings, flags and variables for job files.

use std::io::Read as _;
use std::os::unix::net::UnixListener;

use super::job::receiver;
use super::*;

// Rows: A2
#[test]
fn settings_beside_a_job_file_are_found_under_both_names() {
    for (logs, work, callback) in [
        ("default_log_dir", "default_work_dir", "callback: { url: 'URL', secret: of-all }"),
        ("logdir", "workdir", "default_callback_url: 'URL'\ndefault_callback_secret: of-all"),
    ] {
        let (url, taken) = receiver(2);
        let place = TestDir::new("{ job_id: j, executor: local, product: { commands: 'true' } }");
        let callback = callback.replace("URL", &url);
        let settings = format!("{logs}: kept/l\n{work}: kept/w\nnot-ours: 1\n{callback}\n");
        std::fs::write(place.path("config.yaml"), settings).unwrap();
        assert_eq!(place.events(&[], &[]).0, Some(0), "{logs}");
        assert!(place.path("kept/w/j/status.yaml").exists(), "{work}");
        assert!(place.path("kept/l/j.log").exists(), "{logs}");
        for (head, body) in taken.join().unwrap() {
            assert!(head.contains("authorization: bearer of-all"), "{head}");
            assert_eq!(body["log_file"], "kept/l/j.log");
        }
        assert!(!place.path("workdir").exists() && !place.path("logs").exists(), "{logs}");
    }
}

// Rows: A2
#[test]
fn a_foreign_file_with_the_name_of_the_settings_is_ignored() {
    let place = TestDir::new("{ job_id: j, executor: local, product: { commands: 'true' } }");
    std::fs::write(place.path("config.yaml"), "server: { port: 80 }\n").unwrap();
    assert_eq!(place.events(&[], &[]).0, Some(0));
    assert!(place.path("workdir/j/status.yaml").exists() && place.path("logs/j.log").exists());
}

// Rows: A2
#[test]
fn job_settings_for_a_file_of_another_dialect_are_refused_before_submission() {
    let place = TestDir::new("{ group: g, name: n, steps: [{ executor: local, cmd: 'true' }] }");
    std::fs::write(place.path("own.yaml"), "before_script: [x]\n").unwrap();
    for typed in [["run", "pipeline.yaml"], ["submit", "pipeline.yaml"]] {
        let mut command = place.command(&["--config", "own.yaml"]);
        let said = command.args(typed).output().unwrap();
        let err = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(2), "{typed:?}: {err}");
        assert!(err.contains("settings of jobs are for job files"), "{typed:?}: {err}");
    }
}

// Rows: A21
#[test]
fn each_directory_comes_from_its_flag_then_variable_then_settings_then_default() {
    let job = "{ job_id: j, executor: local, product: { commands: 'true' } }";
    let dirs = [
        ("RUNNER_WORKDIR", "--workdir", "workdir", "j/status.yaml"),
        ("RUNNER_LOG_DIR", "--log-dir", "logdir", "j.log"),
    ];
    for (variable, flag, key, file) in dirs {
        let usual = if key == "workdir" { "workdir" } else { "logs" };
        // Each round adds a source that overrides the earlier ones.
        for (said, expected) in [(0, usual), (1, "of-file"), (2, "of-variable"), (3, "of-flag")] {
            let place = TestDir::new(job);
            if said >= 1 {
                std::fs::write(place.path("config.yaml"), format!("{key}: of-file\n")).unwrap();
            }
            let variables = [(variable, "of-variable")];
            let variables = if said >= 2 { &variables[..] } else { &[] };
            let flags = [flag, "of-flag"];
            let flags = if said >= 3 { &flags[..] } else { &[] };
            assert_eq!(place.events(flags, variables).0, Some(0));
            assert!(place.path(expected).join(file).exists(), "{variable}: {expected}");
            let all = ["workdir", "logs", "of-file", "of-variable", "of-flag"];
            let made = all.iter().filter(|dir| place.path(dir).join(file).exists()).count();
            assert_eq!(made, 1, "{variable}: it is in no other place");
        }
    }
}

// Rows: A21
#[test]
fn a_host_job_receives_the_variables_that_describe_its_runner() {
    let names = ["RUNNER_ID", "RUNNER_HOSTNAME", "RUNNER_WORKDIR", "RUNNER_LOG_DIR"];
    let told = names.map(|name| format!("echo {name}=${name}")).join("; ");
    let place =
        TestDir::new(&format!("{{ id: j, executor: local, product: {{ commands: '{told}' }} }}"));
    let variables = [
        ("RUNNER_ID", "r-1"),
        ("RUNNER_HOSTNAME", "build-1"),
        ("RUNNER_WORKDIR", "w"),
        ("RUNNER_LOG_DIR", "l"),
    ];
    let (code, events) = place.events(&[], &variables);
    let expected = variables.map(|(name, value)| format!("{name}={value}"));
    assert_eq!((code, lines_of(&events, "j")), (Some(0), expected.to_vec()));
}

// Rows: A21
#[test]
fn a_log_socket_receives_every_line_and_a_missing_one_is_reported() {
    let job = "{ job_id: j, executor: local, product: { commands: ['echo one', 'echo two >&2'] } }";
    let place = TestDir::new(job);
    let socket = place.path("log.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        text
    });
    let variables = [("RUNNER_LOG_SOCKET", socket.to_str().unwrap()), ("RUNNER_LOG_DIR", "l")];
    let said = place.run(&[]).envs(variables).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success() && out.contains("one\n") && err.contains("two\n"), "{out} {err}");
    let log = std::fs::read_to_string(place.path("l/j.log")).unwrap();
    assert!(log.contains("one\n") && log.contains("two\n"), "{log}");
    assert_eq!(reader.join().unwrap(), log);

    let place = TestDir::new(job);
    let said = place.run(&[]).env("RUNNER_LOG_SOCKET", "nowhere.sock").output().unwrap();
    let err = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{err}");
    assert!(err.contains("no process listens at RUNNER_LOG_SOCKET nowhere.sock"), "{err}");
    assert!(place.path("logs/j.log").exists());
}
