//! An index of the runs whose outputs are in a directory, so that they can be removed.
//!
//! For each run of a cluster, the file `.bob%runs/<cluster>/<run-id>` names the run's directory. Only
//! what the index lists is removed: the directory can hold outputs of other clusters, and files of
//! its owner.

use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use protocol::id::RunId;
use rustix::fs::Mode;
use rustix::io::Errno;

use super::partial::{DIRECTORY, Partial, level};

/// The directory of the index. No encoded name of a group is the same: each percent sign in it is
/// followed by two hexadecimal digits.
const INDEX: &str = ".bob%runs";
/// The number of levels of a run's directory: group, pipeline and run.
const LEVELS: usize = 3;

/// The index of one cluster.
#[derive(Debug, Clone)]
pub(super) struct Index {
    root: PathBuf,
    /// The encoded name of the cluster.
    cluster: String,
}

impl Index {
    pub(super) fn new(root: &Path, cluster: &str) -> Self {
        Self { root: root.to_owned(), cluster: level(cluster) }
    }

    fn dir(&self) -> PathBuf {
        self.root.join(INDEX).join(&self.cluster)
    }

    /// Adds a run, given the encoded levels of one of its files. Does nothing if it is listed
    /// already, or if the file is not in a directory of the run.
    pub(super) fn add(&self, run: &RunId, levels: &[String]) -> io::Result<()> {
        let Some(of_run) = levels.get(..LEVELS).filter(|levels| is_dir_of(run, levels)) else {
            return Ok(());
        };
        if self.dir().join(run.as_str()).symlink_metadata().is_ok() {
            return Ok(());
        }
        let entry = vec![INDEX.to_owned(), self.cluster.clone(), run.to_string()];
        let (partial, mut file) = Partial::begin(&self.root, entry)?;
        file.write_all(&serde_json::to_vec(of_run)?)?;
        file.sync_all()?;
        partial.settle()
    }

    /// Returns the listed runs.
    pub(super) fn runs(&self) -> io::Result<Vec<RunId>> {
        let entries = match std::fs::read_dir(self.dir()) {
            Ok(entries) => entries,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(cause) => return Err(cause),
        };
        let mut runs = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            // Files that were interrupted have names that no run has.
            let run = name.to_str().and_then(|name| name.parse().ok());
            if entry.file_type()?.is_file() {
                runs.extend(run);
            }
        }
        Ok(runs)
    }

    /// Removes the directory of a run, and then its entry. Succeeds if they are gone.
    pub(super) fn remove(&self, run: &RunId) -> io::Result<()> {
        let entry = self.dir().join(run.as_str());
        let levels = match std::fs::read(&entry) {
            Ok(levels) => levels,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(cause) => return Err(cause),
        };
        let levels: Vec<String> = serde_json::from_slice(&levels)?;
        if !is_dir_of(run, &levels) {
            let text = format!("{} does not name a directory of this run", entry.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let (last, parents) =
            levels.split_last().map_or(("", &[][..]), |(last, parents)| (last.as_str(), parents));
        if let Some(parent) = open_dir(&self.root, parents)? {
            // The path of the open directory cannot be redirected by a link in its place.
            let path = format!("/proc/self/fd/{}/{last}", parent.as_raw_fd());
            unless_gone(std::fs::remove_dir_all(path))?;
        }
        unless_gone(std::fs::remove_file(entry))
    }
}

/// Whether these are the encoded levels of a directory of this run.
fn is_dir_of(run: &RunId, levels: &[String]) -> bool {
    let is_name =
        |level: &String| !matches!(level.as_str(), "" | "." | "..") && !level.contains(['/', '\0']);
    levels.len() == LEVELS
        && levels.iter().all(is_name)
        && levels.last().is_some_and(|last| last == run.as_str())
}

/// Opens a directory below the root. `None` if it does not exist. No component may be a symbolic
/// link, as for the files that are stored.
fn open_dir(root: &Path, levels: &[String]) -> io::Result<Option<OwnedFd>> {
    let follow = DIRECTORY.difference(rustix::fs::OFlags::NOFOLLOW);
    let mut dir = rustix::fs::open(root, follow, Mode::empty())?;
    for name in levels {
        dir = match rustix::fs::openat(&dir, name, DIRECTORY, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT) => return Ok(None),
            Err(cause) => return Err(cause.into()),
        };
    }
    Ok(Some(dir))
}

fn unless_gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(id: &str) -> RunId {
        id.parse().unwrap()
    }

    fn levels(group: &str, run: &str) -> Vec<String> {
        [group, "build", run, "step", "out.txt"].map(level).to_vec()
    }

    /// Writes a file and its entry.
    fn store(index: &Index, group: &str, id: &str) -> PathBuf {
        let levels = levels(group, id);
        index.add(&run(id), &levels).unwrap();
        let (partial, _file) = Partial::begin(&index.root, levels.clone()).unwrap();
        partial.settle().unwrap();
        index.root.join(levels.join("/"))
    }

    // Rows: D17
    #[test]
    fn the_outputs_of_a_listed_run_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::new(dir.path(), "c/1");
        assert_eq!(index.runs().unwrap(), []);
        let [removed, kept] = ["r-1", "r-2"].map(|id| store(&index, "a/b", id));
        store(&index, "a/b", "r-1");
        let mut runs = index.runs().unwrap();
        runs.sort();
        assert_eq!(runs, [run("r-1"), run("r-2")]);
        index.remove(&run("r-1")).unwrap();
        assert!(!removed.parent().unwrap().parent().unwrap().exists());
        assert!(kept.exists());
        assert_eq!(index.runs().unwrap(), [run("r-2")]);
        index.remove(&run("r-1")).unwrap();
    }

    #[test]
    fn another_cluster_does_not_see_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let file = store(&Index::new(dir.path(), "one"), "g", "r-1");
        let other = Index::new(dir.path(), "two");
        assert_eq!(other.runs().unwrap(), []);
        other.remove(&run("r-1")).unwrap();
        assert!(file.exists());
    }

    #[test]
    fn a_file_outside_of_a_directory_of_its_run_is_not_listed() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::new(dir.path(), "one");
        index.add(&run("r-1"), &["job".to_owned(), "out.txt".to_owned()]).unwrap();
        index.add(&run("r-1"), &levels("g", "r-2")).unwrap();
        assert_eq!(index.runs().unwrap(), []);
    }

    #[test]
    fn a_link_in_place_of_a_directory_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let index = Index::new(&root, "one");
        store(&index, "g", "r-1");
        let foreign = dir.path().join("foreign");
        std::fs::create_dir_all(foreign.join("build/r-1")).unwrap();
        std::fs::remove_dir_all(root.join("g")).unwrap();
        std::os::unix::fs::symlink(&foreign, root.join("g")).unwrap();
        assert!(index.remove(&run("r-1")).is_err());
        assert!(foreign.join("build/r-1").exists());
    }

    #[test]
    fn an_entry_that_names_another_directory_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::new(dir.path(), "one");
        let kept = store(&index, "g", "r-1");
        for bad in [r#"["..","..","r-1"]"#, r#"["g","build"]"#, r#"["g","build","r-2"]"#, "{}"] {
            std::fs::write(index.dir().join("r-1"), bad).unwrap();
            assert!(index.remove(&run("r-1")).is_err(), "{bad}");
        }
        assert!(kept.exists());
    }
}
