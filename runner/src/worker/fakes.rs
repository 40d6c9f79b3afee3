//! A store and a machine in memory, for the unit tests of this room.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use protocol::run::{NodeCpu, NodeMemory};
use protocol::time::Millis;

use crate::ports::{
    Changes, Entry, Expect, Granted, Host, LeaseId, Listing, Op, Read, Store, StoreError, Txn,
    TxnReply,
};

/// A store of keys and leases. Leases end only when they are revoked. It has no watches.
#[derive(Debug, Default)]
pub(super) struct MemoryStore(Mutex<Contents>);

#[derive(Debug, Default)]
struct Contents {
    keys: BTreeMap<String, (Entry, Option<LeaseId>)>,
    granted: i64,
    revision: i64,
}

impl Contents {
    fn holds(&self, key: &str, expect: Expect) -> bool {
        let entry = self.keys.get(key).map(|(entry, _)| entry);
        match expect {
            Expect::Present => entry.is_some(),
            Expect::Absent => entry.is_none(),
            Expect::CreatedAt(at) => entry.is_some_and(|entry| entry.create_revision == at),
            Expect::ModifiedAt(at) => entry.is_some_and(|entry| entry.mod_revision == at),
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Put { key, value, lease } => {
                let created = self.keys.get(&key).map(|(entry, _)| entry.create_revision);
                let entry = Entry {
                    key: key.clone(),
                    value,
                    create_revision: created.unwrap_or(self.revision),
                    mod_revision: self.revision,
                };
                self.keys.insert(key, (entry, lease));
            }
            Op::Delete { key } => drop(self.keys.remove(&key)),
            Op::Attach { key, lease } => {
                self.keys.entry(key).and_modify(|(_, attached)| *attached = Some(lease));
            }
        }
    }

    fn read(&self, read: &Read) -> Vec<Entry> {
        let matches = |key: &str| match read {
            Read::Key(name) => key == name,
            Read::Prefix(prefix) => key.starts_with(prefix.as_str()),
        };
        let entries = self.keys.values().map(|(entry, _)| entry);
        entries.filter(|entry| matches(&entry.key)).cloned().collect()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn identity(&self) -> Result<String, StoreError> {
        Ok("memory".to_owned())
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.0.lock().keys.get(key).map(|(entry, _)| entry.clone()))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let contents = self.0.lock();
        let entries = contents.read(&Read::Prefix(prefix.to_owned()));
        Ok(Listing { entries, revision: contents.revision })
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        let mut contents = self.0.lock();
        let committed =
            txn.compares.iter().all(|compare| contents.holds(&compare.key, compare.expect));
        let mut reads = txn.reads;
        if committed {
            contents.revision += 1;
            txn.ops.into_iter().for_each(|op| contents.apply(op));
        } else {
            reads.extend(txn.otherwise);
        }
        let reads = reads.iter().map(|read| contents.read(read)).collect();
        Ok(TxnReply { committed, revision: contents.revision, reads })
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
