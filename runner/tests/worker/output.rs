//! The limit on the output that a run publishes.

use protocol::event::{Event, LogStream, Reason};
use protocol::run::{Cause, Status};
use serde_json::{Value, json};
use test_support::worker_suite::{Rig, new_node, options};

use crate::rig;

async fn limited(rig: &mut Rig, bytes: u64) {
    let mut options = options(new_node(), 1);
    options.log_limit = Some(bytes);
    rig.worker_as(options).await;
}

/// The output of a step, and the runner's notices about it.
fn said(events: &[Event], step: &str) -> (String, Vec<String>) {
    let (mut text, mut notes) = (String::new(), Vec::new());
    let of_step = |event: &&Event| event.step.as_ref().is_some_and(|name| name.as_str() == step);
    for event in events.iter().filter(of_step) {
        let Reason::Log { stream, partial, .. } = &event.reason else { continue };
        if *stream == LogStream::Bob {
            notes.push(event.message.clone());
        } else {
            text.push_str(&event.message);
            text.push_str(if *partial { "" } else { "\n" });
        }
    }
    (text, notes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_limit_one_notice_is_printed_and_the_rest_is_discarded() {
    let (mut rig, _embedded) = rig().await;
    limited(&mut rig, 100).await;
    let run = rig.run("much");
    rig.start(&run, &rig.pipeline("much", &["write 29 1000", "print of the next step", "exit 0"]))
        .await;
    let events = rig.events_of(&run).await;
    let (text, notes) = said(&events, "0");
    assert_eq!(text, format!("{}\n", "x".repeat(29)).repeat(3), "whole lines within the limit");
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].contains("limit of 100 bytes") && notes[0].contains("BOB_LOG_LIMIT_BYTES"),
        "{notes:?}"
    );
    assert!(notes[0].contains("discarded"), "{notes:?}");
    // All steps of a run together have the same limit.
    let (text, notes) = said(&events, "1");
    assert_eq!((text.as_str(), notes.len()), ("", 1), "{notes:?}");
    assert_eq!(
        said(&events, "2").1,
        Vec::<String>::new(),
        "a step without output causes no notice"
    );
    let ended = events.iter().find_map(|event| {
        let Reason::StepCompleted { stdout_bytes, .. } = &event.reason else { return None };
        Some(*stdout_bytes)
    });
    assert_eq!(ended, Some(90), "the bytes of a step are those that were published");
    assert_eq!(rig.settled(&run).await.status, Status::Passed);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_can_choose_to_be_stopped_and_fail_at_the_limit() {
    let (mut rig, _embedded) = rig().await;
    limited(&mut rig, 100).await;
    let run = rig.run("fails");
    let mut pipeline = rig.pipeline("fails", &["hang much more text than a step of this worker may write, and so it is stopped at once, and has failed for that"]);
    pipeline["steps"][0]["on-log-limit"] = json!("fail");
    rig.start(&run, &pipeline).await;
    let events = rig.events_of(&run).await;
    let (text, notes) = said(&events, "0");
    assert_eq!((text.as_str(), notes.len()), ("", 1), "{notes:?}");
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::ExitCode)));
    let message = record.message.unwrap();
    assert!(
        message.contains("limit of 100 bytes") && message.contains("on-log-limit"),
        "{message}"
    );
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_up_to_the_limit_is_published_whole() {
    let (mut rig, _embedded) = rig().await;
    limited(&mut rig, 100).await;
    let run = rig.run("enough");
    rig.start(&run, &rig.pipeline("enough", &["write 49 1", "write 49 1"])).await;
    let events = rig.events_of(&run).await;
    for step in ["0", "1"] {
        assert_eq!(said(&events, step), (format!("{}\n", "x".repeat(49)), Vec::new()));
    }
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_characters_count_as_they_are_published() {
    let (mut rig, _embedded) = rig().await;
    limited(&mut rig, 100).await;
    let run = rig.run("control");
    // Each takes six bytes in an event.
    let print = |count: usize| format!("print {}", "\u{1}".repeat(count));
    rig.start(&run, &rig.pipeline("control", &[&print(16), &print(17)])).await;
    let events = rig.events_of(&run).await;
    let (text, notes) = said(&events, "0");
    assert_eq!((text, notes.len()), (format!("{}\n", "\u{1}".repeat(16)), 0));
    let (text, notes) = said(&events, "1");
    assert_eq!((text.as_str(), notes.len()), ("", 1), "{notes:?}");
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_of_a_started_step_is_shortened() {
    let (mut rig, _embedded) = rig().await;
    limited(&mut rig, 100).await;
    let run = rig.run("long");
    let long = format!("exit 0 {}", "ä".repeat(10_000));
    rig.start(&run, &rig.pipeline("long", &[&long, "exit 0"])).await;
    let events = rig.events_of(&run).await;
    let commands = events.iter().filter_map(|event| {
        let Reason::StepStarted { command, .. } = &event.reason else { return None };
        Some(command.as_str())
    });
    let commands: Vec<&str> = commands.collect();
    // 4096 bytes end within a character.
    assert_eq!(commands, [format!("exit 0 {}…", "ä".repeat(2044)).as_str(), "exit 0"]);
    assert_eq!(rig.settled(&run).await.status, Status::Passed);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_word_for_the_limit_is_rejected() {
    let mut pipeline: Value =
        json!({ "group": "g", "name": "n", "image": "i", "steps": [{ "cmd": "x" }] });
    pipeline["steps"][0]["on-log-limit"] = json!("ignore");
    let fault = protocol::dialect::pipeline_from_json(&pipeline).unwrap_err();
    assert_eq!(fault.path, "steps[0].on-log-limit");
}
