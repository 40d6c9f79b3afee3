//! A step with an image of its own. It inherits no files from earlier steps and leaves only files.

use serde_json::json;

use super::Podman;
use super::create::Create;
use crate::exec::job::{JobOptions, NAMESPACE, own_image};
use crate::exec::mount::Source;
use crate::ports::{ExecError, Images as _, JOB_DIR, RunScope, StepSpec, StopSignal, Workspace};

/// Adds the options of a step with an image of its own.
pub(super) fn put(options: JobOptions, step: &StepSpec, create: &mut Create) {
    if own_image(step).is_none() {
        return;
    }
    if let Some(namespace) = options.namespace {
        create.labels.insert(NAMESPACE, namespace);
    }
    create.terminal = options.tty;
    // An anonymous volume works on a remote engine and is removed with the container.
    create.volumes.push(json!({ "Name": "", "Dest": JOB_DIR }));
    for mount in options.mounts {
        let words: Vec<&str> = mount.options.iter().map(|option| option.as_str()).collect();
        match mount.source {
            Source::Dir(source) => {
                let others = words.into_iter().filter(|word| *word != "rbind");
                let options: Vec<&str> = ["rbind"].into_iter().chain(others).collect();
                create.mounts.push(json!({
                    "type": "bind", "source": source, "destination": mount.target,
                    "options": options,
                }));
            }
            Source::Volume(name) => {
                create.volumes.push(json!({ "Name": name, "Dest": mount.target, "Options": words }))
            }
        }
    }
}

impl Podman {
    /// The workspace that a step starts from: its own image if it names one.
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
    use crate::exec::access::HostAccess;
    use crate::exec::job::tests::docker_step;
    use crate::exec::mount::MountHost;

    #[test]
    fn a_mount_is_a_bind_and_a_volume_goes_with_the_directory_of_the_job() {
        let mounts = ["/tmp:/cache:ro,rbind", "data:/data:nocopy"];
        let step = docker_step(json!({ "image": "i", "mounts": mounts }));
        let access = HostAccess::default();
        let host = MountHost { access: &access, socket: None };
        let options = JobOptions::of_step(&step, host).unwrap();
        let mut create = super::super::create::tests::of(&step);
        put(options, &step, &mut create);
        let expected = json!([{ "type": "bind", "source": "/tmp", "destination": "/cache", "options": ["rbind", "ro"] }]);
        assert_eq!(json!(create.mounts), expected);
        let volumes = json!([
            { "Name": "", "Dest": JOB_DIR },
            { "Name": "data", "Dest": "/data", "Options": ["nocopy"] },
        ]);
        assert_eq!(json!(create.volumes), volumes);
    }
}
