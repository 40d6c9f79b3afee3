//! Transfers between the worker and services: resources in, artifacts and logs out over HTTP, and
//! outputs of steps to their stores. Everything is streamed and never held in memory as a whole.

mod address;
mod artifact;
mod callback;
mod clients;
mod logs;
mod outputs;
mod progress;
mod resource;
mod spill;
mod tar;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use protocol::id::RunId;
use protocol::pipeline::Vars;
use reqwest::Response;
use reqwest::header::LOCATION;
use thiserror::Error;
use tokio_util::task::TaskTracker;

use crate::egress::{Policy, refusal};
use crate::ports::{ByteStream, LoggerFeed, Origin, Transfer, TransferError};
use address::Service;
use clients::Clients;
pub use outputs::{
    ArtifactStore, Bucket, BucketKeys, BucketOptions, Directory, Keeper, Registered,
};
use spill::Room;

/// How many bytes of a response an error shows.
const SHOWN: usize = 300;

/// The settings of transfers.
#[derive(Debug, Clone)]
pub struct Options {
    /// The allowed addresses. Others register services and name callbacks.
    pub policy: Policy,
    /// The directory for text that a logger has not accepted. It is created when needed.
    pub spill_dir: PathBuf,
    /// The maximum size of all loggers' text in it, in bytes.
    pub spill_bytes: u64,
}

/// Timeouts of services.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// The timeout for connecting.
    pub connect: Duration,
    /// The timeout for the head of a response, and the window in which progress is measured.
    pub idle: Duration,
    /// The minimum number of bytes that must be transferred in each `idle`.
    pub progress_bytes: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            progress_bytes: 16 << 10,
        }
    }
}

/// Why transfers cannot be set up.
#[derive(Debug, Error)]
pub enum SetupError {
    /// The HTTP client or its TLS could not be created.
    #[error("cannot set up HTTP: {0}")]
    Client(String),
    /// The settings of a bucket are invalid.
    #[error("cannot keep outputs in the bucket {bucket}: {cause}")]
    Bucket {
        /// Its name.
        bucket: String,
        /// The reason.
        cause: String,
    },
}

/// Transfers over HTTP.
#[derive(Debug, Clone)]
pub struct Http {
    clients: Clients,
    timeouts: Timeouts,
    room: Arc<Room>,
    /// The tasks of feeds. Each ends with its run.
    tasks: TaskTracker,
}

impl Http {
    /// Creates transfers with the default timeouts.
    ///
    /// # Errors
    /// [`SetupError`] if the client cannot be created.
    pub fn new(options: Options) -> Result<Self, SetupError> {
        Self::with_timeouts(options, Timeouts::default())
    }

    /// Creates transfers with other timeouts.
    ///
    /// # Errors
    /// [`SetupError`] if the client cannot be created.
    pub fn with_timeouts(options: Options, timeouts: Timeouts) -> Result<Self, SetupError> {
        let clients = Clients::new(options.policy, timeouts)?;
        let room = Arc::new(Room::new(options.spill_dir, options.spill_bytes));
        Ok(Self { clients, timeouts, room, tasks: TaskTracker::new() })
    }
}

#[async_trait]
impl Transfer for Http {
    async fn external_resource(
        &self,
        provider_url: &str,
        params: &Vars,
        mount: &str,
    ) -> Result<ByteStream, TransferError> {
        let (service, url) = resource::external(provider_url, params)?;
        self.fetch(&service, url, mount).await
    }

    async fn internal_resource(
        &self,
        store_url: &str,
        params: &Vars,
        mount: &str,
    ) -> Result<ByteStream, TransferError> {
        let (service, url) = resource::internal(store_url, params, mount)?;
        self.fetch(&service, url, mount).await
    }

    async fn upload_artifact(
        &self,
        store_url: &str,
        path: [&str; 4],
        tar: ByteStream,
        origin: &Origin,
    ) -> Result<(), TransferError> {
        self.send(store_url, path, tar, origin).await
    }

    async fn post(
        &self,
        url: &str,
        secret: Option<&str>,
        id: &str,
        body: Bytes,
    ) -> Result<u16, TransferError> {
        self.post_notification(url, secret, id, body).await
    }

    fn logger(&self, logger_url: &str, run: &RunId) -> Result<Box<dyn LoggerFeed>, TransferError> {
        let feed = logs::Feed::open(self, logger_url, run)?;
        Ok(Box::new(feed))
    }
}

/// The causes of an error, without the URL, which can contain a password.
fn chain(error: &reqwest::Error) -> String {
    if let Some(refused) = refusal(error) {
        return refused.to_string();
    }
    let mut parts: Vec<String> = Vec::new();
    let mut next: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = next {
        let part = error.to_string();
        // Some errors repeat their cause in their own message.
        if parts.last().is_none_or(|last| !last.contains(&part)) {
            parts.push(part);
        }
        next = error.source();
    }
    match (parts.is_empty(), error.is_timeout()) {
        (true, true) => "no answer in time".into(),
        (true, false) => "the request could not be made".into(),
        (false, _) => parts.join(": "),
    }
}

/// Returns a successful response. Others become an error with the beginning of their body.
async fn accepted(
    service: &Service,
    response: Response,
    idle: Duration,
) -> Result<Response, TransferError> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status().as_u16();
    let said = match redirect_target(&response) {
        Some(there) => format!(
            "it sends us on to {there}, and what is sent goes nowhere but to the registered address; register the new one"
        ),
        None => beginning(response, idle).await,
    };
    Err(service.rejected(status, &said))
}

/// The target of a redirect, for display.
fn redirect_target(response: &Response) -> Option<String> {
    let given = response.headers().get(LOCATION).filter(|_| response.status().is_redirection())?;
    let there = response.url().join(given.to_str().ok()?).ok()?;
    Some(address::shown(&there))
}

/// The beginning of a response body, on one line.
async fn beginning(mut response: Response, idle: Duration) -> String {
    let mut body = Vec::new();
    let reading = async {
        while body.len() < SHOWN {
            let Ok(Some(chunk)) = response.chunk().await else { break };
            body.extend_from_slice(&chunk);
        }
    };
    // Use whatever part of the body arrives in time.
    tokio::time::timeout(idle, reading).await.ok();
    body.truncate(SHOWN);
    let text = String::from_utf8_lossy(&body);
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.is_empty() { "(nothing)".into() } else { words.join(" ") }
}
