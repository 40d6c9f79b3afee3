//! Stops and broken connections leave no process on the host.

use super::*;

/// A step with child processes, the last of which only SIGKILL ends.
const FAMILY: &str = "sleep 1000 & echo $!; \
     sh -c 'sleep 1000 & echo $!; wait' & \
     (trap '' TERM; exec sh -c 'echo $$; while :; do sleep 1; done') & \
     wait";

#[tokio::test]
async fn a_stop_ends_all_that_the_step_has_begun_there() {
    let Some(server) = Server::start() else { return };
    for (level, code) in
        [(StopLevel::Stop { grace: Duration::from_secs(600) }, 143), (StopLevel::Kill, 137)]
    {
        let running = Running::start(step(server.with(), FAMILY));
        let pids = running.pids(3).await;
        running.stop.raise(level);
        assert_eq!(running.end().await.unwrap().exit.code, code);
        all_gone(&pids).await;
    }
}

#[tokio::test]
async fn a_stop_of_a_step_that_does_not_listen_kills_it_after_the_grace() {
    let Some(server) = Server::start() else { return };
    let running = Running::start(step(server.with(), &format!("trap '' TERM; {FAMILY}")));
    let pids = running.pids(3).await;
    running.stop.raise(StopLevel::Stop { grace: Duration::from_millis(100) });
    assert_eq!(running.end().await.unwrap().exit.code, 137);
    all_gone(&pids).await;
}

#[tokio::test]
async fn what_runs_there_ends_with_its_connection() {
    let Some(server) = Server::start() else { return };
    let running = Running::start(step(server.with(), FAMILY));
    let pids = running.pids(3).await;
    server.cut();
    match running.end().await {
        Err(ExecError::Disconnected { host, .. }) => assert!(host.contains("127.0.0.1"), "{host}"),
        other => panic!("nobody knows how it ended: {other:?}"),
    }
    all_gone(&pids).await;
}

#[tokio::test]
async fn what_runs_there_ends_with_its_client() {
    let Some(server) = Server::start() else { return };
    let running = Running::start(step(server.with(), FAMILY));
    let pids = running.pids(3).await;
    kill(&client_of(server.port));
    match running.end().await {
        Err(ExecError::Disconnected { cause, .. }) => assert!(cause.contains("without a word")),
        other => panic!("nobody knows how it ended: {other:?}"),
    }
    all_gone(&pids).await;
}

#[tokio::test]
async fn what_has_left_the_session_of_its_step_holds_nobody_up() {
    let Some(server) = Server::start() else { return };
    let running =
        Running::start(step(server.with(), "setsid sleep 1000 & echo $!; exec sleep 1000"));
    let pids = running.pids(1).await;
    running.stop.raise(StopLevel::Kill);
    assert_eq!(running.end().await.unwrap().exit.code, 137);
    for pid in pids.iter().filter(|pid| is_there(**pid)) {
        kill(Path::new(&format!("/proc/{pid}")));
    }
}

#[tokio::test]
async fn a_dropped_wait_stops_nothing_and_a_stop_still_does() {
    let Some(server) = Server::start() else { return };
    let running = Running::start(step(server.with(), FAMILY));
    let pids = running.pids(3).await;
    running.ran.abort();
    assert!(running.ran.await.unwrap_err().is_cancelled());
    assert!(pids.iter().all(|pid| is_there(*pid)), "it goes on");
    running.stop.raise(StopLevel::Kill);
    all_gone(&pids).await;
}
