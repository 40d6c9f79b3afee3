//! Runs one step: prepares its container while the gate is closed, then starts it.

use std::time::Duration;

use futures::future::join;

use super::Podman;
use super::api::{Container, ContainerState};
use super::call::Fault;
use super::http::Link;
use super::image::OwnContainer;
use super::output::{Attached, Follower, PATIENCE};
use super::ready::{ATTACHING, NotReady, Ready};
use super::stop;
use crate::exec::deadline::{Flow, or_stopped};
use crate::exec::job::has_tty;
use crate::exec::output::StepOutput;
use crate::ports::{
    ExecError, Exit, Gate, LogSink, Pauses, RunScope, StepOutcome, StepSpec, StopLevel, StopSignal,
    Workspace,
};

const KILLED: i32 = 137;
/// The names of the runtimes. A prepared process has that of its runtime until it executes the command.
const RUNTIMES: [&str; 2] = ["crun", "runc"];

impl Podman {
    pub(super) async fn step(
        &self,
        run: &RunScope,
        on: &Workspace,
        step: &StepSpec,
        mut gate: Gate,
        out: &dyn LogSink,
        stop: &StopSignal,
    ) -> Result<StepOutcome, ExecError> {
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
        let making = or_stopped(self.ready(&mut link, run, &known, &image, step, stop), stop);
        let (ready, open) = join(making, opened).await;
        let ready = ready?;
        let id = ready.id.clone();
        if !open || stop.level() > StopLevel::Run || !gate.is_owned() {
            self.reaper.soon(&self.http, &run.run, id);
            return Err(ExecError::NotStarted);
        }
        let work_dir = step.work_dir.clone().unwrap_or_else(|| known.base.work_dir.clone());
        let depth = known.depth;
        self.memory.learn_container(&run.run, &id, OwnContainer { on: image, known, work_dir });
        let ran = self.started(&mut link, run, step, ready, (out, stop, gate)).await;
        match ran {
            Ok(Some(exit)) => Ok(StepOutcome::new(exit, Workspace::Container { id, depth })),
            Ok(None) => {
                self.memory.forget_container(&run.run, &id);
                self.reaper.soon(&self.http, &run.run, id);
                let exit = Exit { code: KILLED, oom: false };
                Ok(StepOutcome::new(exit, Workspace::None))
            }
            Err(error) => {
                self.memory.forget_container(&run.run, &id);
                // After any error, no process of the step must continue.
                self.reaper.soon(&self.http, &run.run, id);
                Err(error)
            }
        }
    }

    /// Runs the container to its end. `None` if it had to be removed to end it.
    async fn started(
        &self,
        link: &mut Link,
        run: &RunScope,
        step: &StepSpec,
        ready: Ready,
        (out, stop, gate): (&dyn LogSink, &StopSignal, Gate),
    ) -> Result<Option<Exit>, ExecError> {
        let Ready { id, attached, program } = ready;
        let attached = self.start(link, run, step, &id, attached, (stop, gate)).await?;
        let flow = Flow::default();
        let mut follower =
            Follower { http: &self.http, output: StepOutput::new(&id, out, has_tty(step), &flow) };
        let ended = {
            let following = follower.follow(attached, link);
            let obeying = stop::obey(&self.http, &id, step.end, stop, &flow);
            tokio::select! {
                ended = following => Ok(ended),
                removed = obeying => Err(removed),
            }
        };
        if let Ok(Ok(ended)) = &ended
            && let Some(report) = follower.output.beginning.not_executed(ended.exit_code())
        {
            return Err(self.not_executed(run, step, (&id, &program), &report).await);
        }
        follower.output.flush().await;
        match ended {
            Ok(ended) => {
                let ended = ended?;
                Ok(Some(Exit { code: ended.exit_code(), oom: ended.oom() }))
            }
            Err(removed) => removed.map(|stop::Removed| None),
        }
    }

    /// Starts an attached container. If the engine is killed meanwhile, it might have started the
    /// container without recording that. The call is retried only if the process that attaching has
    /// prepared still waits for its start. podman 4.3 shows a container that has run unseen as
    /// `initialized`, and after its end as `created`, and would run it again.
    async fn start(
        &self,
        link: &mut Link,
        run: &RunScope,
        step: &StepSpec,
        id: &str,
        mut attached: Attached,
        (stop, gate): (&StopSignal, Gate),
    ) -> Result<Attached, ExecError> {
        let mut pauses = Pauses::doubling(Duration::from_millis(100), Duration::from_secs(2));
        let mut tries = 0;
        loop {
            let started = link.start(id).await;
            self.starts.note(&run.run, &started);
            let fault = match started {
                Ok(()) => return Ok(attached),
                Err(fault @ Fault::Broken(_)) => fault,
                Err(fault) => {
                    let error = self.not_started(step, fault);
                    let is_in_doubt = tries > 0 && matches!(error, ExecError::Engine { .. });
                    return Err(if is_in_doubt { self.start_in_doubt(id) } else { error });
                }
            };
            tracing::warn!(container.id = id, %fault, "the engine went away while a step started");
            let looked = link.inspect(id, PATIENCE).await;
            let looked = looked.map_err(|fault| fault.at("looking at a step", &self.http))?;
            // A restarted engine has lost earlier requests.
            self.starts.forget(&run.run);
            let Some(container) = looked else {
                return Err(fault.at("starting a step", &self.http));
            };
            match container.life() {
                ContainerState::Running | ContainerState::Ended => return Ok(attached),
                ContainerState::NotStarted if !self.waits_for_start(&container) => {
                    return Err(self.start_in_doubt(id));
                }
                // The start itself might crash the engine, so the number of retries is limited.
                ContainerState::NotStarted if tries < ATTACHING => {
                    tries += 1;
                    tokio::select! {
                        () = pauses.wait() => {}
                        _ = stop.above(StopLevel::Run) => {}
                    }
                    if stop.level() > StopLevel::Run || !gate.is_owned() {
                        return Err(ExecError::NotStarted);
                    }
                    attached = self.attached(link, step, id).await.map_err(NotReady::into_error)?;
                }
                ContainerState::NotStarted => {
                    return Err(fault.at("starting a step", &self.http));
                }
            }
        }
    }

    /// Whether the process of a container has not executed the command yet. False if that cannot be
    /// seen, because the engine has processes of its own.
    fn waits_for_start(&self, container: &Container) -> bool {
        let Some(pid) = container.prepared_process() else { return false };
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        self.http.shares_processes()
            && name.is_ok_and(|name| RUNTIMES.iter().any(|runtime| name.starts_with(runtime)))
    }

    /// The error for a container that may have run without the engine's knowledge. The worker releases
    /// the run, and its next owner decides whether the step can run again.
    fn start_in_doubt(&self, id: &str) -> ExecError {
        ExecError::Unreachable {
            at: self.http.address.clone(),
            cause: format!(
                "it was killed while it started container {id}, and does not know whether the step ran"
            ),
        }
    }
}
