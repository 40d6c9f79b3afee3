//! A virtual host per test, a client that publishes commands, and the program as a child process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::raw;
use test_support::services::{BROKER, ENGINE, OwnServices, Services, Vhost};
use tokio::process::{Child, Command};

use crate::keys::Keys;

/// The timeout of every wait. Generous, because a busy host is not an error.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// Waits with a timeout.
pub(crate) async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(late) => panic!("{what}: {late}"),
    }
}

/// The environment of one test.
pub(crate) struct TestEnv {
    pub(crate) services: Services,
    /// A separate etcd, because a worker resumes every run without an owner that it finds there.
    store: OwnServices,
    pub(crate) vhost: Vhost,
    pub(crate) keys: Keys,
    /// The group of its pipelines, and a part of every run id.
    pub(crate) tag: String,
    /// The program's home directory.
    pub(crate) dir: TempDir,
    /// The engine URL of its workers.
    engine: String,
    channel: Channel,
}

impl TestEnv {
    pub(crate) async fn new() -> Option<Self> {
        let needed: Vec<&str> = [BROKER, ENGINE, &["BOB_TEST_REGISTRY"]].concat();
        let services = Services::from_env(&needed)?;
        let engine = services.get("CONTAINER_ENGINE_URL").to_owned();
        Self::of(services, engine).await
    }

    /// A place whose workers have no engine.
    pub(crate) async fn without_an_engine() -> Option<Self> {
        Self::of(Services::from_env(BROKER)?, "unix:///nowhere".to_owned()).await
    }

    /// A place with a broker that the test can stop and kill, and workers without an engine.
    pub(crate) async fn with_its_own_broker() -> Option<(Self, OwnServices)> {
        let start = || OwnServices::start("rabbitmq", &[]);
        let broker = tokio::task::spawn_blocking(start).await.unwrap()?;
        let services = broker.services().clone();
        let place = Self::of(services, "unix:///nowhere".to_owned()).await?;
        Some((place, broker))
    }

    async fn of(services: Services, engine: String) -> Option<Self> {
        let store =
            tokio::task::spawn_blocking(|| OwnServices::start("etcd", &[])).await.unwrap()?;
        let vhost = services.vhost().await;
        let channel = raw::channel(&services.amqp(&vhost)).await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Some(Self {
            keys: Keys::connect(store.services().get("BOB_STORAGE_URLS")).await,
            store,
            tag: uuid::Uuid::now_v7().simple().to_string(),
            dir: tempfile::tempdir().unwrap(),
            services,
            vhost,
            engine,
            channel,
        })
    }

    pub(crate) fn run(&self, name: &str) -> String {
        format!("r-{}-{name}", self.tag)
    }

    pub(crate) fn image(&self) -> &str {
        self.services.find("BOB_TEST_IMAGE").unwrap_or("localhost/none")
    }

    pub(crate) fn pipeline(&self, name: &str, steps: &Value) -> Value {
        json!({
            "group": self.tag, "name": name, "image": self.image(), "network": "none",
            "steps": steps,
        })
    }

    /// Publishes a command like any AMQP client.
    pub(crate) async fn publish(&self, queue: &str, kind: &str, body: &Value) {
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_type(kind.into());
        let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
        let body = body.to_string().into_bytes();
        let publishing = self.channel.basic_publish(
            "bob.direct".into(),
            queue.into(),
            mandatory,
            &body,
            properties,
        );
        let confirmed = publishing.await.unwrap().await.unwrap();
        assert!(matches!(confirmed, Confirmation::Ack(None)), "{confirmed:?}");
    }

    /// Starts a pipeline whose definition is in the command.
    pub(crate) async fn start(&self, run: &str, pipeline: &Value) {
        let body = json!({ "run-id": run, "pipeline": pipeline });
        self.publish("bob.jobs", "pipeline/start", &body).await;
    }

    pub(crate) async fn stop(&self, run: &str) {
        let body = json!({ "run-id": run, "reason": "the test says so" });
        self.publish("bob.control", "pipeline/stop", &body).await;
    }

    /// The variables with which the program finds the services.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let get = |name: &str| self.services.get(name).to_owned();
        vec![
            ("BOB_QUEUE_URL", format!("{}/{}", get("BOB_QUEUE_URL"), self.vhost.name)),
            ("BOB_QUEUE_USER", get("BOB_QUEUE_USER")),
            ("BOB_QUEUE_PASSWORD", get("BOB_QUEUE_PASSWORD")),
            ("BOB_STORAGE_URLS", self.store.services().get("BOB_STORAGE_URLS").to_owned()),
            ("CONTAINER_ENGINE_URL", self.engine.clone()),
            // The receivers, services and hosts of tests are on loopback. The fill level of the
            // test host's disk must not matter.
            ("BOB_ALLOWED_ADDRESSES", "127.0.0.0/8,::1".to_owned()),
            ("BOB_DISK_HIGH", "100".to_owned()),
            ("BOB_DISK_LOW", "99".to_owned()),
            // Job files of the modular job runner contain literal secrets.
            ("BOB_LITERAL_SECRETS", "allow".to_owned()),
            // Steps call test servers on the host's loopback.
            ("BOB_NETWORKS", "host".to_owned()),
        ]
    }

    /// The program with these arguments and settings, as started from a shell.
    pub(crate) fn program(&self, typed: &[&str], settings: &[(&str, &str)]) -> Command {
        self.command(Path::new(env!("CARGO_BIN_EXE_bob-runner-under-test")), typed, settings)
    }

    /// Another program, with the same variables.
    pub(crate) fn command(
        &self,
        program: &Path,
        typed: &[&str],
        settings: &[(&str, &str)],
    ) -> Command {
        let mut command = Command::new(program);
        command
            .args(typed)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path())
            // Tests run concurrently, and only one can have the default port.
            .env("BOB_HTTP_ADDRESS", "off")
            .envs(self.variables())
            .envs(settings.iter().copied())
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Writes a file in the program's working directory.
    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    /// Submits a file like a user and returns the run id.
    pub(crate) async fn submit(&self, file: &str) -> String {
        self.id_of(&["submit", file]).await
    }

    /// The id of the run that a command has started.
    pub(crate) async fn id_of(&self, typed: &[&str]) -> String {
        let mut command = self.program(typed, &[]);
        let said = in_time("the program ends", command.output()).await.unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).unwrap().trim().to_owned()
    }

    /// Starts `bob-runner serve` and waits until its node is ready.
    pub(crate) async fn serve(&self, settings: &[(&str, &str)]) -> Server {
        let command = self.program(&["serve"], settings);
        self.served(command).await
    }

    /// The same with a custom command.
    pub(crate) async fn served(&self, command: Command) -> Server {
        let mut server = self.begun(command).await;
        let (mut keys, pid) = (self.keys.clone(), server.pid);
        let is_ready = |value: &Value| value["pid"] == pid && value["state"] == "ready";
        tokio::select! {
            ended = server.child.wait() => panic!("the program has ended: {ended:?}"),
            _ = keys.below("bob.node/", is_ready) => {}
        }
        server
    }

    /// Starts a server without waiting until it is ready.
    pub(crate) async fn begun(&self, mut command: Command) -> Server {
        let log = self.dir.path().join(format!("serve-{}.log", uuid::Uuid::new_v4()));
        // The log is on standard output in the format of the CI service, else on standard error.
        let file = File::create(&log).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap();
        let pid = child.id().unwrap();
        Server { child, pid, log }
    }
}

/// A running `bob-runner serve`. Its log is printed if the test fails.
pub(crate) struct Server {
    child: Child,
    pid: u32,
    log: PathBuf,
}

impl Server {
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid.try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end and returns its exit code.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        in_time("the program ends", self.child.wait()).await.unwrap().code()
    }

    /// Ends it like a service manager.
    pub(crate) async fn end(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.ended().await, Some(0), "the drain must succeed");
        assert!(!self.log().contains("panicked"), "nothing panics");
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Resolves when a line of its log meets a condition.
    pub(crate) async fn logged(&self, what: &str, holds: impl Fn(&str) -> bool) {
        in_time(what, async {
            while !self.log().lines().any(&holds) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// A line of the process's status file.
    pub(crate) fn status(&self, name: &str) -> String {
        let status = Path::new("/proc").join(self.pid.to_string()).join("status");
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    }

    /// The peak resident memory, in bytes.
    pub(crate) fn resident_at_most(&self) -> u64 {
        let peak = self.status("VmHWM");
        peak.trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("-- the log of bob-runner serve, process {} --\n{log}--", self.pid);
        }
    }
}
