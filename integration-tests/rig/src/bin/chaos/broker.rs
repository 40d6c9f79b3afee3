//! A plain client of the broker: publishes until confirmed, reads the whole stream, and counts
//! waiting messages.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use protocol::event::Event;
use protocol::names;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// The timeout of one attempt.
const CALL: Duration = Duration::from_secs(10);
/// How long a broker can be unavailable. It is only ever restarted.
const PATIENCE: Duration = Duration::from_secs(180);
const AGAIN: Duration = Duration::from_millis(300);

/// The address and the credentials of the broker.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    pub(crate) url: String,
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Address {
    /// Opens a channel on a new connection.
    async fn channel(&self) -> anyhow::Result<Channel> {
        let mut uri: AMQPUri = self.url.parse().map_err(anyhow::Error::msg)?;
        uri.authority.userinfo.username.clone_from(&self.user);
        uri.authority.userinfo.password.clone_from(&self.password);
        let connecting = async {
            let connection = Connection::connect_uri(uri, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            // The channel keeps its connection alive.
            anyhow::Ok(channel)
        };
        tokio::time::timeout(CALL, connecting).await?
    }

    /// The number of ready messages in a queue.
    pub(crate) async fn waiting(&self, queue: &str) -> anyhow::Result<u32> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
        Ok(declared.message_count())
    }

    /// All events of the stream so far, and the messages that are not valid events.
    pub(crate) async fn told(&self) -> anyhow::Result<(Vec<Event>, Vec<String>)> {
        let last = uuid::Uuid::new_v4().to_string();
        let publisher = Publisher::new(self.clone());
        publisher.publish_to("", names::EVENT_STREAM, "marker", &json!({ "marker": last })).await?;
        let channel = self.channel().await?;
        channel.basic_qos(500, BasicQosOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
        let options = BasicConsumeOptions::default();
        let stream = names::EVENT_STREAM.into();
        let mut reader = channel.basic_consume(stream, "".into(), options, arguments).await?;
        let (mut told, mut strange) = (Vec::new(), Vec::new());
        loop {
            let next = tokio::time::timeout(PATIENCE, reader.next()).await?;
            let delivery = next.context("the stream has ended")??;
            delivery.ack(BasicAckOptions::default()).await?;
            let value: Value = serde_json::from_slice(&delivery.data)?;
            if value["marker"] == last.as_str() {
                return Ok((told, strange));
            }
            match serde_json::from_value(value.clone()) {
                Ok(event) => told.push(event),
                Err(cause) => strange.push(format!("the stream holds no event: {cause}: {value}")),
            }
        }
    }
}

/// Publishes despite failures of the broker.
pub(crate) struct Publisher {
    address: Address,
    channel: Mutex<Option<Channel>>,
}

impl Publisher {
    pub(crate) fn new(address: Address) -> Self {
        Self { address, channel: Mutex::new(None) }
    }

    /// Publishes a command until it is confirmed. If a confirm is lost, it is published twice.
    pub(crate) async fn publish(
        &self,
        queue: &str,
        kind: &str,
        body: &Value,
    ) -> anyhow::Result<()> {
        self.publish_to(names::EXCHANGE, queue, kind, body).await
    }

    async fn publish_to(
        &self,
        exchange: &str,
        key: &str,
        kind: &str,
        body: &Value,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut kept = self.channel.lock().await;
        loop {
            let trying = self.attempt(&mut kept, exchange, key, kind, body);
            match tokio::time::timeout(CALL, trying).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(cause)) if Instant::now() > end => return Err(cause),
                Err(late) if Instant::now() > end => return Err(late.into()),
                Ok(Err(_)) | Err(_) => {}
            }
            *kept = None;
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn attempt(
        &self,
        kept: &mut Option<Channel>,
        exchange: &str,
        key: &str,
        kind: &str,
        body: &Value,
    ) -> anyhow::Result<()> {
        let channel = match kept {
            Some(channel) => channel,
            None => kept.insert(self.address.channel().await?),
        };
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_type(kind.into());
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let body = body.to_string().into_bytes();
        let publishing =
            channel.basic_publish(exchange.into(), key.into(), options, &body, properties);
        let confirmed = publishing.await?.await?;
        ensure!(matches!(confirmed, Confirmation::Ack(None)), "{confirmed:?}");
        Ok(())
    }
}
