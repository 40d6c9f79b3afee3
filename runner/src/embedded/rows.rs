//! The tables and their rows. The file has a format number; newer formats are rejected.

use std::ops::Bound;
use std::sync::Arc;

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::disk::{Changed, Disk, Fault};
use crate::ports::{Entry, Expect, Read, Txn};

/// Counters and settings of the file.
pub(super) const META: TableDefinition<'_, &str, i64> = TableDefinition::new("meta");
/// Keys: create revision, mod revision, lease (0: none), value.
pub(super) const KV: TableDefinition<'_, &str, KvRow> = TableDefinition::new("kv");
/// The keys of each lease.
pub(super) const LEASED: TableDefinition<'_, (i64, &str), ()> = TableDefinition::new("leased");
/// Leases that outlive the process: time to live and expiry, in milliseconds.
pub(super) const LEASES: TableDefinition<'_, i64, (i64, i64)> = TableDefinition::new("leases");
/// Messages by queue and ID: number of deliveries, properties, body.
pub(super) const MESSAGES: TableDefinition<'_, (&str, u64), MessageRow> =
    TableDefinition::new("messages");
/// Packs of events by the offset of their first event.
pub(super) const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
/// Time index: first offset of events written at or after a time, in milliseconds since the epoch.
pub(super) const EVENT_TIMES: TableDefinition<'_, i64, u64> = TableDefinition::new("event-times");

/// See [`KV`].
pub(super) type KvRow = (i64, i64, i64, &'static [u8]);
/// See [`MESSAGES`].
pub(super) type MessageRow = (u32, &'static [u8], &'static [u8]);

const FORM: &str = "form";
const FORM_NOW: i64 = 1;
const IDENTITY: &str = "identity";
const REVISION: &str = "revision";

/// Creates missing tables, so that readers find them.
pub(super) async fn make_tables(disk: &Arc<Disk>) -> Result<(), Fault> {
    let form = disk
        .write(|txn| {
            let mut meta = txn.open_table(META)?;
            let form = meta.get(FORM)?.map(|form| form.value());
            if form.is_none() {
                meta.insert(FORM, FORM_NOW)?;
                drop(txn.open_table(KV)?);
                drop(txn.open_table(LEASED)?);
                drop(txn.open_table(LEASES)?);
                drop(txn.open_table(MESSAGES)?);
                drop(txn.open_table(EVENTS)?);
                drop(txn.open_table(EVENT_TIMES)?);
            }
            Ok((form, if form.is_none() { Changed::Yes } else { Changed::No }))
        })
        .await?;
    match form {
        None | Some(FORM_NOW) => Ok(()),
        Some(other) => Err(Fault::Unreadable(format!(
            "it has form {other}, and this program knows form {FORM_NOW}; use the newer program"
        ))),
    }
}

/// Returns the store's identity, which is created if there is none yet.
pub(super) fn identity(txn: &WriteTransaction) -> Result<(i64, Changed), redb::Error> {
    let mut meta = txn.open_table(META)?;
    if let Some(identity) = meta.get(IDENTITY)?.map(|identity| identity.value()) {
        return Ok((identity, Changed::No));
    }
    let identity = rand::random();
    meta.insert(IDENTITY, identity)?;
    Ok((identity, Changed::Yes))
}

/// Returns the store's revision, which is that of the last change.
pub(super) fn revision(meta: &impl ReadableTable<&'static str, i64>) -> Result<i64, redb::Error> {
    Ok(meta.get(REVISION)?.map_or(1, |revision| revision.value()))
}

/// Sets the store's revision.
pub(super) fn set_revision(txn: &WriteTransaction, revision: i64) -> Result<(), redb::Error> {
    txn.open_table(META)?.insert(REVISION, revision)?;
    Ok(())
}

/// Returns a key with its value and revisions.
pub(super) fn entry(
    kv: &impl ReadableTable<&'static str, KvRow>,
    key: &str,
) -> Result<Option<Entry>, redb::Error> {
    Ok(kv.get(key)?.map(|row| entry_from_row(key, row.value())))
}

fn entry_from_row(
    key: &str,
    (create_revision, mod_revision, _, value): (i64, i64, i64, &[u8]),
) -> Entry {
    Entry { key: key.to_owned(), value: value.to_vec(), create_revision, mod_revision }
}

/// Returns every key with a prefix.
pub(super) fn entries(
    kv: &impl ReadableTable<&'static str, KvRow>,
    prefix: &str,
) -> Result<Vec<Entry>, redb::Error> {
    let mut found = Vec::new();
    for row in kv.range(prefix..)? {
        let (key, row) = row?;
        if !key.value().starts_with(prefix) {
            break;
        }
        found.push(entry_from_row(key.value(), row.value()));
    }
    Ok(found)
}

/// Returns the revision and the first keys with a prefix after a key, from one snapshot.
pub(super) fn page(
    txn: &ReadTransaction,
    prefix: &str,
    after: Option<&str>,
    most: usize,
) -> Result<(i64, Vec<Entry>), redb::Error> {
    let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
    let mut found = Vec::new();
    for row in txn.open_table(KV)?.range::<&str>((from, Bound::Unbounded))?.take(most) {
        let (key, row) = row?;
        if !key.value().starts_with(prefix) {
            break;
        }
        found.push(entry_from_row(key.value(), row.value()));
    }
    Ok((revision(&txn.open_table(META)?)?, found))
}

/// Returns true if all conditions of a transaction hold.
pub(super) fn holds(
    kv: &impl ReadableTable<&'static str, KvRow>,
    txn: &Txn,
) -> Result<bool, redb::Error> {
    for compare in &txn.compares {
        let row = kv.get(compare.key.as_str())?;
        let revisions = row.map(|row| (row.value().0, row.value().1));
        let holds = match compare.expect {
            Expect::Absent => revisions.is_none(),
            Expect::Present => revisions.is_some(),
            Expect::CreatedAt(at) => revisions.is_some_and(|(created, _)| created == at),
            Expect::ModifiedAt(at) => revisions.is_some_and(|(_, modified)| modified == at),
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the results of a transaction's reads.
pub(super) fn reads(
    kv: &impl ReadableTable<&'static str, KvRow>,
    txn: &Txn,
    committed: bool,
) -> Result<Vec<Vec<Entry>>, redb::Error> {
    let otherwise = txn.otherwise.iter().filter(|_| !committed);
    txn.reads
        .iter()
        .chain(otherwise)
        .map(|read| match read {
            Read::Key(key) => Ok(entry(kv, key)?.into_iter().collect()),
            Read::Prefix(prefix) => entries(kv, prefix),
        })
        .collect()
}

/// Returns the keys of a lease.
pub(super) fn keys_of(
    leased: &impl ReadableTable<(i64, &'static str), ()>,
    lease: i64,
) -> Result<Vec<String>, redb::Error> {
    let mut keys = Vec::new();
    for row in leased.range((lease, "")..)? {
        let (key, _) = row?;
        let (of, key) = key.value();
        if of != lease {
            break;
        }
        keys.push(key.to_owned());
    }
    Ok(keys)
}

/// Returns the revision and all keys with a prefix, from one snapshot.
pub(super) fn listing(
    txn: &ReadTransaction,
    prefix: &str,
) -> Result<(i64, Vec<Entry>), redb::Error> {
    Ok((revision(&txn.open_table(META)?)?, entries(&txn.open_table(KV)?, prefix)?))
}
