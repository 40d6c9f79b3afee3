//! Decides which images a step may start from, on any engine.

use protocol::id::RunId;

use super::access::HostAccess;
use super::auth::registry_of;
use crate::ports::ExecError;

/// The local repositories of committed steps, of unnamed base images, and of marks on pulled ones.
const OWN_REPOSITORIES: [&str; 3] =
    ["localhost/bob-run", "localhost/bob-base", "localhost/bob-pulled"];

impl HostAccess {
    /// Rejects an image reference that is reserved for bob-runner: its own repositories of this
    /// engine, and the checkpoint registry, which the worker would access with its own credentials.
    ///
    /// # Errors
    /// [`ExecError::Unsupported`].
    pub(super) fn check_image_name(&self, image: &str) -> Result<(), ExecError> {
        if self.granted.is_none() {
            return Ok(());
        }
        let checkpoints = self.checkpoints.as_deref().is_some_and(|checkpoints| {
            let (named, own) = (normalized(image), normalized(checkpoints));
            is_repository_below(&named, &own)
        });
        if checkpoints {
            return Err(ExecError::Unsupported(format!(
                "image {image}: the checkpoint registry is reserved for bob-runner"
            )));
        }
        let local = local_name(image);
        if OWN_REPOSITORIES.iter().any(|own| is_repository_below(&local, own)) {
            return Err(ExecError::Unsupported(format!(
                "image {image}: the repositories {} are reserved for bob-runner",
                OWN_REPOSITORIES.join(", ")
            )));
        }
        Ok(())
    }

    /// Rejects an image that steps of another run committed, by its label, however it was named.
    /// `owner` is the value of the label `bob.run`.
    ///
    /// # Errors
    /// [`ExecError::Unsupported`].
    pub(super) fn check_image_owner(
        &self,
        image: &str,
        owner: Option<&str>,
        run: &RunId,
    ) -> Result<(), ExecError> {
        let is_foreign = owner.is_some_and(|owner| !owner.is_empty() && owner != run.as_str());
        if self.granted.is_none() || !is_foreign {
            return Ok(());
        }
        Err(ExecError::Unsupported(format!(
            "image {image} was committed by another run, and only a rerun of that run can start \
             from it; to publish such an image, build one without the label bob.run"
        )))
    }
}

/// Whether a repository is `own` or below it.
fn is_repository_below(repository: &str, own: &str) -> bool {
    repository.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The repository of a reference as the engine searches its own store for it: a short name means
/// `localhost/NAME` there.
fn local_name(image: &str) -> String {
    let full = registry_of(image).1;
    let image = image.strip_prefix("docker://").unwrap_or(image);
    match full.strip_prefix("docker.io/") {
        Some(rest) if !image.starts_with("docker.io/") => {
            format!("localhost/{}", rest.strip_prefix("library/").unwrap_or(rest))
        }
        Some(_) | None => full,
    }
}

/// A repository in one spelling of its host.
fn normalized(image: &str) -> String {
    let full = registry_of(image).1;
    let Some((host, path)) = full.split_once('/') else { return full };
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix(":443").unwrap_or(&host);
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    format!("{host}/{path}")
}

#[cfg(test)]
mod tests {
    use super::super::access::Granted;
    use super::*;

    fn worker(checkpoints: &str) -> HostAccess {
        let checkpoints = Some(checkpoints.to_owned());
        HostAccess { granted: Some(Granted::default()), checkpoints, ..HostAccess::default() }
    }

    #[test]
    fn an_image_below_a_repository_of_bob_runner_is_rejected() {
        let access = worker("registry:5000/bob-checkpoints");
        for image in [
            "localhost/bob-run/s0-1-7:r-1",
            "bob-run/s0-1-7:r-1",
            "docker://localhost/bob-run/s0-1-7:r-1",
            "localhost/bob-run/s0-1-7@sha256:00",
            "localhost/bob-base:r-1",
            "bob-base:r-1",
            "localhost/bob-pulled/a/b:new",
            "registry:5000/bob-checkpoints:r-1.7.0.1",
            "REGISTRY:5000/bob-checkpoints:r-1.7.0.1",
            "docker://registry:5000/bob-checkpoints@sha256:00",
            "registry:5000/bob-checkpoints/below",
        ] {
            assert!(access.check_image_name(image).is_err(), "{image}");
            assert!(HostAccess::default().check_image_name(image).is_ok(), "a person's own file");
        }
        for image in [
            "busybox",
            "localhost/bob-test-base:latest",
            "localhost/bob-runs:1",
            "docker.io/bob-run/x",
            "registry:5000/bob-checkpoints-of-mine",
            "registry:5001/bob-checkpoints",
        ] {
            assert!(access.check_image_name(image).is_ok(), "{image}");
        }
        assert!(worker("docker.io/me/kept").check_image_name("me/kept:r-1.7.0.1").is_err());
        let secure = worker("registry.example/kept");
        assert!(secure.check_image_name("registry.example:443/kept").is_err());
    }

    #[test]
    fn an_image_of_another_run_is_rejected() {
        let (access, run) = (worker("r/c"), "r-1".parse().unwrap());
        for owner in [None, Some(""), Some("r-1")] {
            assert!(access.check_image_owner("i", owner, &run).is_ok(), "{owner:?}");
        }
        assert!(access.check_image_owner("i", Some("r-2"), &run).is_err());
        assert!(HostAccess::default().check_image_owner("i", Some("r-2"), &run).is_ok());
    }
}
