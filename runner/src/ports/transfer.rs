//! HTTP transfers: resources in, artifacts and logs out.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use protocol::id::{Epoch, RunId};
use protocol::pipeline::Vars;
use std::time::Duration;
use thiserror::Error;

/// A stream of bytes. After an `Err` the data is incomplete.
pub type ByteStream = BoxStream<'static, Result<Bytes, std::io::Error>>;

/// Errors of a transfer.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The service does not respond.
    #[error("cannot reach {what} at {url}: {cause}")]
    Unreachable {
        /// The kind of service.
        what: String,
        /// The URL, without credentials.
        url: String,
        /// The connection error.
        cause: String,
    },
    /// The service returned an error status.
    #[error("{what} at {url} answered {status}: {body}")]
    Refused {
        /// The kind of service.
        what: String,
        /// The URL, without credentials.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the response body.
        body: String,
    },
    /// The registered address is not an HTTP URL.
    #[error("{what} is registered with {url:?}, which is not an http or https URL")]
    BadUrl {
        /// The kind of service.
        what: String,
        /// The address as registered.
        url: String,
    },
    /// A required parameter is missing or invalid.
    #[error("{0}")]
    BadParams(String),
    /// An output cannot be stored.
    #[error("cannot keep {what} in {store}: {cause}")]
    Store {
        /// The path of the file in the store.
        what: String,
        /// The name of the store, without credentials.
        store: String,
        /// The error of the system or the store.
        cause: String,
    },
    /// Stored outputs cannot be listed or removed.
    #[error("cannot remove {what} from {store}: {cause}")]
    Removal {
        /// What was to be removed.
        what: String,
        /// The name of the store, without credentials.
        store: String,
        /// The error of the system.
        cause: String,
    },
    /// The bytes to be sent ended early.
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

/// The sender. Every request for a run carries it.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The run.
    pub run: RunId,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The step's attempt.
    pub attempt: u32,
}

/// Forwards a run's log to an external logger. Never delays a step.
#[async_trait]
pub trait LoggerFeed: Send + Sync {
    /// Accepts text. It waits in memory, then on disk; text beyond the limit is dropped.
    fn push(&self, text: Bytes);

    /// Sends the remaining text. Returns the number of bytes not accepted by the deadline.
    async fn finish(&self, deadline: Duration) -> u64;
}

/// Resources, artifacts and logs over HTTP, as defined by the contracts of Bob's services.
#[async_trait]
pub trait Transfer: Send + Sync {
    /// Fetches a resource from a provider. Checks every entry of the tar archive and prefixes its
    /// name with `mount/`.
    async fn external_resource(
        &self,
        provider_url: &str,
        params: &Vars,
        mount: &str,
    ) -> Result<ByteStream, TransferError>;

    /// Fetches an artifact of an earlier run from a store, with the same checks and prefix.
    async fn internal_resource(
        &self,
        store_url: &str,
        params: &Vars,
        mount: &str,
    ) -> Result<ByteStream, TransferError>;

    /// Uploads an artifact to a store.
    async fn upload_artifact(
        &self,
        store_url: &str,
        path: [&str; 4],
        tar: ByteStream,
        origin: &Origin,
    ) -> Result<(), TransferError>;

    /// Posts JSON to a receiver and returns the response status. A secret is sent as a bearer
    /// token. A secret that begins with `whsec_` instead signs the request with this ID, as defined
    /// by Standard Webhooks.
    async fn post(
        &self,
        url: &str,
        secret: Option<&str>,
        id: &str,
        body: Bytes,
    ) -> Result<u16, TransferError>;

    /// Opens a feed to an external logger.
    fn logger(&self, logger_url: &str, run: &RunId) -> Result<Box<dyn LoggerFeed>, TransferError>;
}
