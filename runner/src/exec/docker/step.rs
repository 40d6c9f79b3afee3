//! Runs one step: creates and attaches to its container while the gate is closed, then starts it.

use std::time::Duration;

use bollard::errors::Error;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::CreateContainerOptionsBuilder;
use futures::future::join;
use tokio::io::AsyncWriteExt as _;

use super::create::{self, Ground};
use super::output::Follower;
use super::wire::Attached;
use super::{Docker, fault, secrets};
use crate::exec::access::real;
use crate::exec::argv::{Argv, check_length};
use crate::exec::beginning::NotExecuted;
use crate::exec::deadline::{Flow, or_stopped};
use crate::exec::engine::is_name_taken;
use crate::exec::exhausted::{KeyWait, no_keys};
use crate::exec::job::{JobOptions, container_name, own_image};
use crate::exec::mount::{JobMount, MountHost, Source};
use crate::exec::output::StepOutput;
use crate::exec::unexecutable::Head;
use crate::exec::work_dir::is_about_work_dir;
use crate::ports::{
    ExecError, Exit, Gate, LogSink, RunScope, StepOutcome, StepSpec, StopLevel, StopSignal,
    Workspace,
};

/// How often an existing container is removed to free its name.
const NAMING: u32 = 5;
const KILLED: i32 = 137;

/// A container that is ready to start.
struct Ready {
    id: String,
    attached: Attached,
    has_tty: bool,
    /// The first word of its command.
    program: String,
}

impl Docker {
    pub(super) async fn step(
        &self,
        run: &RunScope,
        step: &StepSpec,
        mut gate: Gate,
        out: &dyn LogSink,
        stop: &StopSignal,
    ) -> Result<StepOutcome, ExecError> {
        let image = own_image(step).unwrap_or(&run.image);
        let image = self.image(run, image, stop).await?;
        let opened = async {
            tokio::select! {
                biased;
                open = gate.opened() => open,
                _ = stop.above(StopLevel::Run) => false,
            }
        };
        let preparing = Box::pin(or_stopped(self.ready(run, step, image, stop), stop));
        let (ready, open) = join(preparing, opened).await;
        let ready = ready?;
        let id = ready.id.clone();
        if !open || stop.level() > StopLevel::Run || !gate.is_owned() {
            self.soon(id);
            return Err(ExecError::NotStarted);
        }
        match self.started(step, ready, out, stop).await {
            Ok(Some(exit)) => Ok(StepOutcome::new(exit, Workspace::Lone { id })),
            Ok(None) => {
                self.soon(id);
                Ok(StepOutcome::new(Exit { code: KILLED, oom: false }, Workspace::None))
            }
            Err(error) => {
                // After any error, no process of the step must continue.
                self.soon(id);
                Err(error)
            }
        }
    }

    async fn ready(
        &self,
        run: &RunScope,
        step: &StepSpec,
        image: bollard::models::ImageInspect,
        stop: &StopSignal,
    ) -> Result<Ready, ExecError> {
        let client =
            self.client().await.map_err(|error| self.failed("asking what it is", &error))?;
        if step.limits.cpu.is_some() || step.limits.mem.is_some() {
            client.limits().map_err(ExecError::Unsupported)?;
        }
        let network = step.network.as_ref().or(self.network.as_ref());
        let network = network.map(|text| self.access.network(step.name.as_str(), text));
        let network = network.transpose().map_err(ExecError::Unsupported)?;
        let host = MountHost { access: &self.access, socket: self.socket() };
        let options = JobOptions::resolve(step, host, stop).await?;
        self.may_mount(step, &options.mounts)?;
        secrets::can_be_given(step, options.tty)?;
        let has_tty = options.tty;
        let config = image.config.unwrap_or_default();
        let user = config.user.clone().unwrap_or_default();
        let ground = Ground {
            client,
            image: image.id.unwrap_or_else(|| run.image.clone()),
            config,
            network: network.as_ref(),
            worker: self.worker.as_ref(),
            log_bytes: self.log_bytes,
        };
        let first =
            (!step.secrets.granted.is_empty()).then(|| secrets::receiving(&step.secrets.granted));
        let image_words = ground.config.entrypoint.clone().unwrap_or_default();
        let argv = Argv::of(step, &image_words);
        let program = argv.program();
        let argv = argv.behind(first);
        check_length(step, &argv.words)?;
        let own_dir = step.work_dir.clone().or_else(|| ground.config.working_dir.clone());
        let body = create::body(&ground, run, step, options, &argv)?;
        let id = self.create_in(run, step, body, own_dir).await?;
        let prepared = async {
            self.check_created(own_image(step).unwrap_or(&run.image), &id).await?;
            self.open_job_dir(&id, &user).await?;
            self.put_script(&id, &argv.files).await?;
            let gives = !step.secrets.granted.is_empty();
            let path = format!(
                "{}/containers/{id}/attach?stream=true&stdout=true&stderr=true&logs=false&stdin={gives}",
                client.prefix
            );
            self.wire.upgrade(&path).await.map_err(|error| self.not_started(step, &error))
        };
        match prepared.await {
            Ok(attached) => Ok(Ready { id, attached, has_tty, program }),
            Err(error) => {
                self.soon(id);
                Err(error)
            }
        }
    }

    /// Rejects volumes that the operator does not allow, and every directory above the engine's
    /// socket. The latter also applies to a person's own file, because it would give the step
    /// root's access.
    fn may_mount(&self, step: &StepSpec, mounts: &[JobMount]) -> Result<(), ExecError> {
        let socket = self.socket().map(real);
        for mount in mounts {
            let why = match &mount.source {
                Source::Volume(name) => self.volume_rejected(step.name.as_str(), name),
                Source::Dir(dir) => {
                    let is_above = socket.as_ref().is_some_and(|socket| socket.starts_with(dir));
                    is_above.then(|| {
                        format!(
                            "step {}: mount {:?} would hand a container engine's socket to the step",
                            step.name,
                            dir.display().to_string()
                        )
                    })
                }
            };
            if let Some(why) = why {
                return Err(ExecError::Unsupported(why));
            }
        }
        Ok(())
    }

    /// Creates a container. Removes an older one of the same name, and does without an init if the
    /// engine has none.
    pub(super) async fn create(
        &self,
        run: &RunScope,
        step: &StepSpec,
        body: &mut ContainerCreateBody,
    ) -> Result<String, ExecError> {
        let doing = "making a step's container";
        let name = container_name(&run.run, step.position);
        let client = self.client().await.map_err(|error| self.failed(doing, &error))?;
        let mut tries = 0;
        loop {
            let options = CreateContainerOptionsBuilder::default().name(&name).build();
            let error = match client.docker.create_container(Some(options), body.clone()).await {
                Ok(made) => return Ok(made.id),
                Err(error) => error,
            };
            tries += 1;
            let said = fault::refusal(&error);
            let has_init = body.host_config.as_ref().is_some_and(|host| host.init == Some(true));
            if is_name_taken(said) && tries < NAMING {
                self.free_name(run, &name, tries).await?;
            } else if has_init && is_about_init(said) {
                client.lacks_init();
                if let Some(host) = &mut body.host_config {
                    host.init = Some(false);
                }
            } else if fault::status(&error) == Some(404) && said.contains("image") {
                return Err(ExecError::Image {
                    image: own_image(step).unwrap_or(&run.image).to_owned(),
                    cause: format!("it is gone from the engine: {said}"),
                });
            } else if let Some(why) = bad_work_dir(said) {
                let dir = body.working_dir.as_deref().unwrap_or("of its image");
                let cause = format!("its working directory {dir} {why}");
                return Err(ExecError::Start { step: step.name.clone(), cause, code: 126 });
            } else {
                return Err(self.failed(doing, &error));
            }
        }
    }

    /// Removes the container that uses the step's name, created by an earlier attempt or by an
    /// owner that lost the run. If a later owner created it, this worker has lost the run.
    async fn free_name(&self, run: &RunScope, name: &str, tries: u32) -> Result<(), ExecError> {
        let at = |error: Error| self.failed("removing an older container", &error);
        let Some(there) = self.look(name).await.map_err(at)? else {
            // Another process is about to create it or has just removed it.
            tokio::time::sleep(Duration::from_millis(200) * tries).await;
            return Ok(());
        };
        if there.is_of_later(run.epoch) {
            return Err(ExecError::NotStarted);
        }
        self.remove(&there.id).await.map_err(at)
    }

    /// Runs the container to its end. `None` if it had to be removed to end it.
    async fn started(
        &self,
        step: &StepSpec,
        ready: Ready,
        out: &dyn LogSink,
        stop: &StopSignal,
    ) -> Result<Option<Exit>, ExecError> {
        let Ready { id, attached, has_tty, program } = ready;
        self.start(step, &id, stop).await?;
        let (output, mut input) = tokio::io::split(attached);
        let flow = Flow::default();
        let mut follower = Follower {
            docker: self,
            output: StepOutput::new(&id, out, has_tty, &flow),
            went: false,
        };
        let giving = async {
            if !step.secrets.granted.is_empty() {
                // If the step ends before it reads them, its exit code shows that.
                input.write_all(&secrets::written(&step.secrets.granted)).await.ok();
                input.shutdown().await.ok();
            }
        };
        let ended = {
            // A step can also end without reading its secrets.
            let following = async {
                let mut following = std::pin::pin!(follower.follow(output));
                tokio::select! {
                    ended = &mut following => ended,
                    () = giving => following.await,
                }
            };
            tokio::select! {
                ended = following => Ok(ended),
                removed = self.obey(&id, step.end, stop, &flow) => Err(removed),
            }
        };
        if let Ok(Ok(ended)) = &ended
            && let Some(report) = follower.output.beginning.not_executed(ended.exit_code())
        {
            return Err(self.not_executed(step, (&id, &program), &report).await);
        }
        follower.output.flush().await;
        let ended = match ended {
            Ok(ended) => ended?,
            Err(removed) => return removed.map(|super::stop::Removed| None),
        };
        // A restarting engine ends its containers, unless it is configured to keep them.
        if follower.went && stop.level() == StopLevel::Run && is_of_engine(ended.exit_code()) {
            let (step, code) = (&step.name, ended.exit_code());
            let cause = format!("it went away while step {step} ran, and ended it with {code}");
            return Err(ExecError::Unreachable { at: self.wire.address.clone(), cause });
        }
        Ok(Some(Exit { code: ended.exit_code(), oom: ended.oom() }))
    }

    /// Starts a container, waiting for room for its keys in the kernel if needed.
    async fn start(&self, step: &StepSpec, id: &str, stop: &StopSignal) -> Result<(), ExecError> {
        let mut keys = KeyWait::default();
        loop {
            let start = async { self.client().await?.docker.start_container(id, None).await };
            match start.await.map_err(|error| self.not_started(step, &error)) {
                Err(error @ ExecError::KeyQuota { .. }) => keys.wait(error, step, stop).await?,
                started => return started,
            }
        }
    }

    /// The error of a step whose command the engine's init or runtime could not execute.
    async fn not_executed(
        &self,
        step: &StepSpec,
        (id, program): (&str, &str),
        report: &NotExecuted,
    ) -> ExecError {
        let left = Workspace::Lone { id: id.to_owned() };
        let head = if program.contains('/') {
            Head::of_archive(self.pack(&left, program).await).await
        } else {
            Head::Unknown
        };
        let cause = report.cause(program, &head);
        ExecError::Start { step: step.name.clone(), cause, code: report.code }
    }

    /// Explains why a container could not be prepared or started.
    fn not_started(&self, step: &StepSpec, error: &Error) -> ExecError {
        let said = fault::refusal(error);
        let words = match &step.script {
            Some(script) => script.shell.program().to_owned(),
            None => step.words.join(" "),
        };
        let start = |cause: String, code| ExecError::Start { step: step.name.clone(), cause, code };
        if said.is_empty() || fault::no_space(said) || no_keys(said) {
            return self.failed("starting a step", error);
        }
        if is_about_init(said)
            && let Some(client) = self.client.get()
        {
            // The next container is created without an init.
            client.lacks_init();
            return self.failed("starting a step behind the engine's init", error);
        }
        if is_about_work_dir(said) {
            let dir = step.work_dir.as_deref().unwrap_or("of its image");
            return start(format!("its working directory {dir} cannot be entered: {said}"), 126);
        }
        if said.contains("passwd file") || said.contains("unable to find user") {
            return start(format!("its image has no such user: {said}"), 126);
        }
        if said.to_ascii_lowercase().contains("argument list too long") {
            let cause = "its command and variables together are longer than the kernel takes";
            return start(cause.to_owned(), 126);
        }
        if said.contains("not found in $PATH") || said.contains("no such file or directory") {
            return start(format!("there is no program for `{words}` in its image"), 127);
        }
        if said.contains("permission denied") {
            return start(format!("`{words}` may not be executed in its image"), 126);
        }
        self.failed("starting a step", error)
    }
}

fn is_about_init(said: &str) -> bool {
    ["docker-init", "catatonit", "init binary", "container-init"].iter().any(|it| said.contains(it))
}

/// Whether an exit code can result from the engine ending a container itself.
fn is_of_engine(code: i32) -> bool {
    [137, 143, 255].contains(&code)
}

/// Why the engine cannot create a working directory, if its message says so.
fn bad_work_dir(said: &str) -> Option<&'static str> {
    if said.contains("too many links") {
        return Some("leads through symbolic links in a circle");
    }
    let is_file = said.starts_with("Cannot mkdir:") || said.ends_with(": not a directory");
    is_file.then_some("is not a directory, or leads through something that is not")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of Docker 20.10.
    #[test]
    fn a_working_directory_that_cannot_be_one_is_recognised() {
        let of = bad_work_dir;
        assert!(of("Cannot mkdir: /file is not a directory").unwrap().contains("not a directory"));
        let below = "lstat /var/lib/docker/overlay2/76/merged/file/x: not a directory";
        assert!(of(below).unwrap().contains("not a directory"));
        let circle = "evalSymlinksInScope: too many links in /var/lib/docker/overlay2/5e/merged/l";
        assert!(of(circle).unwrap().contains("circle"));
        assert_eq!(of("No such image: x"), None);
    }
}
