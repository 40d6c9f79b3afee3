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
/// If the broker rejects it.
pub async fn channel(options: &AmqpOptions) -> Channel {
    let mut uri: AMQPUri = options.url.parse().expect("a URL");
    uri.authority.userinfo.username.clone_from(&options.user);
    uri.authority.userinfo.password.clone_from(&options.password);
    let connecting = Connection::connect_uri(uri, ConnectionProperties::default());
    // The channel keeps its connection alive.
    connecting.await.expect("a connection").create_channel().await.expect("a channel")
}

/// Takes all dead-lettered messages.
///
/// # Panics
/// If the broker fails.
pub async fn take_all(channel: Channel) -> Vec<Message> {
    let mut all = Vec::new();
    let options = BasicGetOptions { no_ack: true };
    while let Some(got) =
        channel.basic_get(names::DEAD_LETTER_QUEUE.into(), options).await.expect("the queue")
    {
        let properties = &got.delivery.properties;
        let text = |value: &Option<ShortString>| value.as_ref().map(|v| v.as_str().to_owned());
        let headers = properties.headers().clone().unwrap_or_default();
        let headers = headers.into_iter().filter_map(|(name, value)| {
            let AMQPValue::LongString(text) = value else { return None };
            Some((name.as_str().to_owned(), text.to_string()))
        });
        all.push(Message {
            kind: text(properties.kind()),
            id: text(properties.message_id()),
            headers: headers.collect(),
            body: got.delivery.data,
        });
    }
    all
}

/// The first message of the stream.
///
/// # Panics
/// If it is empty.
pub async fn first_of_stream(options: &AmqpOptions) -> Delivery {
    let channel = channel(options).await;
    channel.basic_qos(1, BasicQosOptions::default()).await.expect("a limit");
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    let name = ShortString::from(options.stream_name.as_str());
    let reading = channel.basic_consume(name, "".into(), BasicConsumeOptions::default(), arguments);
    reading.await.expect("a reader").next().await.expect("the stream continues").expect("a message")
}

/// Captures the warnings logged on this thread.
#[derive(Debug, Clone, Default)]
pub struct Warnings(Arc<Mutex<Vec<u8>>>);

impl Warnings {
    /// Starts capturing, until the guard is dropped.
    #[must_use]
    pub fn watch(&self) -> DefaultGuard {
        let to = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_ansi(false)
            .with_writer(move || to.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    /// The lines that contain a text.
    #[must_use]
    pub fn containing(&self, text: &str) -> Vec<String> {
        let written = self.0.lock();
        let written = String::from_utf8_lossy(&written).into_owned();
        written.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
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

/// A host that has only a clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock;

impl Host for Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Millis {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Millis(since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX)))
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
