//! Per-process limits of a step's processes (rlimits).

use protocol::pipeline::ProcessLimits;
use protocol::quantity::readable;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::exec::with::has_known_keys;
use crate::ports::{ExecError, StepSpec};

/// One limit: its key, its resource, its value, and the name of its systemd directive.
struct Limit {
    key: &'static str,
    resource: Resource,
    most: u64,
    in_bytes: bool,
    directive: &'static str,
}

/// All limits. The address space comes last, since allocations can fail once it is set.
fn all(limits: &ProcessLimits) -> impl Iterator<Item = Limit> {
    let limit = |key, resource, most: Option<u64>, in_bytes, directive| {
        most.map(|most| Limit { key, resource, most, in_bytes, directive })
    };
    let count = |key, resource, most: Option<u32>, directive| {
        limit(key, resource, most.map(u64::from), false, directive)
    };
    let bytes = |key, resource, most: Option<protocol::quantity::Memory>, directive| {
        limit(key, resource, most.map(protocol::quantity::Memory::bytes), true, directive)
    };
    let seconds = limits.cpu_time.map(|span| span.as_millis() / 1000);
    [
        count("open-files", Resource::Nofile, limits.open_files, "LimitNOFILE"),
        count("processes", Resource::Nproc, limits.processes, "LimitNPROC"),
        bytes("file-size", Resource::Fsize, limits.file_size, "LimitFSIZE"),
        limit("cpu-time", Resource::Cpu, seconds, false, "LimitCPU"),
        bytes("core-size", Resource::Core, limits.core_size, "LimitCORE"),
        bytes("stack", Resource::Stack, limits.stack, "LimitSTACK"),
        bytes("memory", Resource::As, limits.memory, "LimitAS"),
    ]
    .into_iter()
    .flatten()
}

/// The limits of a step.
///
/// # Errors
/// [`ExecError::Unsupported`] if `with` has an unknown key, or this process has a lower hard limit.
pub(super) fn of(step: &StepSpec) -> Result<ProcessLimits, ExecError> {
    let refused = |why: String| ExecError::Unsupported(format!("step {}: {why}", step.name));
    has_known_keys(step.name.as_str(), step.executor, &step.with)
        .map_err(ExecError::Unsupported)?;
    let limits = ProcessLimits::from_with(&step.with);
    let limits = limits.map_err(|cause| refused(format!("`limits` in `with`: {cause}")))?;
    for Limit { key, resource, most, in_bytes, directive } in all(&limits) {
        let Some(hard) = getrlimit(resource).maximum.filter(|hard| most > *hard) else { continue };
        let shown = |amount| if in_bytes { readable(amount) } else { amount.to_string() };
        return Err(refused(format!(
            "`{key}` of {} is above {}, the hard limit of this worker: ask for less, or raise it ({directive}= in its unit)",
            shown(most),
            shown(hard),
        )));
    }
    Ok(limits)
}

/// Sets limits on this process and its future children.
///
/// # Errors
/// The limit that could not be set, with the system's error.
pub(super) fn take_on(limits: &ProcessLimits) -> Result<(), String> {
    for Limit { key, resource, most, .. } in all(limits) {
        let hard = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        // The soft limit sends SIGXCPU and the hard limit SIGKILL. If both are equal, only SIGKILL
        // is sent.
        let more = u64::from(resource == Resource::Cpu);
        let maximum = most.saturating_add(more).min(hard);
        let both = Rlimit { current: Some(most), maximum: Some(maximum) };
        setrlimit(resource, both).map_err(|cause| format!("`{key}` of {most}: {cause}"))?;
    }
    Ok(())
}
