//! Operations of a run: prepare, adopt, fetch, upload. Each of them completes once.

use std::sync::Arc;

use protocol::id::StepPosition;
use protocol::names;
use protocol::pipeline::{Artifact, Resource, ResourceKind};
use protocol::run::{Cause, Registered};
use tracing::warn;

use super::completion::{Completed, Interrupted, OperationError};
use crate::ports::{
    Checkpoint, ExecError, Leak, Origin, RunScope, SecretMatcher, StopLevel, StopSignal,
    TransferError, Workspace, searched,
};
use crate::rules::env;
use crate::rules::run::{Broke, KeptStep};
use crate::worker::retry::Retry;
use crate::worker::shared::Shared;
use crate::worker::watchdog::Heartbeat;

/// Returns how an operation fails after an executor's error.
pub(super) async fn engine_failure(shared: &Shared, error: &ExecError) -> OperationError {
    // On a full disk, engines fail with various other errors.
    if matches!(error, ExecError::Engine { .. } | ExecError::Unreachable { .. })
        && is_full(shared).await
    {
        let message = format!("the container engine has no space left: {error}");
        return Broke::new(Cause::NoSpace, message).into();
    }
    // The run will be resumed once the engine is available again.
    if shared.options.rescue && matches!(error, ExecError::Unreachable { .. }) {
        return OperationError::Interrupted(Interrupted::EngineUnreachable(error.to_string()));
    }
    let exit_code = start_code(error);
    Broke { exit_code, ..Broke::new(error.cause(), error.to_string()) }.into()
}

/// Returns true if the engine's disk is full.
pub(super) async fn is_full(shared: &Shared) -> bool {
    matches!(shared.ports.executor.disk().await, Ok(Some(disk)) if disk.is_full())
}

/// Returns the exit code a shell would return if a command cannot be started.
fn start_code(error: &ExecError) -> Option<i32> {
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
) -> Result<Completed, OperationError> {
    if !scope.image.is_empty() {
        shared.room.note_use(&scope.image);
    }
    if again && let Err(cause) = shared.ports.executor.adopt(&scope, None).await {
        return Err(engine_failure(&shared, &cause).await);
    }
    match shared.ports.executor.prepare(&scope, &stop).await {
        Ok(workspace) => Ok(Completed::prepared(workspace)),
        Err(cause) => Err(engine_failure(&shared, &cause).await),
    }
}

/// After a stop it returns as soon as no step of an earlier owner runs.
pub(super) async fn adopt(
    shared: Arc<Shared>,
    scope: RunScope,
    kept: Vec<KeptStep>,
    stop: StopSignal,
) -> Result<Completed, OperationError> {
    tokio::select! {
        biased;
        done = adopt_all(&shared, &scope, kept) => return done,
        _ = stop.above(StopLevel::Run) => {}
    }
    match shared.ports.executor.end(&scope).await {
        Ok(()) => Err(stopped().into()),
        Err(cause) => Err(engine_failure(&shared, &cause).await),
    }
}

async fn adopt_all(
    shared: &Shared,
    scope: &RunScope,
    kept: Vec<KeptStep>,
) -> Result<Completed, OperationError> {
    let executor = &shared.ports.executor;
    // Ends what still runs of it, even if there is nothing to adopt.
    if kept.is_empty()
        && let Err(cause) = executor.adopt(scope, None).await
    {
        return Err(engine_failure(shared, &cause).await);
    }
    let mut adopted: Vec<(StepPosition, Workspace)> = Vec::new();
    let mut missing: Vec<StepPosition> = Vec::new();
    for KeptStep { position, image, digest } in kept {
        match executor.adopt(scope, Some(&Checkpoint { image, digest })).await {
            Ok(Some(workspace)) => adopted.push((position, workspace)),
            Ok(None) => missing.push(position),
            // The registry does not have it or is unavailable. There may be an earlier checkpoint.
            Err(cause @ ExecError::Image { .. }) => {
                tracing::warn!(run.id = %scope.run, %cause, "an image cannot be taken up");
                missing.push(position);
            }
            Err(cause) => return Err(engine_failure(shared, &cause).await),
        }
    }
    Ok(Completed::adopted(adopted, missing))
}

pub(super) async fn fetch(
    shared: Arc<Shared>,
    scope: RunScope,
    on: Workspace,
    resource: Resource,
    stop: StopSignal,
) -> Result<Workspace, OperationError> {
    let failed = |why: String| Broke::new(Cause::Resource, why);
    let named = |why: String| failed(format!("resource {}: {why}", resource.name));
    let fetched = async {
        let (prefix, what) = match resource.kind {
            ResourceKind::External => (names::PROVIDERS, "resource provider"),
            ResourceKind::Internal => (names::STORES, "artifact store"),
        };
        let url = registered_url(&shared, prefix, resource.provider.as_str()).await;
        let url = url.map_err(failed)?.ok_or_else(|| {
            failed(format!(
                "resource {} names {what} {}, which is not registered",
                resource.name, resource.provider
            ))
        })?;
        let transfer = &shared.ports.transfer;
        let tar = match resource.kind {
            ResourceKind::External => {
                transfer.external_resource(&url, &resource.params, &resource.name).await
            }
            ResourceKind::Internal => {
                transfer.internal_resource(&url, &resource.params, &resource.name).await
            }
        };
        let tar = tar.map_err(|cause| named(cause.to_string()))?;
        match shared.ports.executor.import(&scope, &on, env::MOUNTS, tar).await {
            Ok(workspace) => Ok(workspace),
            Err(cause @ ExecError::Input(_)) => Err(named(cause.to_string()).into()),
            Err(cause) => Err(engine_failure(&shared, &cause).await),
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
) -> Result<(), OperationError> {
    let failed =
        |why: String| Broke::new(Cause::Artifact, format!("artifact {}: {why}", artifact.name));
    let sent = async {
        let url = registered_url(&shared, names::STORES, artifact.store.as_str()).await;
        let url = url.map_err(failed)?.ok_or_else(|| {
            failed(format!("artifact store {} is not registered", artifact.store))
        })?;
        let tar = match shared.ports.executor.export(&scope, &left, &artifact.path).await {
            Ok(tar) => tar,
            Err(cause @ ExecError::NoSuchPath { .. }) => {
                return Err(failed(cause.to_string()).into());
            }
            Err(cause) => return Err(engine_failure(&shared, &cause).await),
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
            return Err(Broke::new(Cause::SecretLeak, cause.to_string()).into());
        }
        sent.map_err(|cause| failed(cause.to_string()).into())
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
    // This task has no watchdog: an operation ends with its run.
    let heartbeat = Heartbeat::unwatched();
    let mut retry = Retry::of_store(&*shared.ports.host, &heartbeat);
    // The run continues as long as its lease, so wait for a store that is briefly unavailable.
    let entry = loop {
        match shared.ports.store.get(&key).await {
            Ok(entry) => break entry,
            Err(cause) if cause.is_invalid_request() => return Err(cause.to_string()),
            Err(cause) => warn!(%cause, "{key} is asked for again"),
        }
        retry.wait().await;
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
async fn or_stopped<T>(
    doing: impl Future<Output = Result<T, OperationError>>,
    stop: &StopSignal,
) -> Result<T, OperationError> {
    tokio::select! {
        biased;
        done = doing => done,
        _ = stop.above(StopLevel::Run) => Err(stopped().into()),
    }
}

fn stopped() -> Broke {
    Broke::new(Cause::User, "it was stopped".to_owned())
}
