//! Job files as users submit them. Each test names the rows of the job runner's table that it
//! covers.

use std::process::Output;

use serde_json::{Value, json};

use crate::calls::server::{Reply, Server};
use crate::place::{TestEnv, in_time};
use crate::reader;

const ALL: (&str, &str) = ("BOB_EXECUTORS", "docker,local,custom");

fn lines(events: &[Value], step: &str) -> String {
    let of_step = reader::outputs(events).remove(&(step.to_owned(), "stdout".to_owned()));
    String::from_utf8(of_step.unwrap_or_default()).unwrap()
}

/// The program's exit code and output.
async fn said(place: &TestEnv, typed: &[&str]) -> (Option<i32>, String) {
    let mut command = place.program(typed, &[]);
    let Output { status, stdout, stderr } =
        in_time("the program ends", command.output()).await.unwrap();
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

// Rows: A1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_three_forms_of_a_job_file_have_the_same_effect_in_a_cluster() {
    let Some(place) = TestEnv::new().await else { return };
    let server = place.serve(&[ALL]).await;
    let job = "{ id: j, job_id: named, executor: local, variables: { X: 1 }, \
               product: { commands: 'echo done $X' } }";
    let mut steps = Vec::new();
    for file in [job.to_owned(), format!("[{job}]"), format!("jobs: [{job}]")] {
        place.write("form.yml", &file);
        let run = place.submit("form.yml").await;
        let record = place.keys.settled(&run).await;
        assert_eq!(record["status"], "passed", "{file}");
        let events = reader::events_of(&place, &run).await;
        assert_eq!(lines(&events, "j"), "done 1\n", "{file}");
        let definition = place.keys.get(&format!("bob.run.definition/{run}")).await.unwrap();
        let mut step = definition["pipeline"]["steps"][0].clone();
        // A single job has no predecessor, so `when` does not matter.
        step.as_object_mut().unwrap().remove("when");
        steps.push((step, reader::reasons(&events).join(" ")));
    }
    assert!(steps[0] == steps[1] && steps[1] == steps[2], "{steps:#?}");
    server.end().await;
}

// Rows: A5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn following_a_job_file_exits_with_the_result_of_its_jobs() {
    let Some(place) = TestEnv::new().await else { return };
    let server = place.serve(&[ALL]).await;
    place.write("passes.yml", "[{ executor: local, product: { commands: 'echo of it' } }]");
    let (code, out) = said(&place, &["submit", "passes.yml", "--follow"]).await;
    assert!(code == Some(0) && out.contains("of it\n"), "{out}");
    // One is invalid, and the next one still runs.
    place.write(
        "fails.yml",
        "[{ executor: local, product: { commands: 'exit 3' } },
          { executor: custom, product: { script: 'echo the next' } }]",
    );
    let (code, out) = said(&place, &["submit", "fails.yml", "--follow"]).await;
    assert!(code == Some(1) && out.contains("the next\n"), "{code:?} {out}");

    let long = "[{ executor: local, product: { commands: 'echo begun; exec sleep 1000' } }]";
    place.write("long.yml", long);
    let run = place.run("long");
    let stopping = async {
        let begun = |event: &Value| event["run-id"] == run && event["message"] == "begun";
        reader::Reader::new(&place).await.find(begun).await;
        assert_eq!(said(&place, &["stop", &run]).await.0, Some(0));
    };
    let typed = ["submit", "long.yml", "--run-id", &run, "--follow"];
    let ((code, out), ()) = tokio::join!(said(&place, &typed), stopping);
    assert_eq!(code, Some(3), "it was stopped: {out}");
    server.end().await;
}

// Rows: A8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callback_receiver_is_that_of_the_job_or_of_the_settings_or_none() {
    let Some(place) = TestEnv::new().await else { return };
    let told = Server::start(|_, _| Reply::json(200, &json!({}))).await;
    let (own, all) = (format!("{}/own", told.url()), format!("{}/all", told.url()));
    let job = |id: &str, callback: Value| {
        let mut job =
            json!({ "job_id": id, "executor": "local", "product": { "commands": "true" } });
        if !callback.is_null() {
            job["callback"] = callback;
        }
        job
    };
    let both = json!([
        job("own-secret", json!({ "url": own, "secret": "of-job" })),
        job("own", json!({ "url": own })),
        job("none", Value::Null),
    ]);
    place.write("both.json", &both.to_string());
    place.write("alone.json", &json!([job("nobody", Value::Null)]).to_string());
    let server = place.serve(&[ALL]).await;
    let alone = place.submit("alone.json").await;
    assert_eq!(place.keys.settled(&alone).await["status"], "passed");
    // A named settings file and a discovered one have the same effect.
    let settings = format!("callback: {{ url: '{all}', secret: of-all }}\n");
    place.write("named.yaml", &settings);
    let first = place.id_of(&["--config", "named.yaml", "submit", "both.json"]).await;
    place.write("config.yaml", &settings);
    let second = place.submit("both.json").await;
    for run in [first, second] {
        assert_eq!(place.keys.settled(&run).await["status"], "passed");
    }
    in_time("all callbacks", told.asked(12)).await;
    let mut posts: Vec<String> = told
        .seen()
        .iter()
        .map(|seen| {
            let body = seen.json();
            let bearer = seen.header("authorization").unwrap_or("-");
            let word = |key: &str| body[key].as_str().unwrap().to_owned();
            format!("{} {} {} {bearer}", seen.line(), word("job_id"), word("status"))
        })
        .collect();
    posts.sort();
    posts.dedup();
    let expected = [
        "POST /all none running Bearer of-all",
        "POST /all none success Bearer of-all",
        "POST /own own running -",
        "POST /own own success -",
        "POST /own own-secret running Bearer of-job",
        "POST /own own-secret success Bearer of-job",
    ];
    assert_eq!(posts, expected);
    server.end().await;
    assert_eq!(told.seen().len(), 12, "each receiver gets two callbacks, and no other gets any");
}

// Rows: A11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn artifacts_are_uploaded_to_the_output_store_of_the_worker() {
    let Some(place) = TestEnv::new().await else { return };
    let outputs = place.dir.path().join("outputs");
    let server = place.serve(&[ALL, ("BOB_OUTPUTS", outputs.to_str().unwrap())]).await;
    let made = [
        "cd $JOB_WORKDIR",
        "mkdir -p out/deep dir/below",
        "echo 1 > out/a.txt",
        "echo 2 > out/deep/b.txt",
        "echo 3 > dir/below/c",
        "echo '{\"n\":1}' > result.json",
    ];
    let job = |id: &str, executor: &str| {
        let image = (executor == "docker").then(|| place.image());
        let mut product = json!({ "script": made });
        if let Some(image) = image {
            product["image"] = json!(image);
        }
        json!({ "id": id, "executor": executor, "product": product, "artifacts": [
            { "path": "out/**/*.txt" }, { "path": "dir", "type": "dir" }, { "path": "nothing" }] })
    };
    let jobs = json!([job("host", "local"), job("box", "docker")]);
    place.write("makes.json", &jobs.to_string());
    let run = place.submit("makes.json").await;
    let record = place.keys.settled(&run).await;
    assert_eq!(record["status"], "passed", "a missing artifact is not a failure: {record:#}");
    let events = reader::events_of(&place, &run).await;
    for (position, step) in ["host", "box"].into_iter().enumerate() {
        let below = outputs.join("job/makes").join(&run).join(step);
        let read = |file: &str| std::fs::read_to_string(below.join(file)).unwrap();
        let flat = ["a.txt", "b.txt", "dir/below/c", "result.json"].map(read);
        assert_eq!(flat, ["1\n", "2\n", "3\n", "{\"n\":1}\n"], "{step}");
        assert_eq!(record["steps"][position]["result"], json!({ "n": 1 }));
        let is_reported = events.iter().any(|event| {
            let said = event["message"].as_str().unwrap_or_default();
            event["step"] == step && said.contains("there is no file nothing to keep")
        });
        assert!(is_reported, "{step}: {events:#?}");
    }
    server.end().await;
}

// Rows: A20
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_job_files_are_distributed_over_the_workers_that_start() {
    let Some(place) = TestEnv::new().await else { return };
    let dir = place.dir.path().join("met");
    std::fs::create_dir(&dir).unwrap();
    // The first two jobs wait for each other, so each worker must run one of them.
    let meet = "touch $DIR/$JOB; until [ $(ls $DIR | wc -l) -ge 2 ]; do sleep 0.05; done; \
                echo $RUNNER_ID >> $DIR.ids; echo $JOB >> $DIR.ran";
    let mut runs = Vec::new();
    for job in 0..6 {
        let file = json!({ "id": format!("job-{job}"), "executor": "local",
            "variables": { "DIR": dir, "JOB": job }, "product": { "commands": meet } });
        place.write("job.json", &file.to_string());
        runs.push(place.submit("job.json").await);
    }
    let one = place.serve(&[ALL, ("BOB_MAX_PARALLEL_RUNS", "1"), ("RUNNER_ID", "one")]).await;
    let two = place.serve(&[ALL, ("BOB_MAX_PARALLEL_RUNS", "1"), ("RUNNER_ID", "two")]).await;
    for run in &runs {
        assert_eq!(place.keys.settled(run).await["status"], "passed");
    }
    let sorted = |file: &str| {
        let text = std::fs::read_to_string(place.dir.path().join(file)).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted("met.ran"), ["0", "1", "2", "3", "4", "5"], "each is run once");
    let mut ids = sorted("met.ids");
    ids.dedup();
    assert_eq!(ids, ["one", "two"], "a21: a job knows the runner that it is with");
    one.end().await;
    two.end().await;
}
