//! HTTP clients, one per port, because an address can be open at one port and closed at another.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use reqwest::redirect::Policy as Redirects;
use reqwest::{Client, Response};
use thiserror::Error;
use url::Url;

use super::answer::reason;
use super::progress::Timeouts;
use crate::egress::{Policy, redirect};

/// The maximum number of cached clients. Messages choose the port.
const MOST: usize = 64;
/// The maximum number of redirects to follow.
const REDIRECTS: usize = 5;

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

/// Creates clients, and caches them with their connections.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    policy: Policy,
    timeouts: Timeouts,
    by_port: Arc<Mutex<BTreeMap<u16, Client>>>,
}

impl Clients {
    pub(super) fn new(policy: Policy, timeouts: Timeouts) -> Result<Self, SetupError> {
        let clients = Self { policy, timeouts, by_port: Arc::default() };
        // Report at startup if the system cannot create a client.
        clients.at(443).map(|_client| clients).map_err(SetupError::Client)
    }

    fn at(&self, port: u16) -> Result<Client, String> {
        // Only the policy knows which ports have rules. Without rules, one client serves all ports.
        let port = if self.policy.is_unrestricted() { 0 } else { port };
        let mut by_port = self.by_port.lock();
        if let Some(client) = by_port.get(&port) {
            return Ok(client.clone());
        }
        // The worker's proxy settings are not meant for registered services. The client's own
        // timeout would cover a whole upload, so idle times are checked while the bytes are read.
        let builder = Client::builder()
            .no_proxy()
            .connect_timeout(self.timeouts.connect)
            .redirect(Redirects::none())
            .user_agent(concat!("bob-runner/", env!("CARGO_PKG_VERSION")));
        let client = self.policy.guarded(builder, port).build().map_err(|error| reason(&error))?;
        if by_port.len() >= MOST {
            by_port.clear();
        }
        by_port.insert(port, client.clone());
        Ok(client)
    }

    /// The client for a URL, after checking that the policy allows its address.
    pub(super) async fn to(&self, url: &Url) -> Result<Client, String> {
        self.policy.check(url).await.map_err(|refused| refused.to_string())?;
        self.at(url.port_or_known_default().unwrap_or_default())
    }

    /// Sends a GET and follows redirects. Each hop is checked.
    pub(super) async fn get(&self, mut url: Url) -> Result<Response, String> {
        let mut hops = 0;
        loop {
            let client = self.to(&url).await?;
            let response = client.get(url).send().await.map_err(|error| reason(&error))?;
            match redirect(&response) {
                None => return Ok(response),
                Some(_) if hops == REDIRECTS => {
                    return Err(format!("it redirects more than {REDIRECTS} times"));
                }
                Some(next) => url = next,
            }
            hops += 1;
        }
    }
}
