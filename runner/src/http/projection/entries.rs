//! Entries of a prefix whose values are few and small: pipelines, nodes, registrations.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use tracing::warn;

use super::mirror::Rows;
use crate::ports::Entry;

/// Decoded entries by key.
pub(super) struct Entries<T> {
    rows: BTreeMap<String, Row<T>>,
}

struct Row<T> {
    revision: i64,
    /// `None` if the value cannot be decoded. A later version may have written it.
    value: Option<Arc<T>>,
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self { rows: BTreeMap::new() }
    }
}

impl<T: DeserializeOwned + Send + Sync> Rows for Entries<T> {
    fn put(&mut self, entry: &Entry) {
        let revision = entry.mod_revision;
        if self.rows.get(&entry.key).is_some_and(|row| row.revision >= revision) {
            return;
        }
        let value = match serde_json::from_slice(&entry.value) {
            Ok(value) => Some(Arc::new(value)),
            Err(cause) => {
                // A node rewrites its entry every few seconds. One warning is enough.
                if self.rows.get(&entry.key).is_none_or(|row| row.value.is_some()) {
                    warn!(key = entry.key, %cause, "an entry of the store cannot be read");
                }
                None
            }
        };
        self.rows.insert(entry.key.clone(), Row { revision, value });
    }

    fn delete(&mut self, key: &str, revision: i64) {
        if self.rows.get(key).is_some_and(|row| row.revision < revision) {
            self.rows.remove(key);
        }
    }
}

impl<T> Entries<T> {
    /// The readable entries, sorted by key.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Arc<T>)> {
        self.rows.iter().filter_map(|(key, row)| Some((key.as_str(), row.value.as_ref()?)))
    }

    /// A readable entry.
    pub(super) fn get(&self, key: &str) -> Option<&Arc<T>> {
        self.rows.get(key)?.value.as_ref()
    }
}
