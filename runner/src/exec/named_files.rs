//! Files of the worker's host that a step names: certificates, keys, known hosts. Only regular
//! files of a bounded size are opened. Steps of other users can open only files below directories
//! that the operator names.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The maximum size of such a file, in bytes. A bundle with every public web authority is about 256
/// KiB.
const MOST: u64 = 4 * 1024 * 1024;
/// How often a path is resolved again after a concurrent rename of a directory.
const TRIES: usize = 16;

/// The files that steps may name.
#[derive(Debug, Clone)]
pub struct NamedFiles(Option<Arc<[PathBuf]>>);

impl NamedFiles {
    /// Allows every file that this process can read, for a user who runs a file of their own.
    #[must_use]
    pub fn any() -> Self {
        Self(None)
    }

    /// Allows the files below these directories.
    #[must_use]
    pub fn below(dirs: Vec<PathBuf>) -> Self {
        Self(Some(dirs.into()))
    }

    /// Whether steps may name any file.
    pub(super) fn is_any(&self) -> bool {
        self.0.is_none()
    }

    /// Opens the file named at a key of a step. The error is a sentence.
    ///
    /// # Cancel safety
    /// Dropping the future can leave only a thread that waits for the file system.
    pub(super) async fn open(&self, key: &str, path: &Path) -> Result<File, String> {
        let (files, key, path) = (self.clone(), key.to_owned(), path.to_owned());
        let opened = tokio::task::spawn_blocking(move || {
            let opened = files.find(&path).and_then(|file| checked(&file).map(|()| file));
            opened.map_err(|why| format!("`{key}` {}: {why}", path.display()))
        });
        opened.await.map_err(|cause| cause.to_string())?
    }

    /// Reads the file named at a key of a step. The error is a sentence.
    ///
    /// # Cancel safety
    /// Same as [`Self::open`].
    pub(super) async fn read(&self, key: &str, path: &Path) -> Result<Vec<u8>, String> {
        let file = self.open(key, path).await?;
        let (key, path) = (key.to_owned(), path.to_owned());
        let read = tokio::task::spawn_blocking(move || {
            let failed = |why: String| format!("`{key}` {}: {why}", path.display());
            let mut bytes = Vec::new();
            // The file can have grown since it was opened.
            let read = file.take(MOST + 1).read_to_end(&mut bytes);
            read.map_err(|cause| failed(cause.to_string()))?;
            if bytes.len() as u64 > MOST { Err(failed(too_large())) } else { Ok(bytes) }
        });
        read.await.map_err(|cause| cause.to_string())?
    }

    fn find(&self, path: &Path) -> Result<File, String> {
        // Opening a FIFO does not block; the type check rejects it afterwards.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let Some(dirs) = &self.0 else {
            let opened = rustix::fs::open(path, flags, Mode::empty());
            return opened.map(File::from).map_err(|cause| io::Error::from(cause).to_string());
        };
        let mut why = None;
        for dir in dirs.iter() {
            let inside = if path.is_absolute() {
                let Ok(inside) = path.strip_prefix(dir) else { continue };
                inside
            } else {
                path
            };
            match beneath(dir, inside, flags) {
                Ok(file) => return Ok(file),
                Err(cause) => why = why.or(Some(cause)),
            }
        }
        Err(match why {
            None => {
                "it is not below a directory of BOB_FILE_DIRS, which the operator of the worker \
                     sets"
                    .to_owned()
            }
            Some(Errno::XDEV) => "it leads out of the directories of BOB_FILE_DIRS".to_owned(),
            Some(Errno::NOSYS) => {
                "this system has no openat2, which Linux has from 5.6 on, so that \
                                   no step can name a file"
                    .to_owned()
            }
            Some(cause) => io::Error::from(cause).to_string(),
        })
    }
}

/// Opens a file below a directory. A link or `..` that leads out of it is an error, even if it is
/// created concurrently.
fn beneath(dir: &Path, path: &Path, flags: OFlags) -> rustix::io::Result<File> {
    let to_dir = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, to_dir, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut tries = TRIES;
    loop {
        tries -= 1;
        match rustix::fs::openat2(&dir, path, flags, Mode::empty(), resolve) {
            Ok(file) => return Ok(file.into()),
            Err(Errno::AGAIN) if tries > 0 => {}
            Err(cause) => return Err(cause),
        }
    }
}

fn checked(file: &File) -> Result<(), String> {
    let meta = file.metadata().map_err(|cause| cause.to_string())?;
    if !meta.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    if meta.len() > MOST { Err(too_large()) } else { Ok(()) }
}

fn too_large() -> String {
    format!("it has more than {MOST} bytes, the most that a step may name")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    async fn read(files: &NamedFiles, path: &Path) -> Result<Vec<u8>, String> {
        files.read("ca_file", path).await
    }

    #[tokio::test]
    async fn a_file_is_opened_only_below_the_named_directories() {
        let (named, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (dir, secret) = (named.path(), other.path().join("secret"));
        std::fs::write(&secret, "secret").unwrap();
        std::fs::create_dir(dir.join("sub")).unwrap();
        std::fs::write(dir.join("sub/ca.pem"), "pem").unwrap();
        symlink("sub/ca.pem", dir.join("inside")).unwrap();
        symlink(&secret, dir.join("out")).unwrap();
        symlink(other.path(), dir.join("dir-out")).unwrap();
        let files = NamedFiles::below(vec!["/nowhere".into(), dir.to_owned()]);
        for good in ["sub/ca.pem", "inside", "sub/../inside"] {
            assert_eq!(read(&files, Path::new(good)).await.unwrap(), b"pem", "{good}");
            assert_eq!(read(&files, &dir.join(good)).await.unwrap(), b"pem", "{good}");
        }
        let up = format!("../{}/secret", other.path().file_name().unwrap().to_str().unwrap());
        for bad in ["out", "dir-out/secret", &up, "sub"] {
            let why = read(&files, &dir.join(bad)).await.unwrap_err();
            assert!(why.starts_with("`ca_file`") && !why.contains("No such"), "{bad}: {why}");
        }
        let why = read(&files, &secret).await.unwrap_err();
        assert!(why.contains("BOB_FILE_DIRS"), "{why}");
        let none = NamedFiles::below(Vec::new());
        assert!(read(&none, Path::new("sub/ca.pem")).await.unwrap_err().contains("BOB_FILE_DIRS"));
        assert_eq!(read(&NamedFiles::any(), &secret).await.unwrap(), b"secret");
    }

    #[tokio::test]
    async fn what_never_ends_is_refused_and_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        let large = dir.path().join("large");
        File::create(&large).unwrap().set_len(MOST + 1).unwrap();
        for files in [NamedFiles::any(), NamedFiles::below(vec![dir.path().into()])] {
            let why = read(&files, &fifo).await.unwrap_err();
            assert!(why.contains("not a regular file"), "{why}");
            let why = read(&files, &large).await.unwrap_err();
            assert!(why.contains("4194304 bytes"), "{why}");
        }
        let why = read(&NamedFiles::any(), Path::new("/dev/zero")).await.unwrap_err();
        assert!(why.contains("not a regular file"), "{why}");
    }
}
