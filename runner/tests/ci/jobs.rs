//! Job files as lines of a queue that a service takes.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use super::{Server, TestDir, until};

// Rows: A20
#[test]
fn a_server_runs_queued_job_files_and_reports_how_each_ended() {
    let place = TestDir::new();
    let program = env!("CARGO_BIN_EXE_bob-runner");
    let add = |name: &str, commands: &str| {
        let file = place.path(&format!("{name}.yml"));
        let job = format!(
            "[{{ job_id: {name}, executor: local, product: {{ commands: '{commands}' }} }},
              {{ executor: local, product: {{ commands: 'echo ${{PREVIOUS_JOB_ID}} >> $D/after' }} }}]"
        );
        std::fs::write(&file, job).unwrap();
        let line = format!("cd $D && {program} run {}", file.display());
        place.add(&["--attempts", "1", &line])
    };
    let before = add("before", "true");
    let server = place.serve(&[("BOB_MAX_PARALLEL_RUNS", "2")]);
    let wrong = add("wrong", "exit 3");
    let later = add("later", "true");
    server.passed(&before);
    server.passed(&later);
    server.says("ERROR", &wrong);
    let statuses = ["before", "wrong", "later"].map(|job| {
        let status = place.read(&format!("workdir/{job}/status.yaml"));
        status.lines().nth(1).unwrap_or_default().to_owned()
    });
    assert_eq!(statuses, ["status: success", "status: failed", "status: success"]);
    let mut after: Vec<String> = place.read("after").lines().map(str::to_owned).collect();
    after.sort();
    assert_eq!(after, ["before", "later", "wrong"], "each file is run once, and to its end");
    server.end();
}

/// A full pipe that is not read.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while std::io::Write::write(&mut &writer, &[b'.'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

#[test]
fn a_server_whose_log_is_not_read_runs_its_jobs_and_exits_cleanly() {
    for (form, is_stdout) in [("text", false), ("json", false), ("ci", true)] {
        let (place, (reader, writer)) = (TestDir::new(), full_pipe());
        place.add(&["echo done >\"$D/result\""]);
        let mut command = place.program(&["serve", "--mode", "embedded"]);
        command.env("BOB_EXECUTORS", "local").env("BOB_LOG_FORMAT", form);
        command.env("BOB_LOG_LEVEL", "debug").stdout(Stdio::null()).stderr(Stdio::null());
        match is_stdout {
            true => command.stdout(writer),
            false => command.stderr(writer),
        };
        let mut server = Server { child: command.spawn().unwrap(), log: place.path("no-log") };
        drop(command);
        until("the job runs", &place.path("no-log"), || {
            (place.read("result") == "done\n").then_some(())
        });
        let pid = Pid::from_raw(server.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let status =
            until("the server ends", &place.path("no-log"), || server.child.try_wait().unwrap());
        assert!(status.success(), "{form}: {status}");
        drop(reader);
    }
}
