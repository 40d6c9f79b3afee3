//! Status of etcd, for administrators.

use etcd_client::GetOptions;
use protocol::names;

use super::client::Etcd;
use super::errors::Fault;
use super::members::{DEADLINE, Repeat};
use crate::ports::StoreError;

/// The status of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The version.
    pub version: String,
    /// The size of the database on disk, in bytes.
    pub db_bytes: u64,
    /// The current revision.
    pub revision: i64,
    /// Whether the history was ever compacted.
    pub is_compacted: bool,
    /// Whether the member rejects writes because its database has reached its quota.
    pub is_full: bool,
}

impl Etcd {
    /// Returns the status of one member.
    ///
    /// # Errors
    /// [`StoreError::Denied`] if the user lacks the permission, [`StoreError::Unreachable`] if no
    /// member answers.
    pub async fn health(&self) -> Result<Health, StoreError> {
        let asked = self
            .members
            .call(DEADLINE, Repeat::May, |client| async move {
                client.maintenance_client().status().await
            })
            .await;
        let status = asked.map_err(|fault| self.store_error(fault))?;
        let first = self
            .members
            .call(DEADLINE, Repeat::May, |client| async move {
                let first = GetOptions::new().with_revision(1).with_count_only();
                client.kv_client().get(names::NODES, Some(first)).await
            })
            .await;
        let is_compacted = match first {
            Ok(_) => false,
            Err(Fault::Compacted { .. }) => true,
            Err(fault) => return Err(self.store_error(fault)),
        };
        Ok(Health {
            version: status.version().to_owned(),
            revision: status.header().map_or(0, |header| header.revision()),
            is_compacted,
            db_bytes: u64::try_from(status.db_size()).unwrap_or_default(),
            is_full: status.errors().iter().any(|error| error.contains("NOSPACE")),
        })
    }
}
