//! The rig's services and its three workers. Each worker connects through its own proxies.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use test_support::proxy::Proxy;
use test_support::services::OwnServices;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, MutexGuard};

/// The number of workers.
pub(crate) const WORKERS: usize = 3;
/// The number of etcd members.
pub(crate) const MEMBERS: usize = 3;
/// The lease TTL of a worker.
pub(crate) const LEASE_TTL: Duration = Duration::from_secs(4);
/// The maximum number of concurrent runs of a worker.
pub(crate) const SLOTS: usize = 3;
/// The maximum number of owners that a run can lose at one step.
pub(crate) const MAX_LOSSES: u32 = 3;
/// The repository for checkpoints.
pub(crate) const CHECKPOINTS: &str = "checkpoints/rig";
/// The timeout for draining a worker. It is long because an unavailable broker delays a drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);

/// One of the rig's workers. Its proxies and its spill directory outlive its processes.
pub(crate) struct Worker {
    pub(crate) number: usize,
    pub(crate) amqp: Proxy,
    /// One proxy per etcd member.
    pub(crate) etcd: Vec<Proxy>,
    process: Option<Process>,
    /// The number of processes launched so far.
    launches: usize,
}

struct Process {
    child: Child,
    pid: u32,
}

/// All services and workers.
pub(crate) struct Cluster {
    main_services: OwnServices,
    /// The second worker's engine, if it has its own.
    second_engine: Option<OwnServices>,
    dir: TempDir,
    program: PathBuf,
    drain_seconds: u32,
    workers: Vec<Mutex<Worker>>,
}

fn address(url: &str) -> anyhow::Result<SocketAddr> {
    let (_, address) = url.split_once("://").with_context(|| format!("{url} is not a URL"))?;
    address.parse().with_context(|| url.to_owned())
}

impl Cluster {
    /// Starts the services, but no workers.
    pub(crate) async fn start(
        program: PathBuf,
        drain_seconds: u32,
        engines: usize,
    ) -> anyhow::Result<Self> {
        ensure!(
            program.is_file(),
            "{} does not exist: build it, or name another program with --worker",
            program.display()
        );
        let members = MEMBERS.to_string();
        let starting = tokio::task::spawn_blocking(move || {
            let members = ["--etcd-members", &members];
            if engines == 1 {
                return (OwnServices::launch("rabbitmq,etcd,podman", &members), None);
            }
            let main_services = OwnServices::launch("rabbitmq,etcd,podman,registry", &members);
            (main_services, Some(OwnServices::launch("podman", &[])))
        });
        let (main_services, second_engine) = starting.await?;
        let mut cluster = Self {
            main_services,
            second_engine,
            dir: tempfile::Builder::new().prefix("bob-chaos-workers.").tempdir()?,
            program,
            drain_seconds,
            workers: Vec::new(),
        };
        for number in 1..=WORKERS {
            let amqp = Proxy::start(address(&cluster.amqp_url())?).await?;
            let mut etcd = Vec::new();
            for url in cluster.etcd_urls() {
                etcd.push(Proxy::start(address(&url)?).await?);
            }
            let worker = Worker { number, amqp, etcd, process: None, launches: 0 };
            cluster.workers.push(Mutex::new(worker));
        }
        Ok(cluster)
    }

    pub(crate) fn amqp_url(&self) -> String {
        self.main_services.services().get("BOB_QUEUE_URL").to_owned()
    }

    pub(crate) fn amqp_user(&self) -> (&str, &str) {
        let services = self.main_services.services();
        (services.get("BOB_QUEUE_USER"), services.get("BOB_QUEUE_PASSWORD"))
    }

    pub(crate) fn etcd_urls(&self) -> Vec<String> {
        self.main_services
            .services()
            .get("BOB_STORAGE_URLS")
            .split(',')
            .map(str::to_owned)
            .collect()
    }

    /// The URLs of all engines.
    pub(crate) fn engine_urls(&self) -> impl Iterator<Item = &str> {
        let engines = [&self.main_services].into_iter().chain(&self.second_engine);
        engines.map(|engine| engine.services().get("CONTAINER_ENGINE_URL"))
    }

    /// The URL of a worker's engine. The second worker can have its own engine.
    fn engine_url(&self, worker: &Worker) -> &str {
        let own_engine = self.second_engine.as_ref().filter(|_| worker.number == 2);
        own_engine.unwrap_or(&self.main_services).services().get("CONTAINER_ENGINE_URL")
    }

    /// The checkpoint registry, if there is more than one engine.
    pub(crate) fn registry(&self) -> Option<&str> {
        self.second_engine.as_ref().map(|_| self.main_services.services().get("BOB_TEST_REGISTRY"))
    }

    pub(crate) fn image(&self) -> &str {
        self.main_services.services().get("BOB_TEST_IMAGE")
    }

    /// Runs a control command such as `stop`, `start` or `kill` for a service.
    pub(crate) async fn control(&self, verb: &str, service: &str) {
        match (service, &self.second_engine) {
            ("podman-2", Some(engine)) => engine.control(verb, "podman").await,
            (_, _) => self.main_services.control(verb, service).await,
        }
    }

    /// The service names of the engines, as `control` expects them.
    pub(crate) fn engines(&self) -> &'static [&'static str] {
        if self.second_engine.is_some() { &["podman", "podman-2"] } else { &["podman"] }
    }

    /// Waits for exclusive access to a worker.
    pub(crate) async fn worker(&self, index: usize) -> MutexGuard<'_, Worker> {
        self.workers[index].lock().await
    }

    /// Exclusive access to a worker, or `None` if another task has it.
    pub(crate) fn free_worker(&self, index: usize) -> Option<MutexGuard<'_, Worker>> {
        self.workers[index].try_lock().ok()
    }

    /// Starts a new process for a worker.
    pub(crate) fn launch(&self, worker: &mut Worker) -> anyhow::Result<()> {
        worker.launches += 1;
        let home = self.dir.path().join(format!("{}-{}", worker.number, worker.launches));
        std::fs::create_dir(&home)?;
        // The worker's next process publishes the events that this one leaves on disk.
        let spill = self.dir.path().join(format!("{}-spill", worker.number));
        let log = File::create(home.with_extension("log"))?;
        let (user, password) = self.amqp_user();
        let etcd: Vec<String> =
            worker.etcd.iter().map(|proxy| format!("http://{}", proxy.at())).collect();
        let mut command = Command::new(&self.program);
        command.env_clear();
        if let Some(registry) = self.registry() {
            command
                .env("BOB_CHECKPOINT_REGISTRY", format!("{registry}/{CHECKPOINTS}"))
                .env("BOB_REGISTRY_INSECURE", registry);
        }
        let child = command
            .arg("serve")
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &home)
            .env("BOB_SPILL_DIR", spill)
            .env("BOB_HTTP_ADDRESS", "off")
            .env("BOB_QUEUE_URL", format!("amqp://{}", worker.amqp.at()))
            .env("BOB_QUEUE_USER", user)
            .env("BOB_QUEUE_PASSWORD", password)
            .env("BOB_STORAGE_URLS", etcd.join(","))
            .env("CONTAINER_ENGINE_URL", self.engine_url(worker))
            .env("BOB_LEASE_TTL_SECONDS", LEASE_TTL.as_secs().to_string())
            .env("BOB_MAX_PARALLEL_RUNS", SLOTS.to_string())
            // The disk usage of this host must not affect the workers.
            .env("BOB_DISK_HIGH", "100")
            .env("BOB_DISK_LOW", "99")
            // The steps call the rig on the host's loopback interface.
            .env("BOB_NETWORKS", "host")
            .env("BOB_MAX_LOSSES", MAX_LOSSES.to_string())
            .env("BOB_KILL_GRACE_SECONDS", "2")
            .env("BOB_DRAIN_SECONDS", self.drain_seconds.to_string())
            // A worker that starts during an outage waits for the service.
            .env("BOB_CONNECTION_RETRY_ATTEMPTS", "1000")
            .env("BOB_CONNECTION_RETRY_DELAY", "500")
            .current_dir(&home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| self.program.display().to_string())?;
        let pid = child.id().context("the new process has no id")?;
        worker.process = Some(Process { child, pid });
        Ok(())
    }

    /// The lines in the workers' logs that report a panic.
    pub(crate) fn panics(&self) -> anyhow::Result<Vec<String>> {
        let mut panics = Vec::new();
        for log in logs(self.dir.path())? {
            let text = std::fs::read(&log)?;
            let text = String::from_utf8_lossy(&text);
            let lines = text.lines().filter(|line| line.contains("panicked"));
            panics.extend(lines.map(|line| format!("{}: {line}", log.display())));
        }
        Ok(panics)
    }

    /// Keeps the workers' logs and returns their directory.
    pub(crate) fn keep_logs(&mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir.path().to_owned()
    }
}

fn logs(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut logs = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "log") {
            logs.push(path);
        }
    }
    Ok(logs)
}

impl Worker {
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.pid)
    }

    /// Returns a message if its process has exited, and forgets the process.
    pub(crate) fn has_ended(&mut self) -> anyhow::Result<Option<String>> {
        let Some(process) = &mut self.process else { return Ok(None) };
        let Some(status) = process.child.try_wait()? else { return Ok(None) };
        let pid = process.pid;
        self.process = None;
        Ok(Some(format!("worker {} (process {pid}) exited by itself: {status}", self.number)))
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        // The child is not reaped yet, so its id cannot belong to another process.
        let pid = self.pid().context("the worker has no process")?;
        let pid = Pid::from_raw(pid.try_into()?).context("the process id is 0")?;
        kill_process(pid, signal).context("cannot signal the worker")
    }

    /// Kills the process with SIGKILL.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.child.kill().await?;
        }
        Ok(())
    }

    /// Sends SIGTERM and waits for the process to exit. Returns a message if it exits with an
    /// error or too late.
    pub(crate) async fn drain(&mut self) -> anyhow::Result<Option<String>> {
        if self.process.is_none() {
            return Ok(None);
        }
        self.signal(Signal::TERM)?;
        let Some(mut process) = self.process.take() else { return Ok(None) };
        let worker = format!("worker {} (process {})", self.number, process.pid);
        let violation = match tokio::time::timeout(DRAIN_TIMEOUT, process.child.wait()).await {
            Ok(status) => {
                let status = status?;
                (!status.success())
                    .then(|| format!("{worker} exited with an error after SIGTERM: {status}"))
            }
            Err(_) => {
                process.child.kill().await?;
                Some(format!("{worker} did not exit within {DRAIN_TIMEOUT:?} after SIGTERM"))
            }
        };
        Ok(violation)
    }

    /// Restores the connections through its proxies.
    pub(crate) fn heal(&self) {
        self.amqp.heal();
        self.etcd.iter().for_each(Proxy::heal);
    }
}
