//! What the engine is told to make a container of.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, ImageConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, MountVolumeOptions,
};
use protocol::id::NodeId;
use protocol::names;

use super::Client;
use crate::exec::argv::{Argv, SCRIPT_DIR};
use crate::exec::job::{self, Asked, NAMESPACE, Source};
use crate::ports::{ExecError, JOB_DIR, RunScope, StepSecrets, StepSpec};

const CPU_PERIOD_MICROS: i64 = 100_000;

/// What a container is made of beside what its step says.
pub(super) struct Ground<'a> {
    pub(super) client: &'a Client,
    /// The image by its id, so that nobody can put another under its name meanwhile.
    pub(super) image: String,
    pub(super) config: ImageConfig,
    pub(super) network: Option<&'a String>,
    pub(super) worker: Option<&'a NodeId>,
}

/// The container of a step.
pub(super) fn body(
    ground: &Ground<'_>,
    run: &RunScope,
    step: &StepSpec,
    asked: Asked,
    argv: &Argv,
) -> Result<ContainerCreateBody, ExecError> {
    let gives = !step.secrets.given.is_empty();
    let mut env = Vec::new();
    let says = |name: &str| {
        let begins = format!("{name}=");
        ground.config.env.iter().flatten().any(|pair| pair.starts_with(&begins))
    };
    if !says("TERM") {
        env.push("TERM=xterm".to_owned());
    }
    env.extend(step.env.iter().map(|(name, value)| format!("{name}={value}")));
    if gives {
        env.push(format!("{}={}", StepSecrets::VARIABLE, crate::exec::given::DIR));
    }
    // Nameless volumes: they are there wherever the engine is, and go with the container.
    let mut volumes = vec![JOB_DIR.to_owned()];
    if !argv.files.is_empty() {
        volumes.push(SCRIPT_DIR.to_owned());
    }
    let healthcheck = ground.config.healthcheck.is_some();
    let healthcheck = healthcheck
        .then(|| HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() });
    Ok(ContainerCreateBody {
        image: Some(ground.image.clone()),
        // With an entrypoint, the image's own command is not used.
        cmd: Some(Vec::new()),
        entrypoint: Some(argv.words.clone()),
        env: Some(env),
        working_dir: step.work_dir.clone(),
        labels: Some(labels(ground.worker, run, step, asked.namespace)),
        tty: Some(asked.tty),
        // The step itself has an empty input: see `secrets`.
        open_stdin: Some(gives),
        stdin_once: Some(gives),
        attach_stdin: Some(gives),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        healthcheck,
        volumes: Some(volumes),
        host_config: Some(host(ground, step, asked.mounts)?),
        ..ContainerCreateBody::default()
    })
}

fn labels(
    worker: Option<&NodeId>,
    run: &RunScope,
    step: &StepSpec,
    namespace: Option<String>,
) -> HashMap<String, String> {
    let worker = worker.map(ToString::to_string).unwrap_or_default();
    let ours = [
        (names::LABEL_RUN, run.run.to_string()),
        (names::LABEL_EPOCH, run.epoch.to_string()),
        (names::LABEL_CLUSTER, run.cluster.to_string()),
        (names::LABEL_ROLE, "step".to_owned()),
        (names::LABEL_STEP, step.name.to_string()),
        (names::LABEL_ATTEMPT, step.attempt.to_string()),
        (names::LABEL_WORKER, worker),
    ];
    let theirs = namespace.map(|namespace| (NAMESPACE, namespace));
    ours.into_iter().chain(theirs).map(|(name, value)| (name.to_owned(), value)).collect()
}

fn host(
    ground: &Ground<'_>,
    step: &StepSpec,
    mounts: Vec<job::Mount>,
) -> Result<HostConfig, ExecError> {
    let mounts = mounts.into_iter().map(|asked| mount(step, asked)).collect::<Result<_, _>>()?;
    let memory = step.limits.mem.map(|mem| i64::try_from(mem.bytes()).unwrap_or(i64::MAX));
    let quota = step.limits.cpu.map(|cpu| quota(cpu.share(), ground.client.cpus));
    let gives = !step.secrets.given.is_empty();
    let options = "rw,nosuid,nodev,noexec,mode=1777".to_owned();
    Ok(HostConfig {
        init: Some(ground.client.has_init()),
        network_mode: ground.network.map(|network| mode(network)).transpose()?,
        memory,
        memory_swap: memory,
        cpu_quota: quota,
        cpu_period: quota.map(|_| CPU_PERIOD_MICROS),
        mounts: Some(mounts),
        tmpfs: gives.then(|| HashMap::from([(crate::exec::given::DIR.to_owned(), options)])),
        log_config: Some(log(ground.client.is_podman)),
        ..HostConfig::default()
    })
}

/// The engine's own copy of the output: what a broken connection is made up from. It must be kept byte
/// by byte, which Docker's `json-file` does not, and whole, so it is one file that is not turned over.
/// podman knows no `local`, and means by `json-file` one that is exact.
fn log(is_podman: bool) -> HostConfigLogConfig {
    let whole = [("max-size", "1t"), ("max-file", "1"), ("compress", "false")];
    let whole = whole.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let driver = if is_podman { "json-file" } else { "local" };
    HostConfigLogConfig {
        typ: Some(driver.to_owned()),
        config: (!is_podman).then(|| HashMap::from(whole)),
    }
}

fn mount(step: &StepSpec, asked: job::Mount) -> Result<Mount, ExecError> {
    let mut made = Mount { target: Some(asked.target), ..Mount::default() };
    match asked.source {
        Source::Dir(dir) => {
            made.typ = Some(MountType::BIND);
            made.source = Some(dir.to_string_lossy().into_owned());
        }
        Source::Volume(name) => {
            made.typ = Some(MountType::VOLUME);
            made.source = Some(name);
        }
    }
    let is_dir = made.typ == Some(MountType::BIND);
    for option in asked.options.iter().map(String::as_str) {
        let propagation = match option {
            "" | "rw" => continue,
            "rbind" if is_dir => continue,
            "ro" => {
                made.read_only = Some(true);
                continue;
            }
            "nocopy" if !is_dir => {
                made.volume_options = Some(MountVolumeOptions {
                    no_copy: Some(true),
                    ..MountVolumeOptions::default()
                });
                continue;
            }
            "private" if is_dir => MountBindOptionsPropagationEnum::PRIVATE,
            "rprivate" if is_dir => MountBindOptionsPropagationEnum::RPRIVATE,
            "shared" if is_dir => MountBindOptionsPropagationEnum::SHARED,
            "rshared" if is_dir => MountBindOptionsPropagationEnum::RSHARED,
            "slave" if is_dir => MountBindOptionsPropagationEnum::SLAVE,
            "rslave" if is_dir => MountBindOptionsPropagationEnum::RSLAVE,
            other => {
                return Err(ExecError::Unsupported(format!(
                    "step {}: a mount of a Docker engine has no option {other:?}: leave it out, or unset BOB_DOCKER_URL to have podman run the step",
                    step.name
                )));
            }
        };
        made.bind_options = Some(MountBindOptions {
            propagation: Some(propagation),
            ..MountBindOptions::default()
        });
    }
    Ok(made)
}

fn mode(network: &str) -> Result<String, ExecError> {
    let (mode, options) = network.split_once(':').unwrap_or((network, ""));
    match mode {
        "private" if options.is_empty() => Ok("bridge".to_owned()),
        "slirp4netns" | "pasta" => Err(ExecError::Unsupported(format!(
            "network {network:?} is podman's alone: a Docker engine has none, host, bridge, private or the name of a network"
        ))),
        "container" | "ns" | "" => Err(ExecError::Unsupported(format!(
            "network {network:?} would share another container's network: use none, host, bridge, private or the name of a network"
        ))),
        _ => Ok(network.to_owned()),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a share from 0 to 1 of at most some thousand processors"
)]
fn quota(share: f64, cpus: i64) -> i64 {
    // The kernel takes no less than a millisecond.
    ((share * (cpus * CPU_PERIOD_MICROS) as f64).round() as i64).max(1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::job::tests::docker_step;
    use serde_json::json;

    fn mounted(options: &[&str], source: Source) -> Result<Mount, String> {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let asked = job::Mount { source, target: "/x".into(), options };
        mount(&docker_step(json!({ "image": "i" })), asked).map_err(|cause| cause.to_string())
    }

    #[test]
    fn a_mount_has_the_options_that_the_engine_knows_and_no_other_is_passed_over() {
        let dir = || Source::Dir("/tmp".into());
        let made = mounted(&["ro", "rslave"], dir()).unwrap();
        assert_eq!((made.typ, made.read_only), (Some(MountType::BIND), Some(true)));
        let propagation = made.bind_options.unwrap().propagation;
        assert_eq!(propagation, Some(MountBindOptionsPropagationEnum::RSLAVE));
        let volume = mounted(&["nocopy"], Source::Volume("data".into())).unwrap();
        assert_eq!(volume.source.as_deref(), Some("data"));
        assert_eq!(volume.volume_options.unwrap().no_copy, Some(true));
        assert!(mounted(&["nocopy"], dir()).unwrap_err().contains("no option \"nocopy\""));
        assert!(mounted(&["z"], dir()).unwrap_err().contains("BOB_DOCKER_URL"));
    }

    #[test]
    fn a_network_is_one_of_the_engines_and_never_another_containers() {
        assert_eq!(mode("none").unwrap(), "none");
        assert_eq!(mode("private").unwrap(), "bridge");
        assert_eq!(mode("mine").unwrap(), "mine");
        for refused in ["pasta", "slirp4netns:mtu=1500", "container:other", "ns:/x", ""] {
            assert!(mode(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_share_of_the_processors_is_one_of_all_of_them() {
        assert_eq!(quota(0.5, 4), 200_000);
        assert_eq!(quota(0.000_001, 1), 1000);
    }
}
