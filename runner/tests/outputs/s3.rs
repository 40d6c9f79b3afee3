//! A real S3 server over a directory.

use std::net::SocketAddr;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use object_store::aws::AmazonS3Builder;
use object_store::path::{Path, PathPart};
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use runner::transfer::{Bucket, BucketKeys, BucketOptions};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const BUCKET: &str = "outputs";
const USER: &str = "me";
pub(crate) const SECRET: &str = "hunter2hunter2";

/// A running server. Dropping it ends the server.
pub(crate) struct S3 {
    at: SocketAddr,
    /// The directory with its objects.
    pub(crate) root: tempfile::TempDir,
    task: JoinHandle<()>,
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl S3 {
    pub(crate) async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(USER, SECRET));
        let service = service.build().into_shared();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service.clone();
                open.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { at, root, task }
    }

    pub(crate) fn options(&self, secret: &str) -> BucketOptions {
        BucketOptions {
            bucket: BUCKET.into(),
            prefix: "team/bob".into(),
            endpoint: Some(format!("http://{}", self.at)),
            region: "us-east-1".into(),
            keys: Some(BucketKeys { access: USER.into(), secret: secret.into() }),
        }
    }

    pub(crate) fn bucket(&self) -> Bucket {
        Bucket::new(&self.options(SECRET)).unwrap()
    }

    fn reader(&self) -> impl object_store::ObjectStore {
        AmazonS3Builder::new()
            .with_bucket_name(BUCKET)
            .with_region("us-east-1")
            .with_endpoint(format!("http://{}", self.at))
            .with_allow_http(true)
            .with_access_key_id(USER)
            .with_secret_access_key(SECRET)
            .build()
            .unwrap()
    }

    /// An object by the segments of its key.
    pub(crate) async fn get(&self, parts: &[&str]) -> Option<Vec<u8>> {
        let key: Path = parts.iter().map(|part| PathPart::from(*part)).collect();
        match self.reader().get(&key).await {
            Ok(found) => Some(found.bytes().await.unwrap().to_vec()),
            Err(object_store::Error::NotFound { .. }) => None,
            Err(cause) => panic!("{cause}"),
        }
    }

    /// The visible keys.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let listed = self.reader().list_with_delimiter(None).await.unwrap();
        let mut open = listed.common_prefixes;
        let mut keys: Vec<String> = listed.objects.iter().map(|o| o.location.to_string()).collect();
        while let Some(prefix) = open.pop() {
            let listed = self.reader().list_with_delimiter(Some(&prefix)).await.unwrap();
            open.extend(listed.common_prefixes);
            keys.extend(listed.objects.iter().map(|object| object.location.to_string()));
        }
        keys
    }
}
