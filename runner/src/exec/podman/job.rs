//! A step with an image of its own. It inherits no files from earlier steps and leaves only files.

use std::collections::HashMap;

use bytes::Bytes;
use protocol::names;
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{Ask, Reply};
use super::create::Create;
use super::http::Link;
use super::{Podman, path};
use crate::exec::job::{JobOptions, NAMESPACE, own_image};
use crate::exec::mount::{JobMount, Source};
use crate::ports::{ExecError, Executor as _, JOB_DIR, RunScope, StepSpec, StopSignal, Workspace};

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

/// An inspected volume.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
    #[serde(default)]
    options: Option<HashMap<String, Value>>,
}

impl Described {
    /// Whether a step created it, so that nothing else on the host backs it.
    fn is_of_steps(&self) -> bool {
        let labels = self.labels.as_ref();
        let is_ours = labels.and_then(|labels| labels.get(names::LABEL_ROLE));
        is_ours.is_some_and(|role| role == SHARED)
            && self.options.as_ref().is_none_or(HashMap::is_empty)
    }
}

/// The role label of named volumes that steps created and share.
const SHARED: &str = "shared";

impl Podman {
    /// Creates the missing named volumes of a step, and rejects those that no step created. The
    /// engine itself handles volumes that the operator allows.
    pub(super) async fn has_volumes(
        &self,
        link: &mut Link,
        step: &StepSpec,
        mounts: &[JobMount],
    ) -> Result<(), ExecError> {
        for mount in mounts {
            if let Source::Volume(name) = &mount.source
                && !self.access.has_volume(name)
            {
                self.has_volume(link, step, name).await?;
            }
        }
        Ok(())
    }

    async fn has_volume(
        &self,
        link: &mut Link,
        step: &StepSpec,
        name: &str,
    ) -> Result<(), ExecError> {
        let body = json!({ "Name": name, "Label": { names::LABEL_ROLE: SHARED } });
        let json = Some(Bytes::from(body.to_string()));
        let made = link.call(Ask { json, ..Ask::post("/volumes/create") }).await;
        match made.and_then(Reply::good) {
            Ok(_) => {}
            Err(fault) if fault.refusal().contains("already exists") => {}
            Err(fault) => return Err(fault.at("creating a volume for a step", &self.http)),
        }
        // Check even after a create: some versions return an existing volume.
        let ask = Ask::get(format!("/volumes/{}/json", path::name(name)));
        let described = link.call(ask).await.and_then(Reply::good);
        let described = described.and_then(|reply| reply.json::<Described>());
        let described =
            described.map_err(|fault| fault.at("looking at a volume of a step", &self.http))?;
        if described.is_of_steps() {
            return Ok(());
        }
        Err(ExecError::Unsupported(format!(
            "step {}: volume {name:?} was not created by a step: the operator of this worker can add it to BOB_SHARED_VOLUMES",
            step.name
        )))
    }

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

    #[test]
    fn a_volume_is_the_steps_only_with_their_label_and_nothing_behind_it() {
        let is_of_steps =
            |json: Value| serde_json::from_value::<Described>(json).unwrap().is_of_steps();
        assert!(is_of_steps(json!({ "Labels": { "bob.role": "shared" }, "Options": {} })));
        assert!(is_of_steps(json!({ "Labels": { "bob.role": "shared" } })));
        for other in [
            json!({}),
            json!({ "Labels": {} }),
            json!({ "Labels": { "bob.run": "r-1" } }),
            json!({ "Labels": { "bob.role": "shared" }, "Options": { "device": "/etc" } }),
        ] {
            assert!(!is_of_steps(other.clone()), "{other}");
        }
    }
}
