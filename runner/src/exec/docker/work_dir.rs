//! The working directory of a container on podman's Docker-compatible API.
//!
//! That API always creates the directory, and podman follows links in it onto its host while it
//! does so (see `exec::work_dir`). Docker's own daemon resolves links within the container. So a
//! container on podman gets a path without links.

use bollard::errors::Error;
use bollard::models::ContainerCreateBody;

use super::{Docker, fault};
use crate::exec::work_dir::{Entry, PathWalk};
use crate::ports::{ExecError, RunScope, StepSpec};

impl Docker {
    /// Creates a container with a working directory. `None` is the root directory.
    pub(super) async fn create_in(
        &self,
        run: &RunScope,
        step: &StepSpec,
        mut body: ContainerCreateBody,
        dir: Option<String>,
    ) -> Result<String, ExecError> {
        let failed = |error| self.failed("asking what it is", &error);
        let id = self.create(run, step, &mut body).await?;
        let dir = dir.filter(|dir| !dir.is_empty()).unwrap_or_else(|| "/".to_owned());
        if dir == "/" || !self.client().await.map_err(failed)?.is_podman {
            return Ok(id);
        }
        // podman creates the missing part of a path without links.
        match self.find_dir(step, &id, &dir).await {
            Ok((path, _)) if path == dir => Ok(id),
            Ok((path, _)) => {
                // The next container uses the same name.
                self.remove(&id)
                    .await
                    .map_err(|error| self.failed("removing a container", &error))?;
                body.working_dir = Some(path);
                self.create(run, step, &mut body).await
            }
            Err(error) => {
                self.soon(id);
                Err(error)
            }
        }
    }

    async fn find_dir(
        &self,
        step: &StepSpec,
        id: &str,
        dir: &str,
    ) -> Result<(String, Vec<String>), ExecError> {
        let mut walk = PathWalk::along(dir);
        while let Some(at) = walk.next() {
            let entry = self.entry(id, &at).await;
            walk.answer(
                entry.map_err(|error| self.failed("looking for a working directory", &error))?,
            );
        }
        walk.found().into_path(dir, true).map_err(|cause| ExecError::Start {
            step: step.name.clone(),
            cause,
            code: 126,
        })
    }

    async fn entry(&self, id: &str, at: &str) -> Result<Entry, Error> {
        let prefix = &self.client().await?.prefix;
        let at = percent_encoding::utf8_percent_encode(at, percent_encoding::NON_ALPHANUMERIC);
        let path = format!("{prefix}/containers/{id}/archive?path={at}");
        let (status, stat) = self.wire.head(&path).await?;
        if let Some(entry) = Entry::answered(status, stat.as_deref()) {
            return entry.map_err(|cause| Error::IOError { err: std::io::Error::other(cause) });
        }
        // A HEAD response has no message, so repeat the request with GET.
        match self.wire.open(&path).await {
            Err(error) if Entry::is_circle(fault::refusal(&error)) => {
                Ok(Entry::Link(String::new()))
            }
            Err(error) => Err(error),
            Ok(_) => Err(Error::DockerResponseServerError {
                status_code: status,
                message: "a path that is there cannot be looked at".to_owned(),
            }),
        }
    }
}
