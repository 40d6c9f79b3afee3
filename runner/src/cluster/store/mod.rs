//! State, in etcd 3.4 or later.

mod client;
mod convert;
mod errors;
mod foreign;
mod health;
mod members;
mod options;
mod watch;

use std::time::Duration;

use async_trait::async_trait;

pub use self::client::Etcd;
use self::client::{LARGEST_ANSWER, PAGE};
use self::errors::Fault;
pub use self::health::Health;
use self::members::{DEADLINE, Repeat};
pub use self::options::EtcdOptions;
use crate::ports::{
    Changes, Entry, Granted, LeaseId, Listing, Op, Store, StoreError, Txn, TxnReply,
};

/// The timeout of a lease renewal. A lease is renewed at a third of its time and given up at two
/// thirds, so a renewal that hangs must leave time for another.
const RENEWAL_DEADLINE: Duration = Duration::from_secs(3);

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
