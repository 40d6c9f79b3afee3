//! A step that has an image of its own: what it asks for, whatever engine it runs on.

use std::path::{Path, PathBuf};

use protocol::id::RunId;
use protocol::pipeline::ExecutorKind;
use serde_json::Value;

use crate::ports::{ExecError, StepSpec};

/// The label by which people tell containers apart; of their own choice.
pub(super) const NAMESPACE: &str = "namespace";

/// What a step asks for beyond its command.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) mounts: Vec<Mount>,
    pub(super) namespace: Option<String>,
    pub(super) tty: bool,
}

/// Something that a container is to see.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) source: Source,
    pub(super) target: String,
    pub(super) options: Vec<String>,
}

/// Where it comes from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A directory of the host, with no link in its path.
    Dir(PathBuf),
    /// A volume of the engine, by its name.
    Volume(String),
}

/// Whether a step's container has a terminal, which makes one stream of its two.
pub(super) fn has_tty(step: &StepSpec) -> bool {
    own_image(step).is_some() && step.with.get("tty").and_then(Value::as_bool).unwrap_or(false)
}

/// The image that a step alone begins with.
pub(super) fn own_image(step: &StepSpec) -> Option<&str> {
    let image = step.with.get("image").and_then(Value::as_str)?;
    (step.executor == ExecutorKind::Docker).then_some(image)
}

/// The container's name: by run and step alone, so that two owners of a run cannot both have one.
pub(super) fn container_name(run: &RunId, position: usize) -> String {
    format!("bob-{run}-{position}")
}

impl Asked {
    /// What a step asks for; `allowed` are the directories of the host that a container may see.
    pub(super) fn of(step: &StepSpec, allowed: Option<&[PathBuf]>) -> Result<Self, ExecError> {
        if own_image(step).is_none() {
            return Ok(Self::default());
        }
        let namespace = step.with.get(NAMESPACE).and_then(Value::as_str);
        let mounts = step.with.get("mounts").and_then(Value::as_array).into_iter().flatten();
        let mounts = mounts.map(|text| mount(text.as_str().unwrap_or_default(), step, allowed));
        Ok(Self {
            mounts: mounts.collect::<Result<_, _>>()?,
            namespace: namespace.map(str::to_owned),
            tty: has_tty(step),
        })
    }
}

/// `SOURCE:TARGET[:OPTIONS]`: a directory of the host, or a volume of the engine by its name.
fn mount(text: &str, step: &StepSpec, allowed: Option<&[PathBuf]>) -> Result<Mount, ExecError> {
    let refused = |why: &str| {
        Err(ExecError::Unsupported(format!("step {}: mount {text:?} {why}", step.name)))
    };
    let mut parts = text.splitn(3, ':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
        return refused("is not SOURCE:TARGET[:OPTIONS]");
    };
    if source.is_empty() || !target.starts_with('/') {
        return refused("is not SOURCE:TARGET[:OPTIONS] with an absolute target");
    }
    let options = parts.next().into_iter().flat_map(|all| all.split(',')).map(str::to_owned);
    let (target, options) = (target.to_owned(), options.collect());
    if !source.starts_with(['/', '.']) {
        return Ok(Mount { source: Source::Volume(source.to_owned()), target, options });
    }
    let Ok(source) = std::path::absolute(source) else {
        return refused("has a source that is no path");
    };
    // What a link or `..` leads to is what a container would see.
    let real = std::fs::canonicalize(&source).unwrap_or(source);
    if is_engine_socket(&real) {
        return refused("would hand a container engine's socket to the step");
    }
    let is_in = |dir: &PathBuf| {
        real.starts_with(std::fs::canonicalize(dir).unwrap_or_else(|_| dir.clone()))
    };
    if allowed.is_some_and(|allowed| !allowed.iter().any(is_in)) {
        return refused(
            "shows a directory of the host that this worker does not share: see BOB_SHARED_DIRS",
        );
    }
    Ok(Mount { source: Source::Dir(real), target, options })
}

/// Whoever has it has all that its engine's user has.
fn is_engine_socket(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    ["docker.sock", "podman.sock", "containerd.sock"].contains(&name)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ports::StepSecrets;
    use protocol::id::StepName;
    use protocol::pipeline::{Limits, Vars};
    use serde_json::json;

    /// A step of `docker` with what its executor has to know.
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

    fn asked(mount: &str, allowed: Option<&[PathBuf]>) -> Result<Mount, String> {
        let step = docker_step(json!({ "image": "i", "mounts": [mount] }));
        let asked = Asked::of(&step, allowed).map_err(|cause| cause.to_string())?;
        Ok(asked.mounts.into_iter().next().unwrap())
    }

    #[test]
    fn a_mount_is_a_directory_of_the_host_or_a_volume_by_its_name() {
        let dir = asked("/tmp:/cache:ro", None).unwrap();
        assert_eq!(dir.source, Source::Dir("/tmp".into()));
        assert_eq!((dir.target.as_str(), &dir.options[..]), ("/cache", &["ro".to_owned()][..]));
        let volume = asked("data:/data", None).unwrap();
        assert_eq!(volume.source, Source::Volume("data".into()));
        for bad in ["", "/tmp", "/tmp:rel", ":/x"] {
            assert!(asked(bad, None).unwrap_err().contains("SOURCE:TARGET"), "{bad}");
        }
    }

    #[test]
    fn no_socket_of_an_engine_is_handed_to_a_step_and_no_directory_that_is_not_shared() {
        let said = asked("/var/run/docker.sock:/var/run/docker.sock", None).unwrap_err();
        assert!(said.contains("socket"), "{said}");
        let shared = [PathBuf::from("/tmp")];
        assert!(asked("/tmp/../etc:/x", Some(&shared)).unwrap_err().contains("BOB_SHARED_DIRS"));
        assert!(asked("/tmp:/x", Some(&shared)).is_ok());
        assert!(asked("/:/x", Some(&[])).is_err());
    }
}
