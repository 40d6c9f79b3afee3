//! Conversion between the port's transactions and etcd's.

use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, GetOptions, PutOptions, Txn as Request, TxnOp, TxnOpResponse, TxnResponse,
};

use super::errors::Fault;
use super::foreign::ForeignKeys;
use crate::ports::{Expect, Op, Read, Txn, TxnReply};

/// Returns the end of the range of keys with a prefix. A zero byte means no end.
pub(super) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

pub(super) fn request(txn: Txn) -> Request {
    let compares: Vec<Compare> = txn.compares.into_iter().map(compare).collect();
    let reads: Vec<TxnOp> = txn.reads.into_iter().map(read).collect();
    let mut changes: Vec<TxnOp> = txn.ops.into_iter().map(change).collect();
    changes.extend(reads.iter().cloned());
    let otherwise = reads.into_iter().chain(txn.otherwise.into_iter().map(read));
    Request::new().when(compares).and_then(changes).or_else(otherwise.collect::<Vec<_>>())
}

fn compare(compare: crate::ports::Compare) -> Compare {
    let key = compare.key;
    match compare.expect {
        Expect::Absent => Compare::create_revision(key, CompareOp::Equal, 0),
        Expect::Present => Compare::create_revision(key, CompareOp::Greater, 0),
        Expect::CreatedAt(revision) => Compare::create_revision(key, CompareOp::Equal, revision),
        Expect::ModifiedAt(revision) => Compare::mod_revision(key, CompareOp::Equal, revision),
    }
}

fn change(op: Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            TxnOp::put(key, value, lease.map(|lease| PutOptions::new().with_lease(lease.0)))
        }
        Op::Delete { key } => TxnOp::delete(key, None),
        Op::Attach { key, lease } => {
            let is_there = Compare::create_revision(key.as_str(), CompareOp::Greater, 0);
            let options = PutOptions::new().with_lease(lease.0).with_ignore_value();
            let keep = TxnOp::put(key, "", Some(options));
            // etcd rejects a put that keeps the value if the key does not exist.
            TxnOp::txn(Request::new().when([is_there]).and_then([keep]))
        }
    }
}

fn read(read: Read) -> TxnOp {
    match read {
        Read::Key(key) => TxnOp::get(key, None),
        Read::Prefix(prefix) => {
            let end = end_of(&prefix);
            TxnOp::get(prefix, Some(GetOptions::new().with_range(end)))
        }
    }
}

/// Converts a reply. If the transaction committed, its reads come last; otherwise there are only
/// reads.
pub(super) fn reply(
    reply: &TxnResponse,
    reads: usize,
    foreign: &ForeignKeys,
) -> Result<TxnReply, Fault> {
    let responses = reply.op_responses();
    let first = if reply.succeeded() { responses.len().saturating_sub(reads) } else { 0 };
    let found = responses.into_iter().skip(first).map(|response| match response {
        TxnOpResponse::Get(found) => {
            Ok(found.kvs().iter().filter_map(|kv| foreign.entry(kv)).collect())
        }
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => {
            Err(Fault::Unreadable("a transaction was answered in another order".to_owned()))
        }
    });
    Ok(TxnReply {
        committed: reply.succeeded(),
        revision: reply.header().map_or(0, |header| header.revision()),
        reads: found.collect::<Result<_, _>>()?,
    })
}

pub(super) fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_range_ends_before_the_first_key_without_the_prefix() {
        assert_eq!(end_of("bob.run/"), b"bob.run0");
        assert_eq!(end_of("a\u{7f}"), b"a\x80");
        assert_eq!(end_of(""), [0]);
    }
}
