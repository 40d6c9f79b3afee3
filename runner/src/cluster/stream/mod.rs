//! Events, on a RabbitMQ stream over AMQP.

mod buffer;
mod publisher;
mod reader;
mod shared;
mod spill;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use protocol::event::Event;
use protocol::id::{Epoch, RunId};
use tokio::task::JoinSet;
use tracing::warn;
use url::Url;

use self::shared::Shared;
use self::spill::Spill;
use super::amqp::{AmqpOptions, Fault, Link, Target, topology};
use crate::ports::{EventStream, Events, EventsError, Position, Ticket};

/// Events, on a RabbitMQ stream. Clones share it; it ends with the last one.
#[derive(Clone)]
pub struct AmqpEvents(Arc<Inner>);

struct Inner {
    link: Link,
    stream: String,
    shared: Arc<Shared>,
    /// What publishes, and what moves events to the disk and back; end with this.
    tasks: Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for AmqpEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AmqpEvents").field("stream", &self.0.stream).finish_non_exhaustive()
    }
}

impl AmqpEvents {
    /// Connects and declares the stream; tries again as often as the options say. From then on it
    /// reconnects by itself, for ever.
    ///
    /// # Errors
    /// [`EventsError::Spill`] and [`EventsError::Denied`] at once, the latter where user, password,
    /// virtual host or certificates are at fault; [`EventsError::Unreachable`] after the last
    /// attempt.
    pub async fn connect(options: &AmqpOptions) -> Result<Self, EventsError> {
        let spill = Spill::open(&options.spill_dir, options.spill_bytes).map_err(|cause| {
            let path = options.spill_dir.display().to_string();
            EventsError::Spill { path, cause: cause.to_string() }
        })?;
        let said = |fault: Fault| fault.of_stream("BOB_STREAM_URL");
        let url = stream_url(options).map_err(said)?;
        let name = format!("{} events", options.node);
        let target = Target::new(options, &url, name).map_err(said)?;
        let at = Arc::clone(target.at());
        let objects = vec![topology::stream(&options.stream_name, options.stream_retention_days)];
        let opening = Link::open(target, objects, options.retry_attempts, options.retry_delay);
        let link = opening.await.map_err(|fault| fault.of_stream(&at))?;

        let shared = Arc::new(Shared::new());
        let mut tasks = JoinSet::new();
        let stream = options.stream_name.clone();
        tasks.spawn(publisher::publish(Arc::clone(&shared), link.clone(), stream.clone()));
        tasks.spawn(shared::spill_and_refill(Arc::clone(&shared), link.clone(), spill));
        Ok(Self(Arc::new(Inner { link, stream, shared, tasks: Mutex::new(tasks) })))
    }

    /// Says goodbye to the broker. What is not confirmed yet is given up: wait for
    /// [`Events::confirmed`] before.
    pub async fn close(&self) {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        self.0.shared.close();
        self.0.link.close().await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// Where the stream is. The native protocol is not spoken: its client library cannot talk to the
/// brokers before 3.11, so AMQP to the same host takes its place.
fn stream_url(options: &AmqpOptions) -> Result<String, Fault> {
    let Some(url) = &options.stream_url else { return Ok(options.url.clone()) };
    // Never the text itself: it may hold a password.
    let parsed = Url::parse(url)
        .map_err(|cause| Fault::Denied(format!("the URL of the stream cannot be read: {cause}")))?;
    if !parsed.scheme().starts_with("rabbitmq-stream") {
        return Ok(url.clone());
    }
    warn!(
        "BOB_STREAM_URL asks for the stream protocol, which this version does not speak: AMQP is used"
    );
    let queue = Url::parse(&options.url)
        .map_err(|cause| Fault::Denied(format!("the URL of the queue cannot be read: {cause}")))?;
    let host = parsed.host_str().or_else(|| queue.host_str()).unwrap_or("localhost");
    let path = if parsed.path().len() > 1 { parsed.path() } else { queue.path() };
    let port = queue.port().map(|port| format!(":{port}")).unwrap_or_default();
    Ok(format!("{}://{host}{port}{path}", queue.scheme()))
}

#[async_trait]
impl Events for AmqpEvents {
    async fn emit(&self, event: Event) -> Result<Ticket, EventsError> {
        let body = Bytes::from(event.to_json());
        // An ending is published once it is recorded, so it stays true whoever owns the run.
        let epoch = event.epoch.filter(|_| !event.reason.is_ending());
        self.0.shared.push(event.run_id, epoch, body).await.map(Ticket)
    }

    async fn confirmed(&self, ticket: Ticket) -> Result<(), EventsError> {
        self.0.shared.done(ticket.0).await
    }

    fn discard(&self, run: &RunId, up_to: Epoch) {
        self.0.shared.change(|buffer| buffer.discard(run, up_to));
    }

    async fn follow(&self, from: Position) -> Result<EventStream, EventsError> {
        reader::follow(self.0.link.clone(), self.0.stream.clone(), from).await
    }

    async fn end(&self) -> Result<Option<u64>, EventsError> {
        reader::end(&self.0.link, &self.0.stream).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::id::NodeId;

    use super::*;
    use crate::cluster::tls::TlsFiles;

    fn url(stream_url: Option<&str>) -> String {
        let options = AmqpOptions {
            url: "amqps://mq.example:7000/builds".to_owned(),
            user: String::new(),
            password: String::new(),
            tls: TlsFiles::default(),
            node: NodeId::found("bob/runner-1"),
            retry_attempts: 1,
            retry_delay: Duration::ZERO,
            stream_name: "s".to_owned(),
            stream_retention_days: 1,
            stream_url: stream_url.map(str::to_owned),
            spill_dir: "spill".into(),
            spill_bytes: 0,
        };
        stream_url_of(&options)
    }

    fn stream_url_of(options: &AmqpOptions) -> String {
        stream_url(options).unwrap()
    }

    #[test]
    fn the_stream_is_on_the_server_of_the_queue_unless_another_is_named() {
        assert_eq!(url(None), "amqps://mq.example:7000/builds");
        assert_eq!(url(Some("amqp://other.example/v")), "amqp://other.example/v");
    }

    #[test]
    fn the_stream_protocol_is_replaced_by_amqp_to_the_same_host() {
        let native = "rabbitmq-stream://bob:secret@other.example:5552";
        assert_eq!(url(Some(native)), "amqps://other.example:7000/builds");
        let native = "rabbitmq-stream://mq.example:5552/v";
        assert_eq!(url(Some(native)), "amqps://mq.example:7000/v");
    }
}
