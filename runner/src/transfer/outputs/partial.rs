//! A file that becomes visible when it is complete.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

/// The characters encoded in a name. The percent sign is one of them, so that names stay distinct.
const IN_NAME: &AsciiSet = &CONTROLS.add(b'/').add(b'%');
/// Opens a directory that is not a symbolic link.
pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// Encodes a name as one path component.
pub(super) fn level(name: &str) -> String {
    match name {
        "." => "%2E".into(),
        ".." => "%2E%2E".into(),
        name => utf8_percent_encode(name, IN_NAME).to_string(),
    }
}

/// A file under a temporary name, removed when dropped.
pub(super) struct Partial {
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
    pub(super) fn begin(root: &Path, mut levels: Vec<String>) -> io::Result<(Self, std::fs::File)> {
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
    pub(super) fn settle(mut self) -> io::Result<()> {
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

/// Opens a file. As for writing, no component may be a symbolic link.
pub(super) fn open(root: &Path, mut levels: Vec<String>) -> io::Result<std::fs::File> {
    let last = levels.pop().unwrap_or_default();
    let mut dir = rustix::fs::open(root, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty())?;
    for name in levels {
        dir = rustix::fs::openat(&dir, &name, DIRECTORY, Mode::empty())?;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&dir, &last, flags, Mode::empty())?.into())
}
