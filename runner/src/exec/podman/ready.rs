//! Prepares the container of a step: creates it, attaches to it, and fills it with files.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use protocol::names;

use super::call::Fault;
use super::create::Create;
use super::http::Link;
use super::image::ImageFacts;
use super::output::{Attached, PATIENCE, attach};
use super::refused::{is_half_made, not_entered};
use super::volume::Tmpfs;
use super::{Podman, job};
use crate::exec::annotations::check_container;
use crate::exec::argv::{Argv, SCRIPT_DIR, check_length};
use crate::exec::engine::is_name_taken;
use crate::exec::exhausted::KeyWait;
use crate::exec::job::{JobOptions, container_name, own_image};
use crate::exec::mount::MountHost;
use crate::exec::work_dir::is_about_work_dir;
use crate::exec::{archive, secrets_dir};
use crate::ports::{ExecError, RunScope, StepSpec, StopSignal};

/// How often an existing container is removed to free its name.
const NAMING: u32 = 5;
/// The attempt at which a name in use by an unknown container is freed by force. It is 600 ms after
/// the first, which is longer than creating a container takes.
const GHOSTLY: u32 = 3;
/// How often the engine can become unreachable during the start of one step.
pub(super) const ATTACHING: u32 = 5;

/// A container that is ready to start.
pub(super) struct Ready {
    pub(super) id: String,
    pub(super) attached: Attached,
    /// The first word of its command.
    pub(super) program: String,
}

/// Reasons why a step's containers could not be prepared, and remedies for the next attempt.
#[derive(Default)]
struct Obstacles {
    half_made: u32,
    has_looked_for_dir: bool,
    missing_dirs: Vec<String>,
    keys: KeyWait,
}

/// Why a container is not ready to start.
pub(super) enum NotReady {
    /// See [`is_half_made`]. It never ran.
    HalfMade(ExecError),
    /// Its working directory is missing, or cannot be entered as it is named.
    NoWorkDir(ExecError),
    Failed(ExecError),
}

impl From<ExecError> for NotReady {
    fn from(error: ExecError) -> Self {
        Self::Failed(error)
    }
}

impl NotReady {
    pub(super) fn into_error(self) -> ExecError {
        match self {
            Self::HalfMade(error) | Self::NoWorkDir(error) | Self::Failed(error) => error,
        }
    }
}

impl Podman {
    /// Creates a container and prepares everything up to its start.
    pub(super) async fn ready(
        &self,
        link: &mut Link,
        run: &RunScope,
        known: &ImageFacts,
        image: &str,
        step: &StepSpec,
        stop: &StopSignal,
    ) -> Result<Ready, ExecError> {
        let limited = step.limits.cpu.is_some() || step.limits.mem.is_some();
        let cpus = if limited { self.enforced_cpus().await? } else { 1 };
        let network = step.network.as_ref().or(self.network.as_ref());
        let network = network.map(|text| self.access.network(step.name.as_str(), text));
        let network = network.transpose().map_err(ExecError::Unsupported)?;
        let host = MountHost { access: &self.access, socket: self.http.socket() };
        let options = JobOptions::resolve(step, host, stop).await?;
        self.has_volumes(link, step, &options.mounts).await?;
        let argv = Argv::of(step, &known.base.entrypoint);
        let program = argv.program();
        let Argv { words, files } = argv.behind(secrets_dir::exporting(&step.secrets.granted));
        check_length(step, &words)?;
        let mut create = Create::step(run, &known.base, image, step, words, network.as_ref(), cpus);
        job::put(options, step, &mut create);
        create.bound_log(self.log_bytes);
        for (is_needed, at) in
            [(!step.secrets.granted.is_empty(), secrets_dir::DIR), (!files.is_empty(), SCRIPT_DIR)]
        {
            if is_needed {
                let volume = Tmpfs::new(at);
                self.make_volume(link, run, &volume).await?;
                create.volumes.push(volume.mounted());
            }
        }
        let mut obstacles = Obstacles::default();
        loop {
            let id = self.create(link, run, image, &mut create, Some(step)).await?;
            let prepared = async {
                self.check_created(link, run, step, &id).await?;
                self.make_dirs(&id, &obstacles.missing_dirs, 0o755).await?;
                let attached = self.attached(link, step, &id).await?;
                self.give(&id, &known.base.user, &step.secrets.granted).await?;
                self.put_script(&id, &files).await?;
                Ok(attached)
            };
            let why = match prepared.await {
                Ok(attached) => return Ok(Ready { id, attached, program }),
                Err(why) => why,
            };
            let passed = self.pass_obstacle(why, &id, step, &mut create, &mut obstacles, stop);
            if let Err(error) = passed.await {
                self.reaper.soon(&self.http, &run.run, id);
                return Err(error);
            }
            // The next container uses the same name.
            let removed = link.remove(&id).await;
            removed.map_err(|fault| fault.at("removing a container", &self.http))?;
        }
    }

    /// Prepares for another container in place of one that was not ready. Returns the error if
    /// another container would fail too.
    async fn pass_obstacle(
        &self,
        why: NotReady,
        id: &str,
        step: &StepSpec,
        create: &mut Create,
        obstacles: &mut Obstacles,
        stop: &StopSignal,
    ) -> Result<(), ExecError> {
        match why {
            NotReady::HalfMade(error) if obstacles.half_made < ATTACHING => {
                obstacles.half_made += 1;
                tracing::warn!(container.id = id, %error, "a container was half made: another is made");
                Ok(())
            }
            NotReady::NoWorkDir(error) if !obstacles.has_looked_for_dir => {
                obstacles.has_looked_for_dir = true;
                let found = self.find_dir(id, &create.work_dir).await?;
                // A directory named by the step must already exist, for example from a resource.
                let (path, missing) = found
                    .into_path(&create.work_dir, step.work_dir.is_none())
                    .map_err(|cause| not_entered(step, cause))?;
                if path == create.work_dir && missing.is_empty() {
                    return Err(error);
                }
                create.work_dir = path;
                obstacles.missing_dirs = missing;
                Ok(())
            }
            NotReady::Failed(error @ ExecError::KeyQuota { .. }) => {
                obstacles.keys.wait(error, step, stop).await
            }
            NotReady::HalfMade(error) | NotReady::NoWorkDir(error) | NotReady::Failed(error) => {
                Err(error)
            }
        }
    }

    /// Uploads the script files to a container that is prepared and not started.
    async fn put_script(&self, id: &str, files: &[(String, String)]) -> Result<(), ExecError> {
        if files.is_empty() {
            return Ok(());
        }
        let failed = |cause: String| ExecError::Engine {
            doing: "handing a script to a step".to_owned(),
            cause,
        };
        let tar = archive::texts(files).await.map_err(|cause| failed(cause.to_string()))?;
        let tar = futures::stream::iter([Ok(Bytes::from(tar))]).boxed();
        match self.put(id, SCRIPT_DIR, tar).await {
            Err(ExecError::Input(cause)) => Err(failed(cause)),
            put => put,
        }
    }

    /// Rejects a created container whose annotations would be options of the OCI runtime, or whose
    /// limits would not be enforced. The runtime reads the annotations at the attach, which is
    /// later.
    async fn check_created(
        &self,
        link: &mut Link,
        run: &RunScope,
        step: &StepSpec,
        id: &str,
    ) -> Result<(), ExecError> {
        let made = link.inspect(id, PATIENCE).await;
        let made = made.map_err(|fault| fault.at("looking at a step", &self.http))?;
        // A container that is gone cannot be attached to.
        let Some(made) = made else { return Ok(()) };
        let image = own_image(step).unwrap_or(&run.image);
        check_container(image, made.annotations(), &[names::LABEL_WORKER])?;
        let limited = step.limits.cpu.is_some() || step.limits.mem.is_some();
        if limited && made.has_no_cgroup() {
            return Err(ExecError::Unsupported(
                "limits cannot be enforced: the container engine is configured to use no cgroups"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Attaches to a container that is not started, even if the engine becomes unreachable
    /// meanwhile.
    pub(super) async fn attached(
        &self,
        link: &mut Link,
        step: &StepSpec,
        id: &str,
    ) -> Result<Attached, NotReady> {
        let mut tries = 0;
        loop {
            let fault = match attach(&self.http, id).await {
                Ok(attached) => return Ok(attached),
                Err(fault @ (Fault::Broken(_) | Fault::Unreachable(_))) if tries < ATTACHING => {
                    fault
                }
                Err(fault) if is_half_made(fault.refusal()) => {
                    return Err(NotReady::HalfMade(self.not_started(step, fault)));
                }
                Err(fault) if is_about_work_dir(fault.refusal()) => {
                    return Err(NotReady::NoWorkDir(self.not_started(step, fault)));
                }
                Err(fault) => return Err(self.not_started(step, fault).into()),
            };
            tries += 1;
            tracing::warn!(container.id = id, %fault, "the engine went away before a step started");
            // This call waits for the engine.
            let looked = link.inspect(id, PATIENCE).await;
            let looked = looked.map_err(|fault| fault.at("looking at a step", &self.http))?;
            if looked.is_none() {
                return Err(fault.at("starting a step", &self.http).into());
            }
        }
    }

    /// Creates a container. Removes an older one of the same name, and does without an init if the
    /// engine has none.
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
            if is_name_taken(said)
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

    /// Removes the container that uses the step's name, created by an earlier attempt or by an
    /// owner that lost the run. If a later owner created it, this worker has lost the run.
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
            // Another process is creating it, or the engine was killed while doing so. In the
            // latter case the engine does not know the container but can still remove it by name.
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
}

fn is_about_init(said: &str) -> bool {
    said.contains("catatonit") || said.contains("init binary") || said.contains("container-init")
}
