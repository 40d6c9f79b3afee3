//! Streams a tar into a mount: checks each entry and moves it below the mount's directory.
//!
//! File contents pass through unchanged. Headers are parsed by the same rules as in the engine that
//! unpacks the tar. A header that can be read in two ways is rejected.

mod entry;
mod names;
mod records;
#[cfg(test)]
mod tests;

use std::io;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use tokio_tar::Header;

use crate::ports::{ByteStream, TransferError};
use entry::{About, BLOCK, EntryKind, bad};
pub(super) use names::cleaned;
use names::{Links, Target};
use records::{Records, Rewritten};

/// The maximum size of an entry's extension headers, such as long names. They are held in memory.
/// The engine's own limit is 1 MiB, and the mount's name is added to it.
const RECORDS_BYTES: u64 = (1 << 20) - (16 << 10);

/// The directory for all entries, relative to the one in which the tar is unpacked.
#[derive(Debug, Clone)]
pub(super) struct Mount(Vec<u8>);

impl Mount {
    /// Checks the name of a mount.
    pub(super) fn new(name: &str) -> Result<Self, TransferError> {
        match names::cleaned(name.as_bytes()) {
            Ok(path) if !path.is_empty() => Ok(Self(path.join(&b'/'))),
            Ok(_) | Err(_) => Err(TransferError::BadParams(format!(
                "a resource cannot be mounted as {name:?}; give it a name that is a directory's"
            ))),
        }
    }
}

/// The same tar with every entry below a mount.
pub(super) fn below(mount: Mount, tar: ByteStream) -> ByteStream {
    let rewriter = Rewriter {
        tar,
        ahead: BytesMut::new(),
        mount,
        links: Links::default(),
        left: 0,
        entry: String::new(),
        at: Position::Entries,
    };
    stream::try_unfold(rewriter, |mut rewriter| async move {
        Ok(rewriter.next().await?.map(|bytes| (bytes, rewriter)))
    })
    .boxed()
}

/// The position in a tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Entries,
    /// After the end of the archive. The rest is read and ignored, to notice a broken connection.
    Padding,
    End,
}

struct Rewriter {
    tar: ByteStream,
    /// Bytes that were read and not used yet.
    ahead: BytesMut,
    mount: Mount,
    links: Links,
    /// The number of remaining bytes of the entry, including padding.
    left: u64,
    /// The name of the entry, for errors.
    entry: String,
    at: Position,
}

/// How many bytes of something that is not a tar are shown.
const SHOWN: usize = 32;

/// The sentence about bytes that are not a tar.
fn not_a_tar(bytes: &[u8]) -> String {
    let known: [(&[u8], &str); 4] = [
        (b"\x1f\x8b", "gzip"),
        (b"\xfd7zXZ", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"PK\x03\x04", "zip"),
    ];
    if let Some((_, name)) = known.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return format!("it is not a tar archive but {name}: send a tar that is not compressed");
    }
    let begin = bytes.get(..SHOWN).unwrap_or(bytes).escape_ascii();
    format!("it is not a tar archive: it begins with \"{begin}\"")
}

/// A size rounded up to whole blocks.
fn padded(size: u64) -> io::Result<u64> {
    size.checked_next_multiple_of(BLOCK as u64)
        .ok_or_else(|| bad("an entry's size is not a number"))
}

impl Rewriter {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.left > 0 {
                return self.pass().await.map(Some);
            }
            match self.at {
                Position::Entries => return self.entry().await.map(Some),
                Position::Padding => {
                    if self.tar.try_next().await?.is_none() {
                        self.at = Position::End;
                    }
                }
                Position::End => return Ok(None),
            }
        }
    }

    /// The next bytes of the entry, unchanged.
    async fn pass(&mut self) -> io::Result<Bytes> {
        if self.ahead.is_empty() && !self.read().await? {
            return Err(bad(format!("the archive ends in the middle of entry {}", self.entry)));
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(self.ahead.len());
        self.left -= most as u64;
        Ok(self.ahead.split_to(most).freeze())
    }

    /// Reads more bytes. `false` at the end.
    async fn read(&mut self) -> io::Result<bool> {
        let Some(chunk) = self.tar.try_next().await? else { return Ok(false) };
        if self.ahead.is_empty() {
            self.ahead = BytesMut::from(chunk);
        } else {
            self.ahead.extend_from_slice(&chunk);
        }
        Ok(true)
    }

    /// Reads a small number of bytes at once.
    async fn take(&mut self, count: usize, what: &str) -> io::Result<Bytes> {
        while self.ahead.len() < count {
            if !self.read().await? {
                return Err(bad(format!("the archive ends {what}; its end is missing")));
            }
        }
        Ok(self.ahead.split_to(count).freeze())
    }

    /// Reads and rewrites the next entry's headers, or reads the end of the archive.
    async fn entry(&mut self) -> io::Result<Bytes> {
        let mut records = Records::default();
        loop {
            let after = if self.entry.is_empty() {
                "at its beginning".to_owned()
            } else {
                format!("after entry {}", self.entry)
            };
            let block = match self.take(BLOCK, &after).await {
                // Not an error of the connection.
                Err(cause)
                    if cause.kind() == io::ErrorKind::InvalidData
                        && self.entry.is_empty()
                        && !self.ahead.is_empty() =>
                {
                    let what = not_a_tar(&self.ahead);
                    return Err(bad(format!("{what}, and it ends within its first block")));
                }
                block => block?,
            };
            if block.iter().all(|byte| *byte == 0) {
                if !records.is_empty() {
                    return Err(bad("the archive describes an entry that does not follow"));
                }
                if self.entry.is_empty() {
                    // A step that mounts it would find no directory.
                    return Err(bad("the archive is empty; it must hold at least one entry"));
                }
                self.at = Position::Padding;
                self.ahead.clear();
                return Ok(Bytes::from_static(&[0; 2 * BLOCK]));
            }
            let header = self.header(&block)?;
            let about = match header.entry_type().as_byte() {
                b'L' => About::Name,
                b'K' => About::Link,
                b'x' => About::Records,
                b'g' => {
                    // The remaining global records are comments, such as a commit id.
                    records::check_global(&self.records(&header).await?)?;
                    continue;
                }
                kind => return self.rewritten(kind, &header, &records),
            };
            let said = self.records(&header).await?;
            records.add(about, &said)?;
        }
    }

    fn header(&self, block: &[u8]) -> io::Result<Header> {
        let header = Header::from_byte_slice(block).clone();
        // The checksum treats its own field as blanks.
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte }))
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(bad(if self.entry.is_empty() {
                not_a_tar(block)
            } else {
                format!("the archive is damaged after entry {}", self.entry)
            }));
        }
        Ok(header)
    }

    /// The content of an extension header, without padding.
    async fn records(&mut self, header: &Header) -> io::Result<Bytes> {
        let size = header.raw_entry_size()?;
        if size > RECORDS_BYTES {
            return Err(bad(format!(
                "the archive says more than {RECORDS_BYTES} bytes of an entry"
            )));
        }
        let (size, whole) = (usize::try_from(size), usize::try_from(padded(size)?));
        let (Ok(size), Ok(whole)) = (size, whole) else { return Err(bad("a size is too large")) };
        Ok(self.take(whole, "in the middle of a header").await?.slice(..size))
    }

    /// An entry's headers with its new names.
    fn rewritten(&mut self, kind: u8, header: &Header, records: &Records) -> io::Result<Bytes> {
        let given = records.name().map_or_else(|| header.path_bytes().into_owned(), <[u8]>::to_vec);
        self.entry = format!("{:?}", String::from_utf8_lossy(&given));
        let Self { entry, mount, links, .. } = self;
        let refuse = |why: &str| bad(format!("entry {entry} of the archive {why}"));
        let kind = match kind {
            // Old archives mark a directory only by its trailing slash.
            b'0' | b'7' if given.ends_with(b"/") => EntryKind::Directory,
            b'0' | b'7' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'5' => EntryKind::Directory,
            b'3' | b'4' | b'6' => {
                return Err(refuse("is a device or a pipe, which a resource may not have"));
            }
            other => {
                let kind = char::from(other);
                return Err(refuse(&format!("is of kind {kind:?}, which is not known here")));
            }
        };
        let path = names::cleaned(&given).map_err(refuse)?;
        let link = records.link().map(<[u8]>::to_vec);
        let link = link.or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
        let target = Target::of(kind, &path, link.as_deref().unwrap_or_default());
        let target = target.map_err(|why| refuse(&why))?;
        links.admit(&path, &target).map_err(|why| refuse(&why))?;

        let mut name = mount.0.clone();
        for part in &path {
            name.push(b'/');
            name.extend_from_slice(part);
        }
        if kind == EntryKind::Directory {
            name.push(b'/');
        } else if path.is_empty() {
            return Err(refuse("is a file in place of the whole target"));
        }
        // Only files have content. Readers ignore a size in other entries.
        let size = match kind {
            EntryKind::File => records.size()?.map_or_else(|| header.raw_entry_size(), Ok)?,
            EntryKind::Directory | EntryKind::Symlink | EntryKind::HardLink => 0,
        };
        self.left = padded(size)?;
        let link = target.within(&mount.0);
        Ok(records.write(header, &Rewritten { kind, size, name: &name, link: &link }).into())
    }
}
