//! Events survive a round trip and conform to their schema.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use protocol::event::{Encoding, Event, LogStream, Reason};
use protocol::id::{Epoch, NodeId, RegisteredName, StepName};
use protocol::run::Cause;
use protocol::schema::{SchemaName, schema};
use protocol::time::Millis;

fn step(name: &str) -> StepName {
    name.parse().unwrap()
}

/// Every reason, with its optional fields both present and absent.
fn reasons() -> Vec<Reason> {
    let mut reasons = run_reasons();
    reasons.extend(other_reasons());
    reasons
}

/// The reasons of events about a run in progress.
fn run_reasons() -> Vec<Reason> {
    let node = || NodeId::from_stored("bob/runner-1");
    let store: RegisteredName = "local".parse().unwrap();
    vec![
        Reason::PipelineRunScheduled { waiting: false },
        Reason::PipelineRunScheduled { waiting: true },
        Reason::StartPipelineRun,
        Reason::ImagePull { image: "busybox".into() },
        Reason::PipelineRunning,
        Reason::ResourceFetch { resource: "source".into() },
        Reason::StepStarted { command: "make".into(), executor: "podman".into() },
        Reason::Log { stream: LogStream::Stdout, offset: 0, partial: false, encoding: None },
        Reason::Log {
            stream: LogStream::Stderr,
            offset: u64::MAX,
            partial: true,
            encoding: Some(Encoding::Base64),
        },
        Reason::ArtifactUpload { artifact: "binary".into(), store },
        Reason::StepCompleted {
            exit_code: None,
            duration_ms: 0,
            stdout_bytes: 1,
            stderr_bytes: 2,
            image: None,
            repeated: false,
        },
        Reason::StepCompleted {
            exit_code: Some(-1),
            duration_ms: u64::MAX,
            stdout_bytes: u64::MAX,
            stderr_bytes: u64::MAX,
            image: Some("sha256:1".into()),
            repeated: true,
        },
        Reason::StepRetry { delay_ms: 10 },
        Reason::PipelineRunResumed {
            from_step: step("b"),
            previous_node: node(),
            previous_epoch: Epoch(i64::MAX),
            previous_seq: Some(u64::MAX),
            cause: "lost".into(),
            repeats: vec![step("a"), step("b")],
        },
        Reason::PipelineRunResumed {
            from_step: step("b"),
            previous_node: node(),
            previous_epoch: Epoch(1),
            previous_seq: None,
            cause: "handed-over".into(),
            repeats: Vec::new(),
        },
        Reason::PipelineRunRejected { delay_ms: 1000 },
    ]
}

/// The reasons of events about the end of a run, about commands, definitions and workers.
fn other_reasons() -> Vec<Reason> {
    vec![
        Reason::LoggerDropped { bytes: 7 },
        Reason::PipelineStopping,
        Reason::PipelineSuccessful,
        Reason::PipelineFailed { cause: Cause::ExitCode, exit_code: Some(137) },
        Reason::PipelineFailed { cause: Cause::Image, exit_code: None },
        Reason::PipelineStopped { cause: Cause::User },
        Reason::CommandRejected { field: Some("vars.A".into()) },
        Reason::CommandRejected { field: None },
        Reason::CommandIgnored,
        Reason::CommandReturned { returns: 2 },
        Reason::PipelineCreate,
        Reason::PipelineDelete,
        Reason::PipelinePaused,
        Reason::PipelineUnpaused,
        Reason::ResourceProviderCreate,
        Reason::ResourceProviderDelete,
        Reason::ArtifactStoreCreate,
        Reason::ArtifactStoreDelete,
        Reason::LoggerCreate,
        Reason::LoggerDelete,
        Reason::RunnerReady,
        Reason::RunnerDraining,
        Reason::CallbackDropped,
        Reason::RunnerStopped,
    ]
}

fn full(reason: Reason) -> Event {
    Event {
        run_id: Some("r-1".parse().unwrap()),
        group: Some("dev".into()),
        name: Some("hello".into()),
        node: Some(NodeId::from_stored("bob/runner-1")),
        epoch: Some(Epoch(i64::MAX)),
        seq: Some(u64::MAX),
        step: Some(step("compile all")),
        attempt: Some(u32::MAX),
        ..Event::new(Millis(1_700_000_000_000), reason, "a sentence".into())
    }
}

#[test]
fn every_event_round_trips_with_its_fields_in_any_order() {
    for reason in reasons() {
        for event in [full(reason.clone()), Event::new(Millis(-1), reason.clone(), String::new())] {
            let json = event.to_json();
            let read: Event = serde_json::from_slice(&json).unwrap();
            assert_eq!(read, event);
            let object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(&json).unwrap();
            let backwards: serde_json::Map<_, _> = object.into_iter().rev().collect();
            let backwards = serde_json::to_string(&backwards).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&backwards).unwrap(), event);
        }
    }
}

#[test]
fn every_event_matches_its_schema() {
    let schema = jsonschema::validator_for(&schema(SchemaName::Event)).unwrap();
    for reason in reasons() {
        for event in [full(reason.clone()), Event::new(Millis(0), reason, "text".into())] {
            let json = serde_json::to_value(&event).unwrap();
            let faults: Vec<_> = schema.iter_errors(&json).map(|e| e.to_string()).collect();
            assert!(faults.is_empty(), "{json}: {faults:?}");
            // The schema must reject an event without a reason.
            let mut json = json;
            json.as_object_mut().unwrap().remove("reason");
            assert!(!schema.is_valid(&json), "{json} was taken");
        }
    }
}

#[test]
fn an_event_can_have_fields_of_later_versions() {
    for reason in reasons() {
        let event = full(reason);
        let mut object = serde_json::to_value(&event).unwrap();
        object.as_object_mut().unwrap().insert("added-later".into(), [1, 2].as_slice().into());
        assert_eq!(serde_json::from_value::<Event>(object).unwrap(), event);
    }
}

#[test]
fn an_event_is_written_with_the_names_of_the_contract() {
    let event = full(Reason::StepCompleted {
        exit_code: Some(1),
        duration_ms: 2,
        stdout_bytes: 3,
        stderr_bytes: 4,
        image: None,
        repeated: false,
    });
    let expected = serde_json::json!({
        "at": 1_700_000_000_000_i64, "type": "Warning", "kind": "Pipeline",
        "reason": "StepCompleted", "message": "a sentence", "run-id": "r-1", "group": "dev",
        "name": "hello", "node": "bob/runner-1", "epoch": i64::MAX, "seq": u64::MAX,
        "step": "compile all", "attempt": u32::MAX, "exit-code": 1, "duration-ms": 2,
        "stdout-bytes": 3, "stderr-bytes": 4,
    });
    assert_eq!(serde_json::to_value(&event).unwrap(), expected);
}

#[test]
fn a_base64_log_event_decodes_to_its_bytes_and_other_events_have_none() {
    let log = |message: &str, encoding| {
        let reason = Reason::Log { stream: LogStream::Stdout, offset: 0, partial: false, encoding };
        Event::new(Millis(0), reason, message.into()).log_bytes()
    };
    assert_eq!(log("a\nb", None).unwrap(), b"a\nb");
    assert_eq!(log("/wA=", Some(Encoding::Base64)).unwrap(), [0xff, 0]);
    assert_eq!(log("no base64!", Some(Encoding::Base64)), None);
    assert_eq!(Event::new(Millis(0), Reason::RunnerReady, "x".into()).log_bytes(), None);
}

proptest! {
    #[test]
    fn a_log_event_round_trips_any_text(message in any::<String>(), offset in any::<u64>()) {
        let reason = Reason::Log {
            stream: LogStream::Stdout, offset, partial: true, encoding: None
        };
        let event = Event { message, ..full(reason) };
        prop_assert_eq!(serde_json::from_slice::<Event>(&event.to_json()).unwrap(), event);
    }
}
