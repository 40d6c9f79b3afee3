//! Outputs in an artifact store of Bob. Each is an artifact of its run: a tar with one file.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use percent_encoding::utf8_percent_encode;
use tokio_tar::Archive;
use tokio_util::io::{ReaderStream, StreamReader};

use super::meter::Meter;
use crate::ports::{ByteStream, Origin, OutputLocation, OutputStore, Stored, TransferError};
use crate::transfer::Http;
use crate::transfer::address::RESERVED;
use crate::transfer::resource;

/// The directory of a downloaded file. Its name is not used.
const MOUNT: &str = "output";

/// Looks up the current address of the artifact store.
pub type Registered =
    Arc<dyn Fn() -> BoxFuture<'static, Result<String, TransferError>> + Send + Sync>;

/// Stores outputs in a registered artifact store.
///
/// The first three names of a place are group, name and run id. The rest is encoded into one
/// artifact name, by which a later pipeline can mount the output.
#[derive(Clone)]
pub struct ArtifactStore {
    http: Http,
    name: String,
    registered: Registered,
}

impl std::fmt::Debug for ArtifactStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArtifactStore").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ArtifactStore {
    /// Uses the store registered under `name`, which is looked up for each file.
    #[must_use]
    pub fn new(http: Http, name: String, registered: Registered) -> Self {
        Self { http, name, registered }
    }

    /// Group, pipeline, run and artifact of a place.
    fn path(&self, place: &OutputLocation) -> Result<[String; 4], TransferError> {
        let [group, name, run, rest @ ..] = place.namespace() else {
            return Err(TransferError::BadParams(format!(
                "the output {:?} is of no run, and {} keeps nothing else",
                place.path(),
                OutputStore::name(self)
            )));
        };
        Ok([group.clone(), name.clone(), run.clone(), artifact(rest, place.path())])
    }

    fn failed(&self, place: &OutputLocation, cause: &str) -> TransferError {
        let (what, store) = (format!("{:?}", place.path()), OutputStore::name(self));
        TransferError::Store { what, store, cause: cause.to_owned() }
    }
}

#[async_trait]
impl OutputStore for ArtifactStore {
    fn name(&self) -> String {
        format!("artifact store {}", self.name)
    }

    async fn put(
        &self,
        place: &OutputLocation,
        size: u64,
        bytes: ByteStream,
        origin: &Origin,
    ) -> Result<Stored, TransferError> {
        let path = self.path(place)?;
        let registered = (self.registered)().await?;
        let stored = Arc::default();
        let tar = archived(place, size, bytes, Arc::clone(&stored));
        self.http.send(&registered, path.each_ref().map(String::as_str), tar, origin).await?;
        let stored = stored.lock().take();
        stored.ok_or_else(|| self.failed(place, "it answered before it had all of it"))
    }

    async fn get(&self, place: &OutputLocation) -> Result<Option<ByteStream>, TransferError> {
        let [group, name, run, artifact] = self.path(place)?;
        let registered = (self.registered)().await?;
        let params = [("group", group), ("name", name), ("run-id", run)];
        let params = params.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
        let (service, url) = resource::internal(&registered, &params, &artifact)?;
        let tar = match self.http.fetch(&service, url, MOUNT).await {
            Ok(tar) => tar,
            Err(TransferError::Refused { status: 404, .. }) => return Ok(None),
            Err(cause) => return Err(cause),
        };
        let failed = |cause: io::Error| self.failed(place, &cause.to_string());
        let mut entries = Archive::new(StreamReader::new(tar)).entries().map_err(failed)?;
        while let Some(entry) = entries.next().await {
            let entry = entry.map_err(failed)?;
            if entry.header().entry_type().is_file() {
                return Ok(Some(ReaderStream::new(entry).boxed()));
            }
        }
        Err(self.failed(place, "its archive has no file"))
    }
}

/// The artifact name for a path below names. It is unique per place.
fn artifact(names: &[String], path: &str) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, RESERVED).to_string();
    let mut parts: Vec<String> = names.iter().map(|name| encoded(name)).collect();
    parts.push(path.to_owned());
    encoded(&parts.join("/"))
}

/// A tar with the file at its path. Sends the facts about the file once it is complete.
fn archived(
    place: &OutputLocation,
    size: u64,
    bytes: ByteStream,
    stored: Arc<Mutex<Option<Stored>>>,
) -> ByteStream {
    let path = place.path().to_owned();
    let meter = Meter::new(place, size, bytes);
    let metered = stream::try_unfold((meter, stored), |(mut meter, stored)| async move {
        let next = meter.next().await.map_err(|cause| io::Error::other(cause.to_string()))?;
        if next.is_none() {
            *stored.lock() = Some(meter.stored());
        }
        Ok::<_, io::Error>(next.map(|chunk| (chunk, (meter, stored))))
    });
    let (write, read) = tokio::io::duplex(64 * 1024);
    let packing = async move {
        let mut tar = tokio_tar::Builder::new(write);
        let mut header = tokio_tar::Header::new_gnu();
        header.set_entry_type(tokio_tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(size);
        tar.append_data(&mut header, &path, StreamReader::new(metered.boxed())).await?;
        tar.finish().await
    };
    // The packed bytes come first, then the error if there was one.
    let ended = stream::once(packing).filter_map(|done| async { done.err().map(Err) });
    let ended = ended.map(|done: io::Result<Bytes>| done);
    stream::select(ReaderStream::new(read), ended).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_is_named_by_step_and_path_in_one_name() {
        let named = |step: &str, path| artifact(&[step.to_owned()], path);
        assert_eq!(named("build", "out/a b.txt"), "build%2Fout%2Fa%20b.txt");
        assert_ne!(named("a/b", "c"), named("a", "b/c"));
    }
}
