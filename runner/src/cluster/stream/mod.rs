//! Events, on a RabbitMQ stream over AMQP.

mod buffer;
pub(super) mod health;
mod left;
mod publisher;
mod reader;
mod segment;
mod shared;
mod spill;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use protocol::event::Event;
use protocol::id::{Epoch, RunId};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use tracing::{info, warn};
use url::Url;

use self::health::Health;
use self::shared::Shared;
pub use self::spill::SpillOutcome;
use self::spill::{Spill, SpillRoot, owner_of};
use super::amqp::{AmqpOptions, Fault, Link, Target, topology};
use crate::ports::{EventStream, Events, EventsError, Position, Ticket};

/// Events on a RabbitMQ stream. Clones share the publisher, which ends with the last one.
#[derive(Clone)]
pub struct AmqpEvents(Arc<StreamState>);

struct StreamState {
    link: Link,
    stream: String,
    shared: Arc<Shared>,
    health: Arc<Health>,
    /// The publishing tasks. Aborted on drop.
    tasks: Mutex<JoinSet<()>>,
    /// The task that spills events to disk, if that is enabled.
    spilling: Mutex<JoinSet<Option<io::Result<SpillOutcome>>>>,
}

/// The timeout of saving events to disk when the worker ends.
const KEPT_WITHIN: Duration = Duration::from_secs(3);

impl std::fmt::Debug for AmqpEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AmqpEvents").field("stream", &self.0.stream).finish_non_exhaustive()
    }
}

impl AmqpEvents {
    /// Connects and declares the stream, retrying as often as the options say. Later reconnects are
    /// automatic and unlimited.
    ///
    /// # Errors
    /// [`EventsError::Spill`] at once if the spill directory cannot be used;
    /// [`EventsError::Denied`] at once if the user, password, virtual host or certificates are
    /// wrong; [`EventsError::Unreachable`] after the last attempt.
    pub async fn connect(options: &AmqpOptions) -> Result<Self, EventsError> {
        let said = |fault: Fault| fault.of_stream("BOB_STREAM_URL");
        let url = stream_url(options).map_err(said)?;
        let name = format!("{} events", options.node);
        let target = Target::new(options, &url, name).map_err(said)?;
        let at = Arc::clone(target.at());
        let place = options.spill_cluster.as_deref().map(|cluster| {
            let prefix = prefix_of(cluster, target.vhost(), &options.stream_name);
            SpillRoot::new(&options.spill_dir, prefix, options.spill_bytes)
        });
        let spill = place.clone().map(Spill::open).transpose().map_err(|cause| {
            let path = options.spill_dir.display().to_string();
            EventsError::Spill { path, cause: cause.to_string() }
        })?;
        let objects = vec![topology::stream(
            &options.stream_name,
            options.stream_retention_days,
            options.stream_max_bytes,
        )];
        let opening = Link::open(target, objects, options.retry_attempts, options.retry_delay);
        let link = opening.await.map_err(|fault| fault.of_stream(&at))?;

        let shared = Arc::new(Shared::new());
        let mut tasks = JoinSet::new();
        let stream = options.stream_name.clone();
        tasks.spawn(publisher::publish(Arc::clone(&shared), link.clone(), stream.clone()));
        let health = Arc::new(Health::default());
        if let Some(place) = place {
            // A worker that cannot publish accepts no runs.
            health.probe(&link).await;
            tasks.spawn(health::watch(Arc::clone(&shared), link.clone(), Arc::clone(&health)));
            tasks.spawn(left::publish(Arc::clone(&shared), link.clone(), place));
        }
        let mut spilling = JoinSet::new();
        if let Some(spill) = spill {
            spilling.spawn(shared::spill_and_refill(Arc::clone(&shared), link.clone(), spill));
        }
        let (tasks, spilling) = (Mutex::new(tasks), Mutex::new(spilling));
        Ok(Self(Arc::new(StreamState { link, stream, shared, health, tasks, spilling })))
    }

    /// Ends the publisher of an ending worker. Unconfirmed events stay on disk for the next worker
    /// with the same directory. Events that do not fit there are counted.
    pub async fn close_and_save(&self) -> SpillOutcome {
        self.stop_publishing();
        let mut spilling = std::mem::take(&mut *self.0.spilling.lock());
        // Nothing is sent or added any more. If saving fails or takes too long, these are lost.
        self.0.shared.close();
        let unsaved = self.0.shared.unsaved();
        self.0.shared.close_and_save();
        let (kept, why) = match tokio::time::timeout(KEPT_WITHIN, spilling.join_next()).await {
            // Spilling is disabled.
            Ok(None) => return SpillOutcome::default(),
            Ok(Some(Ok(Some(Ok(kept))))) => {
                (kept, "BOB_SPILL_BYTES leaves no room for them on disk".to_owned())
            }
            Ok(Some(Ok(Some(Err(cause))))) => {
                (unsaved, format!("they cannot be saved on disk: {cause}"))
            }
            Ok(Some(Ok(None) | Err(_))) | Err(_) => {
                let seconds = KEPT_WITHIN.as_secs();
                (unsaved, format!("they were not saved on disk within {seconds} s"))
            }
        };
        report(&kept, &why);
        kept
    }

    /// Checks that the broker confirms a message of this publisher.
    ///
    /// # Errors
    /// [`EventsError`] if it does not.
    pub async fn probe(&self) -> Result<(), EventsError> {
        let link = &self.0.link;
        health::probe(link, "").await.map_err(|fault| fault.of_stream(link.at()))
    }

    fn stop_publishing(&self) {
        self.0.tasks.lock().abort_all();
    }

    /// Closes the connection. Unconfirmed events are lost: wait for [`Events::confirmed`] before.
    pub async fn close(&self) {
        self.stop_publishing();
        self.0.shared.close();
        self.0.link.close().await;
    }
}

impl Drop for StreamState {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// Reports what becomes of the events that the broker has not confirmed. `why` is the reason for
/// the loss of some.
fn report(kept: &SpillOutcome, why: &str) {
    if let Some(dir) = &kept.dir {
        info!(
            events = kept.events, bytes = kept.bytes, dir = %dir.display(),
            "events that the broker has not confirmed are kept on disk; the next worker that uses this directory publishes them"
        );
    }
    for (run, events) in &kept.dropped {
        let of = owner_of(run.as_ref());
        warn!(
            run.id = run.as_ref().map(RunId::as_str),
            events, "{events} events of {of} are lost: the broker does not take them, and {why}"
        );
    }
}

/// Returns the name prefix of a cluster's spill directories. It does not depend on the addresses of
/// broker and etcd, which can change between two workers.
fn prefix_of(cluster: &str, vhost: &str, stream: &str) -> String {
    let digest = Sha256::digest(format!("{cluster}\n{vhost}\n{stream}"));
    format!("events-{}-", hex::encode(&digest[..8]))
}

/// Returns the URL of the stream. The native stream protocol is not supported, because its client
/// library does not work with brokers before 3.11. AMQP to the same host is used instead.
fn stream_url(options: &AmqpOptions) -> Result<String, Fault> {
    let Some(url) = &options.stream_url else { return Ok(options.url.clone()) };
    // Do not include the URL in the error: it may contain a password.
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
        // An ending is published after it was recorded, so it remains true under another owner.
        let epoch = event.epoch.filter(|_| !event.reason.is_ending());
        self.0.shared.push(event.run_id, epoch, body).await.map(Ticket)
    }

    async fn confirmed(&self, ticket: Ticket) -> Result<(), EventsError> {
        self.0.shared.done(ticket.0).await
    }

    fn is_unreadable(&self, ticket: Ticket) -> bool {
        self.0.shared.is_unreadable(ticket.0)
    }

    fn problem(&self) -> Option<String> {
        self.0.health.problem()
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
            node: NodeId::from_stored("bob/runner-1"),
            retry_attempts: 1,
            retry_delay: Duration::ZERO,
            stream_name: "s".to_owned(),
            stream_retention_days: 1,
            stream_max_bytes: None,
            stream_url: stream_url.map(str::to_owned),
            spill_dir: "spill".into(),
            spill_bytes: 0,
            spill_cluster: None,
        };
        stream_url_of(&options)
    }

    fn stream_url_of(options: &AmqpOptions) -> String {
        stream_url(options).unwrap()
    }

    #[test]
    fn the_stream_uses_the_server_of_the_queue_unless_another_is_set() {
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
