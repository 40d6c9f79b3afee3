//! Messages of the commands about runs, pipelines and workers.

use std::time::{Duration, Instant};

use super::*;

#[tokio::test]
async fn a_stop_or_pause_of_an_unknown_name_fails_with_the_reason() {
    let Some(place) = TestEnv::new().await else { return };
    let run = format!("r-{}", place.group);
    let stop = place.say(&["stop", &run]);
    assert_eq!(stop.status.code(), Some(1));
    let wanted =
        format!("run {run} is not known; if it is submitted within 24 h it is stopped at once");
    assert!(text(&stop.stderr).contains(&wanted), "{}", text(&stop.stderr));
    let pipeline = format!("{}/none", place.group);
    for typed in ["pause", "unpause"] {
        let said = place.say(&[typed, &pipeline]);
        assert_eq!(said.status.code(), Some(1), "{typed}");
        assert!(text(&said.stderr).contains(&pipeline), "{}", text(&said.stderr));
    }
}

#[tokio::test]
async fn following_events_of_an_unknown_run_prints_a_notice() {
    let Some(place) = TestEnv::new().await else { return };
    let run = format!("r-{}", place.group);
    let mut follow = Running(
        place
            .command(&["events", "-f", "--run", &run])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut line = String::new();
    BufReader::new(follow.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, format!("[bob] run {run} is not known yet; waiting for it\n"));
    follow.signal(Signal::INT);
    assert_eq!(follow.code(), 130);
}

#[tokio::test]
async fn a_quiet_stream_has_no_events_of_the_last_second() {
    let Some(place) = TestEnv::new().await else { return };
    let file = place.pipeline("quiet", "  - cmd: 'true'\n");
    assert_eq!(place.say(&["pipeline", "apply", &file]).status.code(), Some(0));
    // Repeat until the event of the definition is older than a second.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let said = place.say(&["events", "--since", "1s"]);
        assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
        if said.stdout.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "still there: {}", text(&said.stdout));
    }
}

#[tokio::test]
async fn a_worker_reports_that_it_is_ready() {
    let Some(place) = TestEnv::new().await else { return };
    let serve = place.command(&["serve"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut worker = Running(serve);
    let lines = BufReader::new(worker.0.stderr.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    let ready = lines.find(|line| line.contains("ready: "));
    assert!(
        ready.is_some_and(|line| line.contains("takes work")),
        "the worker must report that it takes work"
    );
    worker.signal(Signal::TERM);
    assert_eq!(
        lines.filter(|line| line.contains("ready: ")).count(),
        0,
        "it must report that only once"
    );
    assert_eq!(worker.code(), 0);
}
