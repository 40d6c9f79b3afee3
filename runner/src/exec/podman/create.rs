//! The request body that creates a container. It sets every field that a commit would otherwise
//! carry over from one step to the next.

use indexmap::IndexMap;
use protocol::id::{NodeId, RunId};
use protocol::names;
use protocol::pipeline::{Network, NetworkMode};
use serde::Serialize;
use serde_json::{Value, json};

use super::image::Base;
use crate::exec::job::container_name;
use crate::exec::secrets_dir;
use crate::ports::{RunScope, StepSecrets, StepSpec};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const CPU_PERIOD_MICROS: u64 = 100_000;

/// The body of `POST /containers/create`, with the fields that bob-runner sets.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Create {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    image: String,
    /// The whole command, on an image with an entrypoint: see [`Create::run_words`].
    entrypoint: Vec<String>,
    /// The whole command, on an image without one.
    command: Vec<String>,
    env: IndexMap<String, String>,
    /// Drops the image's environment: it contains that of earlier steps.
    unsetenvall: bool,
    user: String,
    /// Has no symbolic links, or does not exist: see `exec::work_dir`.
    pub(super) work_dir: String,
    /// Always false: the engine would follow links out of the container.
    create_working_dir: bool,
    pub(super) labels: IndexMap<&'static str, String>,
    /// Stored in the container's configuration file, which a worker's guard reads if the engine
    /// does not answer.
    annotations: IndexMap<&'static str, String>,
    pub(super) init: bool,
    pub(super) terminal: bool,
    stdin: bool,
    /// Volumes that the image declares are ordinary directories of the workspace.
    image_volume_mode: &'static str,
    systemd: &'static str,
    log_configuration: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthconfig: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<Value>,
    #[serde(rename = "networks", skip_serializing_if = "Option::is_none")]
    networks: Option<Value>,
    #[serde(rename = "network_options", skip_serializing_if = "Option::is_none")]
    network_options: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_limits: Option<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) mounts: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) volumes: Vec<Value>,
}

/// The run of a container with that name.
pub(super) fn run_of(name: &str) -> Option<RunId> {
    let (run, position) = name.strip_prefix("bob-")?.rsplit_once('-')?;
    position.parse::<usize>().ok()?;
    run.parse().ok()
}

impl Create {
    /// A container for a step on an image.
    pub(super) fn step(
        run: &RunScope,
        base: &Base,
        image: &str,
        step: &StepSpec,
        argv: Vec<String>,
        network: Option<&Network>,
        cpus: u64,
    ) -> Self {
        let mut made = Self::bare(run, base, image, "step");
        made.name = Some(container_name(&run.run, step.position));
        made.run_words(base, argv);
        made.env.extend(step.env.iter().map(|(name, value)| (name.clone(), value.clone())));
        if let Some(dir) = &step.work_dir {
            made.work_dir.clone_from(dir);
        }
        made.labels.insert(names::LABEL_STEP, step.name.to_string());
        made.labels.insert(names::LABEL_ATTEMPT, step.attempt.to_string());
        made.resource_limits = limits(step, cpus);
        if let Some(network) = network {
            made.network(network);
        }
        if !step.secrets.granted.is_empty() {
            made.env.insert(StepSecrets::VARIABLE.to_owned(), secrets_dir::DIR.to_owned());
        }
        made
    }

    /// Sets the whole command. On an image with an entrypoint, it replaces the entrypoint. On an
    /// image without one it must be the command: a commit would copy an entrypoint to the image,
    /// and podman 5 cannot reset it to an empty one.
    fn run_words(&mut self, base: &Base, words: Vec<String>) {
        if base.entrypoint.is_empty() {
            self.command = words;
        } else {
            self.entrypoint = words;
        }
    }

    /// A container that only receives files and is never started.
    pub(super) fn mount(run: &RunScope, base: &Base, image: &str) -> Self {
        let mut made = Self::bare(run, base, image, "mount");
        made.run_words(base, vec!["true".to_owned()]);
        made.netns = Some(json!({"nsmode": "none"}));
        made.init = false;
        made
    }

    fn bare(run: &RunScope, base: &Base, image: &str, role: &str) -> Self {
        let mut env = IndexMap::from([
            ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
            ("TERM".to_owned(), "xterm".to_owned()),
            ("container".to_owned(), "podman".to_owned()),
        ]);
        env.extend(base.env.iter().map(|(name, value)| (name.clone(), value.clone())));
        Self {
            name: None,
            image: image.to_owned(),
            entrypoint: Vec::new(),
            command: Vec::new(),
            env,
            unsetenvall: true,
            user: base.user.clone(),
            work_dir: base.work_dir.clone(),
            create_working_dir: false,
            annotations: IndexMap::new(),
            labels: IndexMap::from([
                (names::LABEL_RUN, run.run.to_string()),
                (names::LABEL_EPOCH, run.epoch.to_string()),
                (names::LABEL_CLUSTER, run.cluster.to_string()),
                (names::LABEL_ROLE, role.to_owned()),
                (names::LABEL_BASE, base.as_label()),
            ]),
            init: true,
            terminal: false,
            stdin: false,
            image_volume_mode: "ignore",
            systemd: "false",
            // The engine's own copy of the output, read after a broken connection.
            log_configuration: json!({"driver": "k8s-file"}),
            healthconfig: base.healthcheck.then(|| json!({"Test": ["NONE"]})),
            netns: None,
            networks: None,
            network_options: None,
            resource_limits: None,
            mounts: Vec::new(),
            volumes: Vec::new(),
        }
    }

    /// Sets the process that creates it. An empty name is set too, because the image can carry
    /// another worker's label.
    pub(super) fn by(&mut self, worker: Option<&NodeId>) {
        let worker = worker.map(ToString::to_string).unwrap_or_default();
        self.annotations.insert(names::LABEL_WORKER, worker.clone());
        self.labels.insert(names::LABEL_WORKER, worker);
    }

    /// Limits the size of the engine's copy of the output.
    pub(super) fn bound_log(&mut self, bytes: Option<u64>) {
        if let Some(bytes) = bytes.and_then(|bytes| i64::try_from(bytes).ok()) {
            self.log_configuration = json!({"driver": "k8s-file", "size": bytes});
        }
    }

    fn network(&mut self, network: &Network) {
        let mode = match &network.mode {
            NetworkMode::None => "none",
            NetworkMode::Host => "host",
            NetworkMode::Private => "private",
            NetworkMode::Bridge => "bridge",
            NetworkMode::Slirp4netns => "slirp4netns",
            NetworkMode::Pasta => "pasta",
            NetworkMode::Named(name) => {
                self.networks = Some(json!({name: {}}));
                "bridge"
            }
        };
        self.netns = Some(json!({"nsmode": mode}));
        if !network.options.is_empty() {
            self.network_options = Some(json!({mode: network.options}));
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share from 0 to 1 of at most some thousand processors"
)]
fn limits(step: &StepSpec, cpus: u64) -> Option<Value> {
    let mut limits = serde_json::Map::new();
    if let Some(memory) = step.limits.mem {
        limits.insert("memory".into(), json!({"limit": memory.bytes(), "swap": memory.bytes()}));
    }
    if let Some(cpu) = step.limits.cpu {
        let quota = (cpu.share() * (cpus * CPU_PERIOD_MICROS) as f64).round() as u64;
        // The kernel's minimum is one millisecond.
        let cpu = json!({"quota": quota.max(1000), "period": CPU_PERIOD_MICROS});
        limits.insert("cpu".into(), cpu);
    }
    (!limits.is_empty()).then(|| Value::Object(limits))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::exec::argv::Argv;
    use protocol::id::{Epoch, StepName};
    use protocol::pipeline::ExecutorKind;
    use protocol::pipeline::{Limits, PullPolicy, Vars};
    use protocol::quantity::Cpu;

    fn step() -> StepSpec {
        StepSpec {
            name: StepName::position(2),
            position: 2,
            attempt: 1,
            executor: ExecutorKind::Podman,
            script: None,
            entrypoint: None,
            words: vec!["make".into(), "all".into()],
            env: Vars::from([("A".into(), "step".into()), ("B".into(), String::new())]),
            work_dir: None,
            network: None,
            limits: Limits::default(),
            with: serde_json::Map::new(),
            secrets: StepSecrets::default(),
            end: crate::ports::StepEnd::default(),
        }
    }

    fn run() -> RunScope {
        RunScope {
            cluster: "c".into(),
            run: "r-X.y_z-1".parse().unwrap(),
            epoch: Epoch(7),
            image: "busybox".into(),
            pull: PullPolicy::Missing,
            has_own_images: false,
        }
    }

    pub(in crate::exec::podman) fn base() -> Base {
        Base {
            id: "base".into(),
            env: vec![("A".into(), "base".into()), ("PATH".into(), "/opt".into())],
            entrypoint: vec!["/entry".into()],
            user: "nobody".into(),
            work_dir: "/srv".into(),
            layers: 1,
            size: 1,
            healthcheck: false,
            cmd: Vec::new(),
            is_docker_format: false,
            stop_signal: String::new(),
        }
    }

    pub(in crate::exec::podman) fn of(step: &StepSpec) -> Create {
        let argv = Argv::of(step, &base().entrypoint).words;
        let network = step.network.as_ref().map(|text| text.parse().unwrap());
        Create::step(&run(), &base(), "image", step, argv, network.as_ref(), 4)
    }

    fn made(step: &StepSpec) -> Value {
        serde_json::to_value(of(step)).unwrap()
    }

    #[test]
    fn every_step_gets_the_base_images_settings_and_its_own_environment_over_them() {
        let made = made(&step());
        assert_eq!(made["name"], "bob-r-X.y_z-1-2");
        assert_eq!(made["entrypoint"], json!(["/entry", "make", "all"]));
        assert_eq!(made["command"], json!([]));
        assert_eq!(made["user"], "nobody");
        assert_eq!(made["work_dir"], "/srv");
        assert_eq!(made["env"]["A"], "step");
        assert_eq!(made["env"]["B"], "");
        assert_eq!(made["env"]["PATH"], "/opt");
        assert_eq!(made["unsetenvall"], true);
        assert_eq!(made["labels"]["bob.run"], "r-X.y_z-1");
        assert_eq!(made["labels"]["bob.epoch"], "7");
        assert!(made.get("netns").is_none(), "the engine's own default was not left to it");
    }

    #[test]
    fn every_container_says_which_process_made_it_or_that_none_did() {
        let mut made = Create::mount(&run(), &base(), "image");
        made.by(Some(&NodeId::from_stored("bob/runner-1")));
        assert_eq!(made.labels[names::LABEL_WORKER], "bob/runner-1");
        // An image committed by another worker carries that worker's label.
        made.by(None);
        assert_eq!(made.labels[names::LABEL_WORKER], "");
    }

    #[test]
    fn the_engine_is_never_asked_to_create_a_working_directory() {
        let own = made(&StepSpec { work_dir: Some("/root/src".into()), ..step() });
        assert_eq!(own["work_dir"], "/root/src");
        let files = serde_json::to_value(Create::mount(&run(), &base(), "image")).unwrap();
        for made in [own, made(&step()), files] {
            assert_eq!(made["create_working_dir"], false);
        }
    }

    #[test]
    fn a_network_is_a_mode_or_the_name_of_one() {
        let of = |network: &str| made(&StepSpec { network: Some(network.into()), ..step() });
        assert_eq!(of("none")["netns"]["nsmode"], "none");
        assert_eq!(
            of("slirp4netns:mtu=1500")["network_options"]["slirp4netns"],
            json!(["mtu=1500"])
        );
        assert_eq!(of("mine")["networks"], json!({"mine": {}}));
        assert_eq!(of("mine")["netns"]["nsmode"], "bridge");
    }

    #[test]
    fn a_share_of_the_processors_is_one_of_all_of_them() {
        let limits =
            Limits { cpu: Some(Cpu::new(0.5).unwrap()), mem: Some("64M".parse().unwrap()) };
        let made = made(&StepSpec { limits, ..step() });
        assert_eq!(made["resource_limits"]["cpu"], json!({"quota": 200_000, "period": 100_000}));
        assert_eq!(made["resource_limits"]["memory"]["limit"], 64 << 20);
    }
}
