//! Graphs whose worker is lost.

use super::*;

/// A graph that stays in progress until it is retried. Ended tasks are counted, and running ones
/// have child processes.
fn in_the_middle(place: &TestEnv, name: &str, on_lost: Option<&str>) -> Value {
    let of = |what: &str| file(place, &format!("{name}-{what}")).display().to_string();
    let middle = |task: &str| {
        let pids = of(task);
        let begets = begets(Path::new(&pids));
        format!(
            "{{ depends_on: [first], script: ['[ -e {pids} ] || {{ {begets}; echo begun; wait; }}'] }}"
        )
    };
    let mut pipeline = pipeline(&format!(
        "tasks: {{ first: {{ script: ['echo x >> {}'] }}, left: {}, right: {}, \
         last: {{ depends_on: [left, right], script: [echo] }} }}",
        of("first"),
        middle("left"),
        middle("right")
    ));
    // Runs of one pipeline would wait for each other.
    pipeline["name"] = name.into();
    if let Some(said) = on_lost {
        pipeline["on-lost"] = said.into();
    }
    pipeline
}

// Rows: D18
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_lost_decides_how_a_graph_continues_after_its_worker_is_killed() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let settings = [LOCAL, ("BOB_LEASE_TTL_SECONDS", "3")];
    let mut server = place.serve(&settings).await;
    let cases = [("usual", None), ("goes-on", Some("resume")), ("fails", Some("fail"))];
    let mut runs = Vec::new();
    for (name, on_lost) in cases {
        let pipeline = in_the_middle(&place, name, on_lost);
        runs.push(submit(&place, name, &pipeline, &json!({})).await);
    }
    for run in &runs {
        run.sees("Log", "left").await;
        run.sees("Log", "right").await;
    }
    server.signal(Signal::KILL);
    server.ended().await;
    for (name, _) in cases {
        all_gone(&file(&place, &format!("{name}-left"))).await;
        all_gone(&file(&place, &format!("{name}-right"))).await;
    }
    let next = place.serve(&settings).await;
    let passed = ["first", "last", "left", "right"].map(|task| (task, "passed"));
    for ((name, _), run) in cases.iter().zip(&runs) {
        let record = place.keys.settled(&run.id).await;
        let first = file(&place, &format!("{name}-first"));
        let times = std::fs::read_to_string(first).unwrap().lines().count();
        assert_eq!(record["attempt"], 2, "another worker has claimed it: {record}");
        if *name == "fails" {
            assert_eq!((how(&record), times), (("failed", "lost"), 1), "{record}");
            assert!(message(&record).contains("was lost"), "{record}");
            let left = [("first", "passed"), ("left", "failed"), ("right", "failed")];
            assert_eq!(states(&record), are(&left));
        } else {
            let times_of_first = if *name == "usual" { 2 } else { 1 };
            assert_eq!((how(&record), times), (("passed", ""), times_of_first), "{record}");
            assert_eq!(states(&record), are(&passed), "{name}");
        }
    }
    next.end().await;
}
