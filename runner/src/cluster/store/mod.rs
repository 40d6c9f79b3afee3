//! State, in etcd 3.4 or later.

mod convert;
mod errors;
mod foreign;
mod health;
mod members;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::GetOptions;
use tokio::sync::OnceCell;
use tracing::warn;

use self::errors::Fault;
use self::foreign::ForeignKeys;
pub use self::health::Health;
use self::members::{Members, Repeat};
use crate::cluster::tls::{self, TlsFiles};
use crate::ports::{
    Changes, Entry, Granted, LeaseId, Listing, Op, Store, StoreError, Txn, TxnReply,
};

/// The timeout of a call.
const DEADLINE: Duration = Duration::from_secs(5);
/// The timeout of a lease renewal. A lease is renewed at a third of its time and given up at two
/// thirds, so a renewal that hangs must leave time for another.
const RENEWAL_DEADLINE: Duration = Duration::from_secs(3);
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// The silence before a keep-alive. etcd treats more than one in five seconds as an attack.
const SILENCE: Duration = Duration::from_secs(10);
const LARGEST_ANSWER: usize = 128 * 1024 * 1024;
/// The number of keys in a page. A run record may be as large as a request, 1.5 MiB.
const PAGE: i64 = 64;

/// Addresses and credentials of etcd.
#[derive(Clone)]
pub struct EtcdOptions {
    /// The addresses of the members.
    pub urls: Vec<String>,
    /// The user. Without one, authentication is not used.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// The certificates for `https://`.
    pub tls: TlsFiles,
    /// The number of attempts to establish the first connection.
    pub retry_attempts: u32,
    /// The delay between these attempts.
    pub retry_delay: Duration,
}

impl std::fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("urls", &display_urls(&self.urls))
            .field("user", &self.user)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// The store in etcd.
#[derive(Clone)]
pub struct Etcd {
    members: Arc<Members>,
    at: Arc<str>,
    /// The cluster's ID, which never changes.
    identity: Arc<OnceCell<String>>,
    foreign: Arc<ForeignKeys>,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").field("at", &self.at).finish_non_exhaustive()
    }
}

/// Returns the addresses without users and passwords.
fn display_urls(urls: &[String]) -> String {
    let shown = urls.iter().map(|url| match url::Url::parse(url) {
        Ok(parsed) if !parsed.username().is_empty() || parsed.password().is_some() => {
            let (scheme, rest) = url.split_once("://").unwrap_or_default();
            let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
            format!("{scheme}://{host}")
        }
        Ok(_) | Err(_) => url.clone(),
    });
    shown.collect::<Vec<_>>().join(",")
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

    async fn ask_identity(&self) -> Result<String, Fault> {
        let cluster = self.members.greet().await?;
        cluster
            .map(|id| format!("{id:016x}"))
            .ok_or_else(|| Fault::Unreadable("an answer of etcd has no header".into()))
    }

    /// Reads keys from `from` on, at a revision or, if it is 0, at the current one.
    async fn range(
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
    async fn pages(&self, prefix: &str) -> Result<Listing, Fault> {
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

    fn store_error(&self, fault: Fault) -> StoreError {
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

#[async_trait]
impl Store for Etcd {
    async fn identity(&self) -> Result<String, StoreError> {
        let identity = self.identity.get_or_try_init(|| self.ask_identity()).await;
        identity.cloned().map_err(|fault| self.store_error(fault))
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let found = self
            .members
            .call(DEADLINE, Repeat::May, |client| {
                let key = key.to_owned();
                async move {
                    client
                        .kv_client()
                        .max_decoding_message_size(LARGEST_ANSWER)
                        .get(key, None)
                        .await
                }
            })
            .await;
        let found = found.map_err(|fault| self.store_error(fault))?;
        Ok(found.kvs().first().and_then(|kv| self.foreign.entry(kv)))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let mut listing = self.pages(prefix).await;
        // A compaction happened between two pages. Start over at the current revision.
        if matches!(listing, Err(Fault::Compacted { .. })) {
            listing = self.pages(prefix).await;
        }
        if matches!(listing, Err(Fault::Compacted { .. })) {
            listing = Err(Fault::Unreachable("it compacts while it is read".to_owned()));
        }
        listing.map_err(|fault| self.store_error(fault))
    }

    async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<Listing, StoreError> {
        let mut from = match after {
            Some(after) => [after.as_bytes(), b"\0"].concat(),
            None => prefix.as_bytes().to_vec(),
        };
        let mut listing = Listing { entries: Vec::new(), revision: 0 };
        // Only the last page may be short, so skipped entries are made up for.
        loop {
            let left = i64::try_from(most - listing.entries.len()).unwrap_or(PAGE);
            let mut page =
                self.range(prefix, from, 0, left).await.map_err(|fault| self.store_error(fault))?;
            listing.revision = page.header().map_or(0, |header| header.revision());
            let more = page.more();
            let found = page.take_kvs();
            from = found.last().map(|kv| [kv.key(), b"\0"].concat()).unwrap_or_default();
            listing.entries.extend(found.iter().filter_map(|kv| self.foreign.entry(kv)));
            if !more || from.is_empty() || listing.entries.len() >= most {
                return Ok(listing);
            }
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        let lease = txn.ops.iter().find_map(Op::lease).map(|lease| lease.0);
        let reads = txn.reads.len();
        let request = convert::request(txn);
        let reply = self
            .members
            .call(DEADLINE, Repeat::Unsent, |client| {
                let request = request.clone();
                async move {
                    client.kv_client().max_decoding_message_size(LARGEST_ANSWER).txn(request).await
                }
            })
            .await;
        reply
            .and_then(|reply| convert::reply(&reply, reads, &self.foreign))
            .map_err(|fault| fault.into_store_error(&self.at, lease, 0))
    }

    async fn grant(&self, ttl: Duration) -> Result<Granted, StoreError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let seconds = seconds.saturating_add(i64::from(ttl.subsec_nanos() > 0)).max(1);
        let granted = self
            .members
            .call(DEADLINE, Repeat::Unsent, |client| async move {
                client.lease_client().grant(seconds, None).await
            })
            .await
            .map_err(|fault| self.store_error(fault))?;
        Ok(Granted { lease: LeaseId(granted.id()), ttl: convert::seconds(granted.ttl()) })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let renewed = self
            .members
            .call(RENEWAL_DEADLINE, Repeat::May, |client| async move {
                // Opening the stream renews the lease for the granted time, which etcd stores with
                // it (`lease.Lessor.Renew`). Each call opens its own stream, so that a late reply
                // is never taken for that of the next call.
                client.lease_client().keep_alive(lease.0).await.map(drop)
            })
            .await;
        renewed.map_err(|fault| fault.into_store_error(&self.at, Some(lease.0), 0))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let revoked = self
            .members
            .call(DEADLINE, Repeat::May, |client| async move {
                client.lease_client().revoke(lease.0).await
            })
            .await;
        match revoked {
            Ok(_) | Err(Fault::LeaseGone) => Ok(()),
            Err(fault) => Err(self.store_error(fault)),
        }
    }

    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Changes, StoreError> {
        watch::open(self.clone(), prefix, from_revision).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_an_address_are_not_shown() {
        let urls =
            ["https://bob:secret@etcd.example:2379/".to_owned(), "localhost:2379".to_owned()];
        assert_eq!(display_urls(&urls), "https://etcd.example:2379/,localhost:2379");
    }

    #[test]
    fn the_debug_output_does_not_contain_the_password() {
        let options = EtcdOptions {
            urls: vec!["http://localhost:2379".to_owned()],
            user: Some("bob".to_owned()),
            password: Some("hidden".to_owned()),
            tls: TlsFiles::default(),
            retry_attempts: 1,
            retry_delay: Duration::ZERO,
        };
        assert!(!format!("{options:?}").contains("hidden"));
    }
}
