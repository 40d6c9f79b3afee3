//! What etcd says of itself, for people who look after it.

use super::members::Again;
use super::{DEADLINE, Etcd};
use crate::ports::StoreError;

/// What one member says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Its version.
    pub version: String,
    /// The size of its database on disk.
    pub db_bytes: u64,
    /// It takes no more writes, since its database has reached its quota.
    pub is_full: bool,
}

impl Etcd {
    /// Asks one of the members how it is.
    ///
    /// # Errors
    /// [`StoreError::Denied`] where the user may not ask, [`StoreError::Unreachable`] where none
    /// answers.
    pub async fn health(&self) -> Result<Health, StoreError> {
        let asked = self
            .members
            .call(DEADLINE, Again::May, |client| async move {
                client.maintenance_client().status().await
            })
            .await;
        let status = asked.map_err(|fault| self.said(fault))?;
        Ok(Health {
            version: status.version().to_owned(),
            db_bytes: u64::try_from(status.db_size()).unwrap_or_default(),
            is_full: status.errors().iter().any(|error| error.contains("NOSPACE")),
        })
    }
}
