//! Runs one step: made and attached to while the gate is closed, started when it opens.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::join;
use protocol::id::RunId;

use super::Podman;
use super::api::{Container, Life};
use super::call::{Fault, no_space};
use super::create::Create;
use super::http::Link;
use super::image::{Known, Made};
use super::job;
use super::output::{Attached, Beginning, Follower, PATIENCE, attach};
use super::stop;
use crate::exec::demux::Seen;
use crate::exec::job::{Asked, container_name, has_tty};
use crate::ports::{
    ExecError, Exit, Gate, LogSink, Ran, RunScope, StepSpec, StopLevel, StopSignal, Workspace,
};

/// How often a container's name is freed for a new one.
const NAMING: u32 = 5;
/// At which try a name that is taken by nothing that the engine knows is freed: 600 ms after the first,
/// longer than it takes to make a container.
const GHOSTLY: u32 = 3;
/// How often an engine may go away over one step's start.
const ATTACHING: u32 = 5;
const KILLED: i32 = 137;

/// Whether the engine has an init to put in front of a step's command.
#[derive(Debug, Default)]
pub(super) struct Init {
    missing: AtomicBool,
}

/// The runs with a start that was sent and not answered.
#[derive(Debug, Default)]
pub(super) struct Starts(Mutex<BTreeSet<RunId>>);

impl Starts {
    fn runs(&self) -> std::sync::MutexGuard<'_, BTreeSet<RunId>> {
        // A set is whole whatever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_unanswered(&self, run: &RunId) -> bool {
        self.runs().contains(run)
    }

    /// The engine answers, and has nothing of the run.
    pub(super) fn forget(&self, run: &RunId) {
        self.runs().remove(run);
    }

    /// Notes what became of a start.
    fn note(&self, run: &RunId, started: &Result<(), Fault>) {
        match started {
            Err(Fault::Broken(_) | Fault::Late(_) | Fault::Garbled(_)) => {
                self.runs().insert(run.clone());
            }
            // One that was not sent changes nothing. One that was answered says what became of it.
            Ok(()) | Err(Fault::Away(_) | Fault::Refused { .. }) => {}
        }
    }
}

/// A container that waits for its start.
struct Ready {
    id: String,
    attached: Attached,
}

/// Why a container is not ready to be started.
enum NotReady {
    /// An engine that was killed while it prepared the container knows nothing of that, and can
    /// neither attach to it nor start it: its OCI runtime has it already. It never ran.
    HalfMade(ExecError),
    Failed(ExecError),
}

impl From<ExecError> for NotReady {
    fn from(error: ExecError) -> Self {
        Self::Failed(error)
    }
}

impl NotReady {
    fn into_error(self) -> ExecError {
        match self {
            Self::HalfMade(error) | Self::Failed(error) => error,
        }
    }
}

fn is_half_made(said: &str) -> bool {
    said.contains("already exists") && said.contains("OCI runtime")
}

impl Podman {
    pub(super) async fn step(
        &self,
        run: &RunScope,
        on: &Workspace,
        step: &StepSpec,
        mut gate: Gate,
        out: &dyn LogSink,
        stop: &StopSignal,
    ) -> Result<Ran, ExecError> {
        let on = self.begins_on(run, on, step, stop).await?;
        let (image, known) = self.known(run, &on).await?;
        let mut link = self.http.link();
        let opened = async {
            tokio::select! {
                biased;
                open = gate.opened() => open,
                _ = stop.above(StopLevel::Run) => false,
            }
        };
        let making = self.ready(&mut link, run, &known, &image, step);
        let (ready, open) = join(making, opened).await;
        let ready = ready?;
        let id = ready.id.clone();
        if !open || stop.level() > StopLevel::Run || !gate.stands() {
            self.reaper.soon(&self.http, &run.run, id);
            return Err(ExecError::NotStarted);
        }
        let work_dir = step.work_dir.clone().unwrap_or_else(|| known.base.work_dir.clone());
        let depth = known.depth;
        self.memory.learn_container(&run.run, &id, Made { on: image, known, work_dir });
        let ran = self.started(&mut link, run, step, ready, (out, stop)).await;
        match ran {
            Ok(Some(exit)) => Ok(Ran::new(exit, Workspace::Container { id, depth })),
            Ok(None) => {
                self.memory.forget_container(&run.run, &id);
                let exit = Exit { code: KILLED, oom: false };
                Ok(Ran::new(exit, Workspace::None))
            }
            Err(error) => {
                self.memory.forget_container(&run.run, &id);
                // Whatever it was, nothing of the step may go on.
                self.reaper.soon(&self.http, &run.run, id);
                Err(error)
            }
        }
    }

    async fn ready(
        &self,
        link: &mut Link,
        run: &RunScope,
        known: &Known,
        image: &str,
        step: &StepSpec,
    ) -> Result<Ready, ExecError> {
        let limited = step.limits.cpu.is_some() || step.limits.mem.is_some();
        let cpus = if limited { self.enforced_cpus().await? } else { 1 };
        let network = step.network.as_ref().or(self.network.as_ref());
        let mut create = Create::step(run, &known.base, image, step, network, cpus)?;
        job::put(Asked::of(step, self.shared_dirs.as_deref())?, step, &mut create);
        self.make_volume(link, run, step).await?;
        let mut tries = 0;
        loop {
            let id = self.create(link, run, image, &mut create, Some(step)).await?;
            let prepared = async {
                if limited {
                    self.has_cgroup(link, &id).await?;
                }
                let attached = self.attached(link, step, &id).await?;
                self.give(&id, &known.base.user, &step.secrets.given).await?;
                Ok(attached)
            };
            let error = match prepared.await {
                Ok(attached) => return Ok(Ready { id, attached }),
                Err(NotReady::HalfMade(error)) if tries < ATTACHING => error,
                Err(other) => {
                    self.reaper.soon(&self.http, &run.run, id);
                    return Err(other.into_error());
                }
            };
            tries += 1;
            tracing::warn!(container.id = id, %error, "a container was half made: another is made");
            // Its name is the next one's.
            let removed = link.remove(&id).await;
            removed.map_err(|fault| fault.at("removing a container", &self.http))?;
        }
    }

    /// Refuses a container that nothing limits.
    async fn has_cgroup(&self, link: &mut Link, id: &str) -> Result<(), ExecError> {
        let made = link.inspect(id, PATIENCE).await;
        let made = made.map_err(|fault| fault.at("looking at a step", &self.http))?;
        if made.is_some_and(|made| made.has_no_cgroup()) {
            return Err(ExecError::Unsupported(
                "limits cannot be enforced: the container engine is configured to use no cgroups"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Attaches to a container that is not started, also where the engine goes away over it.
    async fn attached(
        &self,
        link: &mut Link,
        step: &StepSpec,
        id: &str,
    ) -> Result<Attached, NotReady> {
        let mut tries = 0;
        loop {
            let fault = match attach(&self.http, id).await {
                Ok(attached) => return Ok(attached),
                Err(fault @ (Fault::Broken(_) | Fault::Away(_))) if tries < ATTACHING => fault,
                Err(fault) if is_half_made(fault.refusal()) => {
                    return Err(NotReady::HalfMade(self.not_started(step, fault)));
                }
                Err(fault) => return Err(self.not_started(step, fault).into()),
            };
            tries += 1;
            tracing::warn!(container.id = id, %fault, "the engine went away before a step started");
            // Answers when the engine does.
            let looked = link.inspect(id, PATIENCE).await;
            let looked = looked.map_err(|fault| fault.at("looking at a step", &self.http))?;
            if looked.is_none() {
                return Err(fault.at("starting a step", &self.http).into());
            }
        }
    }

    /// Makes a container, whatever stands in its way: an older one of the same name, or an engine
    /// without an init.
    pub(super) async fn create(
        &self,
        link: &mut Link,
        run: &RunScope,
        image: &str,
        create: &mut Create,
        step: Option<&StepSpec>,
    ) -> Result<String, ExecError> {
        let mut tries = 0;
        create.by(self.worker.as_ref());
        loop {
            create.init &= !self.init.missing.load(Ordering::Relaxed);
            let fault = match link.create(create).await {
                Ok(id) => return Ok(id),
                Err(fault) => fault,
            };
            tries += 1;
            let said = fault.refusal();
            if said.contains("already in use")
                && tries < NAMING
                && let Some(step) = step
            {
                self.free_name(link, run, step, tries).await?;
            } else if create.init && is_about_init(said) {
                self.init.missing.store(true, Ordering::Relaxed);
                tracing::warn!(
                    cause = said,
                    "the container engine has no init program: steps get SIGTERM as process 1, which most programs ignore; install catatonit"
                );
            } else if said.contains("image not known") || said.contains("no such image") {
                if tries == 1 && self.pull_again(run, image).await? {
                    continue;
                }
                return Err(ExecError::Image {
                    image: run.image.clone(),
                    cause: format!("image {image}, which the step stands on, is gone"),
                });
            } else if said.contains("network not found") || said.contains("network mode") {
                return Err(ExecError::Engine {
                    doing: "making a step's container".into(),
                    cause: format!("the network cannot be had: {said}"),
                });
            } else {
                return Err(match step {
                    Some(_) => fault.at("making a step's container", &self.http),
                    None => fault.at("making a container for files", &self.http),
                });
            }
        }
    }

    /// Removes what has a step's name: the container of an earlier attempt, or of an owner that lost
    /// the run. Where it is that of a later owner, it is we who have lost it.
    async fn free_name(
        &self,
        link: &mut Link,
        run: &RunScope,
        step: &StepSpec,
        tries: u32,
    ) -> Result<(), ExecError> {
        let at = |fault: Fault| fault.at("removing an older container", &self.http);
        let name = container_name(&run.run, step.position);
        let Some(there) = link.inspect(&name, PATIENCE).await.map_err(at)? else {
            // Somebody is about to make it, or the engine was killed over that: then it keeps what it
            // knows nothing of, for ever, and removes it by its name.
            if tries < GHOSTLY {
                tokio::time::sleep(Duration::from_millis(200) * tries).await;
                return Ok(());
            }
            tracing::warn!(name, "a container that the engine was killed over is removed");
            return link.remove_ghost(&name).await.map_err(at);
        };
        if there.is_of_later(run.epoch) {
            return Err(ExecError::NotStarted);
        }
        link.remove(there.id()).await.map_err(at)
    }

    /// From the start to the end; `None` where the container had to be removed to end it.
    async fn started(
        &self,
        link: &mut Link,
        run: &RunScope,
        step: &StepSpec,
        ready: Ready,
        (out, stop): (&dyn LogSink, &StopSignal),
    ) -> Result<Option<Exit>, ExecError> {
        let Ready { id, attached } = ready;
        let attached = self.start(link, run, step, &id, attached).await?;
        let mut follower = Follower {
            http: &self.http,
            id: &id,
            out,
            seen: Seen::default(),
            beginning: Beginning::default(),
            raw: has_tty(step),
        };
        let ended = {
            let following = follower.follow(attached, link);
            let obeying = stop::obey(&self.http, &id, step.end, stop);
            tokio::select! {
                ended = following => ended?,
                removed = obeying => return removed.map(|stop::Removed| None),
            }
        };
        if let Some((cause, code)) = init_failed(&ended, &follower.beginning) {
            return Err(ExecError::Start { step: step.name.clone(), cause, code });
        }
        Ok(Some(Exit { code: ended.exit_code(), oom: ended.oom() }))
    }

    /// Starts a container that is attached to. An engine that goes away in the middle may have done
    /// it: only where it has not is it asked again.
    async fn start(
        &self,
        link: &mut Link,
        run: &RunScope,
        step: &StepSpec,
        id: &str,
        mut attached: Attached,
    ) -> Result<Attached, ExecError> {
        loop {
            let started = link.start(id).await;
            self.starts.note(&run.run, &started);
            let fault = match started {
                Ok(()) => return Ok(attached),
                Err(fault @ Fault::Broken(_)) => fault,
                Err(fault) => return Err(self.not_started(step, fault)),
            };
            tracing::warn!(container.id = id, %fault, "the engine went away while a step started");
            let looked = link.inspect(id, PATIENCE).await;
            let looked = looked.map_err(|fault| fault.at("looking at a step", &self.http))?;
            // An engine that answers again has lost what the one before it was asked for.
            self.starts.forget(&run.run);
            match looked.map(|container| container.life()) {
                Some(Life::Running | Life::Ended) => return Ok(attached),
                Some(Life::NotStarted) => {
                    attached = self.attached(link, step, id).await.map_err(NotReady::into_error)?;
                }
                None => return Err(fault.at("starting a step", &self.http)),
            }
        }
    }

    /// What it means that a container could not be made ready or started.
    fn not_started(&self, step: &StepSpec, fault: Fault) -> ExecError {
        let said = fault.refusal().to_owned();
        let words = step.words.join(" ");
        let start = |cause: String, code| ExecError::Start { step: step.name.clone(), cause, code };
        if said.is_empty() || no_space(&said) {
            return fault.at("starting a step", &self.http);
        }
        if said.contains("workdir") || said.contains("chdir to") {
            let dir = step.work_dir.as_deref().unwrap_or("/");
            return start(format!("there is no working directory {dir} in its container"), 126);
        }
        if said.contains("passwd file") || said.contains("unable to find user") {
            return start(format!("its image has no such user: {said}"), 126);
        }
        if said.contains("not found in $PATH") || said.contains("No such file or directory") {
            return start(format!("there is no program for `{words}` in its image"), 127);
        }
        if said.contains("Permission denied") || said.contains("permission denied") {
            return start(format!("`{words}` may not be executed in its image"), 126);
        }
        if said.contains("max depth exceeded") {
            let cause = "its image has more layers than the engine can mount: build it with fewer";
            return ExecError::Engine { doing: "starting a step".into(), cause: cause.into() };
        }
        fault.at("starting a step", &self.http)
    }
}

fn is_about_init(said: &str) -> bool {
    said.contains("catatonit") || said.contains("init binary") || said.contains("container-init")
}

/// What the engine's init writes where it cannot start the command, and nothing else is written.
const INIT_FAILED: &str = "failed to exec pid1: ";

/// Whether the command never ran, because the init in front of it could not start it: the engine
/// takes that for the command's own end.
fn init_failed(ended: &Container, beginning: &Beginning) -> Option<(String, i32)> {
    if ended.exit_code() == 0 || beginning.total != beginning.stderr.len() as u64 {
        return None;
    }
    let text = std::str::from_utf8(&beginning.stderr).ok()?;
    let (init, cause) = text.strip_suffix('\n')?.split_once(INIT_FAILED)?;
    if !init.starts_with("ERROR (catatonit:") || cause.contains('\n') {
        return None;
    }
    let code = if cause.starts_with("No such file") { 127 } else { 126 };
    Some((format!("its command cannot be executed in its image: {cause}"), code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32) -> Container {
        let json = format!(r#"{{"State":{{"Status":"exited","ExitCode":{code}}}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    fn wrote(stderr: &str, total: usize) -> Beginning {
        Beginning { stderr: stderr.as_bytes().to_vec(), total: total as u64 }
    }

    #[test]
    fn a_command_that_the_init_cannot_start_is_told_from_one_that_fails() {
        let text = "ERROR (catatonit:2): failed to exec pid1: No such file or directory\n";
        let (cause, code) = init_failed(&ended(1), &wrote(text, text.len())).unwrap();
        assert_eq!(code, 127);
        assert!(cause.contains("No such file"), "{cause}");
        let denied = "ERROR (catatonit:7): failed to exec pid1: Permission denied\n";
        assert_eq!(init_failed(&ended(1), &wrote(denied, denied.len())).unwrap().1, 126);
        for (code, stderr, total) in [
            (0, text, text.len()),
            (1, text, text.len() + 1),
            (1, "failed to exec pid1: No such file\n", 34),
            (1, "", 0),
        ] {
            assert_eq!(init_failed(&ended(code), &wrote(stderr, total)), None, "{stderr:?}");
        }
    }

    /// As podman 4.3 said it, whose service was killed while it attached.
    #[test]
    fn a_container_that_the_engine_was_killed_over_is_told_from_one_that_cannot_start() {
        let said = "preparing container 6937a5 for attach: crun: container `6937a5` already exists: OCI runtime error";
        assert!(is_half_made(said));
        assert!(!is_half_made(
            "crun: executable file `nosuch` not found in $PATH: OCI runtime error"
        ));
        assert!(!is_half_made("container name \"x\" already exists"));
    }
}
