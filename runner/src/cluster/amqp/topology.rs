//! The objects required on the broker, as data.

use std::collections::HashSet;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use parking_lot::Mutex;
use protocol::id::NodeId;
use protocol::names;
use tracing::warn;

use super::{Fault, Live, kind};

/// An object to declare.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cluster) enum Object {
    /// A durable direct exchange.
    Exchange(String),
    /// A queue or a stream.
    Queue(Declared),
}

/// A queue, its arguments and its binding.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cluster) struct Declared {
    name: String,
    /// Whether the queue is exclusive to its connection and deleted with it.
    exclusive: bool,
    arguments: Vec<(&'static str, Argument)>,
    /// The exchange it is bound to. The routing key is the queue's name.
    bound_to: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq)]
enum Argument {
    Text(String),
    Number(i64),
}

fn text(value: &str) -> Argument {
    Argument::Text(value.to_owned())
}

/// Returns the objects shared by all workers: docs/wire.md section 2.
pub(in crate::cluster) fn shared() -> Vec<Object> {
    let exchange = |name: &str| Object::Exchange(name.to_owned());
    let commands = |name: &str| {
        let mut arguments = vec![("x-queue-type", text("quorum"))];
        arguments.extend(dead_lettering());
        arguments.extend([
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
            ("x-delivery-limit", Argument::Number(names::DELIVERY_LIMIT)),
        ]);
        let name = name.to_owned();
        Object::Queue(Declared {
            name,
            exclusive: false,
            arguments,
            bound_to: Some(names::EXCHANGE),
        })
    };
    vec![
        exchange(names::EXCHANGE),
        exchange(names::DEAD_LETTER_EXCHANGE),
        Object::Queue(Declared {
            name: names::DEAD_LETTER_QUEUE.to_owned(),
            exclusive: false,
            arguments: vec![("x-queue-type", text("quorum"))],
            bound_to: Some(names::DEAD_LETTER_EXCHANGE),
        }),
        commands(names::JOBS_QUEUE),
        commands(names::CONTROL_QUEUE),
    ]
}

/// Returns a worker's own queue. It is a classic queue, so it lacks the arguments of quorum queues.
pub(in crate::cluster) fn of_node(node: &NodeId) -> Object {
    Object::Queue(Declared {
        name: names::node_queue(node),
        exclusive: true,
        arguments: dead_lettering().into(),
        bound_to: Some(names::EXCHANGE),
    })
}

/// The segment size of the stream. RabbitMQ enforces age and size only when a segment is full, and
/// deletes whole segments. With its default of 500 MB, it would never truncate an idle stream.
const SEGMENT_BYTES: i64 = 64 << 20;

/// Returns the event stream. Events are published to it by name, through the default exchange.
pub(in crate::cluster) fn stream(
    name: &str,
    retention_days: u32,
    max_bytes: Option<u64>,
) -> Object {
    let mut arguments = vec![
        ("x-queue-type", text("stream")),
        ("x-max-age", Argument::Text(format!("{retention_days}D"))),
        ("x-stream-max-segment-size-bytes", Argument::Number(SEGMENT_BYTES)),
    ];
    if let Some(bytes) = max_bytes.and_then(|bytes| i64::try_from(bytes).ok()) {
        arguments.push(("x-max-length-bytes", Argument::Number(bytes)));
    }
    Object::Queue(Declared { name: name.to_owned(), exclusive: false, arguments, bound_to: None })
}

fn dead_lettering() -> [(&'static str, Argument); 2] {
    [
        ("x-dead-letter-exchange", text(names::DEAD_LETTER_EXCHANGE)),
        ("x-dead-letter-routing-key", text(names::DEAD_LETTER_QUEUE)),
    ]
}

/// Converts a name to an AMQP short string of at most 255 bytes.
pub(in crate::cluster) fn short(name: &str) -> Result<ShortString, Fault> {
    ShortString::try_new(name).map_err(|_too_long| {
        Fault::Denied(format!("the name {:.40}... is longer than the 255 bytes of a name", name))
    })
}

/// Declares an object if it does not exist. An object with different arguments is used as it is,
/// with one warning that names the difference. So is an existing object that the user must not
/// declare.
pub(super) async fn declare(
    live: &Live,
    object: &Object,
    warned: &Mutex<HashSet<String>>,
) -> Result<(), Fault> {
    let channel = live.channel().await?;
    // A refusal closes the channel.
    let (channel, named) = match make(&channel, object, false).await {
        Ok(()) => (channel, object.name()),
        Err(fault @ (Fault::Differs(_) | Fault::Denied(_))) => {
            if let Some(wrong) = wrong_kind(live, object, &fault).await {
                return Err(wrong);
            }
            let said = fault.cause();
            let channel = live.channel().await?;
            make(&channel, object, true).await.map_err(|fault| absent(object, fault, said))?;
            let name = object.name();
            if warned.lock().insert(name.to_owned()) {
                warn!("{} {name} is used as it stands: {said}", object.kind());
            }
            (channel, name)
        }
        Err(fault @ (Fault::Unreachable(_) | Fault::Missing(_) | Fault::WrongKind(_))) => {
            return Err(fault);
        }
    };
    let Object::Queue(Declared { bound_to: Some(exchange), .. }) = object else { return Ok(()) };
    let (name, options) = (short(named)?, QueueBindOptions::default());
    let bound = channel
        .queue_bind(name.clone(), short(exchange)?, name, options, FieldTable::default())
        .await;
    match bound.map_err(Fault::from) {
        Ok(()) => Ok(()),
        Err(Fault::Denied(said)) => {
            if warned.lock().insert(format!("{named} bound")) {
                warn!("queue {named} is taken to be bound to {exchange}: {said}");
            }
            Ok(())
        }
        Err(fault) => Err(fault),
    }
}

/// Returns why an existing object cannot be used, if it has a different type.
async fn wrong_kind(live: &Live, object: &Object, fault: &Fault) -> Option<Fault> {
    let Fault::Differs(said) = fault else { return None };
    match object {
        Object::Exchange(name) => kind::exchange_mismatch(name, said),
        Object::Queue(queue) => {
            let wanted = queue.arguments.iter().find_map(|(name, value)| match value {
                Argument::Text(kind) if *name == "x-queue-type" => Some(kind),
                Argument::Text(_) | Argument::Number(_) => None,
            });
            kind::queue_mismatch(live, &queue.name, wanted?, said).await
        }
    }
}

/// Converts the fault of an object that does not exist and cannot be declared.
fn absent(object: &Object, fault: Fault, refusal: &str) -> Fault {
    match fault {
        Fault::Missing(_) => Fault::Denied(format!(
            "{} {} is not there and cannot be made: {refusal}",
            object.kind(),
            object.name()
        )),
        Fault::Unreachable(_) | Fault::Denied(_) | Fault::Differs(_) | Fault::WrongKind(_) => fault,
    }
}

async fn make(channel: &Channel, object: &Object, passive: bool) -> Result<(), Fault> {
    match object {
        Object::Exchange(name) => {
            let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
            let none = FieldTable::default();
            channel.exchange_declare(short(name)?, ExchangeKind::Direct, options, none).await?;
        }
        Object::Queue(queue) => {
            let options = QueueDeclareOptions {
                passive,
                durable: !queue.exclusive,
                exclusive: queue.exclusive,
                ..Default::default()
            };
            channel.queue_declare(short(&queue.name)?, options, queue.table()).await?;
        }
    }
    Ok(())
}

impl Object {
    fn name(&self) -> &str {
        match self {
            Self::Exchange(name) => name,
            Self::Queue(queue) => &queue.name,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Exchange(_) => "exchange",
            Self::Queue(_) => "queue",
        }
    }
}

impl Declared {
    fn table(&self) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in &self.arguments {
            let value = match value {
                Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
                Argument::Number(number) => AMQPValue::LongLongInt(*number),
            };
            table.insert(ShortString::from(*name), value);
        }
        table
    }
}
