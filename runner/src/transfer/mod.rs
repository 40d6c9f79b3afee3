//! Bytes over the worker's edge: resources in, artifacts and logs out, over HTTP; outputs of steps to
//! where they are kept. Streamed: what crosses is never held whole.

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

/// How much of an answer an error shows, in bytes.
const SHOWN: usize = 300;

/// What transfers may use.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which addresses are open: services are registered, and callbacks named, by others.
    pub policy: Policy,
    /// The directory in which text waits for a logger that does not take it. It is created when it
    /// is needed.
    pub spill_dir: PathBuf,
    /// What all loggers' text may take there together, in bytes.
    pub spill_bytes: u64,
}

/// How long a service is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Until it takes a connection.
    pub connect: Duration,
    /// While too little moves, and for the head of a response.
    pub idle: Duration,
    /// How many bytes must move within each `idle`.
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

/// Why there can be no transfers at all.
#[derive(Debug, Error)]
pub enum SetupError {
    /// The HTTP client, or its TLS, cannot be made.
    #[error("cannot set up HTTP: {0}")]
    Client(String),
    /// A bucket cannot be spoken to with these settings.
    #[error("cannot keep outputs in the bucket {bucket}: {cause}")]
    Bucket {
        /// Its name.
        bucket: String,
        /// What is wrong.
        cause: String,
    },
}

/// Transfers over HTTP.
#[derive(Debug, Clone)]
pub struct Http {
    clients: Clients,
    timeouts: Timeouts,
    room: Arc<Room>,
    /// The feeds, each of which ends with its run.
    tasks: TaskTracker,
}

impl Http {
    /// Transfers with the usual timeouts.
    ///
    /// # Errors
    /// [`SetupError`] where the client cannot be made.
    pub fn new(options: Options) -> Result<Self, SetupError> {
        Self::with_timeouts(options, Timeouts::default())
    }

    /// Transfers with timeouts of one's own.
    ///
    /// # Errors
    /// [`SetupError`] where the client cannot be made.
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
        self.post_news(url, secret, id, body).await
    }

    fn logger(&self, logger_url: &str, run: &RunId) -> Result<Box<dyn LoggerFeed>, TransferError> {
        let feed = logs::Feed::open(self, logger_url, run)?;
        Ok(Box::new(feed))
    }
}

/// What went wrong, with everything beneath it, without the address: it may hold a password.
fn chain(error: &reqwest::Error) -> String {
    if let Some(refused) = refusal(error) {
        return refused.to_string();
    }
    let mut parts: Vec<String> = Vec::new();
    let mut next: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = next {
        let part = error.to_string();
        // Some errors repeat in their own words what is beneath them.
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

/// Takes an answer that says yes; one that says no becomes an error with its beginning.
async fn accepted(
    service: &Service,
    response: Response,
    idle: Duration,
) -> Result<Response, TransferError> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status().as_u16();
    let said = match elsewhere(&response) {
        Some(there) => format!(
            "it sends us on to {there}, and what is sent goes nowhere but to the registered address; register the new one"
        ),
        None => beginning(response, idle).await,
    };
    Err(service.refused(status, &said))
}

/// Where an answer sends us on to.
fn elsewhere(response: &Response) -> Option<String> {
    let given = response.headers().get(LOCATION).filter(|_| response.status().is_redirection())?;
    let there = response.url().join(given.to_str().ok()?).ok()?;
    Some(address::shown(&there))
}

/// The beginning of an answer's body, on one line.
async fn beginning(mut response: Response, idle: Duration) -> String {
    let mut body = Vec::new();
    let reading = async {
        while body.len() < SHOWN {
            let Ok(Some(chunk)) = response.chunk().await else { break };
            body.extend_from_slice(&chunk);
        }
    };
    // The part of the body that arrives in time is enough.
    tokio::time::timeout(idle, reading).await.ok();
    body.truncate(SHOWN);
    let text = String::from_utf8_lossy(&body);
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.is_empty() { "(nothing)".into() } else { words.join(" ") }
}
