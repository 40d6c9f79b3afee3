//! Files of steps: the job directory, and artifacts copied out of the container.

use std::io;
use std::time::Duration;

use bollard::errors::Error;
use bollard::query_parameters::{
    DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder,
};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::time::timeout;

use super::wire::ANSWERS;
use super::{Docker, fault};
use crate::exec::archive::{open_directory_tar, texts, whole_archive, without_stalls};
use crate::exec::argv::SCRIPT_DIR;
use crate::ports::{ByteStream, ExecError, JOB_DIR, Workspace};

/// The number of retries of an empty archive. podman answers 200 with no data while it cleans up a
/// container that has just ended.
const AGAIN: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

impl Docker {
    /// Makes the job directory writable for a non-root user. Docker creates a volume as root's,
    /// while podman gives it to the container's user.
    pub(super) async fn open_job_dir(&self, id: &str, user: &str) -> Result<(), ExecError> {
        if ["", "0", "root"].contains(&user.split(':').next().unwrap_or_default()) {
            return Ok(());
        }
        let doing = "making the directory of a job";
        let failed = |error| self.failed(doing, &error);
        let (above, name) = JOB_DIR.rsplit_once('/').unwrap_or(("", JOB_DIR));
        let tar = open_directory_tar(name).await.map_err(|cause| ExecError::Engine {
            doing: doing.to_owned(),
            cause: cause.to_string(),
        })?;
        let options = UploadToContainerOptionsBuilder::default().path(above).build();
        let client = self.client().await.map_err(failed)?;
        let body = bollard::body_full(Bytes::from(tar));
        client.docker.upload_to_container(id, Some(options), body).await.map_err(failed)
    }

    /// Copies the script files into a container that is not started.
    pub(super) async fn put_script(
        &self,
        id: &str,
        files: &[(String, String)],
    ) -> Result<(), ExecError> {
        if files.is_empty() {
            return Ok(());
        }
        let doing = "handing a script to a step";
        let failed = |error| self.failed(doing, &error);
        let tar = texts(files).await.map_err(|cause| ExecError::Engine {
            doing: doing.to_owned(),
            cause: cause.to_string(),
        })?;
        let options = UploadToContainerOptionsBuilder::default().path(SCRIPT_DIR).build();
        let client = self.client().await.map_err(failed)?;
        let body = bollard::body_full(Bytes::from(tar));
        client.docker.upload_to_container(id, Some(options), body).await.map_err(failed)
    }

    /// A tar of a path in a step's container.
    pub(super) async fn pack(&self, left: &Workspace, path: &str) -> Result<ByteStream, ExecError> {
        let failed = |error| self.failed("reading an artifact", &error);
        let Workspace::Lone { id } = left else {
            return Err(ExecError::NoSuchPath { path: path.to_owned() });
        };
        let whole = if path.starts_with('/') {
            path.to_owned()
        } else {
            let looked = self.look(id).await.map_err(failed)?;
            let dir = looked.map_or_else(|| "/".to_owned(), |it| it.work_dir().to_owned());
            format!("{}/{path}", dir.trim_end_matches('/'))
        };
        let options = DownloadFromContainerOptionsBuilder::default().path(&whole).build();
        let docker = &self.client().await.map_err(failed)?.docker;
        let mut again = AGAIN;
        let (first, bytes) = loop {
            let mut bytes = docker.download_from_container(id, Some(options.clone())).boxed();
            let first = timeout(ANSWERS, bytes.next()).await;
            match first.map_err(|_elapsed| failed(Error::RequestTimeoutError))? {
                Some(Err(error)) if fault::status(&error) == Some(404) => {
                    return Err(ExecError::NoSuchPath { path: whole });
                }
                Some(Err(error)) => return Err(failed(error)),
                Some(Ok(first)) => break (Some(Ok(first)), bytes),
                None if again == 0 => break (None, bytes),
                None => {}
            }
            again -= 1;
            tokio::time::sleep(PAUSE).await;
        };
        let rest = without_stalls(bytes.map_err(io::Error::other).boxed(), ANSWERS);
        Ok(whole_archive(futures::stream::iter(first).chain(rest).boxed()))
    }
}
