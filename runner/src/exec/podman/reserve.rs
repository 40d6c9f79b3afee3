//! A reserve file on the engine's disk, deleted when the disk is full.
//!
//! Podman 4.3 writes its list of layers before it removes one. Without room for that it forgets the
//! layer, which then stays forever. Podman 5 cannot write its database.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use crate::ports::Disk;

const NAME: &str = "bob-runner.reserve";
/// The size of the reserve: room for the lists of some thousands of layers.
const BYTES: u64 = 4 << 20;
/// The free space above which the reserve is created.
const PLENTY: u64 = 4 * BYTES;

/// Creates the reserve below a directory if there is enough space. Does nothing without write
/// permission.
pub(super) fn keep(root: &Path, disk: &Disk) {
    let path = root.join(NAME);
    if disk.free < PLENTY || path.exists() {
        return;
    }
    let made = OpenOptions::new().write(true).create_new(true).open(&path).and_then(|file| {
        fallocate(&file, FallocateFlags::empty(), 0, BYTES).map_err(io::Error::from)
    });
    if let Err(cause) = made {
        // An incomplete file would be taken for a reserve.
        drop(std::fs::remove_file(&path));
        tracing::debug!(path = %path.display(), %cause, "no room is kept in reserve");
    }
}

/// Deletes the reserve if the disk is full.
pub(super) fn give_up(root: &Path, disk: &Disk) {
    if disk.free >= BYTES {
        return;
    }
    match std::fs::remove_file(root.join(NAME)) {
        Ok(()) => tracing::info!(bytes = BYTES, "the reserve on the engine's disk is given up"),
        Err(cause) => tracing::debug!(%cause, "there is no reserve to give up"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(bytes: u64) -> Disk {
        Disk { total: 1 << 40, free: bytes }
    }

    #[test]
    fn a_reserve_is_made_where_there_is_plenty_and_given_up_where_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let there = || dir.path().join(NAME).metadata().ok().map(|found| found.len());
        keep(dir.path(), &free(PLENTY - 1));
        assert_eq!(there(), None, "it would take what is short");
        keep(dir.path(), &free(PLENTY));
        assert_eq!(there(), Some(BYTES));
        keep(dir.path(), &free(PLENTY));
        give_up(dir.path(), &free(BYTES));
        assert_eq!(there(), Some(BYTES));
        give_up(dir.path(), &free(BYTES - 1));
        assert_eq!(there(), None);
        give_up(dir.path(), &free(0));
    }

    #[test]
    fn without_the_right_to_write_there_is_none_and_nothing_fails() {
        let nowhere = Path::new("/nowhere/at/all");
        keep(nowhere, &free(PLENTY));
        give_up(nowhere, &free(0));
        assert!(!nowhere.exists());
    }
}
