//! The request body that creates a container.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, ImageConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, MountVolumeOptions,
};
use protocol::id::NodeId;
use protocol::names;
use protocol::pipeline::{MountOption, Network, NetworkMode, Propagation};

use super::engine::Client;
use crate::exec::argv::{Argv, SCRIPT_DIR};
use crate::exec::job::{JobOptions, NAMESPACE};
use crate::exec::mount::{JobMount, Source};
use crate::ports::{ExecError, JOB_DIR, RunScope, StepSecrets, StepSpec};

const CPU_PERIOD_MICROS: i64 = 100_000;

/// The settings of a container that do not come from its step.
pub(super) struct Ground<'a> {
    pub(super) client: &'a Client,
    /// The image id. A name could move to another image in the meantime.
    pub(super) image: String,
    pub(super) config: ImageConfig,
    pub(super) network: Option<&'a Network>,
    pub(super) worker: Option<&'a NodeId>,
    pub(super) log_bytes: Option<u64>,
}

/// The request body for a step's container.
pub(super) fn body(
    ground: &Ground<'_>,
    run: &RunScope,
    step: &StepSpec,
    options: JobOptions,
    argv: &Argv,
) -> Result<ContainerCreateBody, ExecError> {
    let gives = !step.secrets.granted.is_empty();
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
        env.push(format!("{}={}", StepSecrets::VARIABLE, crate::exec::secrets_dir::DIR));
    }
    // Anonymous volumes work on a remote engine and are removed with the container.
    let mut volumes = vec![JOB_DIR.to_owned()];
    if !argv.files.is_empty() {
        volumes.push(SCRIPT_DIR.to_owned());
    }
    let healthcheck = ground.config.healthcheck.is_some();
    let healthcheck = healthcheck
        .then(|| HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() });
    Ok(ContainerCreateBody {
        image: Some(ground.image.clone()),
        // The explicit entrypoint replaces the image's command as well.
        cmd: Some(Vec::new()),
        entrypoint: Some(argv.words.clone()),
        env: Some(env),
        working_dir: step.work_dir.clone(),
        labels: Some(labels(ground.worker, run, step, options.namespace)),
        tty: Some(options.tty),
        // The command itself gets an empty input: see `secrets`.
        open_stdin: Some(gives),
        stdin_once: Some(gives),
        attach_stdin: Some(gives),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        healthcheck,
        volumes: Some(volumes),
        host_config: Some(host(ground, step, options.mounts)?),
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
    mounts: Vec<JobMount>,
) -> Result<HostConfig, ExecError> {
    let mounts = mounts.into_iter().map(|given| mount(step, given)).collect::<Result<_, _>>()?;
    let memory = step.limits.mem.map(|mem| i64::try_from(mem.bytes()).unwrap_or(i64::MAX));
    let quota = step.limits.cpu.map(|cpu| quota(cpu.share(), ground.client.cpus));
    let gives = !step.secrets.granted.is_empty();
    let options = "rw,nosuid,nodev,noexec,mode=1777".to_owned();
    Ok(HostConfig {
        init: Some(ground.client.has_init()),
        network_mode: ground.network.map(mode).transpose()?,
        memory,
        memory_swap: memory,
        cpu_quota: quota,
        cpu_period: quota.map(|_| CPU_PERIOD_MICROS),
        mounts: Some(mounts),
        tmpfs: gives.then(|| HashMap::from([(crate::exec::secrets_dir::DIR.to_owned(), options)])),
        log_config: Some(log(ground.client.is_podman, ground.log_bytes)),
        ..HostConfig::default()
    })
}

/// The log driver of the engine's own copy of the output, used after a broken connection. The copy
/// must be byte-exact, which Docker's `json-file` is not. podman has no `local`, but its
/// `json-file` is exact.
///
/// At the limit, podman starts a new file, and Docker deletes the older of two files.
fn log(is_podman: bool, bytes: Option<u64>) -> HostConfigLogConfig {
    let config = match (is_podman, bytes) {
        (true, None) => None,
        (true, Some(bytes)) => Some(vec![("max-size", bytes.to_string())]),
        (false, bytes) => {
            let (size, files) = match bytes {
                Some(bytes) => ((bytes / 2).max(1).to_string(), "2"),
                None => ("1t".to_owned(), "1"),
            };
            Some(vec![
                ("max-size", size),
                ("max-file", files.to_owned()),
                ("compress", "false".to_owned()),
            ])
        }
    };
    let config = config
        .map(|options| options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
    let driver = if is_podman { "json-file" } else { "local" };
    HostConfigLogConfig { typ: Some(driver.to_owned()), config }
}

fn mount(step: &StepSpec, given: JobMount) -> Result<Mount, ExecError> {
    let mut made = Mount { target: Some(given.target), ..Mount::default() };
    match given.source {
        Source::Dir(dir) => {
            made.typ = Some(MountType::BIND);
            made.source = Some(dir.to_string_lossy().into_owned());
        }
        Source::Volume(name) => {
            made.typ = Some(MountType::VOLUME);
            made.source = Some(name);
        }
    }
    for option in given.options {
        match option {
            MountOption::ReadWrite | MountOption::Recursive => {}
            MountOption::ReadOnly => made.read_only = Some(true),
            MountOption::NoCopy => {
                let no_copy = Some(true);
                made.volume_options =
                    Some(MountVolumeOptions { no_copy, ..MountVolumeOptions::default() });
            }
            MountOption::Propagation(way) => {
                let propagation = Some(propagation(way));
                made.bind_options =
                    Some(MountBindOptions { propagation, ..MountBindOptions::default() });
            }
            MountOption::RelabelShared | MountOption::RelabelPrivate | MountOption::Chown => {
                return Err(ExecError::Unsupported(format!(
                    "step {}: a mount of a Docker engine has no option {:?}: leave it out, or unset BOB_DOCKER_URL to have podman run the step",
                    step.name,
                    option.as_str()
                )));
            }
        }
    }
    Ok(made)
}

fn propagation(way: Propagation) -> MountBindOptionsPropagationEnum {
    match way {
        Propagation::Private => MountBindOptionsPropagationEnum::PRIVATE,
        Propagation::RecursivePrivate => MountBindOptionsPropagationEnum::RPRIVATE,
        Propagation::Shared => MountBindOptionsPropagationEnum::SHARED,
        Propagation::RecursiveShared => MountBindOptionsPropagationEnum::RSHARED,
        Propagation::Slave => MountBindOptionsPropagationEnum::SLAVE,
        Propagation::RecursiveSlave => MountBindOptionsPropagationEnum::RSLAVE,
    }
}

fn mode(network: &Network) -> Result<String, ExecError> {
    let mode: &str = match &network.mode {
        NetworkMode::None => "none",
        NetworkMode::Host => "host",
        NetworkMode::Private | NetworkMode::Bridge => "bridge",
        NetworkMode::Named(name) => name,
        NetworkMode::Slirp4netns => return Err(podmans_alone("slirp4netns")),
        NetworkMode::Pasta => return Err(podmans_alone("pasta")),
    };
    Ok(mode.to_owned())
}

fn podmans_alone(network: &str) -> ExecError {
    ExecError::Unsupported(format!(
        "network {network:?} is podman's alone: a Docker engine has none, host, bridge, private or the name of a network"
    ))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a share from 0 to 1 of at most some thousand processors"
)]
fn quota(share: f64, cpus: i64) -> i64 {
    // The kernel's minimum is one millisecond.
    ((share * (cpus * CPU_PERIOD_MICROS) as f64).round() as i64).max(1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::job::tests::docker_step;
    use serde_json::json;

    fn mounted(source: Source, options: &[MountOption]) -> Result<Mount, String> {
        let given = JobMount { source, target: "/x".into(), options: options.to_vec() };
        mount(&docker_step(json!({ "image": "i" })), given).map_err(|cause| cause.to_string())
    }

    #[test]
    fn a_mount_has_the_options_that_the_engine_knows_and_no_other_is_passed_over() {
        let dir = || Source::Dir("/tmp".into());
        let slave = MountOption::Propagation(Propagation::RecursiveSlave);
        let made = mounted(dir(), &[MountOption::ReadOnly, slave]).unwrap();
        assert_eq!((made.typ, made.read_only), (Some(MountType::BIND), Some(true)));
        let propagation = made.bind_options.unwrap().propagation;
        assert_eq!(propagation, Some(MountBindOptionsPropagationEnum::RSLAVE));
        let volume = mounted(Source::Volume("data".into()), &[MountOption::NoCopy]).unwrap();
        assert_eq!(volume.source.as_deref(), Some("data"));
        assert_eq!(volume.volume_options.unwrap().no_copy, Some(true));
        for option in [MountOption::RelabelShared, MountOption::RelabelPrivate, MountOption::Chown]
        {
            assert!(mounted(dir(), &[option]).unwrap_err().contains("BOB_DOCKER_URL"));
        }
    }

    #[test]
    fn a_network_is_one_of_the_engines() {
        let of = |text: &str| mode(&text.parse().unwrap());
        assert_eq!(of("none").unwrap(), "none");
        assert_eq!(of("private").unwrap(), "bridge");
        assert_eq!(of("mine").unwrap(), "mine");
        for refused in ["pasta", "slirp4netns:mtu=1500"] {
            assert!(of(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn the_engines_copy_of_the_output_is_bounded() {
        let of = |is_podman, bytes| log(is_podman, bytes).config;
        assert_eq!(of(true, None), None);
        assert_eq!(of(true, Some(4096)).unwrap()["max-size"], "4096");
        let docker = of(false, Some(4096)).unwrap();
        assert_eq!((docker["max-size"].as_str(), docker["max-file"].as_str()), ("2048", "2"));
        assert_eq!(of(false, None).unwrap()["max-file"], "1");
    }

    #[test]
    fn a_share_of_the_processors_is_one_of_all_of_them() {
        assert_eq!(quota(0.5, 4), 200_000);
        assert_eq!(quota(0.000_001, 1), 1000);
    }
}
