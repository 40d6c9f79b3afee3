//! Searches a stream of bytes for secrets before it leaves the worker.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;

use super::{ByteStream, Search, SecretMatcher};

/// Tells whether a secret was found in a stream.
#[derive(Debug, Clone, Default)]
pub struct Leak(Arc<AtomicBool>);

impl Leak {
    /// Returns true if a secret was found.
    #[must_use]
    pub fn is_found(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Returns a stream of the same bytes that withholds each byte until it is known not to belong to a
/// secret. If a secret is found, the stream ends with an error before the secret's first byte.
#[must_use]
pub fn searched(bytes: ByteStream, forbidden: &dyn SecretMatcher) -> (ByteStream, Leak) {
    let leak = Leak::default();
    let searched = Searched {
        bytes,
        search: forbidden.search(),
        held: BytesMut::new(),
        leak: leak.clone(),
        ended: false,
    };
    let bytes = futures::stream::unfold(searched, |mut searched| async move {
        let next = searched.next().await?;
        Some((next, searched))
    });
    (bytes.fuse().boxed(), leak)
}

struct Searched {
    bytes: ByteStream,
    search: Box<dyn Search>,
    /// Bytes that may be the start of a secret.
    held: BytesMut,
    leak: Leak,
    ended: bool,
}

impl Searched {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        while !self.ended {
            let Some(chunk) = self.bytes.next().await else {
                self.ended = true;
                let rest = self.held.split().freeze();
                return (!rest.is_empty()).then_some(Ok(rest));
            };
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(cause) => {
                    self.ended = true;
                    return Some(Err(cause));
                }
            };
            if self.search.finds(&chunk) {
                self.ended = true;
                self.leak.0.store(true, Ordering::Release);
                return Some(Err(io::Error::other("it contains a secret of the run")));
            }
            self.held.extend_from_slice(&chunk);
            let clear = self.held.len().saturating_sub(self.search.pending());
            if clear > 0 {
                return Some(Ok(self.held.split_to(clear).freeze()));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt as _;

    /// Searches for one word.
    #[derive(Debug, Clone)]
    struct Word(&'static [u8], Vec<u8>);

    impl SecretMatcher for Word {
        fn search(&self) -> Box<dyn Search> {
            Box::new(self.clone())
        }
    }

    impl Search for Word {
        fn finds(&mut self, bytes: &[u8]) -> bool {
            self.1.extend_from_slice(bytes);
            let found = self.1.windows(self.0.len()).any(|window| window == self.0);
            let begins = |at: &usize| self.0.starts_with(&self.1[*at..]);
            let until = (0..self.1.len()).find(begins).unwrap_or(self.1.len());
            self.1.drain(..until);
            found
        }

        fn pending(&self) -> usize {
            self.1.len()
        }
    }

    async fn out(bytes: &'static [u8], size: usize) -> (Vec<u8>, bool, bool) {
        let pieces = bytes.chunks(size).map(|piece| Ok(Bytes::from_static(piece)));
        let pieces = futures::stream::iter(pieces).boxed();
        let (mut bytes, leak) = searched(pieces, &Word(b"secret", Vec::new()));
        let mut out = Vec::new();
        let ended = loop {
            match bytes.try_next().await {
                Ok(Some(piece)) => out.extend_from_slice(&piece),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        assert!(bytes.next().await.is_none(), "nothing comes after the end");
        (out, ended, leak.is_found())
    }

    #[tokio::test]
    async fn bytes_without_a_secret_pass_unchanged() {
        for size in 1..20 {
            let (out, ended, leaked) = out(b"a sec and a secre", size).await;
            assert_eq!(out, b"a sec and a secre", "pieces of {size}");
            assert!(ended && !leaked);
        }
    }

    #[tokio::test]
    async fn no_byte_of_a_secret_passes() {
        for size in 1..20 {
            let (out, ended, leaked) = out(b"before secret after", size).await;
            assert!(b"before ".starts_with(&out[..]), "pieces of {size}: {out:?}");
            assert!(!ended && leaked);
        }
    }
}
