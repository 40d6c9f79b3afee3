//! Counts and hashes a file's bytes, and fails if their number is wrong.

use bytes::Bytes;
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};

use crate::ports::{ByteStream, OutputLocation, Stored, TransferError};

pub(super) struct Meter {
    bytes: ByteStream,
    /// The file's path, for errors.
    path: String,
    size: u64,
    seen: u64,
    hash: Sha256,
}

impl Meter {
    /// Meters the bytes of a file of this size.
    pub(super) fn new(place: &OutputLocation, size: u64, bytes: ByteStream) -> Self {
        Self { bytes, path: place.path().to_owned(), size, seen: 0, hash: Sha256::new() }
    }

    /// The next chunk. `None` once all bytes were read.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, TransferError> {
        let Some(chunk) = self.bytes.next().await else {
            return if self.seen == self.size {
                Ok(None)
            } else {
                Err(self.broken(&format!("{} of {} bytes came", self.seen, self.size)))
            };
        };
        let chunk = chunk.map_err(|cause| self.broken(&cause.to_string()))?;
        self.seen += chunk.len() as u64;
        if self.seen > self.size {
            return Err(self.broken(&format!("more than {} bytes came", self.size)));
        }
        self.hash.update(&chunk);
        Ok(Some(chunk))
    }

    fn broken(&self, cause: &str) -> TransferError {
        TransferError::Input(format!("the output {:?} broke off: {cause}", self.path))
    }

    /// The size and hash of the bytes read so far.
    pub(super) fn stored(&self) -> Stored {
        Stored { size: self.seen, sha256: hex::encode(self.hash.clone().finalize()) }
    }
}
