//! A real S3 server that stores its objects in a directory.

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

/// A running server. Dropping it stops the server.
pub(crate) struct S3 {
    address: SocketAddr,
    /// The directory with the server's buckets.
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
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service.clone();
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                connections.spawn(connection);
            }
        });
        Self { address, root, task }
    }

    pub(crate) fn options(&self, secret: &str) -> BucketOptions {
        BucketOptions {
            bucket: BUCKET.into(),
            prefix: "team/bob".into(),
            endpoint: Some(format!("http://{}", self.address)),
            region: "us-east-1".into(),
            keys: Some(BucketKeys { access: USER.into(), secret: secret.into() }),
        }
    }

    pub(crate) fn bucket(&self) -> Bucket {
        Bucket::new(&self.options(SECRET)).unwrap()
    }

    /// A client for reads that do not go through the `Bucket` under test.
    fn client(&self) -> impl object_store::ObjectStore {
        AmazonS3Builder::new()
            .with_bucket_name(BUCKET)
            .with_region("us-east-1")
            .with_endpoint(format!("http://{}", self.address))
            .with_allow_http(true)
            .with_access_key_id(USER)
            .with_secret_access_key(SECRET)
            .build()
            .unwrap()
    }

    /// Reads the object whose key has these segments. Returns `None` if there is none.
    pub(crate) async fn get(&self, segments: &[&str]) -> Option<Vec<u8>> {
        let key: Path = segments.iter().map(|segment| PathPart::from(*segment)).collect();
        match self.client().get(&key).await {
            Ok(object) => Some(object.bytes().await.unwrap().to_vec()),
            Err(object_store::Error::NotFound { .. }) => None,
            Err(cause) => panic!("{cause}"),
        }
    }

    /// The keys of all objects that the server lists.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let client = self.client();
        let listed = client.list_with_delimiter(None).await.unwrap();
        let mut prefixes = listed.common_prefixes;
        let mut keys: Vec<String> =
            listed.objects.iter().map(|object| object.location.to_string()).collect();
        while let Some(prefix) = prefixes.pop() {
            let listed = client.list_with_delimiter(Some(&prefix)).await.unwrap();
            prefixes.extend(listed.common_prefixes);
            keys.extend(listed.objects.iter().map(|object| object.location.to_string()));
        }
        keys
    }
}
