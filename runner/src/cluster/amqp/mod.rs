//! What commands and events share of RabbitMQ: a connection that comes back, and the topology.

mod connection;
mod faults;
mod kind;
mod target;
pub(super) mod topology;

use std::path::PathBuf;
use std::time::Duration;

use protocol::id::NodeId;

use super::tls::TlsFiles;

pub(super) use connection::{Link, Live};
pub(super) use faults::Fault;
pub(super) use target::Target;

/// Where RabbitMQ is, how we are let in, and what is kept there. All values are final: nothing of
/// the user and the password in the URL is read.
#[derive(Clone)]
pub struct AmqpOptions {
    /// `amqp://HOST:PORT/VHOST`, or `amqps://`.
    pub url: String,
    /// Our user.
    pub user: String,
    /// Its password.
    pub password: String,
    /// Certificates, for `amqps://`.
    pub tls: TlsFiles,
    /// Who we are: the connection's name, and the name of our own queue.
    pub node: NodeId,
    /// How often the first connection is tried.
    pub retry_attempts: u32,
    /// And how long is waited in between.
    pub retry_delay: Duration,
    /// The stream's name.
    pub stream_name: String,
    /// How long the stream keeps an event.
    pub stream_retention_days: u32,
    /// The maximum size of the stream in bytes.
    pub stream_max_bytes: Option<u64>,
    /// Another server for the stream.
    pub stream_url: Option<String>,
    /// Where events wait that the memory does not hold.
    pub spill_dir: PathBuf,
    /// How many bytes of them.
    pub spill_bytes: u64,
    /// Names the cluster whose events these are, so that its next worker finds what this one leaves
    /// on disk. `None`: events wait in memory alone, as those of a command do.
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
