//! In-memory transfers: a resource comes in, an artifact goes out.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use protocol::id::RunId;
use protocol::pipeline::Vars;
use runner::ports::{ByteStream, LoggerFeed, Origin, Transfer, TransferError};

use crate::plan::EffectSide;
use crate::world::{Broken, Process};

/// The transfers of one process.
pub struct Handle {
    pub process: Arc<Process>,
}

impl Handle {
    async fn pass(&self, site: &str, side: EffectSide) -> Result<(), TransferError> {
        self.process.pass(site, side).await.map_err(|Broken| TransferError::Unreachable {
            what: "the service".into(),
            url: "http://here".into(),
            cause: "it does not answer".into(),
        })
    }
}

#[async_trait]
impl Transfer for Handle {
    async fn external_resource(
        &self,
        provider_url: &str,
        params: &Vars,
        mount: &str,
    ) -> Result<ByteStream, TransferError> {
        self.internal_resource(provider_url, params, mount).await
    }

    async fn internal_resource(
        &self,
        _store_url: &str,
        _params: &Vars,
        _mount: &str,
    ) -> Result<ByteStream, TransferError> {
        self.pass("fetch", EffectSide::Before).await?;
        Ok(futures::stream::iter([Ok(Bytes::from_static(b"a file"))]).boxed())
    }

    async fn upload_artifact(
        &self,
        _store_url: &str,
        _path: [&str; 4],
        _tar: ByteStream,
        _origin: &Origin,
    ) -> Result<(), TransferError> {
        self.pass("upload", EffectSide::Before).await?;
        self.pass("upload", EffectSide::After).await
    }

    async fn post(
        &self,
        _url: &str,
        _secret: Option<&str>,
        _id: &str,
        _body: Bytes,
    ) -> Result<u16, TransferError> {
        self.pass("post", EffectSide::Before).await?;
        Ok(200)
    }

    fn logger(&self, _url: &str, _run: &RunId) -> Result<Box<dyn LoggerFeed>, TransferError> {
        Err(TransferError::BadParams("no run of a simulation has a logger".into()))
    }
}
