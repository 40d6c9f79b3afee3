//! Control groups (version 2): limits on the memory and processors of a whole step.
//!
//! A worker with a delegated group moves itself into a leaf below it, because a group that
//! delegates controllers must not contain processes. Each step with limits gets a group next to
//! that leaf.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::id::RunId;
use protocol::pipeline::Limits;
use rustix::fs::{Access, access};
use rustix::process::{Pid, Signal, getpid, kill_process};

use super::descendants::below;

/// The controllers that must be delegated.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// The leaf group of the worker.
const LEAF: &str = "bob-runner";
const PROCESSES: &str = "cgroup.procs";
const HANDED_ON: &str = "cgroup.subtree_control";
/// The period of the processor quota.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// How often the end of killed processes is polled, and the pause between polls.
const LOOKS: usize = 250;
const AGAIN: Duration = Duration::from_millis(20);
/// How often processes are moved. Each round finds those that started during the previous one.
const MOVES: usize = 5;

const ADVICE: &str = "set Delegate=yes in the unit of the worker, or start it by `systemd-run --user --scope -p Delegate=yes`";

/// The directory of this process's group, or its parent if the group is a worker's leaf. `None` if
/// no control groups of version 2 are mounted.
#[must_use]
pub fn own() -> Option<PathBuf> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    find(&groups, &mounts)
}

fn find(groups: &str, mounts: &str) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let dir = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then_some(())?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        // This mount does not show the process's part of the tree.
        let below = Path::new(group).strip_prefix(root).ok()?;
        // Drops the trailing slash if the group is the root of the mount.
        Some(Path::new(at).join(below).components().collect::<PathBuf>())
    })?;
    if dir.ends_with(LEAF) { dir.parent().map(Path::to_owned) } else { Some(dir) }
}

fn words(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn lacking(file: &Path) -> Vec<&'static str> {
    let has = words(file);
    CONTROLLERS.into_iter().filter(|name| !has.iter().any(|one| one == name)).collect()
}

/// This process and all its descendants.
fn ours() -> Vec<String> {
    let own = i64::from(getpid().as_raw_nonzero().get());
    std::iter::once(own).chain(below(own)).map(|pid| pid.to_string()).collect()
}

/// Why steps cannot have groups below this one. `None` if they can.
#[must_use]
pub fn refused(own: Option<&Path>) -> Option<String> {
    let Some(dir) = own else {
        return Some(format!(
            "no control groups of version 2 are mounted here, which limits of steps on the host need (boot with systemd.unified_cgroup_hierarchy=1, and {ADVICE})"
        ));
    };
    let shown = dir.display();
    let missing = lacking(&dir.join("cgroup.controllers"));
    if !missing.is_empty() {
        let missing = missing.join(" and no ");
        return Some(format!(
            "the control group of this worker, {shown}, has no {missing} controller ({ADVICE})"
        ));
    }
    let is_ours = ["", PROCESSES, HANDED_ON]
        .into_iter()
        .all(|file| access(dir.join(file), Access::WRITE_OK).is_ok());
    if !is_ours {
        return Some(format!(
            "the control group of this worker, {shown}, is not its own to change ({ADVICE})"
        ));
    }
    let ours = ours();
    let others = words(&dir.join(PROCESSES)).iter().any(|pid| !ours.contains(pid));
    (others && !lacking(&dir.join(HANDED_ON)).is_empty()).then(|| {
        format!("other processes are in the control group of this worker, {shown} ({ADVICE})")
    })
}

/// Moves this process into the leaf and delegates the controllers.
fn delegate(own: &Path) -> std::io::Result<()> {
    let handed_on = own.join(HANDED_ON);
    for left in (0..MOVES).rev() {
        if lacking(&handed_on).is_empty() {
            return Ok(());
        }
        let leaf = own.join(LEAF);
        made(std::fs::create_dir(&leaf))?;
        // This process first, so that its new children start in the leaf.
        for pid in ours() {
            match std::fs::write(leaf.join(PROCESSES), pid) {
                // The process has ended.
                Err(cause)
                    if cause.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error()) =>
                {
                    return Err(cause);
                }
                Ok(()) | Err(_) => {}
            }
        }
        match std::fs::write(&handed_on, CONTROLLERS.map(|name| format!("+{name}")).join(" ")) {
            Ok(()) => return Ok(()),
            Err(cause) if left > 0 && cause.kind() == ErrorKind::ResourceBusy => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

fn made(done: std::io::Result<()>) -> std::io::Result<()> {
    done.or_else(|cause| if cause.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(cause) })
}

/// The group of one step.
#[derive(Debug, Clone)]
pub(super) struct Group {
    dir: PathBuf,
}

impl Group {
    /// The existing group at `dir`.
    pub(super) fn of(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Creates the group of a step below the worker's own group.
    pub(super) fn make(
        own: &Path,
        (run, step): (&RunId, &str),
        limits: &Limits,
        processes: Option<u32>,
    ) -> std::io::Result<Self> {
        delegate(own)?;
        let group = Self { dir: own.join(format!("{run}.{step}")) };
        // Remove what an owner that died during an earlier start left.
        group.end()?;
        std::fs::create_dir(&group.dir)?;
        let limited = group.limit(limits, processes);
        if limited.is_err() {
            // Report the first error, not one of the cleanup.
            group.end().ok();
        }
        limited.map(|()| group)
    }

    fn limit(&self, limits: &Limits, processes: Option<u32>) -> std::io::Result<()> {
        let write = |file: &str, what: String| std::fs::write(self.dir.join(file), what);
        if let Some(mem) = limits.mem {
            write("memory.max", mem.bytes().to_string())?;
            for (file, what) in [("memory.swap.max", "0"), ("memory.oom.group", "1")] {
                match write(file, what.to_owned()) {
                    // This file does not exist without swap or on an older kernel.
                    Err(cause) if cause.kind() == ErrorKind::PermissionDenied => {}
                    done => done?,
                }
            }
        }
        if let Some(cpu) = limits.cpu {
            let quota = quota(cpu.share(), std::thread::available_parallelism()?.get());
            write("cpu.max", format!("{quota} {CPU_PERIOD_MICROS}"))?;
        }
        // A process limit counts all processes of the user; this limit counts only the step's.
        processes.map_or(Ok(()), |most| write("pids.max", most.to_string()))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves this process into the group.
    pub(super) fn enter(&self) -> std::io::Result<()> {
        std::fs::write(self.dir.join(PROCESSES), getpid().to_string())
    }

    /// Whether the kernel killed a process of the group because it ran out of memory.
    pub(super) fn is_out_of_memory(&self) -> bool {
        let events = std::fs::read_to_string(self.dir.join("memory.events")).unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|kills| kills.trim() != "0")
    }

    /// Kills all processes of the group.
    pub(super) fn kill(&self) {
        if std::fs::write(self.dir.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        // The kernel is older than 5.14.
        for pid in words(&self.dir.join(PROCESSES)) {
            let pid = pid.parse().ok().and_then(Pid::from_raw);
            // The process might already be gone.
            pid.map(|pid| kill_process(pid, Signal::KILL));
        }
    }

    /// Kills all processes and removes the group and its subgroups. A missing group is not an
    /// error.
    #[expect(clippy::disallowed_methods, reason = "callers can block")]
    pub(super) fn end(&self) -> std::io::Result<()> {
        let mut looks = 0;
        loop {
            if !self.dir.exists() {
                return Ok(());
            }
            self.kill();
            match removed(&self.dir) {
                Err(cause) if cause.kind() == ErrorKind::ResourceBusy && looks < LOOKS => {
                    looks += 1;
                    std::thread::sleep(AGAIN);
                }
                done => return done,
            }
        }
    }
}

/// Removes a group, its subgroups first. The kernel removes a group's files with it.
fn removed(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            removed(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Removes the groups of a run's steps that a dead worker left.
pub(super) fn forget(own: &Path, run: &RunId) -> std::io::Result<()> {
    for entry in std::fs::read_dir(own).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        let of_run = name.to_str().and_then(|name| name.rsplit_once('.'));
        let is_left = of_run.is_some_and(|(of, _)| of == run.as_str());
        if is_left && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            Group::of(entry.path()).end()?;
        }
    }
    Ok(())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share from 0 to 1 of at most some thousand processors"
)]
fn quota(share: f64, processors: usize) -> u64 {
    let micros = share * processors as f64 * CPU_PERIOD_MICROS as f64;
    // The kernel's minimum is one millisecond.
    (micros.round() as u64).max(1000)
}

#[cfg(test)]
mod tests;
