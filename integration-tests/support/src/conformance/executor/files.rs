//! Conformance tests for `import` (resources) and `export` (artifacts).

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use protocol::event::LogStream;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::StreamReader;

use super::subject::{Act, ExecutorSubject};
use crate::conformance::soon;
use runner::ports::{ByteStream, ExecError, StepSpec};

/// Returns a tar archive of one file.
async fn tar_of(name: &str, text: &str) -> Vec<u8> {
    let mut header = tokio_tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    let mut tar = tokio_tar::Builder::new(Vec::new());
    let appended = tar.append_data(&mut header, name, text.as_bytes()).await;
    appended.expect("a file can be packed");
    tar.into_inner().await.expect("a tar has an end")
}

fn stream_of(bytes: Vec<u8>) -> ByteStream {
    stream::iter([Ok(Bytes::from(bytes))]).boxed()
}

/// Returns the path and the text of each file in a tar archive.
async fn files_of(tar: ByteStream) -> Vec<(String, String)> {
    let mut tar = tokio_tar::Archive::new(StreamReader::new(tar));
    let mut entries = tar.entries().expect("it is a tar");
    let mut files = Vec::new();
    while let Some(mut entry) = entries.try_next().await.expect("it is a whole tar") {
        let path = entry.path().expect("a path").display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).await.expect("its text");
        files.push((path, text));
    }
    files
}

pub(super) async fn a_resource_is_there_for_the_next_step(subject: &ExecutorSubject) {
    let run = subject.run("import");
    let base = run.prepare().await;
    let tar = tar_of("deep/a", "inside\n").await;
    let imported = subject.executor.import(&run.scope, &base, "/tmp/in", stream_of(tar)).await;
    let on = imported.expect("a resource can be mounted");
    if subject.has_a_shell {
        let show = Act::Show("/tmp/in/deep/a".into());
        let (code, shown) = run.run(&on, &show).await;
        assert_eq!((code, shown.text(LogStream::Stdout).as_str()), (0, "inside\n"));
        let (code, _) = run.run(&base, &show).await;
        assert_ne!(code, 0, "a workspace stays as it is");
    }
    run.destroy().await;
}

pub(super) async fn a_resource_that_breaks_off_is_not_mounted(subject: &ExecutorSubject) {
    let run = subject.run("broken");
    let base = run.prepare().await;
    let half = tar_of("a", "inside\n").await.split_off(1024);
    let broken = stream::iter([Ok(Bytes::from(half)), Err(std::io::Error::other("went away"))]);
    match subject.executor.import(&run.scope, &base, "/tmp/in", broken.boxed()).await {
        Err(ExecError::Input(why)) => assert!(why.contains("went away"), "{why}"),
        other => panic!("it is not the whole: {other:?}"),
    }
    run.destroy().await;
}

pub(super) async fn a_resource_that_cannot_be_mounted_is_refused(subject: &ExecutorSubject) {
    let run = subject.run("import");
    let base = run.prepare().await;
    let tar = stream_of(tar_of("a", "inside\n").await);
    match subject.executor.import(&run.scope, &base, "/tmp/in", tar).await {
        Err(ExecError::Unsupported(_)) => {}
        other => panic!("nothing begins on an image here: {other:?}"),
    }
    run.destroy().await;
}

pub(super) async fn an_artifact_is_what_the_step_has_made(subject: &ExecutorSubject) {
    let run = subject.run("export");
    let base = run.prepare().await;
    let put = subject.step(0, &Act::Put("made".into(), "of the first".into()));
    // The path is relative to the step's working directory.
    let there = StepSpec {
        work_dir: Some(subject.dir.clone()),
        position: 1,
        ..subject.step(1, &Act::Put("made".into(), "elsewhere".into()))
    };
    for (step, text) in [(&put, "of the first\n"), (&there, "elsewhere\n")] {
        let (ran, _) = run.step(&base, step).await.expect("the step can be run");
        assert_eq!(ran.exit.code, 0, "{:?}", step.words);
        let tar = subject.executor.export(&run.scope, &ran.workspace, "made").await;
        let files = soon("an artifact", files_of(tar.expect("it is there"))).await;
        assert_eq!(files, [("made".to_owned(), text.to_owned())], "under its last name");
        match subject.executor.export(&run.scope, &ran.workspace, "none").await {
            Err(ExecError::NoSuchPath { path }) => assert!(path.ends_with("none"), "{path}"),
            Err(other) => panic!("it is not there: {other}"),
            Ok(_) => panic!("what is not there is not made up"),
        }
        subject.executor.discard(&run.scope, ran.workspace).await;
    }
    run.destroy().await;
}

pub(super) async fn an_artifact_that_cannot_be_had_is_refused(subject: &ExecutorSubject) {
    let run = subject.run("export");
    let base = run.prepare().await;
    let (ran, _) = run.step(&base, &subject.step(0, &Act::Exit(0))).await.expect("a step");
    match subject.executor.export(&run.scope, &ran.workspace, "made").await {
        Err(ExecError::NoSuchPath { path }) => assert_eq!(path, "made"),
        Err(ExecError::Unsupported(_)) => {}
        Err(other) => panic!("that is not why: {other}"),
        Ok(_) => panic!("nothing of the step is here"),
    }
    subject.executor.discard(&run.scope, ran.workspace).await;
    run.destroy().await;
}
