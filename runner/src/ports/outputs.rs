//! Storage for the outputs of steps.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use protocol::id::RunId;
use protocol::pipeline::Selection;

use super::{ByteStream, Origin, SecretMatcher, TransferError};

/// The location of one file in an output store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OutputLocation {
    under: Vec<String>,
    path: String,
}

impl OutputLocation {
    /// Creates a place from a path below directory names. Each name is one level, whatever
    /// characters it contains.
    ///
    /// For a step of a run, the names are group, pipeline name, run ID and step.
    ///
    /// # Errors
    /// If a name is empty, or the path is absolute or contains `.` or `..`.
    pub fn new(under: &[String], path: &str) -> Result<Self, TransferError> {
        let bad_name = under.iter().any(|name| name.is_empty() || name.contains('\0'));
        let bad_path =
            path.contains('\0') || path.split('/').any(|part| matches!(part, "" | "." | ".."));
        if bad_name || bad_path {
            return Err(TransferError::BadParams(format!(
                "an output cannot be kept as {path:?} below {under:?}"
            )));
        }
        Ok(Self { under: under.to_vec(), path: path.to_owned() })
    }

    /// Returns the names above the path. They may contain any character; the store encodes them.
    #[must_use]
    pub fn namespace(&self) -> &[String] {
        &self.under
    }

    /// Returns the path: names separated by `/`, none of them `.` or `..`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// A stored file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The size in bytes.
    pub size: u64,
    /// The SHA-256 of the content, in lowercase hex.
    pub sha256: String,
}

/// Stores files.
///
/// A reader always sees a complete file: either the new one or the one it replaces.
#[async_trait]
pub trait OutputStore: Send + Sync {
    /// Returns the name for events, errors and logs. It contains no secret.
    fn name(&self) -> String;

    /// Stores a file of `size` bytes. Replaces an existing file, so that a call can be repeated.
    ///
    /// # Errors
    /// If the store rejects the file, or the bytes end early or do not add up to `size`. Nothing of
    /// the file is visible then.
    ///
    /// # Cancel safety
    /// If the future is dropped, the place holds either nothing or the complete file.
    async fn put(
        &self,
        place: &OutputLocation,
        size: u64,
        bytes: ByteStream,
        origin: &Origin,
    ) -> Result<Stored, TransferError>;

    /// Opens a stored file. Returns `None` if there is none at the place.
    ///
    /// # Errors
    /// If the store does not answer or rejects the request.
    async fn get(&self, place: &OutputLocation) -> Result<Option<ByteStream>, TransferError>;

    /// Returns the runs whose files this store can remove, in any order. Empty if something else
    /// removes them, such as a lifecycle rule of a bucket.
    ///
    /// # Errors
    /// [`TransferError::Removal`] if the files cannot be listed.
    async fn removable_runs(&self) -> Result<Vec<RunId>, TransferError> {
        Ok(Vec::new())
    }

    /// Removes all files of a run that [`removable_runs`](Self::removable_runs) has returned.
    /// Succeeds if they are gone.
    ///
    /// # Errors
    /// [`TransferError::Removal`] if a file cannot be removed. The run is then listed again.
    async fn remove(&self, _run: &RunId) -> Result<(), TransferError> {
        Ok(())
    }
}

/// A stored file of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFile {
    /// The source path, relative to the step's working directory.
    pub from: String,
    /// The path in the store, relative to [`KeptOutputs::under`].
    pub path: String,
    /// Size and checksum.
    pub stored: Stored,
}

/// Notices of one kind for the user's log. The first ones are kept, and the others only counted,
/// because a step can leave a million files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notices {
    first: Vec<String>,
    more: usize,
}

impl Notices {
    /// How many notices of one kind are kept.
    pub const MOST: usize = 20;

    /// Adds a notice, one sentence.
    pub fn add(&mut self, notice: impl FnOnce() -> String) {
        if self.first.len() < Self::MOST {
            self.first.push(notice());
        } else {
            self.more += 1;
        }
    }

    /// Returns the notices, followed by one about the number of the others, if there are any.
    pub fn lines(&self, more: impl FnOnce(usize) -> String) -> Vec<String> {
        let more = (self.more > 0).then(|| more(self.more));
        self.first.iter().cloned().chain(more).collect()
    }
}

/// The stored outputs of one step. It grows with each of them.
#[derive(Debug, Clone)]
pub struct KeptOutputs {
    /// The names above all paths: see [`OutputLocation::new`].
    pub under: Vec<String>,
    /// The run, epoch and attempt that the outputs belong to.
    pub origin: Origin,
    /// Secrets that must not occur in a stored file or its name.
    pub forbidden: Option<Arc<dyn SecretMatcher>>,
    /// Notices about outputs that select nothing.
    pub missing: Notices,
    /// Notices about entries that cannot be stored.
    pub not_kept: Notices,
    /// Notices about directories without a file.
    pub empty: Notices,
    replaced: Notices,
    files: Vec<KeptFile>,
    /// Index into `files` by path.
    at: HashMap<String, usize>,
}

impl KeptOutputs {
    /// Creates an empty set.
    #[must_use]
    pub fn new(under: Vec<String>, origin: Origin) -> Self {
        Self {
            under,
            origin,
            forbidden: None,
            missing: Notices::default(),
            not_kept: Notices::default(),
            empty: Notices::default(),
            replaced: Notices::default(),
            files: Vec::new(),
            at: HashMap::new(),
        }
    }

    /// Adds a file. If another file has the same place, it is replaced, and a notice names both.
    pub fn add(&mut self, file: KeptFile) {
        let Some(old) = self.at.get(&file.path).and_then(|at| self.files.get_mut(*at)) else {
            self.at.insert(file.path.clone(), self.files.len());
            self.files.push(file);
            return;
        };
        if old.from != file.from {
            self.replaced.add(|| {
                format!(
                    "{:?} is kept as {:?} in the place of {:?}, which was kept so before; `layout: relative` keeps both",
                    file.from, file.path, old.from
                )
            });
        }
        *old = file;
    }

    /// Returns the notices for the user's log, one sentence each.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let mut all = self.missing.lines(|more| format!("{more} more outputs are missing"));
        all.extend(
            self.not_kept
                .lines(|more| format!("{more} more that are not files are not kept either")),
        );
        all.extend(
            self.empty
                .lines(|more| format!("nothing of {more} more directories without files is kept")),
        );
        all.extend(
            self.replaced
                .lines(|more| format!("{more} more files are kept in the place of others")),
        );
        all
    }

    /// Returns the files, one for each place.
    #[must_use]
    pub fn files(&self) -> &[KeptFile] {
        &self.files
    }
}

/// The result of searching an archive for an output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "links that nobody asks for are not kept, and an output that is missing may fail its step"]
pub struct ArchiveMatch {
    /// Whether any file matched.
    pub matched: bool,
    /// Hard links, listed without their content. Export each separately and call `keep` again.
    pub links: Vec<String>,
}

/// Stores the outputs that steps declare.
#[async_trait]
pub trait Outputs: Send + Sync {
    /// Returns the name of the storage, without secrets.
    fn name(&self) -> String;

    /// Stores the files of a tar archive that an output selects. `at` is the path that was passed
    /// to `Executor::export`: [`Selection::base`] for the output itself, then each of
    /// [`ArchiveMatch::links`].
    ///
    /// Entries other than files and directories are skipped with a notice. The call can be
    /// repeated.
    ///
    /// # Errors
    /// If the archive is incomplete or cannot be trusted, or the store rejects a file;
    /// [`TransferError::SecretLeak`] if a file contains a secret. Files that were stored before the
    /// error are kept.
    async fn keep(
        &self,
        kept: &mut KeptOutputs,
        selection: &Selection,
        at: &str,
        tar: ByteStream,
    ) -> Result<ArchiveMatch, TransferError>;

    /// Like [`OutputStore::removable_runs`].
    ///
    /// # Errors
    /// [`TransferError::Removal`]
    async fn removable_runs(&self) -> Result<Vec<RunId>, TransferError>;

    /// Like [`OutputStore::remove`].
    ///
    /// # Errors
    /// [`TransferError::Removal`]
    async fn remove(&self, run: &RunId) -> Result<(), TransferError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::id::Epoch;

    fn file(from: &str, path: &str) -> KeptFile {
        let stored = Stored { size: 0, sha256: String::new() };
        KeptFile { from: from.into(), path: path.into(), stored }
    }

    #[test]
    fn a_location_is_relative_and_does_not_escape() {
        let under = ["a/b".to_owned(), "..".to_owned()];
        assert!(OutputLocation::new(&under, "a/..b/c d").is_ok());
        for bad in ["", "/a", "a//b", "a/", ".", "a/..", "../a", "a\0"] {
            assert!(OutputLocation::new(&under, bad).is_err(), "{bad:?} was taken");
        }
        assert!(OutputLocation::new(&[String::new()], "a").is_err());
    }

    // A11: with the flat layout, the later file replaces the earlier one.
    #[test]
    fn the_later_of_two_outputs_at_one_location_wins_and_the_notice_names_both() {
        let origin = Origin { run: "r-1".parse().unwrap(), epoch: Epoch(1), attempt: 1 };
        let mut kept = KeptOutputs::new(Vec::new(), origin);
        kept.add(file("a/x", "x"));
        kept.add(file("b/x", "x"));
        kept.add(file("b/x", "x"));
        assert_eq!(kept.files(), [file("b/x", "x")]);
        let notices = kept.notices();
        assert_eq!(notices.len(), 1, "the same file again needs no word");
        assert!(notices[0].contains("\"a/x\"") && notices[0].contains("\"b/x\""));
    }

    #[test]
    fn the_first_notices_of_each_kind_are_kept_and_the_others_counted() {
        let origin = Origin { run: "r-1".parse().unwrap(), epoch: Epoch(1), attempt: 1 };
        let mut kept = KeptOutputs::new(Vec::new(), origin);
        for number in 0..=1000 {
            kept.add(file(&format!("{number}/x"), "x"));
            kept.missing.add(|| format!("output {number} is missing"));
        }
        let notices = kept.notices();
        assert_eq!(notices.len(), 2 * (Notices::MOST + 1));
        assert_eq!(notices[19], "output 19 is missing");
        assert_eq!(notices[20], "981 more outputs are missing");
        assert_eq!(notices[41], "980 more files are kept in the place of others");
    }
}
