//! Job files with `run FILE`. Each test names the rows of the job runner's table that it covers.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use super::*;

/// The files with this name in the subdirectories of the work directory.
fn of_jobs(place: &TestDir, file: &str) -> Vec<(String, String)> {
    let jobs = std::fs::read_dir(place.path("workdir")).unwrap();
    let mut found: Vec<(String, String)> = jobs
        .filter_map(|job| {
            let job = job.unwrap();
            let text = std::fs::read_to_string(job.path().join(file)).ok()?;
            Some((job.file_name().into_string().unwrap(), text))
        })
        .collect();
    found.sort();
    found
}

// Rows: A1
#[test]
fn the_three_forms_of_a_job_file_have_the_same_effect() {
    let job = "{ id: j, executor: local, product: { commands: 'echo done' } }";
    for file in [job.to_owned(), format!("[{job}]"), format!("jobs: [{job}]")] {
        let (code, events) = TestDir::new(&file).events(&[], &[]);
        assert_eq!((code, lines_of(&events, "j")), (Some(0), vec!["done".to_owned()]), "{file}");
    }
}

// Rows: A3
#[test]
fn directory_flags_override_the_settings_file() {
    let place = TestDir::new("{ job_id: j, executor: local, product: { commands: 'true' } }");
    std::fs::write(place.path("config.yaml"), "logdir: l\ndefault_work_dir: w\n").unwrap();
    assert_eq!(place.events(&[], &[]).0, Some(0));
    assert!(place.path("w/j/status.yaml").exists() && place.path("l/j.log").exists());
    std::fs::write(place.path("own.yaml"), "workdir: own\n").unwrap();
    let typed = ["--config", "own.yaml", "--log-dir", "flag"];
    assert_eq!(place.events(&typed, &[]).0, Some(0));
    assert!(place.path("own/j/status.yaml").exists() && place.path("flag/j.log").exists());
    assert_eq!(place.events(&[], &[("RUNNER_WORKDIR", "v")]).0, Some(0));
    assert!(place.path("v/j/status.yaml").exists(), "a21");
}

// Rows: A4
#[test]
fn a_status_file_changes_from_pending_to_running_to_the_result() {
    let place = TestDir::new(
        "[{ job_id: first, executor: local, product: { commands: 'cat workdir/*/status.yaml; exit 3' } },
          { job_id: second, executor: local, product: { commands: 'true' } }]",
    );
    let (code, events) = place.events(&[], &[]);
    assert_eq!(code, Some(1), "a5");
    let seen = lines_of(&events, "0").join("\n");
    let (running, pending) = (seen.contains("status: running"), seen.contains("status: pending"));
    assert!(running && pending && seen.contains("exit_code: -1"), "{seen}");
    let ended = of_jobs(&place, "status.yaml");
    let (first, second) = (&ended[0].1, &ended[1].1);
    assert!(first.contains("job_id: \"first\"\nstatus: failed\nexit_code: 3\n"), "{first}");
    assert!(second.contains("status: success\nexit_code: 0\nlog_file: \"./logs/second.log\"\n"));
    let at = second.lines().find_map(|line| line.strip_prefix("timestamp: ")).unwrap();
    let shape = at.trim_matches('"').len() == "2026-11-22T12:00:00+00:00".len();
    assert!(shape && at.contains('T'), "{at}");
}

// Rows: A5
#[test]
fn a_failing_job_fails_the_program() {
    let place = TestDir::new("{ executor: local, product: { commands: 'false' } }");
    assert_eq!(place.events(&[], &[]).0, Some(1));
}

// Rows: A6
#[test]
fn each_job_has_a_log_and_a_socket_receives_a_copy_of_every_line() {
    let place = TestDir::new(
        "[{ job_id: a, executor: local, product: { commands: 'echo of a; echo wrong >&2' } },
          { job_id: b, executor: custom, product: { script: ['echo of b', 'exit 4'] } }]",
    );
    let socket = place.path("log.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        text
    });
    let (code, _) = place.events(&[], &[("RUNNER_LOG_SOCKET", socket.to_str().unwrap())]);
    assert_eq!(code, Some(1));
    let of = |job: &str| std::fs::read_to_string(place.path(&format!("logs/{job}.log"))).unwrap();
    let (a, b) = (of("a"), of("b"));
    let lines: Vec<&str> = a.lines().collect();
    assert!(lines[0].starts_with("INFO: 2") && lines[0].ends_with("Starting job a"), "{a}");
    assert!(lines.contains(&"of a") && lines.contains(&"wrong"), "{a}");
    assert!(b.contains("of b\n") && b.lines().last().unwrap().starts_with("ERROR: "), "{b}");
    assert_eq!(reader.join().unwrap(), a + &b);
}

/// Accepts `count` POST requests and returns their headers and bodies.
pub(super) fn receiver(count: usize) -> (String, std::thread::JoinHandle<Vec<(String, Value)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let taken = std::thread::spawn(move || {
        let mut posts = Vec::new();
        while posts.len() < count {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut bytes, mut byte) = (Vec::new(), [0]);
            while !bytes.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                bytes.push(byte[0]);
            }
            let head = String::from_utf8(bytes).unwrap().to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.unwrap().trim().parse().unwrap()];
            stream.read_exact(&mut body).unwrap();
            stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").unwrap();
            posts.push((head, serde_json::from_slice(&body).unwrap()));
        }
        posts
    });
    (url, taken)
}

// Rows: A7
#[test]
fn a_callback_is_posted_twice_with_its_body_and_bearer_token() {
    let (url, taken) = receiver(2);
    let place = TestDir::new(&format!(
        "{{ job_id: told, executor: local, product: {{ commands: 'exit 5' }},
            callback: {{ url: '{url}', secret: 's3cret' }} }}"
    ));
    assert_eq!(place.events(&[], &[]).0, Some(1));
    let posts = taken.join().unwrap();
    for (head, _) in &posts {
        assert!(head.starts_with("post /hook http/1.1"), "{head}");
        assert!(head.contains("content-type: application/json"), "{head}");
        assert!(head.contains("authorization: bearer s3cret"), "{head}");
    }
    let artifacts = serde_json::json!([{ "Path": "result.json", "Type": "file" }]);
    let body = |status: &str, code: i32| {
        serde_json::json!({
            "job_id": "told", "status": status, "exit_code": code,
            "log_file": "./logs/told.log", "artifacts": artifacts,
        })
    };
    assert_eq!(posts[0].1, body("running", -1));
    assert_eq!(posts[1].1, body("failed", 5));
}

// Rows: A8
#[test]
fn callbacks_go_to_the_jobs_url_or_that_of_the_settings_with_its_secret() {
    let ((own, of_own), (all, of_all)) = (receiver(2), receiver(2));
    let place = TestDir::new(&format!(
        "[{{ job_id: x, executor: local, product: {{ commands: 'true' }}, callback: {{ url: '{own}' }} }},
          {{ job_id: y, executor: local, product: {{ commands: 'true' }} }}]"
    ));
    let settings = format!("callback: {{ url: '{all}', secret: global }}\n");
    std::fs::write(place.path("config.yaml"), settings).unwrap();
    assert_eq!(place.events(&[], &[]).0, Some(0));
    for (head, body) in of_own.join().unwrap() {
        assert!(body["job_id"] == "x" && !head.contains("authorization"), "{head}");
    }
    for (head, body) in of_all.join().unwrap() {
        assert!(body["job_id"] == "y" && head.contains("bearer global"), "{head}");
    }
}

// Rows: A9
#[test]
fn a_job_can_use_the_results_of_earlier_jobs() {
    let place = TestDir::new(
        r#"[{ id: made, job_id: run-7, executor: local, product: { commands:
                'printf "{\"success\":true,\"data\":{\"rows\":[{\"id\":\"it''s\"}]}}" > $JOB_WORKDIR/result.json' } },
            { id: uses, executor: local, variables: { ROW: '${made.data.rows[0].id}' }, product: { commands: [
                'echo "$ROW" ${made.result.data.rows[0].id|quote} ${PREVIOUS_JOB_ID} ${run-7.success}',
                'X=shell; echo ${X} ${UNKNOWN:-kept} ${PREVIOUS_RESULT.success}'] } }]"#,
    );
    let (code, events) = place.events(&[], &[]);
    assert_eq!(code, Some(0), "{events:#?}");
    assert_eq!(lines_of(&events, "uses"), ["it's it's run-7 true", "shell kept true"]);
}

// Rows: A9
#[test]
fn a_job_with_an_unresolved_reference_does_not_run() {
    let place = TestDir::new(
        "[{ id: made, executor: local, product: { commands: 'true' } },
          { id: uses, executor: local, product: { commands: 'touch ran; echo ${made.data.id}' } }]",
    );
    let (code, events) = place.events(&[], &[]);
    let last = events.last().unwrap()["message"].as_str().unwrap();
    assert!(code == Some(1) && last.contains("job made has left no result"), "{last}");
    assert!(!place.path("ran").exists());
}

// Rows: A10
#[test]
fn jobs_run_in_file_order_and_continue_after_a_failure() {
    let place = TestDir::new(
        "[{ id: a, executor: local, product: { commands: 'exit 1' } },
          { id: b, job_id: bee, executor: local, product: { commands: 'echo ${PREVIOUS_JOB_ID}' } },
          { id: c, executor: local, product: { commands: 'echo ${PREVIOUS_JOB_ID}' } }]",
    );
    let (code, events) = place.events(&[], &[]);
    assert_eq!((code, began(&events)), (Some(1), vec!["a", "b", "c"]));
    assert_eq!(lines_of(&events, "c"), ["bee"]);
    let id = &lines_of(&events, "b")[0];
    assert!(id.len() == 10 && place.path(&format!("workdir/{id}/status.yaml")).exists(), "{id}");
}

// Rows: A13
#[test]
fn commands_are_a_text_or_a_list_and_job_variables_override_the_environment() {
    let place = TestDir::new(
        "[{ id: text, executor: local, variables: { GREETING: own }, product: { commands: \"false\\necho $GREETING\" } },
          { id: list, executor: local, product: { commands: ['X=1', 'echo $X $GREETING', 'false', 'true'] } },
          { id: nested, executor: custom, product: { script: [echo one, [echo two, echo 3], 'exit 0'] } },
          { id: last, executor: custom, product: { script: \"true\\nfalse\" } }]",
    );
    let (code, events) = place.events(&[], &[]);
    assert_eq!(code, Some(1), "the last status is the job's");
    assert_eq!(lines_of(&events, "text"), ["own"]);
    assert_eq!(lines_of(&events, "list"), ["1 hello"]);
    assert_eq!(lines_of(&events, "nested"), ["one", "two", "3"]);
    let ended: Vec<i64> = events
        .iter()
        .filter(|event| event["reason"] == "StepCompleted")
        .map(|event| event["exit-code"].as_i64().unwrap())
        .collect();
    assert_eq!(ended, [0, 0, 0, 1]);
}

// Rows: A11
#[test]
fn artifacts_are_stored_flat_beside_the_status_and_missing_ones_are_reported() {
    let place = TestDir::new(
        "{ job_id: made, executor: local, product: { commands: [
            'cd $JOB_WORKDIR', 'mkdir -p out/deep dir/below', 'echo 1 > out/a.txt',
            'echo 2 > out/deep/b.txt', 'echo 3 > dir/below/c'] },
           artifacts: [{ path: 'out/**/*.txt' }, { path: dir, type: dir }, { path: nothing }] }",
    );
    let (code, events) = place.events(&[], &[]);
    assert_eq!(code, Some(0), "a missing artifact is not a failure: {events:#?}");
    let read = |file: &str| std::fs::read_to_string(place.path("workdir/made").join(file)).unwrap();
    assert_eq!((read("a.txt"), read("b.txt")), ("1\n".to_owned(), "2\n".to_owned()));
    assert_eq!(read("dir/below/c"), "3\n", "a directory stays a directory");
    let log = std::fs::read_to_string(place.path("logs/made.log")).unwrap();
    assert!(log.contains("there is no file nothing to keep"), "{log}");
    let sum = "4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865";
    assert!(log.contains(sum), "the checksum of 1 and a newline: {log}");
}

#[test]
fn the_first_of_many_artifacts_are_listed_and_the_others_counted() {
    let place = TestDir::new(
        "{ job_id: made, executor: local, product: { commands: [
            'mkdir $JOB_WORKDIR/out', 'cd $JOB_WORKDIR/out',
            'i=0; while [ $i -lt 50 ]; do echo $i > $i; i=$((i+1)); done'] },
           artifacts: [{ path: 'out/*' }] }",
    );
    let (code, events) = place.events(&[], &[]);
    assert_eq!(code, Some(0), "{events:#?}");
    assert!(place.path("workdir/made/49").exists());
    let log = std::fs::read_to_string(place.path("logs/made.log")).unwrap();
    assert_eq!(log.matches(" is kept in ").count(), 20, "{log}");
    assert_eq!(log.matches("30 more outputs are kept in ").count(), 1, "{log}");
}

// Rows: A19
#[test]
fn a_result_is_stored_beside_the_status_and_later_jobs_can_read_it() {
    let place = TestDir::new(
        "[{ id: a, executor: local, product: { commands: 'echo {} > $JOB_WORKDIR/result.json' } },
          { id: b, executor: local, product: { commands: 'cat workdir/${PREVIOUS_JOB_ID}/result.json' } }]",
    );
    let (code, events) = place.events(&[], &[]);
    assert_eq!((code, lines_of(&events, "b")), (Some(0), vec!["{}".to_owned()]));
}

#[test]
fn a_callback_uses_its_named_secret_and_the_job_does_not_receive_it() {
    let (url, taken) = receiver(2);
    let place = TestDir::new(&format!(
        "{{ executor: local, product: {{ commands: 'env; ls $BOB_SECRETS' }},
            callback: {{ url: '{url}', secret: {{ secret-name: hook }} }} }}"
    ));
    let (code, events) = place.events(&[], &[("BOB_SECRET_HOOK", "s3cret-word")]);
    assert_eq!(code, Some(0), "{events:#?}");
    let posts = taken.join().unwrap();
    assert!(posts.iter().all(|(head, _)| head.contains("authorization: bearer s3cret-word")));
    assert!(!format!("{events:?}").contains("s3cret-word"));
}

// Rows: A2
#[test]
fn run_multi_prints_each_job_and_resolves_no_references_to_earlier_jobs() {
    let place = TestDir::new(
        r#"[{ id: made, job_id: one, executor: local, product: { commands:
                'echo "{\"data\":{\"id\":7}}" > $JOB_WORKDIR/result.json; exit 2' } },
            { id: uses, executor: custom, product: { script:
                'echo ''${made.data.id}'' "<${PREVIOUS_JOB_ID-}>"' } }]"#,
    );
    let said = place.command(&["run-multi", "pipeline.yaml"]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert_eq!(said.status.code(), Some(1), "like `run` if a job fails: {err}");
    assert_eq!(out, "${made.data.id} <>\n");
    let at = |text: &str| err.find(text).unwrap_or_else(|| panic!("{text} is missing in {err}"));
    assert!(at("job 1 of 2: local") < at("job 2 of 2: custom"), "{err}");
    assert!(place.path("workdir/one/status.yaml").exists());
}

// Rows: A2
#[test]
fn run_multi_accepts_only_job_files_and_has_help() {
    let place = TestDir::new("{group: g, name: n, steps: []}");
    let said = place.command(&["run-multi", "pipeline.yaml"]).output().unwrap();
    let err = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.code() == Some(65) && err.contains("is for job files"), "{err}");
    let help = place.command(&["run-multi", "--help"]).output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("bob-runner run-multi jobs.yml"));
}
