//! Outputs in a bucket of S3 or a compatible service.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ClientOptions, MultipartUpload, ObjectStoreExt as _, PutPayload, RetryConfig};
use tokio_util::task::TaskTracker;

use super::meter::Meter;
use crate::ports::{ByteStream, Origin, OutputLocation, OutputStore, Stored, TransferError};
use crate::transfer::SetupError;
use crate::transfer::answer::SHOWN;

/// The size of an upload part, in bytes. A file up to this size is sent in one request.
const PART: u64 = 8 << 20;
/// The maximum number of parts.
const PARTS: u64 = 10_000;
/// The timeout of one request.
const REQUEST: Duration = Duration::from_secs(300);
const CONNECT: Duration = Duration::from_secs(10);
/// How long a request is retried.
const RETRY: Duration = Duration::from_secs(60);
const RETRIES: usize = 4;

/// A bucket and the credentials for it.
#[derive(Debug, Clone)]
pub struct BucketOptions {
    /// The bucket.
    pub bucket: String,
    /// The prefix of all keys, without leading or trailing slash. Can be empty.
    pub prefix: String,
    /// The URL of the server. `None`: AWS.
    pub endpoint: Option<String>,
    /// The region.
    pub region: String,
    /// The credentials. `None`: the AWS role of the machine.
    pub keys: Option<BucketKeys>,
}

/// S3 credentials.
#[derive(Clone)]
pub struct BucketKeys {
    /// The access key id.
    pub access: String,
    /// The secret key.
    pub secret: String,
}

impl std::fmt::Debug for BucketKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BucketKeys(***)")
    }
}

/// Stores outputs in a bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    store: AmazonS3,
    bucket: String,
    prefix: Path,
    /// The tasks that abort uploads.
    aborts: TaskTracker,
}

impl Bucket {
    /// Creates a store over a bucket. Does not connect yet.
    ///
    /// # Errors
    /// [`SetupError`] if the client cannot be created.
    pub fn new(options: &BucketOptions) -> Result<Self, SetupError> {
        let BucketOptions { bucket, prefix, endpoint, region, keys } = options.clone();
        let is_plain = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let client = ClientOptions::new()
            .with_timeout(REQUEST)
            .with_connect_timeout(CONNECT)
            .with_allow_http(is_plain);
        let retry =
            RetryConfig { max_retries: RETRIES, retry_timeout: RETRY, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&bucket)
            .with_region(region)
            .with_client_options(client)
            .with_retry(retry);
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        }
        if let Some(BucketKeys { access, secret }) = keys {
            builder = builder.with_access_key_id(access).with_secret_access_key(secret);
        }
        let store = builder.build().map_err(|cause| SetupError::Bucket {
            bucket: bucket.clone(),
            cause: shortened(&cause.to_string()),
        })?;
        let prefix = prefix.split('/').filter(|part| !part.is_empty()).collect();
        Ok(Self { store, bucket, prefix, aborts: TaskTracker::new() })
    }

    /// The key of a place. Each name is one segment, and characters that S3 advises against are
    /// encoded.
    fn key(&self, place: &OutputLocation) -> Path {
        let under = place.namespace().iter().map(String::as_str);
        let parts = under.chain(place.path().split('/')).map(Into::into);
        self.prefix.parts().chain(parts).collect()
    }

    fn failed(&self, place: &OutputLocation, cause: &object_store::Error) -> TransferError {
        let (what, store) = (format!("{:?}", place.path()), self.name());
        TransferError::Store { what, store, cause: shortened(&cause.to_string()) }
    }

    async fn put_parts(
        &self,
        place: &OutputLocation,
        size: u64,
        meter: &mut Meter,
    ) -> Result<(), TransferError> {
        let failed = |cause: object_store::Error| self.failed(place, &cause);
        let begun = self.store.put_multipart(&self.key(place)).await.map_err(failed)?;
        let mut upload = Upload { open: Some(begun), aborts: self.aborts.clone() };
        let sent = async {
            let part = usize::try_from(PART.max(size.div_ceil(PARTS))).unwrap_or(usize::MAX);
            let mut ahead = Bytes::new();
            loop {
                let bytes = filled(meter, &mut ahead, part).await?;
                if bytes.is_empty() {
                    return upload.complete().await.map_err(failed);
                }
                upload.part(bytes).await.map_err(failed)?;
            }
        };
        let sent = sent.await;
        if sent.is_err() {
            upload.abort().await;
        }
        sent
    }
}

#[async_trait]
impl OutputStore for Bucket {
    fn name(&self) -> String {
        if self.prefix.as_ref().is_empty() {
            format!("s3://{}", self.bucket)
        } else {
            format!("s3://{}/{}", self.bucket, self.prefix)
        }
    }

    async fn put(
        &self,
        place: &OutputLocation,
        size: u64,
        bytes: ByteStream,
        _origin: &Origin,
    ) -> Result<Stored, TransferError> {
        let mut meter = Meter::new(place, size, bytes);
        if size > PART {
            self.put_parts(place, size, &mut meter).await?;
            return Ok(meter.stored());
        }
        let mut chunks = Vec::new();
        while let Some(chunk) = meter.next().await? {
            chunks.push(chunk);
        }
        let put = self.store.put(&self.key(place), PutPayload::from_iter(chunks)).await;
        put.map_err(|cause| self.failed(place, &cause))?;
        Ok(meter.stored())
    }

    async fn get(&self, place: &OutputLocation) -> Result<Option<ByteStream>, TransferError> {
        match self.store.get(&self.key(place)).await {
            Ok(found) => Ok(Some(found.into_stream().map_err(io::Error::other).boxed())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(cause) => Err(self.failed(place, &cause)),
        }
    }
}

/// Reads `size` bytes, or the rest. Some servers require equal parts except for the last.
async fn filled(meter: &mut Meter, ahead: &mut Bytes, size: usize) -> Result<Bytes, TransferError> {
    let mut part = BytesMut::with_capacity(size);
    while part.len() < size {
        if ahead.is_empty() {
            let Some(chunk) = meter.next().await? else { break };
            *ahead = chunk;
        }
        let more = ahead.len().min(size - part.len());
        part.extend_from_slice(&ahead.split_to(more));
    }
    Ok(part.freeze())
}

/// A multipart upload, invisible until it is complete. Its parts take up space until it is aborted,
/// which also happens when it is dropped.
struct Upload {
    open: Option<Box<dyn MultipartUpload>>,
    aborts: TaskTracker,
}

impl Upload {
    async fn part(&mut self, bytes: Bytes) -> object_store::Result<()> {
        match &mut self.open {
            Some(open) => open.put_part(bytes.into()).await,
            None => Ok(()),
        }
    }

    async fn complete(&mut self) -> object_store::Result<()> {
        if let Some(open) = &mut self.open {
            open.complete().await?;
        }
        self.open = None;
        Ok(())
    }

    async fn abort(&mut self) {
        if let Some(mut open) = self.open.take() {
            abort_upload(&mut *open).await;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and a lifecycle rule of the bucket must remove
        // it.
        if let (Some(mut open), Ok(_runtime)) =
            (self.open.take(), tokio::runtime::Handle::try_current())
        {
            self.aborts.spawn(async move { abort_upload(&mut *open).await });
        }
    }
}

async fn abort_upload(open: &mut dyn MultipartUpload) {
    if let Err(cause) = open.abort().await {
        tracing::warn!(%cause, "an upload in parts that was given up stays in its bucket");
    }
}

/// A store's message, on one line.
fn shortened(said: &str) -> String {
    let line = said.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(SHOWN).collect()
}
