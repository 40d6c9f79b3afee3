//! Operations of a run. Each of them completes with one [`Completion`].

use std::sync::Arc;
use std::time::Duration;

use protocol::names;
use protocol::pipeline::{Artifact, Resource, ResourceKind};
use protocol::run::{Cause, Registered};
use tracing::warn;

use crate::ports::{
    Checkpoint, ExecError, Exit, Leak, Origin, RunScope, SecretMatcher, StepOutcome, StopLevel,
    StopSignal, TransferError, Workspace, searched,
};
use crate::rules::env;
use crate::rules::run::KeptStep;
use crate::worker::shared::Shared;

/// How an operation completed.
#[derive(Debug)]
pub(super) enum Completion {
    Prepared(Workspace),
    /// The adopted workspaces by position, and the positions without one.
    Adopted(Vec<(usize, Workspace)>, Vec<usize>),
    /// The step must not start although no end was requested: the run is lost, or about to be.
    OwnershipLost,
    Fetched(Workspace),
    /// The step's result, and the sizes of standard output and standard error.
    Ran(StepOutcome, u64, u64),
    Uploaded,
    Committed(Workspace),
    /// The engine became unavailable during the operation, whose outcome is unknown.
    EngineAway(String),
    /// Cause, message, and the exit code of a command that could not be started.
    Broke(Cause, String, Option<i32>),
    /// The same for a command, with the sizes of its standard output and standard error.
    BrokeSaying(Cause, String, Option<i32>, (u64, u64)),
}

/// Converts an executor's error to a completion.
pub(super) async fn completion_of(shared: &Shared, error: &ExecError) -> Completion {
    if matches!(error, ExecError::Engine { .. } | ExecError::Unreachable { .. }) {
        // On a full disk, engines fail with various other errors.
        if is_full(shared).await {
            let message = format!("the container engine has no space left: {error}");
            return Completion::Broke(Cause::NoSpace, message, None);
        }
    }
    // The run will be resumed once the engine is available again.
    if shared.options.rescue && matches!(error, ExecError::Unreachable { .. }) {
        return Completion::EngineAway(error.to_string());
    }
    Completion::Broke(error.cause(), error.to_string(), start_code(error))
}

/// Like [`completion_of`], for a command with output.
pub(super) async fn command_failed(
    shared: &Shared,
    error: &ExecError,
    said: (u64, u64),
) -> Completion {
    let done = completion_of(shared, error).await;
    let Completion::Broke(cause, message, code) = done else { return done };
    Completion::BrokeSaying(cause, message, code, said)
}

async fn is_full(shared: &Shared) -> bool {
    matches!(shared.ports.executor.disk().await, Ok(Some(disk)) if disk.is_full())
}

/// Returns the completion of a command. A command that fails on a full disk is assumed to fail for
/// that reason, whatever its exit code.
pub(super) async fn ended(
    shared: &Shared,
    scope: &RunScope,
    ran: StepOutcome,
    stop: &StopSignal,
    (stdout, stderr): (u64, u64),
) -> Completion {
    let Exit { code, oom } = ran.exit;
    if code == 0 || oom || stop.level() > StopLevel::Run {
        return Completion::Ran(ran, stdout, stderr);
    }
    if !is_full(shared).await {
        return Completion::Ran(ran, stdout, stderr);
    }
    shared.ports.executor.discard(scope, ran.left).await;
    let message = format!("the container engine has no space left: exit code {code}");
    Completion::BrokeSaying(Cause::NoSpace, message, Some(code), (stdout, stderr))
}

/// Returns the exit code a shell would return if a command cannot be started.
pub(super) fn start_code(error: &ExecError) -> Option<i32> {
    match error {
        ExecError::Start { code, .. } => Some(*code),
        ExecError::Killed { signal } => Some(128 + signal),
        ExecError::Unreachable { .. }
        | ExecError::Image { .. }
        | ExecError::NoSuchPath { .. }
        | ExecError::NotStarted
        | ExecError::NoSpace { .. }
        | ExecError::KeyQuota { .. }
        | ExecError::Unsupported(_)
        | ExecError::Engine { .. }
        | ExecError::SecretLeak { .. }
        | ExecError::Input(_)
        | ExecError::Disconnected { .. } => None,
    }
}

/// `again`: an earlier owner had started the run, and parts of it may still be running.
pub(super) async fn prepare(
    shared: Arc<Shared>,
    scope: RunScope,
    stop: StopSignal,
    again: bool,
) -> Completion {
    if !scope.image.is_empty() {
        shared.room.note_use(&scope.image);
    }
    if again && let Err(cause) = shared.ports.executor.adopt(&scope, None).await {
        return completion_of(&shared, &cause).await;
    }
    match shared.ports.executor.prepare(&scope, &stop).await {
        Ok(workspace) => Completion::Prepared(workspace),
        Err(cause) => completion_of(&shared, &cause).await,
    }
}

/// After a stop it returns as soon as no step of an earlier owner runs.
pub(super) async fn adopt(
    shared: Arc<Shared>,
    scope: RunScope,
    kept: Vec<KeptStep>,
    stop: StopSignal,
) -> Completion {
    tokio::select! {
        biased;
        done = adopt_all(&shared, &scope, kept) => return done,
        _ = stop.above(StopLevel::Run) => {}
    }
    match shared.ports.executor.end(&scope).await {
        Ok(()) => Completion::Broke(Cause::User, "it was stopped".to_owned(), None),
        Err(cause) => completion_of(&shared, &cause).await,
    }
}

async fn adopt_all(shared: &Shared, scope: &RunScope, kept: Vec<KeptStep>) -> Completion {
    let executor = &shared.ports.executor;
    // Ends what still runs of it, even if there is nothing to adopt.
    if kept.is_empty()
        && let Err(cause) = executor.adopt(scope, None).await
    {
        return completion_of(shared, &cause).await;
    }
    let (mut had, mut missing) = (Vec::new(), Vec::new());
    for KeptStep { position, image, digest } in kept {
        match executor.adopt(scope, Some(&Checkpoint { image, digest })).await {
            Ok(Some(workspace)) => had.push((position, workspace)),
            Ok(None) => missing.push(position),
            // The registry does not have it or is unavailable. There may be an earlier checkpoint.
            Err(cause @ ExecError::Image { .. }) => {
                tracing::warn!(run.id = %scope.run, %cause, "an image cannot be taken up");
                missing.push(position);
            }
            Err(cause) => return completion_of(shared, &cause).await,
        }
    }
    Completion::Adopted(had, missing)
}

pub(super) async fn fetch(
    shared: Arc<Shared>,
    scope: RunScope,
    on: Workspace,
    resource: Resource,
    stop: StopSignal,
) -> Completion {
    let fetched = async {
        let (prefix, what) = match resource.kind {
            ResourceKind::External => (names::PROVIDERS, "resource provider"),
            ResourceKind::Internal => (names::STORES, "artifact store"),
        };
        let url = match registered_url(&shared, prefix, resource.provider.as_str()).await {
            Ok(Some(url)) => url,
            Ok(None) => {
                return Completion::Broke(
                    Cause::Resource,
                    format!(
                        "resource {} names {what} {}, which is not registered",
                        resource.name, resource.provider
                    ),
                    None,
                );
            }
            Err(why) => return Completion::Broke(Cause::Resource, why, None),
        };
        let transfer = &shared.ports.transfer;
        let tar = match resource.kind {
            ResourceKind::External => {
                transfer.external_resource(&url, &resource.params, &resource.name).await
            }
            ResourceKind::Internal => {
                transfer.internal_resource(&url, &resource.params, &resource.name).await
            }
        };
        let tar = match tar {
            Ok(tar) => tar,
            Err(cause) => {
                let message = format!("resource {}: {cause}", resource.name);
                return Completion::Broke(Cause::Resource, message, None);
            }
        };
        match shared.ports.executor.import(&scope, &on, env::MOUNTS, tar).await {
            Ok(workspace) => Completion::Fetched(workspace),
            Err(cause @ ExecError::Input(_)) => Completion::Broke(
                Cause::Resource,
                format!("resource {}: {cause}", resource.name),
                None,
            ),
            Err(cause) => completion_of(&shared, &cause).await,
        }
    };
    or_stopped(fetched, &stop).await
}

pub(super) async fn upload(
    shared: Arc<Shared>,
    scope: RunScope,
    left: Workspace,
    (group, name): (String, String),
    (artifact, attempt): (Artifact, u32),
    (forbidden, stop): (Option<Arc<dyn SecretMatcher>>, StopSignal),
) -> Completion {
    let sent = async {
        let failed = |why: String| {
            Completion::Broke(Cause::Artifact, format!("artifact {}: {why}", artifact.name), None)
        };
        let url = match registered_url(&shared, names::STORES, artifact.store.as_str()).await {
            Ok(Some(url)) => url,
            Ok(None) => {
                return failed(format!("artifact store {} is not registered", artifact.store));
            }
            Err(why) => return failed(why),
        };
        let tar = match shared.ports.executor.export(&scope, &left, &artifact.path).await {
            Ok(tar) => tar,
            Err(cause @ ExecError::NoSuchPath { .. }) => return failed(cause.to_string()),
            Err(cause) => return completion_of(&shared, &cause).await,
        };
        let path = [group.as_str(), name.as_str(), scope.run.as_str(), artifact.name.as_str()];
        let origin = Origin { run: scope.run.clone(), epoch: scope.epoch, attempt };
        let (tar, leak) = match &forbidden {
            Some(forbidden) => searched(tar, &**forbidden),
            None => (tar, Leak::default()),
        };
        let sent = shared.ports.transfer.upload_artifact(&url, path, tar, &origin).await;
        if leak.is_found() {
            let what = format!("artifact {}", artifact.name);
            let cause = TransferError::SecretLeak { what };
            return Completion::Broke(Cause::SecretLeak, cause.to_string(), None);
        }
        match sent {
            Ok(()) => Completion::Uploaded,
            Err(cause) => failed(cause.to_string()),
        }
    };
    or_stopped(sent, &stop).await
}

/// Returns the URL that is currently registered under a name.
async fn registered_url(
    shared: &Shared,
    prefix: &str,
    name: &str,
) -> Result<Option<String>, String> {
    let key = format!("{prefix}{name}");
    let mut wait = Duration::from_millis(50);
    // The run continues as long as its lease, so wait for a store that is briefly unavailable.
    let entry = loop {
        match shared.ports.store.get(&key).await {
            Ok(entry) => break entry,
            Err(cause) if cause.is_invalid_request() => return Err(cause.to_string()),
            Err(cause) => warn!(%cause, "{key} is asked for again"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(1));
    };
    entry
        .map(|entry| {
            serde_json::from_slice::<Registered>(&entry.value)
                .map(|registered| registered.url)
                .map_err(|cause| format!("{prefix}{name} in the store is unreadable: {cause}"))
        })
        .transpose()
}

/// Returns early if the run is asked to end. Transfers can be dropped at any point.
async fn or_stopped(doing: impl Future<Output = Completion>, stop: &StopSignal) -> Completion {
    tokio::select! {
        biased;
        done = doing => done,
        _ = stop.above(StopLevel::Run) => {
            Completion::Broke(Cause::User, "it was stopped".to_owned(), None)
        }
    }
}
