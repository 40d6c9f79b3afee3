//! The options of a step with an image of its own, on any engine.

use std::path::Path;

use protocol::id::RunId;
use protocol::pipeline::{ExecutorKind, Mount, MountSource, Step};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::mount::{JobMount, MountHost};
use super::with;
use crate::ports::{ExecError, StepSpec, StopLevel, StopSignal};

/// A label that users choose to group their containers.
pub(super) const NAMESPACE: &str = "namespace";

/// The options of a step with an image of its own.
#[derive(Debug, Default)]
pub(super) struct JobOptions {
    pub(super) mounts: Vec<JobMount>,
    pub(super) namespace: Option<String>,
    pub(super) tty: bool,
}

/// The keys of `with` and their types.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobSettings {
    image: Option<String>,
    namespace: Option<String>,
    mounts: Option<Vec<String>>,
    tty: Option<bool>,
    #[serde(rename = "label")]
    _label: Option<String>,
}

/// Whether a step's container has a terminal, which merges its two output streams.
pub(super) fn has_tty(step: &StepSpec) -> bool {
    own_image(step).is_some() && step.with.get("tty").and_then(Value::as_bool).unwrap_or(false)
}

/// The image that only this step uses.
pub(super) fn own_image(step: &StepSpec) -> Option<&str> {
    let image = step.with.get("image").and_then(Value::as_str)?;
    step.executor.capabilities().has_own_images.then_some(image)
}

/// The container's name. It has no epoch, so two owners of a run cannot both have one.
pub(super) fn container_name(run: &RunId, position: usize) -> String {
    format!("bob-{run}-{position}")
}

impl JobSettings {
    /// Parses `with`. The error is a sentence about the first key that would be ignored.
    fn read(name: &str, executor: ExecutorKind, with: &Map<String, Value>) -> Result<Self, String> {
        with::has_known_keys(name, executor, with)?;
        let read: Self = serde_json::from_value(Value::Object(with.clone())).map_err(|cause| {
            format!("step {name}: `with` of executor {}: {cause}", executor.as_str())
        })?;
        let lone = [
            ("namespace", read.namespace.is_some()),
            ("mounts", read.mounts.is_some()),
            ("tty", read.tty.is_some()),
        ];
        if read.image.is_none()
            && let Some((key, _)) = lone.into_iter().find(|(_, is_set)| *is_set)
        {
            return Err(format!(
                "step {name}: `{key}` in `with` is for a step with an image of its own: add `image`, or leave `{key}` out"
            ));
        }
        Ok(read)
    }
}

fn mount(name: &str, text: &str) -> Result<Mount, String> {
    text.parse().map_err(|why| format!("step {name}: mount {text:?} {why}"))
}

impl JobOptions {
    /// The options of a step, with its mounts resolved and checked. A path of the host can hang, so
    /// another thread resolves it, and a raised `stop` does not wait for it.
    ///
    /// # Errors
    /// [`ExecError::Unsupported`] if `with` has a value that this step cannot use.
    pub(super) async fn resolve(
        step: &StepSpec,
        host: MountHost<'_>,
        stop: &StopSignal,
    ) -> Result<Self, ExecError> {
        if !step.with.contains_key("mounts") {
            return Self::of(step.name.as_str(), step.executor, &step.with, host);
        }
        let (name, executor, with) = (step.name.clone(), step.executor, step.with.clone());
        let (access, socket) = (host.access.clone(), host.socket.map(Path::to_owned));
        let resolving = tokio::task::spawn_blocking(move || {
            let host = MountHost { access: &access, socket: socket.as_deref() };
            Self::of(name.as_str(), executor, &with, host)
        });
        tokio::select! {
            biased;
            resolved = resolving => resolved.map_err(|cause| ExecError::Engine {
                doing: "resolving the mounts of a step".to_owned(),
                cause: cause.to_string(),
            })?,
            _ = stop.above(StopLevel::Run) => Err(ExecError::NotStarted),
        }
    }

    fn of(
        name: &str,
        executor: ExecutorKind,
        with: &Map<String, Value>,
        host: MountHost<'_>,
    ) -> Result<Self, ExecError> {
        let read = || -> Result<Self, String> {
            let with = JobSettings::read(name, executor, with)?;
            let mut mounts = Vec::new();
            for text in with.mounts.iter().flatten() {
                let resolved = host.resolve(mount(name, text)?);
                mounts.push(resolved.map_err(|why| format!("step {name}: mount {text:?} {why}"))?);
            }
            let tty = with.tty.unwrap_or(false);
            Ok(Self { mounts, namespace: with.namespace, tty })
        };
        read().map_err(ExecError::Unsupported)
    }

    /// The options of a step in a test.
    #[cfg(test)]
    pub(super) fn of_step(step: &StepSpec, host: MountHost<'_>) -> Result<Self, ExecError> {
        Self::of(step.name.as_str(), step.executor, &step.with, host)
    }
}

/// The named volumes of a step as written in its pipeline. Does not read the host.
///
/// # Errors
/// A sentence if `with` has a value that no step can use.
pub(super) fn volumes_of(step: &Step) -> Result<Vec<String>, String> {
    let name = step.name.as_str();
    let with = JobSettings::read(name, step.executor, &step.with)?;
    // Results of earlier steps are filled in and checked later.
    let texts = with.mounts.iter().flatten().filter(|text| !text.contains("${"));
    let mut volumes = Vec::new();
    for text in texts {
        if let MountSource::Volume(volume) = mount(name, text)?.source {
            volumes.push(volume);
        }
    }
    Ok(volumes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::access::HostAccess;
    use super::super::mount::Source;
    use super::*;
    use crate::ports::StepSecrets;
    use protocol::id::StepName;
    use protocol::pipeline::{Limits, MountOption, Vars};
    use serde_json::json;

    /// A `docker` step with everything its executor needs.
    pub(in crate::exec) fn docker_step(with: Value) -> StepSpec {
        StepSpec {
            end: crate::ports::StepEnd::default(),
            name: StepName::position(2),
            position: 2,
            attempt: 1,
            executor: ExecutorKind::Docker,
            script: None,
            entrypoint: None,
            words: vec!["make".into(), "all".into()],
            env: Vars::from([("A".into(), "step".into()), ("B".into(), String::new())]),
            work_dir: None,
            network: None,
            limits: Limits::default(),
            with: serde_json::from_value(with).unwrap(),
            secrets: StepSecrets::default(),
        }
    }

    fn options(with: Value) -> Result<JobOptions, String> {
        let access = HostAccess::default();
        let host = MountHost { access: &access, socket: None };
        JobOptions::of_step(&docker_step(with), host).map_err(|cause| cause.to_string())
    }

    #[test]
    fn a_mount_is_a_directory_of_the_host_or_a_volume_by_its_name() {
        let made = options(json!({ "image": "i", "mounts": ["/tmp:/cache:ro", "data:/data"] }));
        let mounts = made.unwrap().mounts;
        assert_eq!(mounts[0].source, Source::Dir("/tmp".into()));
        assert_eq!(
            (mounts[0].target.as_str(), &mounts[0].options[..]),
            ("/cache", &[MountOption::ReadOnly][..])
        );
        assert_eq!(mounts[1].source, Source::Volume("data".into()));
        for bad in ["", "/tmp", "/tmp:rel", ":/x"] {
            let why = options(json!({ "image": "i", "mounts": [bad] })).unwrap_err();
            assert!(why.contains("SOURCE:TARGET"), "{bad}: {why}");
        }
        let socket = "/var/run/docker.sock:/var/run/docker.sock";
        let why = options(json!({ "image": "i", "mounts": [socket] })).unwrap_err();
        assert!(why.contains("socket"), "{why}");
    }

    #[test]
    fn what_a_step_cannot_have_in_with_is_rejected_and_never_ignored() {
        for (with, told) in [
            (json!({ "mounts": ["/tmp:/x"] }), "`mounts` in `with` is for a step with an image"),
            (json!({ "tty": true }), "`tty` in `with`"),
            (json!({ "namespace": "n" }), "`namespace` in `with`"),
            (json!({ "image": "i", "privileged": true }), "no key `privileged`"),
            (json!({ "image": "i", "mount": [] }), "did you mean `mounts`?"),
            (json!({ "image": "i", "mounts": "/tmp:/x" }), "invalid type"),
            (json!({ "image": "i", "mounts": [1] }), "invalid type"),
            (json!({ "image": "i", "tty": "yes" }), "invalid type"),
            (json!({ "image": 5 }), "invalid type"),
            (
                json!({ "image": "i", "mounts": ["v:/x:O,upperdir=/home/u,workdir=/w"] }),
                "unknown option \"O\"",
            ),
        ] {
            let why = options(with.clone()).unwrap_err();
            assert!(why.contains(told) && why.contains("step 2"), "{with}: {why}");
        }
        assert!(options(json!({ "label": "build" })).is_ok());
        let on_podman = StepSpec {
            executor: ExecutorKind::Podman,
            ..docker_step(json!({ "mounts": ["/tmp:/x"] }))
        };
        let access = HostAccess::default();
        let host = MountHost { access: &access, socket: None };
        let why = JobOptions::of_step(&on_podman, host).unwrap_err().to_string();
        assert!(why.contains("executor podman has no key `mounts`"), "{why}");
    }

    #[test]
    fn the_volumes_of_a_step_are_known_before_it_starts() {
        let mut step = Step::new(StepName::position(0));
        step.executor = ExecutorKind::Docker;
        let with = json!({ "image": "i", "mounts": ["data:/d", "/tmp:/t", "${a.dir}:/x:O"] });
        step.with = serde_json::from_value(with).unwrap();
        assert_eq!(volumes_of(&step).unwrap(), ["data"]);
        step.with.insert("mounts".into(), json!(["bob-r-1-0-7-1:/x"]));
        assert!(volumes_of(&step).unwrap_err().contains("reserved"));
    }
}
