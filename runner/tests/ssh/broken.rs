//! Stops and broken connections leave no process on the host.

use super::*;

/// A step with child processes, the last of which only SIGKILL ends.
const FAMILY: &str = "sleep 1000 & echo $!; \
     sh -c 'sleep 1000 & echo $!; wait' & \
     (trap '' TERM; exec sh -c 'echo $$; while :; do sleep 1; done') & \
     wait";

#[tokio::test]
async fn a_stop_ends_all_remote_processes_of_the_step() {
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
async fn a_stop_kills_an_unresponsive_step_after_the_grace() {
    let Some(server) = Server::start() else { return };
    let running = Running::start(step(server.with(), &format!("trap '' TERM; {FAMILY}")));
    let pids = running.pids(3).await;
    running.stop.raise(StopLevel::Stop { grace: Duration::from_millis(100) });
    assert_eq!(running.end().await.unwrap().exit.code, 137);
    all_gone(&pids).await;
}

#[tokio::test]
async fn remote_processes_end_with_their_connection() {
    let Some(server) = Server::start() else { return };
    let running = Running::start(step(server.with(), FAMILY));
    let pids = running.pids(3).await;
    server.cut();
    match running.end().await {
        Err(ExecError::Disconnected { host, .. }) => assert!(host.contains("127.0.0.1"), "{host}"),
        other => panic!("its outcome must be unknown: {other:?}"),
    }
    all_gone(&pids).await;
}

#[tokio::test]
async fn remote_processes_end_with_their_client() {
    let Some(server) = Server::start() else { return };
    let running = Running::start(step(server.with(), FAMILY));
    let pids = running.pids(3).await;
    kill(&client_of(server.port));
    match running.end().await {
        Err(ExecError::Disconnected { cause, .. }) => assert!(cause.contains("without a word")),
        other => panic!("its outcome must be unknown: {other:?}"),
    }
    all_gone(&pids).await;
}

#[tokio::test]
async fn a_process_that_left_the_session_of_its_step_blocks_nothing() {
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
async fn dropping_the_wait_does_not_stop_the_step_but_a_stop_still_does() {
    let Some(server) = Server::start() else { return };
    let running = Running::start(step(server.with(), FAMILY));
    let pids = running.pids(3).await;
    running.ran.abort();
    assert!(running.ran.await.unwrap_err().is_cancelled());
    assert!(pids.iter().all(|pid| is_there(*pid)), "the step must still be running");
    running.stop.raise(StopLevel::Kill);
    all_gone(&pids).await;
}
