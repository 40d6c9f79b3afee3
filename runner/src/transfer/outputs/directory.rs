//! Outputs in a directory of this host.

use std::io;
use std::path::PathBuf;

use async_trait::async_trait;
use futures::StreamExt as _;
use protocol::id::RunId;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use super::index::Index;
use super::meter::Meter;
use super::partial::{self, Partial, level};
use crate::ports::{ByteStream, Origin, OutputLocation, OutputStore, Stored, TransferError};

/// Stores outputs in a directory.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
    index: Option<Index>,
}

impl Directory {
    /// Stores outputs below a directory, which is created when needed.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root, index: None }
    }

    /// Stores outputs of runs of this cluster below a directory, and can remove them by run. Other
    /// clusters, and `run FILE`, can use the same directory.
    #[must_use]
    pub fn of_cluster(root: PathBuf, cluster: &str) -> Self {
        let index = Some(Index::new(&root, cluster));
        Self { root, index }
    }

    /// Runs a blocking operation of the index.
    async fn with_index<T: Send + 'static>(
        &self,
        what: impl FnOnce() -> String + Send,
        act: impl FnOnce(Index) -> io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, TransferError> {
        let Some(index) = self.index.clone() else { return Ok(None) };
        let done = tokio::task::spawn_blocking(move || act(index)).await;
        done.map_err(io::Error::other).and_then(|done| done).map(Some).map_err(|cause| {
            TransferError::Removal { what: what(), store: self.name(), cause: cause.to_string() }
        })
    }

    fn failed(&self, place: &OutputLocation, cause: &io::Error) -> TransferError {
        let what = format!("{:?}", place.path());
        TransferError::Store { what, store: self.name(), cause: cause.to_string() }
    }
}

/// The directories of a place, and its file.
fn levels(place: &OutputLocation) -> Vec<String> {
    let names = place.namespace().iter().map(|name| level(name));
    names.chain(place.path().split('/').map(str::to_owned)).collect()
}

#[async_trait]
impl OutputStore for Directory {
    fn name(&self) -> String {
        self.root.display().to_string()
    }

    async fn put(
        &self,
        place: &OutputLocation,
        size: u64,
        bytes: ByteStream,
        origin: &Origin,
    ) -> Result<Stored, TransferError> {
        let failed = |cause: io::Error| self.failed(place, &cause);
        let mut meter = Meter::new(place, size, bytes);
        let levels = levels(place);
        let (root, index, run) = (self.root.clone(), self.index.clone(), origin.run.clone());
        let begun = tokio::task::spawn_blocking(move || {
            if let Some(index) = index {
                // First, so that no output exists that cannot be found again.
                index.add(&run, &levels)?;
            }
            Partial::begin(&root, levels)
        });
        let (partial, file) =
            begun.await.map_err(io::Error::other).and_then(|begun| begun).map_err(failed)?;
        let mut file = tokio::fs::File::from_std(file);
        while let Some(chunk) = meter.next().await? {
            file.write_all(&chunk).await.map_err(failed)?;
        }
        file.sync_all().await.map_err(failed)?;
        let settled = tokio::task::spawn_blocking(move || partial.settle());
        settled.await.map_err(io::Error::other).and_then(|settled| settled).map_err(failed)?;
        Ok(meter.stored())
    }

    async fn get(&self, place: &OutputLocation) -> Result<Option<ByteStream>, TransferError> {
        let (root, levels) = (self.root.clone(), levels(place));
        let opened = tokio::task::spawn_blocking(move || partial::open(&root, levels)).await;
        match opened.map_err(io::Error::other).and_then(|opened| opened) {
            Ok(file) => Ok(Some(ReaderStream::new(tokio::fs::File::from_std(file)).boxed())),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(self.failed(place, &cause)),
        }
    }

    async fn removable_runs(&self) -> Result<Vec<RunId>, TransferError> {
        let runs = self.with_index(|| "outputs".to_owned(), |index| index.runs()).await?;
        Ok(runs.unwrap_or_default())
    }

    async fn remove(&self, run: &RunId) -> Result<(), TransferError> {
        let removed = run.clone();
        let what = || format!("the outputs of run {run}");
        self.with_index(what, move |index| index.remove(&removed)).await.map(|_done| ())
    }
}
