//! Tests of the table of commands in docs/wire.md section 2, one function for each row.

use protocol::command::{PAUSE, START, STOP, UNPAUSE};
use protocol::event::Severity;
use protocol::names;
use protocol::run::{Cause, Status};
use serde_json::json;

use super::{Rig, reason_of};
use runner::ports::Route;

async fn refused(rig: &Rig, name: &str) -> protocol::run::RunRecord {
    let run = rig.run(name);
    let events = rig.events_of(&run).await;
    let reasons: Vec<String> = events.iter().map(|event| reason_of(&event.reason)).collect();
    assert_eq!(reasons, ["PipelineRunScheduled", "PipelineFailed"], "nothing is run");
    let record = rig.settled(&run).await;
    assert_eq!(record.status, Status::Failed);
    record
}

/// Starts by name and with an inline pipeline are run.
pub async fn a_start_by_name_or_inline_runs(mut rig: Rig) {
    rig.worker(2).await;
    rig.store_pipeline(&rig.pipeline("stored", &["exit 0"])).await;
    rig.start_stored(&rig.run("stored"), "stored").await;
    rig.start(&rig.run("inline"), &rig.pipeline("inline", &["exit 0"])).await;
    for name in ["stored", "inline"] {
        assert_eq!(rig.settled(&rig.run(name)).await.status, Status::Passed);
    }
    rig.end().await;
}

/// An invalid command is dead-lettered unchanged, and an event names the field.
pub async fn what_cannot_be_understood_is_dead_lettered_and_told(
    mut rig: Rig,
    mut dead: impl AsyncFnMut() -> Vec<u8>,
) {
    rig.worker(1).await;
    let run = rig.run("bad");
    let unknown_key = json!({ "run-id": run, "pipeline":
        { "group": "g", "name": "n", "image": "scripted", "steps": [], "imgae": "x" } });
    let cases: [(Option<&str>, Vec<u8>, Option<&str>); 6] = [
        (Some(START), b"{ this is no JSON".to_vec(), None),
        (Some("pipeline/strat"), b"{}".to_vec(), Some("type")),
        (None, b"{}".to_vec(), Some("type")),
        (Some(START), json!({ "run-id": run, "group": "g" }).to_string().into(), Some("name")),
        (Some(STOP), json!({ "run-id": 7 }).to_string().into(), Some("run-id")),
        (Some(START), unknown_key.to_string().into(), Some("pipeline.imgae")),
    ];
    for (kind, body, field) in cases {
        let route = if kind == Some(STOP) { Route::Control } else { Route::Jobs };
        rig.publish_raw(route, kind, None, &body).await;
        assert_eq!(dead().await, body, "it is dead-lettered as it came");
        let is_it = |event: &protocol::event::Event| match &event.reason {
            protocol::event::Reason::CommandRejected { field: found } => found.as_deref() == field,
            _ => false,
        };
        let event = rig.events_until(is_it, is_it).await.pop().unwrap();
        assert_eq!((event.severity, event.seq), (Severity::Warning, None));
    }
    // The worker continues.
    rig.start(&rig.run("good"), &rig.pipeline("good", &["exit 0"])).await;
    assert_eq!(rig.settled(&rig.run("good")).await.status, Status::Passed);
    rig.end().await;
}

/// Asserts that a run was rejected with a message that contains this text.
async fn assert_rejected(rig: &Rig, name: &str, why: &str) {
    let record = refused(rig, name).await;
    assert_eq!(record.cause, Some(Cause::Rejected));
    let message = record.message.unwrap();
    assert!(message.contains(why), "{message}");
}

/// A start with an unknown, paused or invalid pipeline or an unknown logger fails with that cause.
pub async fn a_start_that_cannot_be_run_is_recorded_as_failed_with_its_cause(mut rig: Rig) {
    rig.worker(1).await;
    rig.start_stored(&rig.run("unknown"), "unknown").await;
    assert_eq!(refused(&rig, "unknown").await.cause, Some(Cause::UnknownPipeline));

    let mut paused = rig.pipeline("paused", &["exit 0"]);
    paused["paused"] = json!(true);
    rig.store_pipeline(&paused).await;
    rig.start_stored(&rig.run("paused"), "paused").await;
    assert_eq!(refused(&rig, "paused").await.cause, Some(Cause::Paused));

    let mut invalid = rig.pipeline("invalid", &["exit 0"]);
    invalid["imgae"] = json!("x");
    rig.store_pipeline(&invalid).await;
    rig.start_stored(&rig.run("invalid"), "invalid").await;
    assert_rejected(&rig, "invalid", "imgae").await;

    let body = json!({ "run-id": rig.run("logger"), "logger": format!("no-{}", rig.tag),
        "pipeline": rig.pipeline("logger", &["exit 0"]) });
    rig.publish(Route::Jobs, START, &body).await;
    assert_eq!(refused(&rig, "logger").await.cause, Some(Cause::UnknownLogger));

    let logger = format!("odd-{}", rig.tag);
    let txn = runner::ports::Txn::new();
    let txn = txn.put(format!("{}{logger}", names::LOGGERS), b"[]".to_vec());
    assert!(rig.ports.store.txn(txn).await.unwrap().committed);
    let body = json!({ "run-id": rig.run("odd-logger"), "logger": logger,
        "pipeline": rig.pipeline("odd-logger", &["exit 0"]) });
    rig.publish(Route::Jobs, START, &body).await;
    let record = refused(&rig, "odd-logger").await;
    assert_eq!(record.cause, Some(Cause::UnknownLogger));
    assert!(record.message.unwrap().contains("cannot be read"));

    let mut later = rig.pipeline("later", &["exit 0", "exit 0"]);
    later["steps"][1]["executor"] = json!("ssh");
    later["steps"][1]["secrets"] = json!(["token"]);
    rig.start(&rig.run("later"), &later).await;
    assert_rejected(&rig, "later", "`secrets`").await;

    let mut kept = rig.pipeline("kept", &["exit 0"]);
    kept["steps"][0]["outputs"] = json!([{ "path": "a" }]);
    rig.start(&rig.run("kept"), &kept).await;
    assert_rejected(&rig, "kept", "keeps none: BOB_OUTPUTS").await;

    let mut local = rig.pipeline("local", &["exit 0"]);
    local["steps"][0]["executor"] = json!("local");
    rig.start(&rig.run("local"), &local).await;
    assert_rejected(&rig, "local", "no executor local: BOB_EXECUTORS").await;

    let mut closed = rig.pipeline("closed", &["exit 0", "exit 0"]);
    closed["steps"][1]["network"] = json!("closed");
    rig.start(&rig.run("closed"), &closed).await;
    assert_rejected(&rig, "closed", "step 1: network \"closed\" is not open").await;

    let mut huge = rig.pipeline("huge", &["exit 0"]);
    huge["quotas"] = json!({ "requests": { "mem": "1E" } });
    rig.start(&rig.run("huge"), &huge).await;
    assert_eq!(refused(&rig, "huge").await.cause, Some(Cause::Rejected));
    rig.end().await;
}

/// A run ID is accepted once.
pub async fn a_run_id_is_accepted_once(mut rig: Rig) {
    rig.worker(2).await;
    let run = rig.run("twice");
    let pipeline = rig.pipeline("twice", &["exit 0"]);
    rig.start(&run, &pipeline).await;
    rig.start(&run, &pipeline).await;
    rig.event(&run, "CommandIgnored").await;
    rig.settled(&run).await;
    rig.start(&run, &pipeline).await;
    let ignored = std::sync::atomic::AtomicUsize::new(0);
    let events = rig
        .events_until(
            |event| event.run_id.as_ref() == Some(&run),
            |event| {
                let one = event.run_id.as_ref() == Some(&run)
                    && reason_of(&event.reason) == "CommandIgnored";
                one && ignored.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1
            },
        )
        .await;
    let endings = events.iter().filter(|event| event.reason.is_ending()).count();
    assert_eq!(endings, 1, "it ran once");
    // A run that retention has removed is not run again either.
    let txn = runner::ports::Txn::new().delete(names::run_key(&run));
    assert!(rig.ports.store.txn(txn).await.unwrap().committed);
    rig.start(&run, &pipeline).await;
    let ignored = std::sync::atomic::AtomicUsize::new(0);
    rig.events_until(
        |_| false,
        |event| {
            let one =
                event.run_id.as_ref() == Some(&run) && reason_of(&event.reason) == "CommandIgnored";
            one && ignored.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 2
        },
    )
    .await;
    assert!(rig.ports.store.get(&names::run_key(&run)).await.unwrap().is_none());
    rig.end().await;
}

/// The message ID names the run. A message without any ID is run with a warning.
pub async fn the_message_id_names_the_run(mut rig: Rig) {
    rig.worker(1).await;
    let body = json!({ "pipeline": rig.pipeline("x", &["exit 0"]) }).to_string();
    let id = format!("{}-by-id", rig.tag);
    rig.publish_raw(Route::Jobs, Some(START), Some(&id), body.as_bytes()).await;
    rig.settled(&rig.run("by-id")).await;
    rig.publish_raw(Route::Jobs, Some(START), None, body.as_bytes()).await;
    let is_it = |event: &protocol::event::Event| {
        reason_of(&event.reason) == "PipelineRunScheduled"
            && event.group.as_deref() == Some(rig.tag.as_str())
            && event.severity == Severity::Warning
    };
    let event = rig.events_until(is_it, is_it).await.pop().unwrap();
    rig.settled(&event.run_id.unwrap()).await;
    rig.end().await;
}

/// A stop ends a running run, whichever worker receives it, even one without a free slot.
pub async fn a_stop_reaches_the_owner_whoever_receives_it(mut rig: Rig) {
    rig.worker(1).await;
    rig.worker(1).await;
    let runs = [rig.run("one"), rig.run("two")];
    for run in &runs {
        rig.start(run, &rig.pipeline("hangs", &["hang"])).await;
    }
    for run in &runs {
        rig.event(run, "StepStarted").await;
    }
    for run in &runs {
        rig.stop(run).await;
        let reasons: Vec<String> =
            rig.events_of(run).await.iter().map(|event| reason_of(&event.reason)).collect();
        assert_eq!(
            reasons[reasons.len() - 3..],
            ["PipelineStopping", "StepCompleted", "PipelineStopped"]
        );
        let record = rig.settled(run).await;
        assert_eq!((record.status, record.cause), (Status::Stopped, Some(Cause::User)));
        assert!(record.message.unwrap().contains("the test says so"));
        assert!(rig.ports.store.get(&names::stop_key(run)).await.unwrap().is_none());
    }
    rig.end().await;
}

/// The worker that receives a stop ends a recorded run without an owner.
pub async fn a_stop_ends_a_run_that_nobody_owns_and_needs_no_slot(mut rig: Rig) {
    rig.worker(1).await;
    rig.start(&rig.run("fills"), &rig.pipeline("fills", &["hang"])).await;
    rig.event(&rig.run("fills"), "StepStarted").await;
    let run = rig.run("orphan");
    let pipeline = rig.pipeline("orphan", &["exit 0"]);
    let record = json!({
        "group": rig.tag, "name": "orphan", "run-id": run, "status": "running", "attempt": 1,
        "scheduled-at": "2026-01-01T00:00:00.000Z", "pipeline": pipeline_model(&pipeline),
    });
    let txn = runner::ports::Txn::new()
        .put(names::run_key(&run), record.to_string().into_bytes())
        .put(names::open_key(&run), b"{}".to_vec());
    assert!(rig.ports.store.txn(txn).await.unwrap().committed);
    rig.stop(&run).await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.attempt), (Status::Stopped, 2));
    rig.end().await;
}

pub(super) fn pipeline_model(pipeline: &serde_json::Value) -> serde_json::Value {
    let parsed = protocol::dialect::pipeline_from_json(pipeline).unwrap();
    serde_json::to_value(parsed).unwrap()
}

/// A stop that arrives before its start is remembered.
pub async fn a_stop_that_comes_first_is_remembered(mut rig: Rig) {
    rig.worker(1).await;
    let run = rig.run("early");
    rig.stop(&run).await;
    rig.event(&run, "CommandIgnored").await;
    rig.start(&run, &rig.pipeline("early", &["exit 0"])).await;
    let reasons: Vec<String> =
        rig.events_of(&run).await.iter().map(|event| reason_of(&event.reason)).collect();
    assert_eq!(reasons, ["PipelineRunScheduled", "PipelineStopped"]);
    assert_eq!(rig.settled(&run).await.status, Status::Stopped);
    // Even if the start could not be run anyway.
    let unknown = rig.run("early-unknown");
    rig.stop(&unknown).await;
    rig.event(&unknown, "CommandIgnored").await;
    rig.start_stored(&unknown, "nowhere").await;
    assert_eq!(rig.settled(&unknown).await.status, Status::Stopped);
    rig.end().await;
}

/// A stop of an ended run changes nothing.
pub async fn a_stop_of_what_has_ended_is_ignored(mut rig: Rig) {
    rig.worker(1).await;
    let run = rig.run("over");
    rig.start(&run, &rig.pipeline("over", &["exit 0"])).await;
    rig.settled(&run).await;
    rig.stop(&run).await;
    rig.event(&run, "CommandIgnored").await;
    assert_eq!(rig.settled(&run).await.status, Status::Passed);
    rig.end().await;
}

/// The newest pause or unpause wins, runs in progress continue, and unknown pipelines are ignored.
pub async fn a_pause_holds_until_the_newest_unpause(mut rig: Rig) {
    rig.worker(2).await;
    rig.store_pipeline(&rig.pipeline("p", &["exit 0"])).await;
    let word = |at: Option<i64>| {
        let mut body = json!({ "group": rig.tag, "name": "p" });
        if let Some(at) = at {
            body["at"] = json!(at);
        }
        body
    };
    let told = |reason: &'static str| {
        let tag = rig.tag.clone();
        move |event: &protocol::event::Event| {
            reason_of(&event.reason) == reason && event.group.as_deref() == Some(tag.as_str())
        }
    };
    let now = rig.ports.host.now().0;
    rig.publish(Route::Control, PAUSE, &word(Some(now))).await;
    rig.events_until(|_| false, told("PipelinePaused")).await;
    rig.start_stored(&rig.run("while"), "p").await;
    assert_eq!(refused(&rig, "while").await.cause, Some(Cause::Paused));
    let ignored = |event: &protocol::event::Event| {
        reason_of(&event.reason) == "CommandIgnored" && event.message.contains(&rig.tag)
    };
    rig.publish(Route::Control, UNPAUSE, &word(Some(now - 1))).await;
    rig.events_until(|_| false, ignored).await;
    rig.publish(Route::Control, UNPAUSE, &word(Some(now + 1))).await;
    rig.events_until(|_| false, told("PipelineUnpaused")).await;
    rig.start_stored(&rig.run("after"), "p").await;
    assert_eq!(rig.settled(&rig.run("after")).await.status, Status::Passed);
    let unknown = json!({ "group": rig.tag, "name": "nowhere" });
    rig.publish(Route::Control, PAUSE, &unknown).await;
    rig.events_until(|_| false, |event| ignored(event) && event.message.contains("nowhere")).await;
    rig.end().await;
}

/// A start on the control queue is passed on.
pub async fn a_start_on_the_control_queue_is_passed_on(mut rig: Rig) {
    rig.worker(1).await;
    let run = rig.run("astray");
    let body = json!({ "run-id": run, "pipeline": rig.pipeline("astray", &["exit 0"]) });
    rig.publish(Route::Control, START, &body).await;
    assert_eq!(rig.settled(&run).await.status, Status::Passed);
    rig.end().await;
}

/// A start for one worker runs there if it has a slot, and otherwise elsewhere.
pub async fn a_workers_own_queue_is_served_or_passed_on(mut rig: Rig) {
    let node = rig.worker(1).await;
    let body = |name: &str, cmd: &str| json!({ "run-id": rig.run(name), "pipeline": rig.pipeline(name, &[cmd]) });
    // An open subscription to the shared queue holds the only slot, and gives it up for this start.
    rig.publish(Route::Node(node.clone()), START, &body("own", "hang")).await;
    rig.event(&rig.run("own"), "StepStarted").await;
    rig.publish(Route::Node(node.clone()), START, &body("more", "exit 0")).await;
    rig.publish_raw(Route::Node(node), Some("nonsense"), None, b"x").await;
    rig.worker(1).await;
    assert_eq!(rig.settled(&rig.run("more")).await.status, Status::Passed);
    rig.end().await;
}

/// A worker without a free slot holds back no command that an idle one could take.
pub async fn a_full_worker_holds_nothing_back(mut rig: Rig) {
    rig.worker(1).await;
    rig.start(&rig.run("long"), &rig.pipeline("long", &["hang"])).await;
    rig.event(&rig.run("long"), "StepStarted").await;
    rig.start(&rig.run("short"), &rig.pipeline("short", &["exit 0"])).await;
    rig.worker(1).await;
    assert_eq!(rig.settled(&rig.run("short")).await.status, Status::Passed);
    rig.end().await;
}

/// A draining worker accepts nothing, and its own queue is moved to the shared one.
pub async fn a_draining_worker_takes_nothing_new(mut rig: Rig) {
    let node = rig.worker(1).await;
    rig.start(&rig.run("goes-on"), &rig.pipeline("goes-on", &["hang"])).await;
    rig.event(&rig.run("goes-on"), "StepStarted").await;
    rig.drain_worker(&node);
    let draining = |event: &protocol::event::Event| {
        reason_of(&event.reason) == "RunnerDraining" && event.node.as_ref() == Some(&node)
    };
    rig.events_until(|_| false, draining).await;
    rig.start(&rig.run("next"), &rig.pipeline("next", &["exit 0"])).await;
    // The worker obeys a stop while it drains.
    rig.stop(&rig.run("goes-on")).await;
    assert_eq!(rig.settled(&rig.run("goes-on")).await.status, Status::Stopped);
    let stopped = |event: &protocol::event::Event| {
        reason_of(&event.reason) == "RunnerStopped" && event.node.as_ref() == Some(&node)
    };
    rig.events_until(|_| false, stopped).await;
    let record = rig.ports.store.get(&names::run_key(&rig.run("next"))).await.unwrap();
    assert!(record.is_none(), "it waits in the queue");
    rig.worker(1).await;
    assert_eq!(rig.settled(&rig.run("next")).await.status, Status::Passed);
    rig.end().await;
}
