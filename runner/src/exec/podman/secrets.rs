//! The secrets of a step, as files in memory that its user alone can read.
//!
//! They lie on a volume of type tmpfs, and are put there as an archive once the container is made ready
//! and its volumes are mounted, before it is started. Tried on podman 4.3.1, rootless: nothing of them is
//! in the engine's description of the container, on its disk or in an image of it, and with the
//! container's end they are gone. The engine's own secrets would be files on its disk for as long as the
//! container is there, and as variables they are in that description.

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use hyper::Method;
use tokio_util::io::StreamReader;

use super::call::{Fault, empty};
use super::{Podman, path};
use crate::exec::given::DIR;
use crate::ports::{ByteStream, ExecError, Given};

/// The user that an image or a pipeline names by a number.
fn number_of(user: &str) -> Option<u64> {
    match user.split(':').next().unwrap_or_default() {
        "" | "root" => Some(0),
        user => user.parse().ok(),
    }
}

/// An archive of secrets that a user can read.
async fn packed(given: &[Given], owner: u64) -> std::io::Result<Vec<u8>> {
    let mut tar = tokio_tar::Builder::new(Vec::new());
    for Given { name, value, .. } in given {
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
    /// Puts secrets into a container that is made ready and not started.
    pub(super) async fn give(
        &self,
        id: &str,
        user: &str,
        given: &[Given],
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

    /// Whom the engine has given the volume to: the user of the container, who may have a name that
    /// only its image knows.
    async fn owner_of(&self, id: &str) -> Result<u64, String> {
        let tar = self.archive(id, DIR).await.map_err(|fault| fault.to_string())?;
        let mut tar = tokio_tar::Archive::new(StreamReader::new(tar));
        let mut entries = tar.entries().map_err(|cause| cause.to_string())?;
        let first = entries.next().await.ok_or("its archive is empty")?;
        let owner = first.and_then(|entry| entry.header().uid());
        owner.map_err(|cause| cause.to_string())
    }

    /// An archive of what lies at a path of a container, as the engine sends it.
    pub(super) async fn archive(&self, id: &str, at: &str) -> Result<ByteStream, Fault> {
        let query = path::query(&[("path", at)]);
        self.streamed(&format!("/containers/{id}/archive?{query}")).await
    }

    /// An answer as it comes.
    pub(super) async fn streamed(&self, path: &str) -> Result<ByteStream, Fault> {
        let answer = self.http.open(&Method::GET, path, &[], empty()).await?;
        if !answer.status().is_success() {
            let status = answer.status().as_u16();
            let refused = super::call::read(answer).await?.good().err();
            return Err(refused.unwrap_or_else(|| Fault::Garbled(format!("status {status}"))));
        }
        let frames = http_body_util::BodyStream::new(answer.into_body());
        let bytes = frames.map_err(std::io::Error::other).try_filter_map(|frame| async {
            // What is no data comes after all of it.
            Ok(frame.into_data().ok())
        });
        Ok(bytes.boxed())
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
