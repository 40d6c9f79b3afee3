//! Collects the result and the outputs of a step.

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use protocol::budget::shortened;
use protocol::id::StepPosition;
use protocol::pipeline::{Missing, Output as Asked, OutputKind, RelativeTo, Selection};
use protocol::run::Cause;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::StreamReader;

use super::mask::RunMask;
use super::output::Output;
use super::state::Drive;
use crate::ports::{
    ArchiveMatch, ByteStream, ExecError, JOB_DIR, KeptOutputs, Notices, Origin, Outputs, RunScope,
    StepOutcome, StopLevel, StopSignal, TransferError, Workspace,
};
use crate::rules::job::{self, MAX_RESULT, RESULT_FILE, result_of};
use crate::worker::shared::Shared;

/// The maximum size of a notice about outputs, in bytes. Paths can be long, and the limit on output
/// does not count notices.
const NOTICE_BYTES: usize = 1024;

/// What to collect after a step's command has ended.
pub(super) struct CollectRequest {
    outputs: Vec<Asked>,
    /// The names above all output paths.
    under: Vec<String>,
    origin: Origin,
    /// The mask of the run.
    mask: RunMask,
}

/// Why the result or outputs could not be collected.
pub(super) enum NotTaken {
    Engine(ExecError),
    Files(Cause, String),
}

impl From<ExecError> for NotTaken {
    fn from(error: ExecError) -> Self {
        Self::Engine(error)
    }
}

impl From<TransferError> for NotTaken {
    fn from(error: TransferError) -> Self {
        let cause = match &error {
            TransferError::SecretLeak { .. } => Cause::SecretLeak,
            TransferError::Unreachable { .. }
            | TransferError::Refused { .. }
            | TransferError::BadUrl { .. }
            | TransferError::BadParams(_)
            | TransferError::Store { .. }
            | TransferError::Removal { .. }
            | TransferError::Input(_) => Cause::Artifact,
        };
        Self::Files(cause, format!("an output cannot be kept: {error}"))
    }
}

impl Drive {
    pub(super) fn request(&self, position: StepPosition) -> Option<CollectRequest> {
        let (step, record) = (self.step(position)?, self.run.record());
        let under = if self.shared.options.logs.is_some() {
            vec![job::id(&record.run_id, step)]
        } else {
            let names = [record.group.as_str(), &record.name, record.run_id.as_str()];
            names.into_iter().chain([step.name.as_str()]).map(str::to_owned).collect()
        };
        let (run, epoch) = (self.scope.run.clone(), self.scope.epoch);
        Some(CollectRequest {
            outputs: step.outputs.clone(),
            under,
            origin: Origin { run, epoch, attempt: self.run.attempt(position) },
            mask: self.secrets.mask(),
        })
    }
}

impl CollectRequest {
    /// The path of the step's result for the executor, if the step declares one.
    fn result_path(&self) -> Option<String> {
        let result = self.outputs.iter().find(|output| output.path == RESULT_FILE)?;
        Some(path_in(result.relative_to, RESULT_FILE))
    }
}

/// A path below the directory of an output, as the executor takes it.
fn path_in(dir: RelativeTo, path: &str) -> String {
    match dir {
        RelativeTo::WorkDir => path.to_owned(),
        RelativeTo::JobDir => format!("{JOB_DIR}/{path}"),
    }
}

/// The context of a collection.
struct Collection<'a> {
    shared: &'a Shared,
    scope: &'a RunScope,
    wanted: &'a CollectRequest,
    out: &'a Output,
}

/// Collects a step's result and outputs, whatever its exit code, unless it was asked to end.
pub(super) async fn collect(
    (shared, scope): (&Shared, &RunScope),
    ran: &mut StepOutcome,
    wanted: &CollectRequest,
    out: &Output,
    stop: &StopSignal,
) -> Result<(), NotTaken> {
    if wanted.outputs.is_empty() && ran.result.is_none() {
        return Ok(());
    }
    let taking = Collection { shared, scope, wanted, out };
    tokio::select! {
        biased;
        _ = stop.above(StopLevel::Run) => Ok(()),
        taken = taking.take(ran) => taken,
    }
}

impl Collection<'_> {
    async fn take(&self, ran: &mut StepOutcome) -> Result<(), NotTaken> {
        let is_told = ran.result.is_some();
        self.take_result(ran).await?;
        let Some(outputs) = &self.shared.ports.outputs else { return Ok(()) };
        let mut kept = KeptOutputs::new(self.wanted.under.clone(), self.wanted.origin.clone());
        kept.forbidden = self.wanted.mask.forbidden();
        let kept_files = self.keep(&**outputs, &mut kept, ran, is_told).await;
        for notice in kept.notices() {
            self.note(&notice).await;
        }
        kept_files?;
        let store = outputs.name();
        let mut stored = Notices::default();
        for file in kept.files() {
            let (path, size, sum) = (&file.path, file.stored.size, &file.stored.sha256);
            stored.add(|| format!("output {path} is kept in {store}: {size} bytes, SHA-256 {sum}"));
        }
        for notice in stored.lines(|more| format!("{more} more outputs are kept in {store}")) {
            self.note(&notice).await;
        }
        Ok(())
    }

    /// Publishes a notice about outputs, shortened.
    async fn note(&self, notice: &str) {
        // Masked before it is shortened, so that it cannot end with a part of a secret.
        let notice = shortened(self.wanted.mask.text(notice), NOTICE_BYTES);
        self.out.note(&notice).await;
    }

    async fn take_result(&self, ran: &mut StepOutcome) -> Result<(), NotTaken> {
        if ran.result.is_none()
            && ran.workspace != Workspace::None
            && let Some(path) = self.wanted.result_path()
        {
            match self.file(&ran.workspace, &path).await {
                Ok(bytes) => match result_of(&bytes) {
                    Ok(result) => ran.result = Some(result),
                    Err(why) => self.out.note(&why).await,
                },
                // Most steps have no result.
                Err(ExecError::NoSuchPath { .. }) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
        let Some(result) = ran.result.take() else { return Ok(()) };
        match self.masked_result(&result) {
            Ok(result) => ran.result = Some(result),
            Err(why) => self.out.note(&why).await,
        }
        Ok(())
    }

    /// Masks a result, as users and later steps see it.
    fn masked_result(&self, result: &Value) -> Result<Value, String> {
        let text = result.to_string();
        if text.len() > MAX_RESULT {
            let size = text.len();
            return Err(format!(
                "its result has {size} bytes, more than {MAX_RESULT}: later steps cannot ask for it"
            ));
        }
        serde_json::from_str(&self.wanted.mask.text(&text)).map_err(|_no_json_any_more| {
            "a secret of the run is a part of its result: later steps cannot ask for it".to_owned()
        })
    }

    /// Returns the content of a small file, or one byte more than the limit of a larger one.
    async fn file(&self, left: &Workspace, path: &str) -> Result<BytesMut, ExecError> {
        let broke = |cause: std::io::Error| ExecError::Engine {
            doing: "reading a file of a step".to_owned(),
            cause: cause.to_string(),
        };
        let tar = self.shared.ports.executor.export(self.scope, left, path).await?;
        let tar = StreamReader::new(tar.map_err(std::io::Error::other));
        let mut entries = tokio_tar::Archive::new(tar).entries().map_err(broke)?;
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

    async fn keep(
        &self,
        outputs: &dyn Outputs,
        kept: &mut KeptOutputs,
        ran: &StepOutcome,
        is_told: bool,
    ) -> Result<(), NotTaken> {
        for asked in &self.wanted.outputs {
            let files = |why| NotTaken::Files(Cause::Artifact, why);
            let selection = Selection::of(asked).map_err(|why| files(why.to_string()))?;
            let is_result = asked.path == RESULT_FILE;
            let matched = match &ran.result {
                // The result was reported at the end of the step and is not in a file.
                Some(result) if is_result && is_told => {
                    let tar = result_tar(result).await?;
                    outputs.keep(kept, &selection, RESULT_FILE, tar).await?.matched
                }
                Some(_) | None => {
                    self.keep_output(outputs, kept, (&selection, asked.relative_to), &ran.workspace)
                        .await?
                }
            };
            if matched {
                continue;
            }
            let what = match asked.kind {
                Some(OutputKind::Dir) => "directory",
                Some(OutputKind::File) | None => "file",
            };
            let nothing = format!("there is no {what} {} to keep", asked.path);
            match asked.missing {
                Missing::Ignore => {}
                Missing::Warn => kept.missing.add(|| nothing),
                // A command that failed by itself may not have produced the output.
                Missing::Fail if ran.exit.code != 0 => kept.missing.add(|| nothing),
                Missing::Fail => return Err(files(nothing)),
            }
        }
        Ok(())
    }

    /// Stores the files of an output from the step's workspace. Returns whether any file matched.
    async fn keep_output(
        &self,
        outputs: &dyn Outputs,
        kept: &mut KeptOutputs,
        (selection, dir): (&Selection, RelativeTo),
        left: &Workspace,
    ) -> Result<bool, NotTaken> {
        if *left == Workspace::None {
            return Ok(false);
        }
        let mut matched = false;
        let mut open = vec![selection.base().to_owned()];
        while let Some(at) = open.pop() {
            let path = path_in(dir, &at);
            let tar = match self.shared.ports.executor.export(self.scope, left, &path).await {
                Ok(tar) => tar,
                Err(ExecError::NoSuchPath { .. }) => continue,
                Err(cause) => return Err(cause.into()),
            };
            let ArchiveMatch { matched: some, links } =
                outputs.keep(kept, selection, &at, tar).await?;
            matched |= some;
            open.extend(links);
        }
        Ok(matched)
    }
}

/// Returns the result as a tar archive with the result file.
async fn result_tar(result: &Value) -> Result<ByteStream, NotTaken> {
    let failed = |cause: std::io::Error| NotTaken::Files(Cause::Artifact, cause.to_string());
    let text = serde_json::to_vec_pretty(result).map_err(|cause| failed(cause.into()))?;
    let mut tar = tokio_tar::Builder::new(Vec::new());
    let mut header = tokio_tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_entry_type(tokio_tar::EntryType::Regular);
    tar.append_data(&mut header, RESULT_FILE, &*text).await.map_err(failed)?;
    let bytes = tar.into_inner().await.map_err(failed)?;
    Ok(futures::stream::iter([Ok(Bytes::from(bytes))]).boxed())
}
