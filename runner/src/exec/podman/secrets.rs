//! The secrets of a step, as in-memory files that only its user can read.
//!
//! They are on a tmpfs volume. An archive with them is uploaded when the container is prepared and
//! its volumes are mounted, before the start. Tested on rootless podman 4.3.1: no secret is in the
//! engine's description of the container, on its disk or in a commit, and all are gone when the
//! container ends. The engine's own secrets would be files on its disk while the container exists.
//! As variables they would be in its description.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use hyper::Method;
use tokio_util::io::StreamReader;

use super::call::{ANSWERS, Fault, bytes_of, empty};
use super::{Podman, path};
use crate::exec::secrets_dir::DIR;
use crate::ports::{ByteStream, ExecError, StepSecret};

/// The user id if the user is named by number.
fn number_of(user: &str) -> Option<u64> {
    match user.split(':').next().unwrap_or_default() {
        "" | "root" => Some(0),
        user => user.parse().ok(),
    }
}

/// A tar of secrets that only `owner` can read.
async fn packed(given: &[StepSecret], owner: u64) -> std::io::Result<Vec<u8>> {
    let mut tar = tokio_tar::Builder::new(Vec::new());
    for StepSecret { name, value, .. } in given {
        let mut header = tokio_tar::Header::new_gnu();
        header.set_mode(0o400);
        header.set_uid(owner);
        header.set_gid(0);
        header.set_size(value.expose().len() as u64);
        tar.append_data(&mut header, name, value.expose()).await?;
    }
    tar.into_inner().await
}

impl Podman {
    /// Uploads secrets to a container that is prepared and not started.
    pub(super) async fn give(
        &self,
        id: &str,
        user: &str,
        given: &[StepSecret],
    ) -> Result<(), ExecError> {
        if given.is_empty() {
            return Ok(());
        }
        let failed = |cause: String| ExecError::Engine {
            doing: "handing secrets to a step".to_owned(),
            cause,
        };
        let owner = match number_of(user) {
            Some(owner) => owner,
            None => self.owner_of(id).await.map_err(failed)?,
        };
        let tar = packed(given, owner).await.map_err(|cause| failed(cause.to_string()))?;
        let tar = futures::stream::iter([Ok(Bytes::from(tar))]).boxed();
        match self.put(id, DIR, tar).await {
            Err(ExecError::Input(cause)) => Err(failed(cause)),
            put => put,
        }
    }

    /// The user that owns the volume. The engine gives it to the container's user, whose name only
    /// the image can resolve.
    async fn owner_of(&self, id: &str) -> Result<u64, String> {
        let tar = self.archive(id, DIR).await.map_err(|fault| fault.to_string())?;
        let mut tar = tokio_tar::Archive::new(StreamReader::new(tar));
        let mut entries = tar.entries().map_err(|cause| cause.to_string())?;
        let first = entries.next().await.ok_or("its archive is empty")?;
        let owner = first.and_then(|entry| entry.header().uid());
        owner.map_err(|cause| cause.to_string())
    }

    /// Downloads an archive of a path in a container.
    pub(super) async fn archive(&self, id: &str, at: &str) -> Result<ByteStream, Fault> {
        let query = path::query(&[("path", at)]);
        self.streamed(ANSWERS, &format!("/containers/{id}/archive?{query}")).await
    }

    /// Returns a response body as a stream. The response must begin within this time.
    pub(super) async fn streamed(&self, within: Duration, path: &str) -> Result<ByteStream, Fault> {
        let answer = self.http.open_within(within, &Method::GET, path, &[], empty()).await?;
        if !answer.status().is_success() {
            let status = answer.status().as_u16();
            let refused = super::call::read(answer).await?.good().err();
            return Err(refused.unwrap_or_else(|| Fault::Malformed(format!("status {status}"))));
        }
        Ok(bytes_of(answer.into_body()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_without_a_number_is_asked_for() {
        for (user, number) in
            [("", Some(0)), ("root", Some(0)), ("1000:5", Some(1000)), ("nobody", None)]
        {
            assert_eq!(number_of(user), number, "{user}");
        }
    }
}
