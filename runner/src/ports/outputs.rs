//! Where the outputs of steps are kept.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use protocol::pipeline::Selection;

use super::{ByteStream, Forbidden, Origin, TransferError};

/// Where one file is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    under: Vec<String>,
    path: String,
}

impl Place {
    /// A place: a path below names, each of which is one level, whatever is in it.
    ///
    /// For a step of a run these are group, name, run id and step.
    ///
    /// # Errors
    /// Where a name is empty, or the path is not relative, or may lead elsewhere.
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

    /// The names that the path lies below. They may have any characters; who keeps files encodes them.
    #[must_use]
    pub fn under(&self) -> &[String] {
        &self.under
    }

    /// The path: names with `/` between them, none of them `.` or `..`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// A file as it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its size, in bytes.
    pub size: u64,
    /// The SHA-256 of its bytes, in lower case hex.
    pub sha256: String,
}

/// Keeps files.
///
/// Whoever looks at a place sees a whole file or none, or the whole one that was there before.
#[async_trait]
pub trait OutputStore: Send + Sync {
    /// What it is called in an event, an error and the log: no secret is in it.
    fn name(&self) -> String;

    /// Keeps a file of so many bytes. One that is there already is replaced, so that a put can be
    /// done again.
    ///
    /// # Errors
    /// Where the store does not take it, or the bytes break off or are not as many; nothing of it is
    /// seen then.
    ///
    /// # Cancel safety
    /// Dropped, it leaves nothing at the place, or the whole file.
    async fn put(
        &self,
        place: &Place,
        size: u64,
        bytes: ByteStream,
        origin: &Origin,
    ) -> Result<Stored, TransferError>;
}

/// A file of a step that was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFile {
    /// Where it lay, relative to the step's working directory.
    pub from: String,
    /// Where it is kept, relative to the names that all outputs of the step are kept below.
    pub path: String,
    /// What was kept.
    pub stored: Stored,
}

/// What is kept of one step; it grows with each of its outputs.
#[derive(Debug, Clone)]
pub struct KeptOutputs {
    /// The names that all of it is kept below: see [`Place::new`].
    pub under: Vec<String>,
    /// Whose it is.
    pub origin: Origin,
    /// What must not be in any stored file or its name.
    pub forbidden: Option<Arc<dyn Forbidden>>,
    /// What the user should know, a sentence each: for the log.
    pub notes: Vec<String>,
    files: Vec<KeptFile>,
    /// Which of them is at a path.
    at: HashMap<String, usize>,
}

impl KeptOutputs {
    /// Nothing yet.
    #[must_use]
    pub fn new(under: Vec<String>, origin: Origin) -> Self {
        let (notes, files, at) = (Vec::new(), Vec::new(), HashMap::new());
        Self { under, origin, forbidden: None, notes, files, at }
    }

    /// Notes a file. Of two at the same place the later one is there, and that is said.
    pub fn add(&mut self, file: KeptFile) {
        let Some(old) = self.at.get(&file.path).and_then(|at| self.files.get_mut(*at)) else {
            self.at.insert(file.path.clone(), self.files.len());
            self.files.push(file);
            return;
        };
        if old.from != file.from {
            self.notes.push(format!(
                "{:?} is kept as {:?} in the place of {:?}, which was kept so before; `layout: relative` keeps both",
                file.from, file.path, old.from
            ));
        }
        *old = file;
    }

    /// The files, each place once.
    #[must_use]
    pub fn files(&self) -> &[KeptFile] {
        &self.files
    }
}

/// What an archive held for an output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "links that nobody asks for are not kept, and an output that is missing may fail its step"]
pub struct Found {
    /// Whether something matched.
    pub matched: bool,
    /// Files that the archive only names, as their bytes stand under another name: each has to be
    /// exported by itself, and kept by one more call.
    pub links: Vec<String>,
}

/// Keeps what outputs of steps ask for.
#[async_trait]
pub trait Outputs: Send + Sync {
    /// Where it is kept, without secrets.
    fn name(&self) -> String;

    /// Keeps what an output takes of a tar, as `Executor::export` gives it for the path `at`: for the
    /// output itself that is [`Selection::base`], afterwards each of [`Found::links`].
    ///
    /// What is neither a file nor a directory is passed over with a note. It can be done again.
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
    ) -> Result<Found, TransferError>;
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
    fn a_place_is_relative_and_leads_nowhere_else() {
        let under = ["a/b".to_owned(), "..".to_owned()];
        assert!(Place::new(&under, "a/..b/c d").is_ok());
        for bad in ["", "/a", "a//b", "a/", ".", "a/..", "../a", "a\0"] {
            assert!(Place::new(&under, bad).is_err(), "{bad:?} was taken");
        }
        assert!(Place::new(&[String::new()], "a").is_err());
    }

    // A11: flat, the later one wins.
    #[test]
    fn of_two_outputs_at_one_place_the_later_one_is_there_and_the_note_names_both() {
        let origin = Origin { run: "r-1".parse().unwrap(), epoch: Epoch(1), attempt: 1 };
        let mut kept = KeptOutputs::new(Vec::new(), origin);
        kept.add(file("a/x", "x"));
        kept.add(file("b/x", "x"));
        kept.add(file("b/x", "x"));
        assert_eq!(kept.files(), [file("b/x", "x")]);
        assert_eq!(kept.notes.len(), 1, "the same file again needs no word");
        assert!(kept.notes[0].contains("\"a/x\"") && kept.notes[0].contains("\"b/x\""));
    }
}
