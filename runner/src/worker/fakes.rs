//! A store and a machine in memory, for the unit tests of this room.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use protocol::run::{NodeCpu, NodeMemory};
use protocol::time::Millis;

use crate::ports::{
    Changes, Entry, Expect, Granted, Host, LeaseId, Listing, Op, Store, StoreError, Txn, TxnReply,
};

/// A store of keys and leases. Leases end only when they are revoked. It has no revisions, and no
/// watches.
#[derive(Debug, Default)]
pub(super) struct MemoryStore(Mutex<Contents>);

#[derive(Debug, Default)]
struct Contents {
    keys: BTreeMap<String, (Vec<u8>, Option<LeaseId>)>,
    granted: i64,
}

impl Contents {
    fn holds(&self, key: &str, expect: Expect) -> bool {
        match expect {
            Expect::Present => self.keys.contains_key(key),
            Expect::Absent => !self.keys.contains_key(key),
            Expect::CreatedAt(_) | Expect::ModifiedAt(_) => panic!("this store has no revisions"),
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Put { key, value, lease } => drop(self.keys.insert(key, (value, lease))),
            Op::Delete { key } => drop(self.keys.remove(&key)),
            Op::Attach { key, lease } => {
                self.keys.entry(key).and_modify(|(_, attached)| *attached = Some(lease));
            }
        }
    }
}

fn entry(key: &str, value: &[u8]) -> Entry {
    Entry { key: key.to_owned(), value: value.to_owned(), create_revision: 1, mod_revision: 1 }
}

#[async_trait]
impl Store for MemoryStore {
    async fn identity(&self) -> Result<String, StoreError> {
        Ok("memory".to_owned())
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.0.lock().keys.get(key).map(|(value, _)| entry(key, value)))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let contents = self.0.lock();
        let keys = contents.keys.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(Listing {
            entries: keys.map(|(key, (value, _))| entry(key, value)).collect(),
            revision: 1,
        })
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        assert!(txn.reads.is_empty() && txn.otherwise.is_empty(), "this store reads nothing here");
        let mut contents = self.0.lock();
        let committed =
            txn.compares.iter().all(|compare| contents.holds(&compare.key, compare.expect));
        if committed {
            txn.ops.into_iter().for_each(|op| contents.apply(op));
        }
        Ok(TxnReply { committed, revision: 1, reads: Vec::new() })
    }

    async fn grant(&self, ttl: Duration) -> Result<Granted, StoreError> {
        let mut contents = self.0.lock();
        contents.granted += 1;
        Ok(Granted { lease: LeaseId(contents.granted), ttl })
    }

    async fn keep_alive(&self, _lease: LeaseId) -> Result<(), StoreError> {
        Ok(())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.lock().keys.retain(|_, (_, attached)| *attached != Some(lease));
        Ok(())
    }

    async fn watch(&self, _prefix: &str, _from_revision: i64) -> Result<Changes, StoreError> {
        panic!("this store has no watches")
    }
}

/// A machine whose clocks stand at zero, without jitter.
#[derive(Debug)]
pub(super) struct StoppedClock;

impl Host for StoppedClock {
    fn now(&self) -> Millis {
        Millis(0)
    }

    fn since_boot(&self) -> Duration {
        Duration::ZERO
    }

    fn memory(&self) -> NodeMemory {
        NodeMemory { free: 0, total: 0 }
    }

    fn cpu(&self) -> NodeCpu {
        NodeCpu { count: 1, load: 0.0 }
    }

    fn jitter(&self, _most: Duration) -> Duration {
        Duration::ZERO
    }

    fn name(&self) -> String {
        String::new()
    }
}
