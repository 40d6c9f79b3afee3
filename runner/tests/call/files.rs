//! Files of the worker's host that calls name.

use std::path::Path;

use runner::exec::NamedFiles;
use runner::exec::call::Options;
use runner::ports::{ExecError, Gate, StopLevel, StopSignal};

use super::{attempt, bob, options};

/// Why a worker rejects a call that trusts this file.
async fn refused(path: &Path, options: &Options) -> String {
    let step = bob("http", &format!("url: 'https://h', ca_file: '{}'", path.display()));
    match attempt(&step, options, Gate::open(), &StopSignal::default()).await {
        Err(ExecError::Unsupported(why)) => why,
        other => panic!("{path:?} was used: {other:?}"),
    }
}

#[tokio::test]
async fn a_worker_reads_only_regular_files_that_its_operator_allows() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(outside.path(), &link).unwrap();
    let fifo = dir.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let named = NamedFiles::below(vec![dir.path().to_owned()]);
    let opened = Options { named, ..options() };
    let closed = Options { named: NamedFiles::below(Vec::new()), ..options() };
    for path in [Path::new("/dev/zero"), Path::new("/etc/hostname"), outside.path()] {
        for options in [&opened, &closed] {
            let why = refused(path, options).await;
            assert!(why.contains("BOB_FILE_DIRS"), "{path:?}: {why}");
        }
    }
    assert!(refused(&link, &opened).await.contains("leads out of"));
    assert!(refused(&fifo, &opened).await.contains("not a regular file"));
    assert!(refused(dir.path(), &opened).await.contains("directory"));
    // A user who runs a file may name any file, but it must not be endless.
    for path in [Path::new("/dev/zero"), &fifo] {
        assert!(refused(path, &options()).await.contains("not a regular file"), "{path:?}");
    }
}

#[tokio::test]
async fn a_stopped_step_does_not_wait_for_a_file() {
    let stop = StopSignal::default();
    stop.raise(StopLevel::Kill);
    let step = bob("http", "url: 'https://h', ca_file: /dev/zero");
    let done = attempt(&step, &options(), Gate::open(), &stop).await;
    assert!(matches!(done, Err(ExecError::NotStarted)), "{done:?}");
}
