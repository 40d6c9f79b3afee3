//! Reads the event stream with a plain AMQP client and interprets it.

use std::collections::BTreeMap;

use base64::Engine as _;
use futures::StreamExt as _;
use lapin::Consumer;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use test_support::raw;

use crate::place::{TestEnv, in_time};

/// Reads a place's stream from its first message.
pub(crate) struct Reader {
    consumer: Consumer,
}

impl Reader {
    pub(crate) async fn new(place: &TestEnv) -> Self {
        let channel = raw::channel(&place.services.amqp(&place.vhost)).await;
        channel.basic_qos(200, BasicQosOptions::default()).await.unwrap();
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
        let options = BasicConsumeOptions::default();
        let consuming =
            channel.basic_consume("bob.event-stream".into(), "".into(), options, arguments);
        Self { consumer: consuming.await.unwrap() }
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> Value {
        let next = in_time("the next event", self.consumer.next()).await;
        let delivery = next.expect("the stream continues").unwrap();
        delivery.ack(BasicAckOptions::default()).await.unwrap();
        let content_type = delivery.properties.content_type().as_ref().unwrap();
        assert_eq!(content_type.as_str(), "application/json");
        serde_json::from_slice(&delivery.data).unwrap()
    }

    /// The next event that matches a condition.
    pub(crate) async fn find(&mut self, holds: impl Fn(&Value) -> bool) -> Value {
        loop {
            let event = self.next().await;
            if holds(&event) {
                return event;
            }
        }
    }
}

/// A run's events up to its ending.
pub(crate) async fn events_of(place: &TestEnv, run: &str) -> Vec<Value> {
    let mut reader = Reader::new(place).await;
    let mut events = Vec::new();
    loop {
        let event = reader.next().await;
        if event["run-id"] == run {
            events.push(event);
            if is_ending(&events[events.len() - 1]) {
                return events;
            }
        }
    }
}

pub(crate) fn is_ending(event: &Value) -> bool {
    let reason = event["reason"].as_str().unwrap();
    ["PipelineSuccessful", "PipelineFailed", "PipelineStopped"].contains(&reason)
}

pub(crate) fn reasons(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["reason"].as_str().unwrap()).collect()
}

/// Checks that `seq` counts from 0 without a gap, within one epoch.
pub(crate) fn assert_gapless(events: &[Value]) {
    for (expected, event) in events.iter().enumerate() {
        assert_eq!(event["seq"], expected, "{event}");
        assert_eq!(event["epoch"], events[0]["epoch"], "{event}");
    }
}

/// The output of a run's steps, by step and stream, reassembled as specified in docs/wire.md
/// section 4. Also checks every rule for `Log` events.
pub(crate) fn outputs(events: &[Value]) -> BTreeMap<(String, String), Vec<u8>> {
    let mut outputs: BTreeMap<(String, String), Vec<u8>> = BTreeMap::new();
    for event in events {
        let text = |name: &str| event[name].as_str().unwrap().to_owned();
        if event["reason"] == "StepCompleted" {
            for stream in ["stdout", "stderr"] {
                let key = (text("step"), stream.to_owned());
                let length = outputs.get(&key).map_or(0, Vec::len);
                assert_eq!(event[format!("{stream}-bytes")], length, "{event}");
            }
        }
        if event["reason"] != "Log" {
            continue;
        }
        let all = outputs.entry((text("step"), text("stream"))).or_default();
        assert_eq!(event["offset"], all.len(), "{event}");
        let message = text("message");
        let bytes = match event.get("encoding") {
            None => message.into_bytes(),
            Some(encoding) => {
                assert_eq!(encoding, "base64");
                let bytes = base64::engine::general_purpose::STANDARD.decode(message).unwrap();
                assert!(std::str::from_utf8(&bytes).is_err(), "text is published as text");
                bytes
            }
        };
        assert!(bytes.len() <= 64 * 1024, "an event holds at most 64 KiB: {}", bytes.len());
        all.extend(bytes);
        match event.get("partial") {
            None => all.push(b'\n'),
            Some(partial) => assert_eq!(partial, true),
        }
    }
    outputs
}
