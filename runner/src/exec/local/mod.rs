//! Runs steps as processes of the worker's host.
//!
//! Each step has a supervisor (`supervise`), another process of this program. It runs the step's
//! command, ends it with all its descendants, and outlives its worker only until that is done. No
//! value given to a step appears in an argument list.

mod cgroup;
mod command;
mod descendants;
mod fault;
mod limited;
mod limits;
mod orphans;
mod script;
mod secrets;
mod step;
mod supervise;
mod word;

use std::ffi::OsString;
use std::os::unix::net::UnixStream as Pair;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use async_trait::async_trait;
use protocol::id::RunId;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio_util::task::TaskTracker;

use self::cgroup::Group;
pub use self::cgroup::{own as own_cgroup, refused as limits_refused};
use self::fault::failed;
use self::secrets::{SecretsDirs, WrittenSecrets};
pub use self::supervise::supervise;
use self::word::{JOB_VARIABLE, Job};
use crate::ports::{
    ByteStream, EngineInfo, ExecError, Gate, JOB_DIR, LeftoverRun, LogSink, RunScope, StepOutcome,
    StepSpec, Steps, StopSignal, Workspace,
};

/// Where steps run, and how their supervisors are started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program of a supervisor, and the arguments that make it one.
    pub supervisor: (PathBuf, Vec<OsString>),
    /// The parent of all run directories.
    pub runs: PathBuf,
    /// The working directory of all steps. `None`: a directory of the run.
    pub work_dir: Option<PathBuf>,
    /// Variables that steps inherit from this process. Those of bob-runner itself are left out.
    pub inherited: Vec<(OsString, OsString)>,
    /// In-memory directories. Secrets are stored below the first one.
    pub memory: Vec<PathBuf>,
    /// The parent control group of steps with limits. `None` if groups are not available.
    pub cgroup: Option<PathBuf>,
}

/// The executor of steps that run as processes of this host.
#[derive(Debug, Clone)]
pub struct Local {
    options: Arc<Options>,
    tasks: TaskTracker,
}

/// The executor's name in nodes and events.
pub const NAME: &str = "local";
/// In a run's directory: the id of the store that has the run.
const CLUSTER: &str = "cluster";
/// In a run's directory: the working directory of its steps.
const WORK: &str = "work";
/// Next to a job directory: a link to the step's start directory, if it is not the default.
const BEGAN: &str = "began";
/// The directories of a step.
#[derive(Debug, Clone)]
struct Dirs {
    run: PathBuf,
    work: PathBuf,
    /// The directory that the step starts in.
    step: PathBuf,
    /// The job directory. Files that the step leaves here are kept.
    job: PathBuf,
}

impl Local {
    /// Creates an executor. Does not touch the file system.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options: Arc::new(options), tasks: TaskTracker::new() }
    }

    fn place(&self) -> SecretsDirs {
        SecretsDirs::new(self.options.memory.clone())
    }

    /// Writes a step's secrets and adds them to its job.
    async fn hand(
        &self,
        run: &RunId,
        step: &StepSpec,
        job: &mut Job,
    ) -> Result<WrittenSecrets, ExecError> {
        let (place, given) = (self.place(), step.secrets.granted.clone());
        let (run, name) = (run.clone(), format!("{}-{}", step.position, step.attempt));
        let handed = tokio::task::spawn_blocking(move || place.hand((&run, &name), &given)).await;
        let handed = handed.map_err(|cause| failed("handing secrets to a step", cause))?;
        let mut handed =
            handed.map_err(|why| ExecError::Unsupported(format!("step {}: {why}", step.name)))?;
        job.env.append(&mut handed.env);
        Ok(handed)
    }

    fn dir(&self, run: &RunId) -> PathBuf {
        self.options.runs.join(run.as_str())
    }

    /// Creates the directories of a run and of a step.
    async fn make(&self, run: &RunScope, step: &StepSpec) -> std::io::Result<Dirs> {
        let dir = self.dir(&run.run);
        let work = self.options.work_dir.clone().unwrap_or_else(|| dir.join(WORK));
        let job = dir.join(format!("job-{}-{}", step.position, step.attempt));
        let own = step.work_dir.as_ref().map(|own| work.join(own));
        let dirs = Dirs { run: dir, step: own.unwrap_or_else(|| work.clone()), work, job };
        let (made, cluster) = (dirs.clone(), Arc::clone(&run.cluster));
        let made = tokio::task::spawn_blocking(move || {
            use std::os::unix::fs::DirBuilderExt as _;
            // Other users must not see a step's files.
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&made.run)?;
            std::fs::write(made.run.join(CLUSTER), cluster.as_bytes())?;
            std::fs::create_dir_all(&made.work)?;
            std::fs::create_dir_all(&made.job)?;
            if made.step == made.work {
                return Ok(());
            }
            // A lost owner may already have started this attempt.
            match std::os::unix::fs::symlink(made.step, made.job.with_extension(BEGAN)) {
                Err(cause) if cause.kind() != std::io::ErrorKind::AlreadyExists => Err(cause),
                Ok(()) | Err(_) => Ok(()),
            }
        });
        made.await.map_err(std::io::Error::other)??;
        Ok(dirs)
    }

    /// The job for a step's supervisor, and the directory of the files that the step leaves.
    async fn job(&self, run: &RunScope, step: &StepSpec) -> Result<(Job, PathBuf), ExecError> {
        let made = self.make(run, step).await;
        let dirs = made.map_err(|cause| failed("making a run's directory", cause))?;
        let Dirs { run: dir, step: began, job, .. } = dirs;
        let words = match &step.script {
            None => step.words.iter().map(OsString::from).collect(),
            Some(script) => {
                let dir = dir.join(format!("step-{}-{}", step.position, step.attempt));
                let written = script::write(&step.name, dir, script).await;
                written.map_err(|cause| failed("writing a step's script", cause))?
            }
        };
        let own = step.env.iter().map(|(name, value)| (name.into(), value.into()));
        let job_dir = (JOB_VARIABLE.into(), job.clone().into());
        let env = self.options.inherited.iter().cloned().chain(own).chain([job_dir]).collect();
        let limits = limits::of(step)?;
        Ok((Job { words, env, dir: began, limits, group: None }, job))
    }

    /// Creates the control group of a limited step and adds it to its job.
    async fn group(&self, run: &RunId, step: &StepSpec, job: &mut Job) -> Result<(), ExecError> {
        let limits = step.limits.clone();
        if limits.cpu.is_none() && limits.mem.is_none() {
            return Ok(());
        }
        let cgroup = self.options.cgroup.clone();
        let of = (run.clone(), format!("{}-{}", step.position, step.attempt));
        let processes = job.limits.processes;
        let made = tokio::task::spawn_blocking(move || match cgroup.as_deref() {
            Some(own) if limits_refused(Some(own)).is_none() => {
                Group::make(own, (&of.0, &of.1), &limits, processes).map_err(Ok)
            }
            own => Err(Err(limits_refused(own).unwrap_or_default())),
        });
        let made = made.await.map_err(|cause| failed("limiting a step", cause))?;
        let group = made.map_err(|fault| match fault {
            Ok(cause) => failed("making a step's control group", cause),
            Err(why) => ExecError::Unsupported(format!(
                "step {}: `quotas.limits` cannot be enforced on this host: {why}",
                step.name
            )),
        })?;
        job.group = Some(group.dir().to_owned());
        Ok(())
    }

    /// Starts a supervisor that waits for its job.
    fn supervisor(&self) -> Result<(Child, UnixStream), ExecError> {
        let broken = |cause| failed("starting a step's supervisor", cause);
        let (ours, theirs) = Pair::pair().map_err(broken)?;
        ours.set_nonblocking(true).map_err(broken)?;
        let (program, words) = &self.options.supervisor;
        let mut command = Command::new(program);
        command
            .args(words)
            .env_clear()
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Signals from the worker's terminal must not reach the step.
            .process_group(0);
        let child = command.spawn().map_err(broken)?;
        Ok((child, UnixStream::from_std(ours).map_err(broken)?))
    }
}

#[async_trait]
impl Steps for Local {
    async fn info(&self) -> Result<EngineInfo, ExecError> {
        let (id, executor) = (NAME.to_owned(), NAME);
        let limits_refused = limits_refused(self.options.cgroup.as_deref());
        Ok(EngineInfo { id, executor, checkpoints: false, limits_refused, warning: None })
    }

    async fn run_step(
        &self,
        scope: &RunScope,
        _on: &Workspace,
        step: &StepSpec,
        gate: Gate,
        out: Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<StepOutcome, ExecError> {
        let mut job = self.job(scope, step).await?;
        self.group(&scope.run, step, &mut job.0).await?;
        let group = job.0.group.clone().map(Group::of);
        let supervisor = self.supervisor()?;
        let handed = self.hand(&scope.run, step, &mut job.0).await?;
        let (step, stop) = (step.clone(), stop.clone());
        // The caller can be dropped, but the step must run to its end.
        let ran = self.tasks.spawn(async move {
            let ran = step::run(supervisor, job, &step, gate, out, &stop).await;
            let ended = tokio::task::spawn_blocking(|| group.map_or(Ok(()), |group| group.end()));
            if let Ok(Err(cause)) = ended.await {
                tracing::warn!(step.name = %step.name, %cause, "the control group of a step stays until its run ends");
            }
            if let Err(cause) = handed.take_back() {
                tracing::warn!(step.name = %step.name, %cause, "secrets of a step stay until its run ends");
            }
            ran
        });
        ran.await.unwrap_or_else(|cause| Err(failed("running a step", cause)))
    }

    async fn discard(&self, _run: &RunScope, left: Workspace) {
        if let Workspace::Dir(dir) = left {
            // The run's removal retries this.
            tokio::fs::remove_dir_all(dir).await.ok();
        }
    }

    async fn export(
        &self,
        run: &RunScope,
        left: &Workspace,
        path: &str,
    ) -> Result<ByteStream, ExecError> {
        let of_job = path.strip_prefix(JOB_DIR).map(|path| path.trim_start_matches('/'));
        if let (Some(of_job), Workspace::Dir(own)) = (of_job, left) {
            return script::packed(own.join(of_job), of_job).await;
        }
        let usual = self.options.work_dir.clone();
        let usual = usual.unwrap_or_else(|| self.dir(&run.run).join(WORK));
        let dir = match left {
            Workspace::Dir(own) => {
                tokio::fs::read_link(own.with_extension(BEGAN)).await.unwrap_or(usual)
            }
            Workspace::Image { .. }
            | Workspace::Container { .. }
            | Workspace::Lone { .. }
            | Workspace::None => usual,
        };
        script::packed(dir.join(path), path).await
    }

    async fn clear(&self, run: &RunId) -> Result<(), ExecError> {
        self.destroy(run).await
    }

    async fn destroy(&self, run: &RunId) -> Result<(), ExecError> {
        let forgotten = self.place().forget(run);
        forgotten.map_err(|cause| failed("removing a run's secrets", cause))?;
        if let Some(own) = self.options.cgroup.clone() {
            // Before the directory, because a cleanup finds a run by its directory.
            let of = run.clone();
            let gone = tokio::task::spawn_blocking(move || cgroup::forget(&own, &of)).await;
            let gone = gone.map_err(std::io::Error::other).and_then(|gone| gone);
            gone.map_err(|cause| failed("removing a run's control groups", cause))?;
        }
        match tokio::fs::remove_dir_all(self.dir(run)).await {
            Ok(()) => Ok(()),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(failed("removing a run's directory", cause)),
        }
    }

    async fn leftovers(&self) -> Result<Vec<LeftoverRun>, ExecError> {
        let runs = self.options.runs.clone();
        let listed = tokio::task::spawn_blocking(move || {
            let entries = std::fs::read_dir(runs).into_iter().flatten().filter_map(Result::ok);
            let left = entries.filter_map(|entry| {
                let run = entry.file_name().to_str()?.parse().ok()?;
                let cluster = std::fs::read_to_string(entry.path().join(CLUSTER)).ok();
                Some(LeftoverRun { run, cluster })
            });
            let mut left: Vec<LeftoverRun> = left.collect();
            left.sort();
            left
        });
        listed.await.map_err(|cause| failed("listing what is left of runs", cause))
    }

    async fn answers(&self) -> Result<(), ExecError> {
        Ok(())
    }

    async fn end(&self, _run: &RunScope) -> Result<(), ExecError> {
        // A supervisor ends its step, whatever happens to its worker.
        Ok(())
    }
}
