//! A separate `bob-runner serve` process.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use protocol::names;
use runner::cluster::Etcd;
use runner::ports::Store as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::cluster::{Cluster, in_time, new_node};
use crate::report::to_f64;

/// The settings that vary.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) slots: usize,
    pub(crate) lease_seconds: u64,
    pub(crate) drain_seconds: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { slots: 4, lease_seconds: 10, drain_seconds: 30 }
    }
}

/// A running `bob-runner serve`.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) pid: u32,
}

impl Server {
    /// Starts a server and waits until its entry is ready. Also returns how long that took.
    pub(crate) async fn start(
        cluster: &Cluster,
        store: &Etcd,
        settings: Settings,
    ) -> anyhow::Result<(Self, Duration)> {
        let program = std::env::current_exe()?.with_file_name("bob-runner");
        ensure!(program.exists(), "there is no {}: build it first", program.display());
        let amqp = cluster.amqp(new_node());
        let services = &cluster.services;
        let executions = Instant::now();
        let child = Command::new(&program)
            .arg("serve")
            .env_clear()
            .env("HOME", cluster.vhost.spill.path())
            .env("BOB_QUEUE_URL", &amqp.url)
            .env("BOB_QUEUE_USER", &amqp.user)
            .env("BOB_QUEUE_PASSWORD", &amqp.password)
            .env("BOB_STORAGE_URLS", services.get("BOB_STORAGE_URLS"))
            .env("CONTAINER_ENGINE_URL", services.get("CONTAINER_ENGINE_URL"))
            .env("BOB_SPILL_DIR", cluster.vhost.spill.path())
            .env("BOB_MAX_PARALLEL_RUNS", settings.slots.to_string())
            .env("BOB_LEASE_TTL_SECONDS", settings.lease_seconds.to_string())
            .env("BOB_DRAIN_SECONDS", settings.drain_seconds.to_string())
            .env("BOB_DISK_HIGH", "100")
            .env("BOB_DISK_LOW", "99")
            .env("BOB_LOG_LEVEL", "warn")
            .env("BOB_HTTP_ADDRESS", "off")
            .env("BOB_KILL_GRACE_SECONDS", "5")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let pid = child.id().context("the server has ended at once")?;
        let seen = async {
            loop {
                for entry in store.list(names::NODES).await?.entries {
                    let node: Value = serde_json::from_slice(&entry.value)?;
                    if node["pid"] == pid && node["state"] == "ready" {
                        return Ok(());
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        in_time("the server is ready", seen).await?;
        Ok((Self { child, pid }, executions.elapsed()))
    }

    /// The resident memory in megabytes.
    pub(crate) fn resident(&self) -> anyhow::Result<f64> {
        let status =
            std::fs::read_to_string(Path::new("/proc").join(self.pid.to_string()).join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes: usize = line
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .context("the server has ended")?
            .parse()?;
        Ok(to_f64(kibibytes) * 1024.0 / 1e6)
    }

    pub(crate) async fn end(self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        self.ended().await
    }

    /// Waits for a requested end.
    pub(crate) async fn ended(mut self) -> anyhow::Result<()> {
        let ended = in_time("the server ends", async { Ok(self.child.wait().await?) }).await?;
        ensure!(ended.success(), "the server ended with {ended}");
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        // It is an unreaped child, so its id cannot belong to another process.
        let pid = Pid::from_raw(self.pid.try_into()?).context("an id")?;
        kill_process(pid, signal).context("a signal to a server")
    }
}
