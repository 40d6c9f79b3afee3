//! Control groups (version 2): what a whole step may use of the memory and the processors of the host.
//!
//! A worker whose own group is delegated to it moves into a leaf of that, as a group that hands
//! controllers on must hold no processes itself; each step with limits gets a group beside the leaf.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::id::RunId;
use protocol::pipeline::Limits;
use rustix::fs::{Access, access};
use rustix::process::{Pid, Signal, getpid, kill_process};

use super::supervise::below;

/// What has to be handed on.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// The leaf in which the worker is.
const LEAF: &str = "bob-runner";
const PROCESSES: &str = "cgroup.procs";
const HANDED_ON: &str = "cgroup.subtree_control";
/// The part of a second that a share of the processors is counted in.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// How often the end of what was killed is looked for, and how long the time between two looks is.
const LOOKS: usize = 250;
const AGAIN: Duration = Duration::from_millis(20);
/// What is begun between two looks at the processes of a group is found by the next one.
const MOVES: usize = 5;

const ADVICE: &str = "set Delegate=yes in the unit of the worker, or start it by `systemd-run --user --scope -p Delegate=yes`";

/// The directory of this process's own group, or the one above where that is the leaf of a worker.
/// `None`: no control groups of version 2 are mounted.
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
        // Of another part of the tree nothing can be said.
        let below = Path::new(group).strip_prefix(root).ok()?;
        // Without the slash that would stand behind the whole of it.
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

/// This process, and all that it has begun.
fn ours() -> Vec<String> {
    let own = i64::from(getpid().as_raw_nonzero().get());
    std::iter::once(own).chain(below(own)).map(|pid| pid.to_string()).collect()
}

/// Why steps cannot have groups of their own below this one, where they cannot.
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

/// Moves this process into the leaf, and hands the controllers on.
fn delegate(own: &Path) -> std::io::Result<()> {
    let handed_on = own.join(HANDED_ON);
    for left in (0..MOVES).rev() {
        if lacking(&handed_on).is_empty() {
            return Ok(());
        }
        let leaf = own.join(LEAF);
        made(std::fs::create_dir(&leaf))?;
        // First this one: what it begins from now on is in the leaf.
        for pid in ours() {
            match std::fs::write(leaf.join(PROCESSES), pid) {
                // One that has ended needs no move.
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
    /// The group of that directory.
    pub(super) fn of(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Makes the group of a step below the worker's own.
    pub(super) fn make(
        own: &Path,
        (run, step): (&RunId, &str),
        limits: &Limits,
        processes: Option<u32>,
    ) -> std::io::Result<Self> {
        delegate(own)?;
        let group = Self { dir: own.join(format!("{run}.{step}")) };
        // Where an owner died over an earlier start, nothing of that is to count.
        group.end()?;
        std::fs::create_dir(&group.dir)?;
        let limited = group.limit(limits, processes);
        if limited.is_err() {
            // The first fault is the one to be told of.
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
                    // A host without swap, or with an older kernel, has no such file.
                    Err(cause) if cause.kind() == ErrorKind::PermissionDenied => {}
                    done => done?,
                }
            }
        }
        if let Some(cpu) = limits.cpu {
            let quota = quota(cpu.share(), std::thread::available_parallelism()?.get());
            write("cpu.max", format!("{quota} {CPU_PERIOD_MICROS}"))?;
        }
        // That of a process counts all that its user has; this one counts the step alone.
        processes.map_or(Ok(()), |most| write("pids.max", most.to_string()))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves this process into it.
    pub(super) fn enter(&self) -> std::io::Result<()> {
        std::fs::write(self.dir.join(PROCESSES), getpid().to_string())
    }

    /// Whether the kernel has killed something of it for its memory.
    pub(super) fn is_out_of_memory(&self) -> bool {
        let events = std::fs::read_to_string(self.dir.join("memory.events")).unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|kills| kills.trim() != "0")
    }

    /// Kills all that is in it.
    pub(super) fn kill(&self) {
        if std::fs::write(self.dir.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        // A kernel before 5.14.
        for pid in words(&self.dir.join(PROCESSES)) {
            let pid = pid.parse().ok().and_then(Pid::from_raw);
            // One that is gone needs no signal.
            pid.map(|pid| kill_process(pid, Signal::KILL));
        }
    }

    /// Kills all that is in it, and removes it with what is below; one that is gone is no fault.
    #[expect(clippy::disallowed_methods, reason = "whoever calls this may be held up")]
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

/// Removes a group, those below it first. The files of a group go with it.
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

/// Ends the groups that a run's steps have left, where their worker died over them.
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
    // The kernel takes no less than a millisecond.
    (micros.round() as u64).max(1000)
}

#[cfg(test)]
mod tests;
