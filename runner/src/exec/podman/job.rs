//! A step that has an image of its own: it goes on from nothing, and leaves files alone.

use std::path::{Path, PathBuf};

use protocol::pipeline::ExecutorKind;
use serde_json::{Value, json};

use super::Podman;
use super::create::Create;
use crate::ports::{ExecError, Executor as _, JOB_DIR, RunScope, StepSpec, StopSignal, Workspace};

/// The label by which people tell containers apart; of their own choice.
pub(super) const NAMESPACE: &str = "namespace";

/// What a step asks for beyond its command.
#[derive(Debug, Default)]
pub(super) struct Asked {
    mounts: Vec<Value>,
    volumes: Vec<Value>,
    namespace: Option<String>,
    tty: bool,
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

impl Asked {
    /// What a step asks for; `allowed` are the directories of the host that a container may see.
    pub(super) fn of(step: &StepSpec, allowed: Option<&[PathBuf]>) -> Result<Self, ExecError> {
        if own_image(step).is_none() {
            return Ok(Self::default());
        }
        let namespace = step.with.get(NAMESPACE).and_then(Value::as_str);
        let mut asked = Self {
            namespace: namespace.map(str::to_owned),
            tty: has_tty(step),
            // A nameless volume: it is there wherever the engine is, and goes with the container.
            volumes: vec![json!({ "Name": "", "Dest": JOB_DIR })],
            ..Self::default()
        };
        for mount in step.with.get("mounts").and_then(Value::as_array).into_iter().flatten() {
            asked.mount(mount.as_str().unwrap_or_default(), step, allowed)?;
        }
        Ok(asked)
    }

    /// `SOURCE:TARGET[:OPTIONS]`: a directory of the host, or a volume of the engine by its name.
    fn mount(
        &mut self,
        text: &str,
        step: &StepSpec,
        allowed: Option<&[PathBuf]>,
    ) -> Result<(), ExecError> {
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
        let options: Vec<&str> = parts.next().into_iter().flat_map(|all| all.split(',')).collect();
        if !source.starts_with(['/', '.']) {
            self.volumes.push(json!({ "Name": source, "Dest": target, "Options": options }));
            return Ok(());
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
        let mut all = vec!["rbind"];
        all.extend(options);
        self.mounts.push(json!({
            "type": "bind", "source": real, "destination": target, "options": all,
        }));
        Ok(())
    }

    /// Asks for it.
    pub(super) fn put(self, create: &mut Create) {
        if let Some(namespace) = self.namespace {
            create.labels.insert(NAMESPACE, namespace);
        }
        create.terminal = self.tty;
        create.mounts = self.mounts;
        create.volumes.extend(self.volumes);
    }
}

/// Whoever has it has all that its engine's user has.
fn is_engine_socket(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    ["docker.sock", "podman.sock", "containerd.sock"].contains(&name)
}

impl Podman {
    /// What a step begins with: where it has an image of its own, that.
    pub(super) async fn begins_on(
        &self,
        run: &RunScope,
        on: &Workspace,
        step: &StepSpec,
        stop: &StopSignal,
    ) -> Result<Workspace, ExecError> {
        let Some(image) = own_image(step) else { return Ok(on.clone()) };
        let run = RunScope { image: image.to_owned(), ..run.clone() };
        self.prepare(&run, stop).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    fn asked(mount: &str, allowed: Option<&[PathBuf]>) -> Result<Asked, String> {
        let with = json!({ "image": "i", "mounts": [mount] });
        let with: Map<String, Value> = serde_json::from_value(with).unwrap();
        let step = StepSpec {
            executor: ExecutorKind::Docker,
            with,
            ..super::super::create::tests::step()
        };
        Asked::of(&step, allowed).map_err(|cause| cause.to_string())
    }

    #[test]
    fn a_mount_is_a_directory_of_the_host_or_a_volume_by_its_name() {
        let dir = asked("/tmp:/cache:ro", None).unwrap();
        let expected = json!([{ "type": "bind", "source": "/tmp", "destination": "/cache", "options": ["rbind", "ro"] }]);
        assert_eq!(json!(dir.mounts), expected);
        let volume = asked("data:/data", None).unwrap();
        assert_eq!(volume.volumes[1], json!({ "Name": "data", "Dest": "/data", "Options": [] }));
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
