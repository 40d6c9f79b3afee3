//! Takes over what a step leaves to its run: its result.

use bytes::BytesMut;
use futures::{StreamExt as _, TryStreamExt as _};
use protocol::pipeline::{ExecutorKind, Step};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::StreamReader;

use super::Shared;
use super::output::Output;
use crate::ports::{ExecError, JOB_DIR, Ran, RunScope, StopLevel, StopSignal, Workspace};
use crate::rules::job::{MAX_RESULT, RESULT_FILE, result_of};

/// What a step is asked for once its command has ended.
pub(super) struct Wanted {
    /// Whether later steps may ask for what is in its result file.
    result: bool,
    /// Where its files are, if not in its working directory.
    dir: Option<&'static str>,
}

impl Wanted {
    pub(super) fn of(step: &Step) -> Self {
        let has_own_dir = match step.executor {
            ExecutorKind::Docker | ExecutorKind::Local | ExecutorKind::Custom => true,
            ExecutorKind::Podman
            | ExecutorKind::Ssh
            | ExecutorKind::Proxmox
            | ExecutorKind::Lexware
            | ExecutorKind::Sevdesk
            | ExecutorKind::Http => false,
        };
        Self {
            result: step.outputs.iter().any(|output| output.path == RESULT_FILE),
            dir: has_own_dir.then_some(JOB_DIR),
        }
    }

    fn path(&self, file: &str) -> String {
        self.dir.map_or_else(|| file.to_owned(), |dir| format!("{dir}/{file}"))
    }
}

/// Takes over what a step has left, whatever it ended with; nothing of one that was asked to end.
pub(super) async fn collect(
    shared: &Shared,
    scope: &RunScope,
    ran: &mut Ran,
    wanted: &Wanted,
    out: &Output,
    stop: &StopSignal,
) -> Result<(), ExecError> {
    if !wanted.result && ran.result.is_none() {
        return Ok(());
    }
    tokio::select! {
        biased;
        _ = stop.above(StopLevel::Run) => Ok(()),
        taken = take_result(shared, scope, ran, wanted, out) => taken,
    }
}

async fn take_result(
    shared: &Shared,
    scope: &RunScope,
    ran: &mut Ran,
    wanted: &Wanted,
    out: &Output,
) -> Result<(), ExecError> {
    if let Some(result) = &ran.result {
        let size = result.to_string().len();
        if size > MAX_RESULT {
            out.note(&format!(
                "its result has {size} bytes, more than {MAX_RESULT}: later steps cannot ask for it"
            ))
            .await;
            ran.result = None;
        }
        return Ok(());
    }
    if ran.left == Workspace::None {
        return Ok(());
    }
    match file(shared, scope, &ran.left, &wanted.path(RESULT_FILE)).await {
        Ok(bytes) => match result_of(&bytes) {
            Ok(result) => ran.result = Some(result),
            Err(why) => out.note(&why).await,
        },
        // Most steps have none.
        Err(ExecError::NoSuchPath { .. }) => {}
        Err(cause) => return Err(cause),
    }
    Ok(())
}

/// The bytes of a small file that a step has left; of a larger one, one more than may be.
async fn file(
    shared: &Shared,
    scope: &RunScope,
    left: &Workspace,
    path: &str,
) -> Result<BytesMut, ExecError> {
    let broke = |cause: std::io::Error| ExecError::Engine {
        doing: "reading a file of a step".to_owned(),
        cause: cause.to_string(),
    };
    let tar = shared.ports.executor.export(scope, left, path).await?;
    let mut tar = tokio_tar::Archive::new(StreamReader::new(tar.map_err(std::io::Error::other)));
    let mut entries = tar.entries().map_err(broke)?;
    let mut bytes = BytesMut::new();
    while let Some(entry) = entries.next().await {
        let entry = entry.map_err(broke)?;
        if entry.header().entry_type().is_file() {
            let mut entry = entry.take(MAX_RESULT as u64 + 1);
            while entry.read_buf(&mut bytes).await.map_err(broke)? > 0 {}
            return Ok(bytes);
        }
    }
    Err(ExecError::NoSuchPath { path: path.to_owned() })
}
