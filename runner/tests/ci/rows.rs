//! The rows of the table, one by one, without crashes.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use super::{TestDir, id_of, is_there};

// Rows: C1
#[test]
fn jobs_start_in_the_order_in_which_they_were_added() {
    let place = TestDir::new();
    place.add(&["echo a >> $D/order"]);
    // Without the program, a user can append a line.
    std::fs::OpenOptions::new()
        .append(true)
        .open(place.queue())
        .unwrap()
        .write_all(b"echo b >> $D/order\n")
        .unwrap();
    place.add(&["echo", "c", ">>", "$D/order"]);
    let listed = place.program(&["add", "--list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let jobs = ["a", "b", "c"].map(|job| format!("echo {job} >> $D/order\n"));
    assert_eq!(listed, jobs.concat());
    let server = place.serve(&[("BOB_MAX_PARALLEL_RUNS", "1")]);
    let last = place.add(&["echo d >> $D/order"]);
    server.passed(&last);
    assert_eq!(place.read("order"), "a\nb\nc\nd\n");
    server.until("the file is empty", || place.read("ci-job-queue").is_empty().then_some(()));
    server.end();
}

// Rows: C1
#[test]
fn the_program_acts_as_add_job_if_called_by_that_name() {
    let place = TestDir::new();
    let link = place.path("add_job");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_bob-runner"), &link).unwrap();
    let run = id_of(place.command(&link, &["touch $D/done"]).spawn().unwrap());
    let server = place.serve(&[]);
    server.passed(&run);
    assert!(place.path("done").exists());
    server.end();
}

// Rows: C2
#[test]
fn as_many_jobs_run_at_once_as_allowed_and_no_more() {
    let place = TestDir::new();
    std::fs::create_dir(place.path("running")).unwrap();
    // Each job records the number of concurrent jobs, and all wait for a file.
    let job = "touch $D/running/$$; ls $D/running | wc -l >> $D/seen; \
               until [ -e $D/go ]; do sleep 0.05; done; rm $D/running/$$; echo >> $D/ended";
    for _ in 0..20 {
        place.add(&[job]);
    }
    let server = place.serve(&[("BOB_MAX_PARALLEL_RUNS", "3")]);
    let seen = || -> Vec<u32> {
        place.read("seen").lines().map(|line| line.trim().parse().unwrap()).collect()
    };
    server.until("three run", || (seen().len() == 3).then_some(()));
    std::fs::write(place.path("go"), "").unwrap();
    server.until("all ended", || (place.read("ended").lines().count() == 20).then_some(()));
    assert_eq!((seen().len(), seen().iter().max()), (20, Some(&3)));
    server.end();
}

// Rows: C3
#[test]
fn a_failing_job_is_retried_up_to_its_limit_and_the_next_one_continues() {
    let place = TestDir::new();
    let often = place.add(&["--attempts", "4", "--delay", "20ms", "echo >> $D/own; exit 3"]);
    let usual = place.add(&["echo >> $D/usual; exit 3"]);
    let once =
        ["0", "1"].map(|attempts| place.add(&["--attempts", attempts, "echo >> $D/once; false"]));
    let next = place.add(&["true"]);
    let server = place.serve(&[
        ("BOB_CI_ATTEMPTS", "2"),
        ("BOB_CI_DELAY", "30ms"),
        ("BOB_MAX_PARALLEL_RUNS", "1"),
    ]);
    server.passed(&next);
    let tries = |name| place.read(name).lines().count();
    assert_eq!((tries("own"), tries("usual"), tries("once")), (4, 2, 2));
    // The delay is constant: it neither doubles nor varies.
    for (run, all, delay) in [(&often, 4, "20ms"), (&usual, 2, "30ms")] {
        let warnings = server.lines("WARN", run);
        assert_eq!(warnings.len(), all - 1, "{warnings:?}");
        for (attempt, line) in (1..).zip(&warnings) {
            let said =
                format!("job {run}: attempt {attempt} of {all} has failed; the next is in {delay}");
            assert!(line.contains(&format!("{said} (exit code ")), "{line}");
        }
        let errors = server.lines("ERROR", run);
        assert!(errors.len() == 1 && errors[0].contains("exit code 3"), "{errors:?}");
        assert!(errors[0].contains(&format!("attempt {all}")), "{errors:?}");
    }
    for run in once {
        assert_eq!((server.lines("WARN", &run).len(), server.lines("ERROR", &run).len()), (0, 1));
    }
    server.end();
}

// Rows: C4
#[test]
fn a_job_that_passes_on_its_second_attempt_has_passed() {
    let place = TestDir::new();
    let run = place.add(&["[ -e $D/flag ] || { touch $D/flag; exit 1; }"]);
    let server = place.serve(&[("BOB_CI_DELAY", "10ms")]);
    server.passed(&run);
    assert_eq!((server.lines("WARN", &run).len(), server.lines("ERROR", "").len()), (1, 0));
    server.end();
}

// Rows: C5
#[test]
fn the_log_level_hides_lower_levels() {
    for (level, shown) in [("error", 1), ("warn", 2), ("info", 3), ("debug", 4)] {
        let place = TestDir::new();
        place.add(&["--attempts", "2", "--delay", "10ms", "false"]);
        let server = place.serve(&[("BOB_LOG_LEVEL", level)]);
        server.says("ERROR", "failed");
        let log = server.end();
        let levels: BTreeSet<&str> =
            log.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
        let all = ["[ERROR]", "[WARN]", "[INFO]", "[DEBUG]"];
        assert_eq!(levels, all[..shown].iter().copied().collect(), "{level}: {log}");
        for line in log.lines() {
            let time = &line[..21];
            assert!(jiff::fmt::strtime::parse("[%Y-%m-%d %H:%M:%S]", time).is_ok(), "{line}");
        }
    }
}

// Rows: C9
#[test]
fn a_multiline_command_is_one_job() {
    let place = TestDir::new();
    let run = place.add(&["x=several\necho \"$x lines\" > $D/out\n\nif false; then\n  exit 1\nfi"]);
    assert_eq!(place.read("ci-job-queue").lines().count(), 1);
    let listed = place.program(&["add", "--list"]).output().unwrap().stdout;
    assert!(String::from_utf8(listed).unwrap().starts_with("{\"command\":\"x=several\\necho "));
    let server = place.serve(&[]);
    server.passed(&run);
    assert_eq!(place.read("out"), "several lines\n");
    assert_eq!(server.lines("INFO", "is claimed").len(), 1);
    server.end();
}

// Rows: C10
#[test]
fn a_job_over_its_time_limit_ends_with_all_its_processes() {
    let place = TestDir::new();
    let job = "setsid sleep 1000 & echo $! > $D/away; sleep 1000 & echo $! > $D/child; wait";
    let run = place.add(&["--timeout", "2s", "--attempts", "1", job]);
    let server = place.serve(&[]);
    server.says("ERROR", &run);
    assert!(server.lines("ERROR", &run)[0].contains("2s"), "{}", server.log());
    for name in ["away", "child"] {
        assert!(!is_there(&place.read(name)), "{name} is gone");
    }
    // The default settings apply if a job does not set a value.
    server.end();
    let server = place.serve(&[("BOB_CI_TIMEOUT", "1s"), ("BOB_CI_ATTEMPTS", "1")]);
    let run = place.add(&["sleep 1000"]);
    server.says("ERROR", &run);
    server.end();
}

// Rows: C11
#[test]
fn concurrent_additions_lose_no_job() {
    let place = TestDir::new();
    std::fs::create_dir(place.path("done")).unwrap();
    let server = place.serve(&[("BOB_MAX_PARALLEL_RUNS", "8")]);
    let adding: Vec<_> = (0..50)
        .map(|job| {
            let command = format!("x={job}\necho >> $D/done/$x");
            place.program(&["add", &command]).spawn().unwrap()
        })
        .collect();
    let runs: BTreeSet<String> = adding.into_iter().map(id_of).collect();
    assert_eq!(runs.len(), 50);
    for run in &runs {
        server.passed(run);
    }
    for job in 0..50 {
        assert_eq!(place.read(&format!("done/{job}")).lines().count(), 1, "job {job}");
    }
    server.end();
}

// Rows: C12
#[test]
fn the_documented_test_helpers_pass_against_the_program() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/ci/test");
    let place = TestDir::new();
    let said = place
        .command(Path::new("bash"), &[script])
        .env("BOB_RUNNER", env!("CARGO_BIN_EXE_bob-runner"))
        .env_remove("BOB_CI_QUEUE")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success(), "{out}\n{err}");
    assert!(out.ends_with("0 failed\n"), "{out}");
}

#[test]
fn an_invalid_queue_line_is_set_aside_and_reported_and_the_next_one_runs() {
    let place = TestDir::new();
    // The text of a writer that died in the middle of a line.
    std::fs::write(place.queue(), "{\"command\":\"rm -rf /som").unwrap();
    let run = place.add(&["true"]);
    let server = place.serve(&[]);
    server.passed(&run);
    server.says("ERROR", "is not a valid job: ");
    assert_eq!(place.read("ci-job-queue.refused"), "{\"command\":\"rm -rf /som\n");
    server.end();
}

#[test]
fn a_world_writable_queue_file_is_not_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = TestDir::new();
    std::fs::write(place.queue(), "touch $D/done\n").unwrap();
    std::fs::set_permissions(place.queue(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let refused = |settings: [(&str, &str); 1]| {
        let mut command = place.program(&["serve", "--mode", "embedded"]);
        let said = command.envs(settings).output().unwrap();
        (said.status.code(), String::from_utf8(said.stderr).unwrap())
    };
    let (code, said) = refused([("BOB_EXECUTORS", "local")]);
    assert!(code == Some(78) && said.contains("`chmod o-w` on it"), "{code:?} {said}");
    std::fs::set_permissions(place.queue(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let (code, said) = refused([("CONTAINER_ENGINE_URL", "unix:///nowhere")]);
    assert!(code == Some(78) && said.contains("let BOB_EXECUTORS name local"), "{code:?} {said}");
    assert!(!place.path("done").exists());
}

#[test]
fn a_job_is_sent_to_the_cluster_in_cluster_mode() {
    let place = TestDir::new();
    let nowhere = [
        ("BOB_MODE", "cluster"),
        ("BOB_QUEUE_URL", "amqp://127.0.0.1:1"),
        ("BOB_CONNECTION_RETRY_ATTEMPTS", "1"),
    ];
    let said = place.program(&["add", "true"]).envs(nowhere).output().unwrap();
    assert_eq!(said.status.code(), Some(69), "{said:?}");
    assert!(!place.queue().exists());
    let named = place.program(&["add", "--queue", "own", "true"]).envs(nowhere).output().unwrap();
    assert!(named.status.success() && place.read("own").contains("\"command\":\"true\""));
}
