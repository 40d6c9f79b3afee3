//! Tests of the visible behavior of a run.

use protocol::command::START;
use protocol::event::{Event, LogStream, Reason};
use protocol::names;
use protocol::run::{Cause, Status};
use serde_json::json;

use super::{Rig, reason_of};
use runner::ports::Route;

/// Events are in the order of docs/wire.md section 4, and their `seq` has no gaps.
pub async fn events_come_in_order_and_without_a_gap(mut rig: Rig) {
    rig.worker(1).await;
    let run = rig.run("order");
    rig.start(&run, &rig.pipeline("order", &["print one", "exit 0"])).await;
    let events = rig.events_of(&run).await;
    let reasons: Vec<String> = events.iter().map(|event| reason_of(&event.reason)).collect();
    assert_eq!(
        reasons,
        [
            "PipelineRunScheduled",
            "StartPipelineRun",
            "ImagePull",
            "PipelineRunning",
            "StepStarted",
            "Log",
            "StepCompleted",
            "StepStarted",
            "StepCompleted",
            "PipelineSuccessful"
        ]
    );
    for (n, event) in events.iter().enumerate() {
        assert_eq!(event.seq, Some(n as u64));
        assert_eq!(event.epoch, events[0].epoch);
        assert_eq!(event.group.as_deref(), Some(rig.tag.as_str()));
        assert!(event.node.is_some() && event.name.is_some());
        let of_run = reason_of(&event.reason) != "Log";
        assert!(!of_run || event.message.contains(run.as_str()), "{event:?} names its run");
    }
    let Reason::Log { stream, offset, partial, encoding } = &events[5].reason else {
        panic!("no log")
    };
    assert_eq!((*stream, *offset, *partial, *encoding), (LogStream::Stdout, 0, false, None));
    assert_eq!(events[5].message, "one");
    let record = rig.settled(&run).await;
    assert_eq!(record.epoch, events[0].epoch);
    assert_eq!(record.steps.len(), 2);
    rig.end().await;
}

/// The record passes through every status, and ends once.
pub async fn the_record_goes_through_every_status(mut rig: Rig) {
    let run = rig.run("statuses");
    let now = rig.ports.store.list(&names::run_key(&run)).await.unwrap().revision;
    let mut changes = rig.ports.store.watch(&names::run_key(&run), now + 1).await.unwrap();
    rig.worker(1).await;
    rig.start(&run, &rig.pipeline("statuses", &["exit 0"])).await;
    rig.settled(&run).await;
    let mut statuses = Vec::new();
    while statuses.last() != Some(&"passed".to_owned()) {
        let change = tokio::time::timeout(super::PATIENCE, futures::StreamExt::next(&mut changes));
        let change = change.await.expect("a change comes").expect("the watch goes on");
        if let runner::ports::Change::Put(entry) = change.unwrap() {
            let record: serde_json::Value = serde_json::from_slice(&entry.value).unwrap();
            statuses.push(record["status"].as_str().unwrap().to_owned());
        }
    }
    statuses.dedup();
    assert_eq!(statuses, ["pending", "initializing", "initialized", "running", "passed"]);
    rig.end().await;
}

/// A failing step ends the run. Its exit code is published, and the next step does not run.
pub async fn a_failing_step_ends_the_run(mut rig: Rig) {
    rig.worker(1).await;
    let run = rig.run("fails");
    rig.start(&run, &rig.pipeline("fails", &["exit 3", "print never"])).await;
    let events = rig.events_of(&run).await;
    let last = events.last().unwrap();
    assert_eq!(last.reason, Reason::PipelineFailed { cause: Cause::ExitCode, exit_code: Some(3) });
    assert_eq!(last.step.as_ref().map(AsRef::as_ref), Some("0"));
    assert!(!events.iter().any(|event| reason_of(&event.reason) == "Log"));
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.steps.len()), (Status::Failed, 1));
    rig.end().await;
}

/// Steps and runs time out.
pub async fn a_step_and_a_run_time_out(mut rig: Rig) {
    rig.worker(2).await;
    let mut step = rig.pipeline("slow-step", &["hang"]);
    step["steps"][0]["timeout"] = json!("100ms");
    let mut whole = rig.pipeline("slow-run", &["exit 0", "hang"]);
    whole["timeout"] = json!("100ms");
    for (name, pipeline) in [("slow-step", step), ("slow-run", whole)] {
        rig.start(&rig.run(name), &pipeline).await;
        let record = rig.settled(&rig.run(name)).await;
        assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Timeout)));
        assert!(record.message.unwrap().contains("100ms"));
    }
    rig.end().await;
}

/// A run uses the definition of its start.
pub async fn a_run_keeps_the_definition_and_variables_of_its_start(mut rig: Rig) {
    rig.worker(1).await;
    let run = rig.run("vars");
    let body = json!({ "run-id": run, "vars": { "n": 7, "flag": true, "text": "x" },
        "pipeline": rig.pipeline("vars", &["exit 0"]) });
    rig.publish(Route::Jobs, START, &body).await;
    let record = rig.settled(&run).await;
    assert_eq!(record.vars.get("n").map(String::as_str), Some("7"));
    assert_eq!(record.vars.get("flag").map(String::as_str), Some("true"));
    assert_eq!(record.pipeline.unwrap().steps.len(), 1);
    rig.end().await;
}

/// A failed step is retried from its predecessor's image.
pub async fn a_failed_step_is_tried_again(mut rig: Rig) {
    rig.worker(1).await;
    let run = rig.run("again");
    let mut pipeline = rig.pipeline("again", &["put /a kept", "exit 7"]);
    pipeline["steps"][1]["retry"] = json!({ "attempts": 3, "delay": "10ms" });
    rig.start(&run, &pipeline).await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::RetriesExhausted)));
    let attempts: Vec<u32> = record.steps.iter().map(|step| step.attempt).collect();
    assert_eq!(attempts, [1, 3]);
    let events = rig.events_of(&run).await;
    let of_second = |event: &&Event| event.step.as_ref().is_some_and(|step| step.as_str() == "1");
    let told: Vec<(String, Option<u32>)> = events
        .iter()
        .filter(of_second)
        .map(|event| (reason_of(&event.reason), event.attempt))
        .collect();
    let said = |reason: &str, attempt| (reason.to_owned(), Some(attempt));
    assert_eq!(
        told,
        [
            said("StepStarted", 1),
            said("StepCompleted", 1),
            said("StepRetry", 2),
            said("StepStarted", 2),
            said("StepCompleted", 2),
            said("StepRetry", 3),
            said("StepStarted", 3),
            said("StepCompleted", 3),
            said("PipelineFailed", 3),
        ]
    );
    rig.end().await;
}

/// Each of many runs on two workers ends once.
pub async fn many_runs_on_two_workers_end_once_each(mut rig: Rig, runs: usize) {
    rig.worker(4).await;
    rig.worker(4).await;
    let pipeline = rig.pipeline("many", &["print x"]);
    let ids: Vec<_> = (0..runs).map(|n| rig.run(&format!("many-{n}"))).collect();
    for run in &ids {
        rig.start(run, &pipeline).await;
    }
    for run in &ids {
        assert_eq!(rig.settled(run).await.status, Status::Passed);
    }
    let mine = |event: &protocol::event::Event| {
        event.group.as_deref() == Some(rig.tag.as_str()) && event.reason.is_ending()
    };
    let seen = parking_lot::Mutex::new(std::collections::HashSet::new());
    let endings = rig
        .events_until(mine, |event| {
            mine(event)
                && event.run_id.as_ref().is_some_and(|run| {
                    let mut seen = seen.lock();
                    seen.insert(run.clone());
                    seen.len() == runs
                })
        })
        .await;
    assert_eq!(endings.len(), runs, "each run ended once");
    rig.end().await;
}
