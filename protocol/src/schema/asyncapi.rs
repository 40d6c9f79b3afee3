//! The `AsyncAPI` document: every message on the broker, and its channel.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::written::{VERSION, command_bodies, definitions_as_written};
use crate::event::Event;
use crate::{command, names};

const BINDING: &str = "0.3.0";

pub(super) fn document() -> Value {
    let (schemas, messages) = components();
    let mut document = json!({
        "asyncapi": "3.0.0",
        "id": format!("urn:bob-runner:asyncapi:{}", VERSION),
        "info": {
            "title": "bob-runner",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Commands go to queues of a RabbitMQ, events come from a stream of it.",
        },
        "defaultContentType": names::CONTENT_TYPE,
        "channels": channels(),
        "operations": operations(),
        "components": { "schemas": schemas, "messages": messages },
    });
    if let Some(components) = document.get_mut("components") {
        definitions_as_written(components, "schemas");
    }
    document
}

/// The schemas and the messages. `AsyncAPI` uses JSON Schema draft 7, with references relative to
/// the whole document.
fn components() -> (Map<String, Value>, Map<String, Value>) {
    let mut generator = SchemaSettings::draft07()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let bodies = command_bodies(&mut generator);
    let event = generator.subschema_for::<Event>().to_value();
    let mut schemas = generator.take_definitions(true);
    let mut messages = Map::new();
    for (kind, body) in bodies {
        let name = message_name(kind);
        messages.insert(
            name.clone(),
            json!({
                "name": name,
                "title": body.get("title"),
                "contentType": names::CONTENT_TYPE,
                "payload": { "$ref": format!("#/components/schemas/{name}") },
                "bindings": { "amqp": { "messageType": kind, "bindingVersion": BINDING } },
            }),
        );
        schemas.insert(name, body);
    }
    messages.insert(
        "event".to_owned(),
        json!({
            "name": "event",
            "title": "An event of the stream",
            "contentType": names::CONTENT_TYPE,
            "payload": event,
        }),
    );
    messages.insert(
        "dead-letter".to_owned(),
        json!({
            "name": "dead-letter",
            "title": "A message as it came, with the broker's reason in its headers",
        }),
    );
    (schemas, messages)
}

/// Replaces `/`, which would have to be escaped in references.
fn message_name(kind: &str) -> String {
    kind.replace('/', "-")
}

/// References to the messages of all commands, by their names.
fn every_command() -> Map<String, Value> {
    let kinds = [command::START, command::STOP, command::PAUSE, command::UNPAUSE];
    let names = kinds.into_iter().map(message_name);
    names
        .map(|name| {
            let reference = json!({ "$ref": format!("#/components/messages/{name}") });
            (name, reference)
        })
        .collect()
}

fn exchange() -> Value {
    json!({
        "address": names::EXCHANGE,
        "description": "The direct exchange that commands are published to; the routing key is the name of a queue.",
        "messages": every_command(),
        "bindings": { "amqp": {
            "is": "routingKey",
            "exchange": {
                "name": names::EXCHANGE,
                "type": "direct",
                "durable": true,
                "autoDelete": false,
            },
            "bindingVersion": BINDING,
        } },
    })
}

fn channels() -> Value {
    let dead_lettering = json!({
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": names::DEAD_LETTER_EXCHANGE,
        "x-dead-letter-routing-key": names::DEAD_LETTER_QUEUE,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": names::DELIVERY_LIMIT,
    });
    let command_queue = |address: &str, description: &str, exclusive: bool| {
        let mut channel = json!({
            "address": address,
            "description": description,
            "messages": every_command(),
            "bindings": { "amqp": queue(address, exclusive) },
        });
        if !exclusive {
            channel["x-arguments"] = dead_lettering.clone();
        }
        channel
    };
    let mut node = command_queue(
        "bob.jobs.{node}",
        "The queue of one worker, for a dispatcher that picks the worker itself.",
        true,
    );
    node["parameters"] = json!({ "node": { "description": "The node's id, bob/runner-<uuid>." } });
    json!({
        "jobs": command_queue(
            names::JOBS_QUEUE,
            "Starts, for whichever worker has a free slot. Routed by the direct exchange bob.direct.",
            false,
        ),
        "control": command_queue(
            names::CONTROL_QUEUE,
            "Stops and pauses. Routed by the direct exchange bob.direct.",
            false,
        ),
        "node-jobs": node,
        "dead-letters": {
            "address": names::DEAD_LETTER_QUEUE,
            "description": "What could not be understood, or came back too often.",
            "messages": { "dead-letter": { "$ref": "#/components/messages/dead-letter" } },
            "bindings": { "amqp": queue(names::DEAD_LETTER_QUEUE, false) },
            "x-arguments": { "x-queue-type": "quorum" },
        },
        "events": {
            "address": names::EVENT_STREAM,
            "description": "Every status change and every line of output. The setting BOB_STREAM_NAME names another stream.",
            "messages": { "event": { "$ref": "#/components/messages/event" } },
            "bindings": { "amqp": queue(names::EVENT_STREAM, false) },
            "x-arguments": { "x-queue-type": "stream" },
        },
        "exchange": exchange(),
    })
}

fn queue(name: &str, exclusive: bool) -> Value {
    json!({
        "is": "queue",
        "queue": {
            "name": name,
            "durable": !exclusive,
            "exclusive": exclusive,
            "autoDelete": false,
        },
        "bindingVersion": BINDING,
    })
}

fn operations() -> Value {
    let receive = |channel: &str, summary: &str| {
        json!({
            "action": "receive",
            "channel": { "$ref": format!("#/channels/{channel}") },
            "summary": summary,
            "bindings": { "amqp": { "ack": true, "bindingVersion": BINDING } },
        })
    };
    json!({
        "receive-jobs": receive("jobs", "A start is acked once a run record and its owner stand."),
        "receive-control": receive("control", "A stop is acked once it is recorded."),
        "receive-node-jobs": receive("node-jobs", "As jobs, for this worker."),
        "publish-event": {
            "action": "send",
            "channel": { "$ref": "#/channels/events" },
            "summary": "Events are published with confirms, at least once; epoch and seq tell repeats.",
            "bindings": { "amqp": { "deliveryMode": 2, "bindingVersion": BINDING } },
        },
        "dead-letter": {
            "action": "send",
            "channel": { "$ref": "#/channels/dead-letters" },
            "summary": "A message that is not a command is kept unchanged.",
        },
    })
}
