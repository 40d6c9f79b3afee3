//! Inspects images and pulls them from their registries.

use std::collections::HashMap;

use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use bollard::models::ImageInspect;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::StreamExt as _;
use protocol::names;
use protocol::pipeline::PullPolicy;
use serde::Deserialize;

use super::{Docker, fault};
use crate::exec::annotations::{check_container, check_image};
use crate::exec::auth;
use crate::ports::{ExecError, RunScope, StopLevel, StopSignal};

/// The prefix of podman's own API on the same socket. Its Docker API does not show annotations.
const LIBPOD: &str = "/v4.0.0/libpod";

/// The annotations of an image, or of a container's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Annotated {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AnnotatedContainer {
    #[serde(default)]
    config: Annotated,
}

impl Docker {
    /// Inspects an image after pulling it if the pull policy demands that.
    pub(super) async fn image(
        &self,
        run: &RunScope,
        image: &str,
        stop: &StopSignal,
    ) -> Result<ImageInspect, ExecError> {
        let refused = |cause: String| ExecError::Image { image: image.to_owned(), cause };
        self.access.check_image_name(image)?;
        let mut rejected = None;
        if run.pull != PullPolicy::Always
            && let Some(there) = self.inspect_image(image).await?
        {
            match self.usable(run, image, there).await {
                // See `podman::chain`: a pull can restore its annotations.
                Err(cause @ ExecError::Image { .. }) => rejected = Some(cause),
                usable => return usable,
            }
        }
        if run.pull == PullPolicy::Never {
            let missing = "the engine does not hold it, and its pull policy is never";
            return Err(rejected.unwrap_or_else(|| refused(missing.into())));
        }
        let pulled = tokio::select! {
            pulled = self.pull(image) => pulled,
            _ = stop.above(StopLevel::Run) => return Err(ExecError::NotStarted),
        };
        pulled.map_err(|cause| {
            if matches!(cause, ExecError::Image { .. }) { rejected.unwrap_or(cause) } else { cause }
        })?;
        let Some(there) = self.inspect_image(image).await? else {
            return Err(refused(
                "it was pulled and is gone again: see what removes images on the engine's host"
                    .into(),
            ));
        };
        self.usable(run, image, there).await
    }

    /// Returns an image if a step may start from it.
    async fn usable(
        &self,
        run: &RunScope,
        image: &str,
        there: ImageInspect,
    ) -> Result<ImageInspect, ExecError> {
        let failed = |error: Error| self.failed("looking at an image", &error);
        let labels = there.config.as_ref().and_then(|config| config.labels.as_ref());
        let owner = labels.and_then(|labels| labels.get(names::LABEL_RUN));
        self.access.check_image_owner(image, owner.map(String::as_str), &run.run)?;
        // The engine would look up a name again at the creation.
        let Some(id) = there.id.as_deref() else {
            let cause = "the engine's description of it has no id".to_owned();
            return Err(ExecError::Image { image: image.to_owned(), cause });
        };
        if self.client().await.map_err(failed)?.is_podman {
            let id = id.strip_prefix("sha256:").unwrap_or(id);
            let path = format!("{LIBPOD}/images/{id}/json");
            let image_of: Annotated = self.wire.get(&path).await.map_err(failed)?;
            check_image(image, image_of.annotations.as_ref())?;
        }
        Ok(there)
    }

    /// Rejects a container on podman whose annotations would be options of the OCI runtime.
    pub(super) async fn check_created(&self, image: &str, id: &str) -> Result<(), ExecError> {
        let failed = |error: Error| self.failed("looking at a step", &error);
        if !self.client().await.map_err(failed)?.is_podman {
            // Docker does not pass on annotations of images.
            return Ok(());
        }
        let path = format!("{LIBPOD}/containers/{id}/json");
        let made: AnnotatedContainer = self.wire.get(&path).await.map_err(failed)?;
        check_container(image, made.config.annotations.as_ref(), &[])
    }

    async fn inspect_image(&self, image: &str) -> Result<Option<ImageInspect>, ExecError> {
        let looked =
            self.client().await.map_err(|error| self.failed("asking what it is", &error))?;
        match looked.docker.inspect_image(image).await {
            Ok(image) => Ok(Some(image)),
            Err(error) if fault::status(&error) == Some(404) => Ok(None),
            Err(error) if fault::status(&error) == Some(400) => {
                let cause = fault::refusal(&error).to_owned();
                Err(ExecError::Image { image: image.to_owned(), cause })
            }
            Err(error) => Err(self.failed("looking at an image", &error)),
        }
    }

    async fn pull(&self, image: &str) -> Result<(), ExecError> {
        let refused = |cause: String| ExecError::Image { image: image.to_owned(), cause };
        let credentials = self.credentials(image).map_err(refused)?;
        let client =
            self.client().await.map_err(|error| self.failed("asking what it is", &error))?;
        let options = CreateImageOptionsBuilder::default().from_image(&with_tag(image)).build();
        let mut answer =
            std::pin::pin!(client.docker.create_image(Some(options), None, credentials));
        while let Some(line) = answer.next().await {
            match line {
                Ok(_) => {}
                Err(error) if fault::is_away(&error) => {
                    return Err(self.failed("pulling an image", &error));
                }
                Err(error) => return Err(not_pulled(image, &error)),
            }
        }
        Ok(())
    }

    fn credentials(&self, image: &str) -> Result<Option<DockerCredentials>, String> {
        let found = auth::find(&self.auth_files, self.auth_asked_for, image)?;
        let fields = found.map(|credentials| credentials.fields());
        let Some(fields) = fields else { return Ok(None) };
        let fields = fields.ok_or("its credentials cannot be read")?;
        let of = |name: &str| fields.get(name).and_then(|value| value.as_str()).map(str::to_owned);
        Ok(Some(DockerCredentials {
            username: of("username"),
            password: of("password"),
            identitytoken: of("identitytoken"),
            serveraddress: Some(auth::registry_of(image).0.to_owned()),
            ..DockerCredentials::default()
        }))
    }
}

/// Adds the default tag. Without a tag the engine would pull every tag.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

fn not_pulled(image: &str, error: &Error) -> ExecError {
    let said = match fault::refusal(error) {
        "" => error.to_string(),
        said => said.to_owned(),
    };
    if fault::no_space(&said) {
        return ExecError::NoSpace { cause: said };
    }
    let (host, _) = auth::registry_of(image);
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let cause = if has(&["unauthorized", "denied", "authentication required", "no basic auth"]) {
        format!(
            "registry {host} refuses the credentials, needs some, or has no such image: see BOB_REGISTRY_AUTH_FILE ({said})"
        )
    } else if has(&["server gave HTTP response", "x509:"]) {
        format!(
            "the Docker engine does not trust registry {host}: name it in the engine's own settings, insecure-registries ({said})"
        )
    } else if has(&["manifest unknown", "not found", "name unknown"]) {
        format!("registry {host} has no such image or tag ({said})")
    } else if has(&["connection refused", "no such host", "i/o timeout", "dial tcp", "EOF"]) {
        format!("registry {host} cannot be reached ({said})")
    } else {
        said
    };
    ExecError::Image { image: image.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_tag_means_one_image() {
        for (name, whole) in [
            ("busybox", "busybox:latest"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("a/b:1", "a/b:1"),
            ("a/b@sha256:00", "a/b@sha256:00"),
        ] {
            assert_eq!(with_tag(name), whole);
        }
    }

    #[test]
    fn what_can_be_put_right_is_told_apart() {
        for (said, told) in [
            ("pull access denied for x, repository does not exist", "BOB_REGISTRY_AUTH_FILE"),
            ("Get \"https://h/v2/\": x509: certificate signed by", "insecure-registries"),
            ("manifest for h/x:1 not found: manifest unknown", "no such image"),
            ("Get \"http://h/v2/\": dial tcp 127.0.0.1:1: connect", "cannot be reached"),
        ] {
            let error = Error::DockerStreamError { error: said.to_owned() };
            let sentence = not_pulled("h/x:1", &error).to_string();
            assert!(sentence.contains(told), "{sentence}");
        }
    }
}
