//! The directories of `run FILE`, one per run below `<data-dir>/runs`.
//!
//! A process holds the lock of its directory while it lives. If the lock is free, the process was
//! killed, or the run has ended and is kept for its `retention`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use protocol::id::RunId;
use protocol::time::Millis;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// The file whose lock says that the directory is in use.
const LOCK: &str = "lock";
/// The file with facts that are needed without opening the store.
const ABOUT: &str = "run.json";
/// The store, whose own lock counts for directories of versions that had no lock file.
const STORE: &str = "bob.redb";
/// The name prefix of a directory that is not locked yet.
const NEW: &str = ".new-";
/// The maximum size of the file with the facts, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// The parent directory of all runs.
pub(super) fn below(data_dir: &Path) -> PathBuf {
    data_dir.join("runs")
}

/// The facts about a run that another process needs without opening its store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct About {
    /// Whether it has steps on podman.
    #[serde(default)]
    pub(super) on_podman: bool,
    /// Whether it has steps on a Docker engine.
    #[serde(default)]
    pub(super) on_docker: bool,
    /// Set once it has ended: until when its images are kept.
    #[serde(default)]
    pub(super) kept_until: Option<Millis>,
}

impl About {
    /// The assumption for a missing file: an older version can have run it on podman.
    pub(super) fn of_older_version() -> Self {
        Self { on_podman: true, ..Self::default() }
    }

    /// Whether the run is kept at that time.
    pub(super) fn is_kept(&self, now: Millis) -> bool {
        self.kept_until.is_some_and(|until| now < until)
    }
}

/// The directory of a run, locked by this process.
#[derive(Debug)]
pub(super) struct RunDir {
    pub(super) run: RunId,
    pub(super) path: PathBuf,
    /// Held while this value lives.
    _lock: File,
}

/// The result of claiming a run's directory.
#[derive(Debug)]
pub(super) enum Claimed {
    /// The directory is new.
    New(RunDir),
    /// The directory of an earlier run with the same id, which is over.
    Earlier(RunDir),
}

/// Claims the directory of a run. `None` if another process has it.
///
/// # Errors
/// If it cannot be created.
pub(super) fn claim(runs: &Path, run: &RunId) -> io::Result<Option<Claimed>> {
    DirBuilder::new().recursive(true).mode(0o700).create(runs)?;
    let path = runs.join(run.as_str());
    loop {
        // Lock it before it gets its name, so that no other process takes it for an abandoned one.
        let new = tempfile::Builder::new().prefix(NEW).tempdir_in(runs)?;
        let lock = try_lock(&new.path().join(LOCK), true)?;
        let lock = lock.ok_or_else(|| io::Error::other("a new lock is held by another process"))?;
        match std::fs::rename(new.path(), &path) {
            Ok(()) => {
                let _moved = new.keep();
                return Ok(Some(Claimed::New(RunDir { run: run.clone(), path, _lock: lock })));
            }
            Err(cause) if is_taken(&cause) => {}
            Err(cause) => return Err(cause),
        }
        match lock_existing(&path, run)? {
            Existing::Locked(dir) => return Ok(Some(Claimed::Earlier(dir))),
            Existing::InUse => return Ok(None),
            // Another process has removed it meanwhile.
            Existing::Gone => {}
        }
    }
}

fn is_taken(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists | ErrorKind::NotADirectory
    )
}

/// Locks and returns the directories that no process uses, except that of the run `except`.
pub(super) fn unused(runs: &Path, except: &RunId) -> Vec<RunDir> {
    let entries = std::fs::read_dir(runs).into_iter().flatten().filter_map(Result::ok);
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<RunId>().ok());
    let ids = ids.filter(|run| run != except);
    ids.filter_map(|run| take_unused(runs, &run)).collect()
}

/// Locks the directory of a run, if it exists and no process uses it.
pub(super) fn take_unused(runs: &Path, run: &RunId) -> Option<RunDir> {
    match lock_existing(&runs.join(run.as_str()), run) {
        Ok(Existing::Locked(dir)) => Some(dir),
        Ok(Existing::InUse | Existing::Gone) | Err(_) => None,
    }
}

enum Existing {
    Locked(RunDir),
    InUse,
    Gone,
}

fn lock_existing(path: &Path, run: &RunId) -> io::Result<Existing> {
    let file = path.join(LOCK);
    let locked = match try_lock(&file, true) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(Existing::Gone),
        locked => locked?,
    };
    let Some(lock) = locked else { return Ok(Existing::InUse) };
    // It could have been removed and created again before it was locked.
    match file.metadata() {
        Ok(now) if now.ino() == lock.metadata()?.ino() => {}
        Ok(_) => return Ok(Existing::InUse),
        Err(_) => return Ok(Existing::Gone),
    }
    match try_lock(&path.join(STORE), false) {
        // Release the store's lock again: opening the store takes it.
        Ok(Some(_)) => {}
        Ok(None) => return Ok(Existing::InUse),
        Err(cause) if cause.kind() == ErrorKind::NotFound => {}
        Err(cause) => return Err(cause),
    }
    Ok(Existing::Locked(RunDir { run: run.clone(), path: path.to_owned(), _lock: lock }))
}

/// Locks a file. `None` if another process has locked it.
fn try_lock(path: &Path, create: bool) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(create).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(cause) => Err(cause.into()),
    }
}

impl RunDir {
    /// The facts about the run. `None` if the file is missing, as with older versions, or damaged.
    pub(super) fn about(&self) -> Option<About> {
        let mut text = String::new();
        let file = File::open(self.path.join(ABOUT)).ok()?;
        file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Writes the facts about the run.
    pub(super) fn note(&self, about: &About) -> io::Result<()> {
        let text = serde_json::to_vec(about)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.path)?;
        file.write_all(&text)?;
        file.persist(self.path.join(ABOUT))?;
        Ok(())
    }

    /// Removes everything in the directory except its lock.
    pub(super) fn empty(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name() == LOCK {
                continue;
            }
            match entry.file_type()?.is_dir() {
                true => std::fs::remove_dir_all(entry.path())?,
                false => std::fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }

    /// Releases the directory and leaves it as it is.
    pub(super) fn release(self) {}

    /// Removes the directory. Leftovers are small, and the next run tries again.
    pub(super) fn remove(self) {
        std::fs::remove_dir_all(&self.path).ok();
    }
}

/// The lock on a run id, across all data directories of this user. Containers and secrets of a run
/// are found only by its id.
#[derive(Debug)]
pub(super) struct IdLock {
    path: PathBuf,
    _lock: File,
}

/// The candidate directories for locks: in memory if possible, and shared by all sessions of the
/// user.
const PLACES: [&str; 2] = ["/dev/shm", "/tmp"];

impl IdLock {
    /// Locks a run id. `Err` holds the description of the process that has locked it.
    ///
    /// Without a directory for locks, returns `None`. A second run with the same id is then
    /// detected by the containers of the first one.
    pub(super) fn take(run: &RunId, data_dir: &Path) -> Result<Option<Self>, String> {
        let Some(dir) = private_dir() else { return Ok(None) };
        let path = dir.join(run.as_str());
        loop {
            let mut lock = match try_lock(&path, true) {
                Ok(Some(lock)) => lock,
                Ok(None) => return Err(std::fs::read_to_string(&path).unwrap_or_default()),
                Err(_) => return Ok(None),
            };
            let is_same = match (path.metadata(), lock.metadata()) {
                (Ok(now), Ok(locked)) => now.ino() == locked.ino(),
                (Ok(_), Err(_)) | (Err(_), _) => false,
            };
            if is_same {
                let about =
                    format!("process {}, BOB_DATA_DIR {}", std::process::id(), data_dir.display());
                // Only people read it, so an error is ignored.
                drop(lock.set_len(0).and_then(|()| lock.write_all(about.as_bytes())));
                return Ok(Some(Self { path, _lock: lock }));
            }
        }
    }
}

impl Drop for IdLock {
    fn drop(&mut self) {
        // Remove the file while it is locked. A process that opened it earlier compares the inodes.
        std::fs::remove_file(&self.path).ok();
    }
}

/// A directory that only this user can access.
fn private_dir() -> Option<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let place = PLACES.into_iter().map(Path::new).find(|place| place.is_dir())?;
    let dir = place.join(format!("bob-runner-{user}.runs"));
    match DirBuilder::new().mode(0o700).create(&dir) {
        Ok(()) => {}
        Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {}
        Err(_) => return None,
    }
    let metadata = dir.symlink_metadata().ok()?;
    let is_private = metadata.is_dir() && metadata.uid() == user && metadata.mode() & 0o077 == 0;
    is_private.then_some(dir)
}

/// The current time.
pub(super) fn now() -> Millis {
    Millis(jiff::Timestamp::now().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str) -> RunId {
        name.parse().unwrap()
    }

    fn new(runs: &Path, name: &str) -> RunDir {
        match claim(runs, &run(name)).unwrap() {
            Some(Claimed::New(dir)) => dir,
            other => panic!("{name} is not new: {other:?}"),
        }
    }

    #[test]
    fn a_directory_belongs_to_one_process_until_it_exits() {
        let place = tempfile::tempdir().unwrap();
        let runs = place.path().join("runs");
        let dir = new(&runs, "r-1");
        assert!(claim(&runs, &run("r-1")).unwrap().is_none(), "it is in use");
        assert!(unused(&runs, &run("r-2")).is_empty());
        let about = About { on_podman: true, kept_until: Some(Millis(7)), ..About::default() };
        dir.note(&about).unwrap();
        std::fs::write(dir.path.join("file"), "").unwrap();
        // Simulates the death of its process.
        drop(dir);
        assert!(unused(&runs, &run("r-1")).is_empty(), "its own run is not looked at");
        let Some(Claimed::Earlier(dir)) = claim(&runs, &run("r-1")).unwrap() else {
            panic!("it is over");
        };
        assert_eq!(dir.about(), Some(about));
        dir.empty().unwrap();
        assert_eq!((dir.about(), dir.path.join("file").exists()), (None, false));
        dir.remove();
        assert!(std::fs::read_dir(&runs).unwrap().next().is_none());
    }

    #[test]
    fn an_unused_directory_is_found_by_one_process_only() {
        let place = tempfile::tempdir().unwrap();
        let _used = new(place.path(), "r-used");
        drop(new(place.path(), "r-dead"));
        // A version without lock files is still running here.
        let old = place.path().join("r-old");
        std::fs::create_dir(&old).unwrap();
        let _store = try_lock(&old.join(STORE), true).unwrap().unwrap();
        std::fs::write(place.path().join("r-file"), "").unwrap();
        std::fs::create_dir(place.path().join("unrelated")).unwrap();
        let found = unused(place.path(), &run("r-own"));
        let names: Vec<&str> = found.iter().map(|dir| dir.run.as_str()).collect();
        assert_eq!(names, ["r-dead"]);
        assert!(unused(place.path(), &run("r-own")).is_empty(), "it is swept already");
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a skipped test must not look like one that passed")]
    fn a_run_id_is_locked_for_all_data_directories() {
        let id = run(&format!("r-lock-{}", std::process::id()));
        let Some(lock) = IdLock::take(&id, Path::new("/one")).unwrap() else {
            eprintln!("skipped: no directory for locks");
            return;
        };
        let who = IdLock::take(&id, Path::new("/two")).unwrap_err();
        assert_eq!(who, format!("process {}, BOB_DATA_DIR /one", std::process::id()));
        let path = lock.path.clone();
        drop(lock);
        assert!(!path.exists());
        assert!(IdLock::take(&id, Path::new("/two")).unwrap().is_some());
    }
}
