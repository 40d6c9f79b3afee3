//! Outputs in a directory of this host.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use tokio::io::AsyncWriteExt as _;
use uuid::Uuid;

use super::meter::Meter;
use crate::ports::{ByteStream, Origin, OutputLocation, OutputStore, Stored, TransferError};

/// The characters encoded in a name. The percent sign is one of them, so that names stay distinct.
const IN_NAME: &AsciiSet = &CONTROLS.add(b'/').add(b'%');
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// Stores outputs in a directory.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Stores outputs below a directory, which is created when needed.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn failed(&self, place: &OutputLocation, cause: &io::Error) -> TransferError {
        let what = format!("{:?}", place.path());
        TransferError::Store { what, store: self.name(), cause: cause.to_string() }
    }
}

#[async_trait]
impl OutputStore for Directory {
    fn name(&self) -> String {
        self.root.display().to_string()
    }

    async fn put(
        &self,
        place: &OutputLocation,
        size: u64,
        bytes: ByteStream,
        _origin: &Origin,
    ) -> Result<Stored, TransferError> {
        let failed = |cause: io::Error| self.failed(place, &cause);
        let mut meter = Meter::new(place, size, bytes);
        let mut levels = place.namespace().iter().map(|name| level(name)).collect::<Vec<_>>();
        levels.extend(place.path().split('/').map(str::to_owned));
        let root = self.root.clone();
        let begun = tokio::task::spawn_blocking(move || Partial::begin(&root, levels));
        let (partial, file) =
            begun.await.map_err(io::Error::other).and_then(|begun| begun).map_err(failed)?;
        let mut file = tokio::fs::File::from_std(file);
        while let Some(chunk) = meter.next().await? {
            file.write_all(&chunk).await.map_err(failed)?;
        }
        file.sync_all().await.map_err(failed)?;
        let settled = tokio::task::spawn_blocking(move || partial.settle());
        settled.await.map_err(io::Error::other).and_then(|settled| settled).map_err(failed)?;
        Ok(meter.stored())
    }
}

/// Encodes a name as one path component.
fn level(name: &str) -> String {
    match name {
        "." => "%2E".into(),
        ".." => "%2E%2E".into(),
        name => utf8_percent_encode(name, IN_NAME).to_string(),
    }
}

/// A file under a temporary name, removed when dropped.
struct Partial {
    dir: OwnedFd,
    name: String,
    /// The final name.
    last: String,
    settled: bool,
}

impl Partial {
    /// Creates missing directories, and the file in the last of them.
    ///
    /// No component may be a symbolic link. Otherwise files that a step leaves in this directory
    /// could redirect the worker's writes.
    fn begin(root: &Path, mut levels: Vec<String>) -> io::Result<(Self, std::fs::File)> {
        let last = levels.pop().unwrap_or_default();
        std::fs::create_dir_all(root)?;
        let follow = DIRECTORY.difference(OFlags::NOFOLLOW);
        let mut dir = rustix::fs::open(root, follow, Mode::empty())?;
        for name in levels {
            let made = match rustix::fs::mkdirat(&dir, &name, DIRECTORY_MODE) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(cause) => return Err(cause.into()),
            };
            let next = rustix::fs::openat(&dir, &name, DIRECTORY, Mode::empty())?;
            if made {
                // Override the umask, which is meant for the process's own files.
                rustix::fs::fchmod(&next, DIRECTORY_MODE)?;
                rustix::fs::fsync(&dir)?;
            }
            dir = next;
        }
        let name = format!(".bob-{}.partial", Uuid::new_v4().simple());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, &name, flags, FILE_MODE)?;
        let partial = Self { dir, name, last, settled: false };
        rustix::fs::fchmod(&file, FILE_MODE)?;
        Ok((partial, file.into()))
    }

    /// Renames the file to its final name.
    fn settle(mut self) -> io::Result<()> {
        rustix::fs::renameat(&self.dir, &self.name, &self.dir, &self.last)?;
        self.settled = true;
        rustix::fs::fsync(&self.dir)?;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.settled {
            // If the removal fails, the temporary name still shows what the file is.
            let _removed = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
        }
    }
}
