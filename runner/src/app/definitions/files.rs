//! Finds and reads the files of a directory of definitions.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use globset::GlobBuilder;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use walkdir::WalkDir;

/// The most files and directories that are searched.
const MOST_ENTRIES: usize = 1_000_000;
/// Slightly above the size limit of a file, so that the parser reports one that is too large.
const MAX_BYTES: u64 = 1024 * 1024 + 1;

/// Why the files of a directory cannot be found.
#[derive(Debug, Error)]
pub enum FindError {
    /// The glob is invalid.
    #[error("{0}")]
    Pattern(globset::Error),
    /// A directory cannot be read.
    #[error("cannot read {}: {cause}", .dir.display())]
    Directory {
        /// The directory that is searched.
        dir: PathBuf,
        /// The cause, with the path at fault.
        cause: walkdir::Error,
    },
    /// The directory has too many entries to search them.
    #[error(
        "{} has more than {MOST_ENTRIES} files and directories; name a smaller directory",
        .dir.display()
    )]
    TooMany {
        /// The directory that is searched.
        dir: PathBuf,
    },
}

/// Finds the files below a directory that match a glob, sorted by path. Links are followed.
/// Dangling and cyclic links are skipped.
///
/// # Errors
/// [`FindError`]
pub fn find_files(dir: &Path, pattern: &str) -> Result<Vec<PathBuf>, FindError> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    let glob = glob.map_err(FindError::Pattern)?.compile_matcher();
    let mut found = Vec::new();
    for (count, entry) in WalkDir::new(dir).follow_links(true).into_iter().enumerate() {
        if count > MOST_ENTRIES {
            return Err(FindError::TooMany { dir: dir.to_owned() });
        }
        let entry = match entry {
            Ok(entry) => entry,
            Err(cause) if is_dangling(&cause) => continue,
            Err(cause) => return Err(FindError::Directory { dir: dir.to_owned(), cause }),
        };
        let inside = entry.path().strip_prefix(dir).unwrap_or_else(|_| entry.path());
        if entry.file_type().is_file() && glob.is_match(inside) {
            let is_here = dir == Path::new(".");
            found.push(if is_here { inside.to_owned() } else { entry.path().to_owned() });
        }
    }
    found.sort();
    Ok(found)
}

fn is_dangling(cause: &walkdir::Error) -> bool {
    let is_gone = cause.io_error().is_some_and(|io| io.kind() == std::io::ErrorKind::NotFound);
    cause.loop_ancestor().is_some() || (is_gone && cause.depth() > 0)
}

/// A file with its content.
pub(super) struct SourceFile {
    pub(super) path: String,
    pub(super) bytes: Vec<u8>,
}

/// The files of a directory at one time, or the reason why they cannot be read.
pub(super) type Files = Result<Vec<SourceFile>, String>;

/// Reads the files below a directory that match a glob.
pub(super) fn read(dir: &Path, pattern: &str) -> Files {
    let found = find_files(dir, pattern).map_err(|cause| cause.to_string())?;
    found.into_iter().map(|path| read_file(&path)).collect()
}

fn read_file(path: &Path) -> Result<SourceFile, String> {
    let shown = path.to_string_lossy().into_owned();
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path);
    let read = read.and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(SourceFile { path: shown, bytes }),
        Err(cause) => Err(format!("cannot read {shown}: {cause}")),
    }
}

/// Identifies the content of a directory, to notice changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fingerprint {
    Files([u8; 32]),
    Unreadable(String),
}

impl Fingerprint {
    pub(super) fn of(files: &Files) -> Self {
        let files = match files {
            Ok(files) => files,
            Err(cause) => return Self::Unreadable(cause.clone()),
        };
        let mut hash = Sha256::new();
        for file in files {
            // With the lengths, so that moving bytes from one part to the next is a change.
            for part in [file.path.as_bytes(), &file.bytes] {
                hash.update(part.len().to_le_bytes());
                hash.update(part);
            }
        }
        Self::Files(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERN: &str = "**/pipelines.{yml,yaml}";

    fn paths(dir: &Path) -> Vec<String> {
        let files = read(dir, PATTERN).unwrap();
        let inside = |file: &SourceFile| {
            let path = Path::new(&file.path).strip_prefix(dir).unwrap();
            path.to_string_lossy().into_owned()
        };
        files.iter().map(inside).collect()
    }

    #[test]
    fn matching_files_are_found_in_order_of_their_paths_also_through_links() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(dir.path().join("z/deep")).unwrap();
        for name in ["z/deep/pipelines.yml", "pipelines.yaml", "z/pipelines.yml", "z/other.yml"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        std::fs::write(other.path().join("pipelines.yml"), "x").unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("dangling")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("cycle")).unwrap();
        let expected =
            ["link/pipelines.yml", "pipelines.yaml", "z/deep/pipelines.yml", "z/pipelines.yml"];
        assert_eq!(paths(dir.path()), expected);
    }

    #[test]
    fn a_directory_that_does_not_exist_is_an_error_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(&dir.path().join("none"), PATTERN).err().unwrap();
        assert!(error.contains("none"), "{error}");
    }

    #[test]
    fn every_change_of_a_file_changes_the_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let print = || Fingerprint::of(&read(dir.path(), PATTERN));
        let file = dir.path().join("pipelines.yml");
        let mut seen = vec![print()];
        for text in ["a", "b", "bb"] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(print(), print());
            assert!(!seen.contains(&print()), "{text}");
            seen.push(print());
        }
        std::fs::rename(&file, dir.path().join("pipelines.yaml")).unwrap();
        assert!(!seen.contains(&print()));
    }
}
