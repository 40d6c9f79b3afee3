//! The client of etcd: connecting, and reading in pages.

use std::sync::Arc;

use etcd_client::GetOptions;
use tokio::sync::OnceCell;
use tracing::warn;

use super::convert;
use super::errors::{self, Fault};
use super::foreign::ForeignKeys;
use super::members::{DEADLINE, Members, Repeat};
use super::options::{EtcdOptions, display_urls};
use crate::cluster::tls;
use crate::ports::{Listing, StoreError};

pub(super) const LARGEST_ANSWER: usize = 128 * 1024 * 1024;
/// The number of keys in a page. A run record may be as large as a request, 1.5 MiB.
pub(super) const PAGE: i64 = 64;

/// The store in etcd.
#[derive(Clone)]
pub struct Etcd {
    pub(super) members: Arc<Members>,
    pub(super) at: Arc<str>,
    /// The cluster's ID, which never changes.
    pub(super) identity: Arc<OnceCell<String>>,
    pub(super) foreign: Arc<ForeignKeys>,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Etcd {
    /// Connects, retrying as often as the options say. Later reconnects are automatic.
    ///
    /// # Errors
    /// [`StoreError::Denied`] at once if the user, password or certificates are wrong;
    /// [`StoreError::Unreachable`] after the last attempt.
    pub async fn connect(options: &EtcdOptions) -> Result<Self, StoreError> {
        let at: Arc<str> = display_urls(&options.urls).into();
        let members =
            Members::new(options).await.map_err(|fault| fault.into_store_error(&at, None, 0))?;
        let (members, identity, foreign) = (Arc::new(members), Arc::default(), Arc::default());
        let etcd = Self { members, at, identity, foreign };
        let mut left = options.retry_attempts.max(1);
        loop {
            let error = match Box::pin(etcd.attempt(options)).await {
                Ok(()) => return Ok(etcd),
                Err(fault) => etcd.store_error(fault),
            };
            left -= 1;
            if left == 0 || !error.retryable() {
                return Err(error);
            }
            warn!(%error, attempts_left = left, "the store is tried again");
            tokio::time::sleep(options.retry_delay).await;
        }
    }

    async fn attempt(&self, options: &EtcdOptions) -> Result<(), Fault> {
        self.members.try_user(&self.at).await?;
        // Fetch it now, so that later callers do not depend on another reply.
        match self.identity.get_or_try_init(|| self.ask_identity()).await {
            Err(fault @ (Fault::Unreachable(_) | Fault::Unsent(_))) => {
                Err(certificates_at_fault(options).await.map_or(fault, Fault::Denied))
            }
            other => other.map(drop),
        }
    }

    pub(super) async fn ask_identity(&self) -> Result<String, Fault> {
        let cluster = self.members.greet().await?;
        cluster
            .map(|id| format!("{id:016x}"))
            .ok_or_else(|| Fault::Unreadable("an answer of etcd has no header".into()))
    }

    /// Reads keys from `from` on, at a revision or, if it is 0, at the current one.
    pub(super) async fn range(
        &self,
        prefix: &str,
        from: Vec<u8>,
        revision: i64,
        most: i64,
    ) -> Result<etcd_client::GetResponse, Fault> {
        self.members
            .call(DEADLINE, Repeat::May, |client| {
                let mut options =
                    GetOptions::new().with_range(convert::end_of(prefix)).with_limit(most);
                if revision > 0 {
                    options = options.with_revision(revision);
                }
                let from = from.clone();
                async move {
                    client
                        .kv_client()
                        .max_decoding_message_size(LARGEST_ANSWER)
                        .get(from, Some(options))
                        .await
                }
            })
            .await
    }

    /// Reads all pages at the revision of the first one.
    pub(super) async fn pages(&self, prefix: &str) -> Result<Listing, Fault> {
        let mut listing = Listing { entries: Vec::new(), revision: 0 };
        let mut from = prefix.as_bytes().to_vec();
        loop {
            let mut page = self.range(prefix, from, listing.revision, PAGE).await?;
            if listing.revision == 0 {
                listing.revision = page.header().map_or(0, |header| header.revision());
            }
            let more = page.more();
            let found = page.take_kvs();
            // The smallest key after the last one.
            from = found.last().map(|kv| [kv.key(), b"\0"].concat()).unwrap_or_default();
            listing.entries.extend(found.iter().filter_map(|kv| self.foreign.entry(kv)));
            if !more || from.is_empty() {
                return Ok(listing);
            }
        }
    }

    pub(super) fn store_error(&self, fault: Fault) -> StoreError {
        fault.into_store_error(&self.at, None, 0)
    }
}

/// Returns why certificates prevent the connection, or `None` if they are not the cause.
async fn certificates_at_fault(options: &EtcdOptions) -> Option<String> {
    let connector = tls::connector(&options.tls.read().ok()?).ok()?;
    for url in options.urls.iter().filter_map(|url| url::Url::parse(url).ok()) {
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            continue;
        };
        if url.scheme() == "http" && tls::speaks_tls(host, port).await {
            return Some(
                "it speaks TLS on this port; write https:// in BOB_STORAGE_URLS".to_owned(),
            );
        }
        if url.scheme() == "https"
            && let Some(said) = tls::probe(&connector, host, port).await
            && let Some(meaning) = errors::of_certificates(&said)
        {
            return Some(meaning);
        }
    }
    None
}
