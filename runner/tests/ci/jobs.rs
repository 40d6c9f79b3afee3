//! Job files as lines of a queue that a service takes.

use super::Place;

#[test]
fn a20_a_service_takes_job_files_from_its_queue_and_tells_how_each_has_ended() {
    let place = Place::new();
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
