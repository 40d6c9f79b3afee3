//! Keys of others under a prefix of ours.

use std::collections::HashSet;

use etcd_client::KeyValue;
use parking_lot::Mutex;
use tracing::warn;

use crate::ports::Entry;

/// The number of keys that are remembered. Further ones are skipped without a warning.
const REMEMBERED: usize = 1024;

/// Converts entries. The keys of workers are text, so any other key under a prefix is skipped, with
/// one warning per key.
#[derive(Debug, Default)]
pub(super) struct ForeignKeys(Mutex<HashSet<Vec<u8>>>);

impl ForeignKeys {
    /// Converts an entry. Returns `None` if its key is not text.
    pub(super) fn entry(&self, kv: &KeyValue) -> Option<Entry> {
        Some(Entry {
            key: self.key(kv)?,
            value: kv.value().to_vec(),
            create_revision: kv.create_revision(),
            mod_revision: kv.mod_revision(),
        })
    }

    /// Converts a key. Returns `None` if it is not text.
    pub(super) fn key(&self, kv: &KeyValue) -> Option<String> {
        match std::str::from_utf8(kv.key()) {
            Ok(key) => Some(key.to_owned()),
            Err(_not_text) => {
                self.skip(kv.key());
                None
            }
        }
    }

    fn skip(&self, key: &[u8]) {
        let mut known = self.0.lock();
        if known.len() < REMEMBERED && known.insert(key.to_vec()) {
            let key = String::from_utf8_lossy(key);
            warn!("the key {key:?} in the store is not text and is ignored; delete it");
        }
    }
}
