//! Outputs of steps: copies files from an executor's archive into a store.

mod bob;
mod bucket;
mod directory;
mod index;
mod meter;
mod partial;

use std::collections::BTreeSet;
use std::io;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use protocol::id::RunId;
use protocol::pipeline::Selection;
use tokio_tar::{Archive, Entry};
use tokio_util::io::{ReaderStream, StreamReader};

pub use bob::{ArtifactStore, Registered};
pub use bucket::{Bucket, BucketKeys, BucketOptions};
pub use directory::Directory;

use super::tar::cleaned;
use crate::ports::{
    ArchiveMatch, ByteStream, KeptFile, KeptOutputs, OutputLocation, OutputStore, Outputs,
    TransferError, searched,
};

/// The maximum number of bytes in one read.
const PIECE: usize = 64 * 1024;
/// The maximum number of entries of an archive. Each one that matches takes some hundred bytes of
/// memory.
const MAX_ENTRIES: usize = 1_000_000;
/// The number of directories to check before yielding to other tasks.
const DIRECTORIES_AT_ONCE: usize = 1000;
/// The path that selects the step's working directory.
const HERE: &str = ".";

/// An archive entry with its reader.
type TarEntry = Entry<Archive<StreamReader<ByteStream, Bytes>>>;

/// Stores the outputs of steps.
#[derive(Clone)]
pub struct Keeper {
    store: Arc<dyn OutputStore>,
    most_entries: usize,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("store", &self.store.name()).finish()
    }
}

impl Keeper {
    /// Stores outputs in `store`.
    #[must_use]
    pub fn new(store: Arc<dyn OutputStore>) -> Self {
        Self { store, most_entries: MAX_ENTRIES }
    }

    /// Limits the number of entries of an archive. The default is 1,000,000.
    #[must_use]
    pub fn with_most_entries(self, most_entries: usize) -> Self {
        Self { most_entries, ..self }
    }
}

#[async_trait]
impl Outputs for Keeper {
    fn name(&self) -> String {
        self.store.name()
    }

    async fn keep(
        &self,
        kept: &mut KeptOutputs,
        selection: &Selection,
        at: &str,
        tar: ByteStream,
    ) -> Result<ArchiveMatch, TransferError> {
        let broken = |cause: io::Error| truncated(at, &cause.to_string());
        let mut entries = Archive::new(StreamReader::new(tar)).entries().map_err(broken)?;
        let mut walk = ArchiveWalk {
            store: &*self.store,
            names: Names { at, root: None },
            kept,
            selection,
            found: ArchiveMatch::default(),
            directories: Vec::new(),
            sources: BTreeSet::new(),
        };
        let mut count = 0;
        while let Some(entry) = entries.next().await {
            count += 1;
            if count > self.most_entries {
                return Err(too_many(at, self.most_entries));
            }
            walk.entry(entry.map_err(broken)?).await?;
        }
        Ok(walk.ended().await)
    }

    async fn removable_runs(&self) -> Result<Vec<RunId>, TransferError> {
        self.store.removable_runs().await
    }

    async fn remove(&self, run: &RunId) -> Result<(), TransferError> {
        self.store.remove(run).await
    }
}

fn truncated(at: &str, cause: &str) -> TransferError {
    TransferError::Input(format!("the archive of {at:?} that the step left broke off: {cause}"))
}

fn too_many(at: &str, most: usize) -> TransferError {
    TransferError::Input(format!(
        "{at:?} has more than {most} files and directories, the limit for an output: pack them into \
         an archive, or select a directory with fewer files"
    ))
}

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryKind {
    File,
    Directory,
    HardLink,
    /// A kind that is not stored, with its name.
    Other(&'static str),
}

impl EntryKind {
    fn of(entry: &TarEntry, name: &[u8]) -> Self {
        match entry.header().entry_type().as_byte() {
            // Old archives mark a directory only by its trailing slash.
            0 | b'0' if name.ends_with(b"/") => Self::Directory,
            // Includes contiguous and sparse files; the reader fills the holes.
            0 | b'0' | b'7' | b'S' => Self::File,
            b'1' => Self::HardLink,
            b'2' => Self::Other("a symbolic link"),
            b'3' | b'4' => Self::Other("a device"),
            b'5' => Self::Directory,
            b'6' => Self::Other("a pipe"),
            _ => Self::Other("of a kind that is not known here"),
        }
    }
}

/// Processes one archive, entry by entry.
struct ArchiveWalk<'a> {
    store: &'a dyn OutputStore,
    names: Names<'a>,
    kept: &'a mut KeptOutputs,
    selection: &'a Selection,
    found: ArchiveMatch,
    /// Directories that matched.
    directories: Vec<String>,
    /// The paths of the stored files and of the links.
    sources: BTreeSet<String>,
}

impl ArchiveWalk<'_> {
    async fn entry(&mut self, entry: TarEntry) -> Result<(), TransferError> {
        let name = entry.path_bytes().map_err(|cause| self.names.rejected(&cause.to_string()))?;
        let name = name.into_owned();
        let path = self.names.path(&name)?;
        let kind = EntryKind::of(&entry, &name);
        let Ok(path) = String::from_utf8(path) else {
            let shown = String::from_utf8_lossy(&name).into_owned();
            // Patterns are text, so a name that is not UTF-8 cannot match.
            self.pass_over(&shown, "not named in UTF-8");
            return Ok(());
        };
        if kind == EntryKind::Directory {
            if self.selection.directory(&path) {
                self.found.matched = true;
                self.directories.push(path);
            }
            return Ok(());
        }
        let Some(to) = self.selection.file(&path) else { return Ok(()) };
        match kind {
            EntryKind::File => self.keep(entry, path, to).await,
            EntryKind::HardLink => {
                self.found.matched = true;
                self.sources.insert(path.clone());
                self.found.links.push(path);
                Ok(())
            }
            EntryKind::Other(what) => {
                self.pass_over(&path, what);
                Ok(())
            }
            EntryKind::Directory => Ok(()),
        }
    }

    async fn keep(
        &mut self,
        entry: TarEntry,
        from: String,
        to: String,
    ) -> Result<(), TransferError> {
        let place = OutputLocation::new(&self.kept.under, &to)?;
        let size = entry.effective_size();
        let bytes = ReaderStream::with_capacity(entry, PIECE).boxed();
        let stored = match &self.kept.forbidden {
            None => self.store.put(&place, size, bytes, &self.kept.origin).await?,
            Some(forbidden) => {
                if forbidden.search().finds(from.as_bytes()) {
                    let what = "the name of an output".to_owned();
                    return Err(TransferError::SecretLeak { what });
                }
                let (bytes, leak) = searched(bytes, &**forbidden);
                let stored = self.store.put(&place, size, bytes, &self.kept.origin).await;
                if leak.is_found() {
                    return Err(TransferError::SecretLeak { what: format!("output {from:?}") });
                }
                stored?
            }
        };
        self.found.matched = true;
        self.sources.insert(from.clone());
        self.kept.add(KeptFile { from, path: to, stored });
        Ok(())
    }

    fn pass_over(&mut self, path: &str, what: &str) {
        self.kept.not_kept.add(|| format!("{path:?} is not kept, as it is {what}"));
    }

    async fn ended(self) -> ArchiveMatch {
        let Self { kept, found, directories, sources, .. } = self;
        for (at, dir) in directories.iter().enumerate() {
            // Stores hold only files, so an empty directory cannot be stored.
            if is_empty(dir, &sources) {
                kept.empty.add(|| format!("nothing of {dir:?} is kept, as there is no file in it"));
            }
            if at % DIRECTORIES_AT_ONCE == DIRECTORIES_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
        found
    }
}

/// Whether no source is below a directory. The empty path is the step's working directory.
fn is_empty(dir: &str, sources: &BTreeSet<String>) -> bool {
    let below = if dir.is_empty() { String::new() } else { format!("{dir}/") };
    // Paths with a common prefix are next to each other.
    let from: (Bound<&str>, Bound<&str>) = (Bound::Included(&below), Bound::Unbounded);
    let first = sources.range::<str, _>(from).next();
    first.is_none_or(|source| !source.starts_with(&below))
}

/// The names in an archive, as paths relative to the step's working directory.
struct Names<'a> {
    /// The exported path.
    at: &'a str,
    /// The name of that path in the archive, known from the first entry.
    root: Option<Vec<u8>>,
}

impl Names<'_> {
    fn path(&mut self, name: &[u8]) -> Result<Vec<u8>, TransferError> {
        let of_entry = |why: &str| format!("entry {:?} {why}", String::from_utf8_lossy(name));
        let parts = cleaned(name).map_err(|why| self.rejected(&of_entry(why)))?;
        // An archive of the working directory has no name for the directory itself.
        if self.at == HERE {
            return Ok(parts.join(&b'/'));
        }
        let Some((root, rest)) = parts.split_first() else {
            return Err(self.rejected(&of_entry("has no name")));
        };
        // If the path is a link, the executor can use the name of its target.
        if self.root.get_or_insert_with(|| root.to_vec()) != root {
            return Err(self.rejected(&of_entry("lies outside of what was asked for")));
        }
        let at = self.at.as_bytes();
        Ok(std::iter::once(&at).chain(rest).copied().collect::<Vec<_>>().join(&b'/'))
    }

    fn rejected(&self, why: &str) -> TransferError {
        TransferError::Input(format!("the archive of {:?} cannot be trusted: {why}", self.at))
    }
}
