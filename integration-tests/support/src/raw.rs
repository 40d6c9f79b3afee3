//! Access to the services without bob-runner's adapters, to observe them from outside.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties};
use parking_lot::Mutex;
use protocol::names;
use protocol::run::{NodeCpu, NodeMemory};
use protocol::time::Millis;
use runner::cluster::AmqpOptions;
use runner::ports::{Host, Message};
use tracing::subscriber::DefaultGuard;

/// Opens a channel with a plain AMQP client.
///
/// # Panics
/// If the URL is invalid, or the broker rejects the connection or the channel.
pub async fn channel(options: &AmqpOptions) -> Channel {
    let mut uri: AMQPUri = options.url.parse().expect("the broker's URL is valid");
    uri.authority.userinfo.username.clone_from(&options.user);
    uri.authority.userinfo.password.clone_from(&options.password);
    let connecting = Connection::connect_uri(uri, ConnectionProperties::default());
    // The channel keeps its connection alive.
    connecting
        .await
        .expect("the broker accepts a connection")
        .create_channel()
        .await
        .expect("the broker opens a channel")
}

/// Removes all messages from the dead-letter queue and returns them.
///
/// # Panics
/// If the broker fails.
pub async fn take_all(channel: Channel) -> Vec<Message> {
    let mut messages = Vec::new();
    let options = BasicGetOptions { no_ack: true };
    while let Some(reply) = channel
        .basic_get(names::DEAD_LETTER_QUEUE.into(), options)
        .await
        .expect("the dead-letter queue can be read")
    {
        let properties = &reply.delivery.properties;
        let text = |value: &Option<ShortString>| value.as_ref().map(|v| v.as_str().to_owned());
        let headers = properties.headers().clone().unwrap_or_default();
        let headers = headers.into_iter().filter_map(|(name, value)| {
            let AMQPValue::LongString(text) = value else { return None };
            Some((name.as_str().to_owned(), text.to_string()))
        });
        messages.push(Message {
            kind: text(properties.kind()),
            id: text(properties.message_id()),
            headers: headers.collect(),
            body: reply.delivery.data,
        });
    }
    messages
}

/// Waits for the first message of the stream and returns it.
///
/// # Panics
/// If the broker fails.
pub async fn first_of_stream(options: &AmqpOptions) -> Delivery {
    let channel = channel(options).await;
    channel
        .basic_qos(1, BasicQosOptions::default())
        .await
        .expect("the broker accepts the prefetch limit");
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    let name = ShortString::from(options.stream_name.as_str());
    let consumer =
        channel.basic_consume(name, "".into(), BasicConsumeOptions::default(), arguments);
    let mut consumer = consumer.await.expect("the broker starts a consumer");
    let delivery = consumer.next().await.expect("the consumer continues");
    delivery.expect("the broker delivers a message")
}

/// Captures the warnings and errors logged on this thread.
#[derive(Debug, Clone, Default)]
pub struct Warnings(Arc<Mutex<Vec<u8>>>);

impl Warnings {
    /// Captures messages until the returned guard is dropped.
    #[must_use]
    pub fn watch(&self) -> DefaultGuard {
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    /// The captured lines that contain a text.
    #[must_use]
    pub fn containing(&self, text: &str) -> Vec<String> {
        let captured_bytes = self.0.lock();
        let log = String::from_utf8_lossy(&captured_bytes).into_owned();
        log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

impl io::Write for Warnings {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A host with a real clock. Its other values are placeholders.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock;

impl Host for Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Millis {
        let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Millis(elapsed.map_or(0, |elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)))
    }

    fn since_boot(&self) -> Duration {
        Duration::ZERO
    }

    fn memory(&self) -> NodeMemory {
        NodeMemory { free: 0, total: 0 }
    }

    fn cpu(&self) -> NodeCpu {
        NodeCpu { count: 1, load: 0.0 }
    }

    fn name(&self) -> String {
        "here".to_owned()
    }
}
