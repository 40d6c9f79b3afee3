//! The parts of a tar that are accepted, and the error about others.

use std::io;

/// The block size of a tar.
pub(super) const BLOCK: usize = 512;

/// The kinds of entries that are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    File,
    Directory,
    Symlink,
    HardLink,
}

/// The part of the next entry that an extension header describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// Its name, in GNU format.
    Name,
    /// Its link target, in GNU format.
    Link,
    /// Records in pax format.
    Records,
}

/// The error for an invalid archive, as a sentence.
pub(super) fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
