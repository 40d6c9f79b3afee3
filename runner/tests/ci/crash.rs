//! Jobs when the server is killed.

use std::io::Write as _;

use super::{TestDir, is_there};

/// A file that the server has taken and not removed yet.
fn taken(place: &TestDir) -> Option<std::path::PathBuf> {
    let entries = std::fs::read_dir(place.0.path()).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    paths.find(|path| path.to_string_lossy().contains("ci-job-queue.taken-"))
}

// Rows: C8
#[test]
fn no_job_is_lost_with_a_killed_server_and_no_second_run_is_silent() {
    let place = TestDir::new();
    let job = |name: &str| {
        format!(
            "echo >> $D/{name}.begun; echo $$ > $D/{name}.pid; \
             until [ -e $D/go ]; do sleep 0.05; done; echo >> $D/{name}.ended"
        )
    };
    let names = ["a", "b", "c", "d", "e"];
    let runs = names.map(|name| place.add(&[&job(name)]));
    let mut file = std::fs::OpenOptions::new().append(true).open(place.queue()).unwrap();
    file.write_all(format!("{}\n", job("plain")).as_bytes()).unwrap();
    let server = place.serve(&[("BOB_MAX_PARALLEL_RUNS", "2")]);
    // Simulates a crash after the last line became a start and before the file was removed.
    let spool = server.until("the queue file is taken", || taken(&place));
    std::fs::hard_link(&spool, place.path("kept")).unwrap();
    let lines = |name: &str, what: &str| place.read(&format!("{name}.{what}")).lines().count();
    let pids = server.until("two jobs run", || {
        let pids = ["a.pid", "b.pid"].map(|name| place.read(name));
        pids.iter().all(|pid| pid.ends_with('\n')).then_some(pids)
    });
    let later = place.add(&[&job("later")]);
    let log = server.log.clone();
    server.kill();
    super::until("the jobs of the killed server have ended", &log, || {
        (!pids.iter().any(|pid| is_there(pid))).then_some(())
    });
    std::fs::rename(place.path("kept"), &spool).unwrap();
    std::fs::write(place.path("go"), "").unwrap();

    let server = place.serve(&[("BOB_MAX_PARALLEL_RUNS", "2")]);
    for run in runs.iter().chain([&later]) {
        server.passed(run);
    }
    server.until("the plain line too", || (lines("plain", "ended") == 1).then_some(()));
    server.until("the taken line is removed", || taken(&place).is_none().then_some(()));
    for name in names.into_iter().chain(["plain", "later"]) {
        let twice = usize::from(["a", "b"].contains(&name));
        assert_eq!((lines(name, "begun"), lines(name, "ended")), (1 + twice, 1), "{name}");
    }
    for (run, twice) in runs.iter().zip([true, true, false, false, false]) {
        let told = server.lines("WARN", run);
        assert_eq!(told.iter().any(|line| line.contains("is run once more")), twice, "{told:?}");
    }
    server.end();
}
