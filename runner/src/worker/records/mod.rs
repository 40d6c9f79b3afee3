//! Reads and writes the keys of a run.

mod encode;
mod key;
mod read;
mod write;

pub(super) use self::encode::{SMALL_RECORD, fitting, json, owner_value};
pub(super) use self::key::RunKey;
pub(super) use self::read::{Ownership, RunKeys, entry, has_ended, not_restored, read_record};
pub(super) use self::write::RunTxn;
