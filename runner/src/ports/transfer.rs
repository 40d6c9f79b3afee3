//! How bytes cross the worker's edge: resources in, artifacts and logs out.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use protocol::id::{Epoch, RunId};
use protocol::pipeline::Vars;
use std::time::Duration;
use thiserror::Error;

/// Bytes as they come. An `Err` breaks off: what came before is not the whole.
pub type ByteStream = BoxStream<'static, Result<Bytes, std::io::Error>>;

/// What a transfer could not do.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The service does not answer.
    #[error("cannot reach {what} at {url}: {cause}")]
    Unreachable {
        /// The kind of service, by name.
        what: String,
        /// Where, without credentials.
        url: String,
        /// What the connection said.
        cause: String,
    },
    /// The service said no.
    #[error("{what} at {url} answered {status}: {body}")]
    Refused {
        /// The kind of service, by name.
        what: String,
        /// Where, without credentials.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of what it said.
        body: String,
    },
    /// Its address is no HTTP URL.
    #[error("{what} is registered with {url:?}, which is no http or https URL")]
    BadUrl {
        /// The kind of service, by name.
        what: String,
        /// As registered.
        url: String,
    },
    /// A parameter that must be there is missing or cannot be used.
    #[error("{0}")]
    BadParams(String),
    /// A file cannot be kept where outputs are.
    #[error("cannot keep {what} in {store}: {cause}")]
    Store {
        /// The file, by the path that it is kept under.
        what: String,
        /// Where, without credentials.
        store: String,
        /// What the system or the store said.
        cause: String,
    },
    /// The bytes that were to be sent broke off.
    #[error("{0}")]
    Input(String),
    /// The data contains a secret. Sending stopped before the secret.
    #[error(
        "{what} contains a secret of the run and is not sent: do not write secrets to files that are stored"
    )]
    SecretLeak {
        /// The artifact or output, without any secret.
        what: String,
    },
}

/// Who sends something: every request for a run says so.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The run.
    pub run: RunId,
    /// Its owner's epoch.
    pub epoch: Epoch,
    /// The step's attempt.
    pub attempt: u32,
}

/// Takes a run's text for an external logger, without ever making a step wait.
#[async_trait]
pub trait LoggerFeed: Send + Sync {
    /// Takes text: it waits in memory, then on disk, then what is over the bound is dropped.
    fn push(&self, text: Bytes);

    /// Sends what waits, and returns the bytes that were not taken by the deadline.
    async fn finish(&self, deadline: Duration) -> u64;
}

/// Resources, artifacts and logs over HTTP (the contracts of Bob's services).
#[async_trait]
pub trait Transfer: Send + Sync {
    /// Fetches a resource from a provider. Every entry of the tar is checked and gets `mount/` in
    /// front of its name.
    async fn external_resource(
        &self,
        provider_url: &str,
        params: &Vars,
        mount: &str,
    ) -> Result<ByteStream, TransferError>;

    /// Fetches an artifact of an earlier run from a store, in the same way.
    async fn internal_resource(
        &self,
        store_url: &str,
        params: &Vars,
        mount: &str,
    ) -> Result<ByteStream, TransferError>;

    /// Sends an artifact to a store.
    async fn upload_artifact(
        &self,
        store_url: &str,
        path: [&str; 4],
        tar: ByteStream,
        origin: &Origin,
    ) -> Result<(), TransferError>;

    /// Posts JSON to whoever asked for it; the status of the answer. A secret goes with it as a bearer
    /// token; one that begins with `whsec_` signs it, as Standard Webhooks say, under this id.
    async fn post(
        &self,
        url: &str,
        secret: Option<&str>,
        id: &str,
        body: Bytes,
    ) -> Result<u16, TransferError>;

    /// Opens a feed to a logger.
    fn logger(&self, logger_url: &str, run: &RunId) -> Result<Box<dyn LoggerFeed>, TransferError>;
}
