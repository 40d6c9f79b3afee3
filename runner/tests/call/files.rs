//! Files on the worker's host that a call refers to, such as its `ca_file`.

use std::path::Path;

use runner::exec::NamedFiles;
use runner::exec::call::Options;
use runner::ports::{ExecError, Gate, StopLevel, StopSignal};

use super::{attempt, bob, options};

/// The reason why a worker rejects a call with this `ca_file`.
async fn rejection(path: &Path, options: &Options) -> String {
    let step = bob("http", &format!("url: 'https://h', ca_file: '{}'", path.display()));
    match attempt(&step, options, Gate::open(), &StopSignal::default()).await {
        Err(ExecError::Unsupported(why)) => why,
        other => panic!("{path:?} was not rejected: {other:?}"),
    }
}

#[tokio::test]
async fn a_worker_reads_only_regular_files_that_its_operator_allows() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(outside.path(), &link).unwrap();
    let fifo = dir.path().join("fifo");
    let status = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(status.success());
    let named = NamedFiles::below(vec![dir.path().to_owned()]);
    let one_dir = Options { named, ..options() };
    let no_dirs = Options { named: NamedFiles::below(Vec::new()), ..options() };
    for path in [Path::new("/dev/zero"), Path::new("/etc/hostname"), outside.path()] {
        for options in [&one_dir, &no_dirs] {
            let why = rejection(path, options).await;
            assert!(why.contains("BOB_FILE_DIRS"), "{path:?}: {why}");
        }
    }
    assert!(rejection(&link, &one_dir).await.contains("leads out of"));
    assert!(rejection(&fifo, &one_dir).await.contains("not a regular file"));
    assert!(rejection(dir.path(), &one_dir).await.contains("directory"));
    // A user of `run FILE` can name any regular file, but none that can be endless.
    for path in [Path::new("/dev/zero"), &fifo] {
        assert!(rejection(path, &options()).await.contains("not a regular file"), "{path:?}");
    }
}

#[tokio::test]
async fn a_stopped_step_does_not_wait_for_a_file() {
    let stop = StopSignal::default();
    stop.raise(StopLevel::Kill);
    let step = bob("http", "url: 'https://h', ca_file: /dev/zero");
    let result = attempt(&step, &options(), Gate::open(), &stop).await;
    assert!(matches!(result, Err(ExecError::NotStarted)), "{result:?}");
}
