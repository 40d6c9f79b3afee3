//! A step that has an image of its own: it goes on from nothing, and leaves files alone.

use serde_json::json;

use super::Podman;
use super::create::Create;
use crate::exec::job::{Asked, NAMESPACE, Source, own_image};
use crate::ports::{ExecError, Executor as _, JOB_DIR, RunScope, StepSpec, StopSignal, Workspace};

/// Asks for what a step asks for.
pub(super) fn put(asked: Asked, step: &StepSpec, create: &mut Create) {
    if own_image(step).is_none() {
        return;
    }
    if let Some(namespace) = asked.namespace {
        create.labels.insert(NAMESPACE, namespace);
    }
    create.terminal = asked.tty;
    // A nameless volume: it is there wherever the engine is, and goes with the container.
    create.volumes.push(json!({ "Name": "", "Dest": JOB_DIR }));
    for mount in asked.mounts {
        match mount.source {
            Source::Dir(source) => {
                let options = [vec!["rbind".to_owned()], mount.options].concat();
                create.mounts.push(json!({
                    "type": "bind", "source": source, "destination": mount.target,
                    "options": options,
                }));
            }
            Source::Volume(name) => create
                .volumes
                .push(json!({ "Name": name, "Dest": mount.target, "Options": mount.options })),
        }
    }
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
    use crate::exec::job::tests::docker_step;

    #[test]
    fn a_mount_is_a_bind_and_a_volume_goes_with_the_directory_of_the_job() {
        let step = docker_step(json!({ "image": "i", "mounts": ["/tmp:/cache:ro", "data:/data"] }));
        let asked = Asked::of(&step, None).unwrap();
        let mut create = super::super::create::tests::of(&step);
        put(asked, &step, &mut create);
        let expected = json!([{ "type": "bind", "source": "/tmp", "destination": "/cache", "options": ["rbind", "ro"] }]);
        assert_eq!(json!(create.mounts), expected);
        let volumes = json!([
            { "Name": "", "Dest": JOB_DIR }, { "Name": "data", "Dest": "/data", "Options": [] },
        ]);
        assert_eq!(json!(create.volumes), volumes);
    }
}
