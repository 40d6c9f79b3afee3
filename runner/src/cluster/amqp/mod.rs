//! RabbitMQ for commands and events: a connection that is restored automatically, and the topology.

mod connection;
mod faults;
mod kind;
mod live;
mod target;
pub(super) mod topology;

use std::path::PathBuf;
use std::time::Duration;

use protocol::id::NodeId;

use super::tls::TlsFiles;

pub(super) use connection::Link;
pub(super) use faults::Fault;
pub(super) use live::Live;
pub(super) use target::Target;

/// Address, credentials and objects of RabbitMQ. A user and password in the URL are ignored.
#[derive(Clone)]
pub struct AmqpOptions {
    /// `amqp://HOST:PORT/VHOST`, or `amqps://`.
    pub url: String,
    /// The user.
    pub user: String,
    /// The user's password.
    pub password: String,
    /// The certificates for `amqps://`.
    pub tls: TlsFiles,
    /// The worker's ID, which names the connection and the worker's own queue.
    pub node: NodeId,
    /// The number of attempts to establish the first connection.
    pub retry_attempts: u32,
    /// The delay between these attempts.
    pub retry_delay: Duration,
    /// The stream's name.
    pub stream_name: String,
    /// How long the stream keeps an event.
    pub stream_retention_days: u32,
    /// The maximum size of the stream in bytes.
    pub stream_max_bytes: Option<u64>,
    /// The stream's server, if it differs from that of the queues.
    pub stream_url: Option<String>,
    /// The directory for events that do not fit into memory.
    pub spill_dir: PathBuf,
    /// The maximum size of these events in bytes.
    pub spill_bytes: u64,
    /// Identifies the cluster of the events, so that its next worker finds those that this one
    /// leaves on disk. With `None`, events only wait in memory, as for a command.
    pub spill_cluster: Option<String>,
}

impl std::fmt::Debug for AmqpOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AmqpOptions")
            .field("user", &self.user)
            .field("tls", &self.tls)
            .field("node", &self.node)
            .field("stream_name", &self.stream_name)
            .field("spill_dir", &self.spill_dir)
            .finish_non_exhaustive()
    }
}
