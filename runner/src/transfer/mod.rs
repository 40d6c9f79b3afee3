//! Transfers between the worker and services: resources in, artifacts and logs out over HTTP, and
//! outputs of steps to their stores. Everything is streamed and never held in memory as a whole.

mod address;
mod answer;
mod artifact;
mod callback;
mod clients;
mod http;
mod logs;
mod outputs;
mod progress;
mod resource;
mod spill;
mod tar;

use async_trait::async_trait;
use bytes::Bytes;
use protocol::id::RunId;
use protocol::pipeline::Vars;

use crate::ports::{ByteStream, LoggerFeed, Origin, Transfer, TransferError};
pub use clients::SetupError;
pub use http::{Http, Options};
pub use outputs::{
    ArtifactStore, Bucket, BucketKeys, BucketOptions, Directory, Keeper, Registered,
};
pub use progress::Timeouts;

#[async_trait]
impl Transfer for Http {
    async fn external_resource(
        &self,
        provider_url: &str,
        params: &Vars,
        mount: &str,
    ) -> Result<ByteStream, TransferError> {
        let (service, url) = resource::external(provider_url, params)?;
        self.fetch(&service, url, mount).await
    }

    async fn internal_resource(
        &self,
        store_url: &str,
        params: &Vars,
        mount: &str,
    ) -> Result<ByteStream, TransferError> {
        let (service, url) = resource::internal(store_url, params, mount)?;
        self.fetch(&service, url, mount).await
    }

    async fn upload_artifact(
        &self,
        store_url: &str,
        path: [&str; 4],
        tar: ByteStream,
        origin: &Origin,
    ) -> Result<(), TransferError> {
        self.send(store_url, path, tar, origin).await
    }

    async fn post(
        &self,
        url: &str,
        secret: Option<&str>,
        id: &str,
        body: Bytes,
    ) -> Result<u16, TransferError> {
        self.post_notification(url, secret, id, body).await
    }

    fn logger(&self, logger_url: &str, run: &RunId) -> Result<Box<dyn LoggerFeed>, TransferError> {
        let feed = logs::Feed::open(self, logger_url, run)?;
        Ok(Box::new(feed))
    }
}
