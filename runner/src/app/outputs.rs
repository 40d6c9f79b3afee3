//! Chooses where outputs of steps are stored.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use futures::FutureExt as _;
use protocol::id::RegisteredName;
use protocol::names;
use protocol::run::Registered;

use crate::config::{self, Config};
use crate::ports::{OutputStore, Outputs, Store, TransferError};
use crate::transfer::{self, ArtifactStore, Bucket, BucketKeys, BucketOptions, Directory, Keeper};

/// Outputs in a directory of this host.
pub(super) fn in_directory(dir: PathBuf) -> Arc<dyn Outputs> {
    Arc::new(Keeper::new(Arc::new(Directory::new(dir))))
}

/// Outputs in the configured store. `None` if there is none. `cluster`: see [`output_store`].
pub(super) fn keeper(
    config: &Config,
    store: &Arc<dyn Store>,
    http: &transfer::Http,
    cluster: Option<&str>,
) -> anyhow::Result<Option<Arc<dyn Outputs>>> {
    let kept = output_store(config, store, http, cluster)?;
    Ok(kept.map(|kept| Arc::new(Keeper::new(kept)) as Arc<dyn Outputs>))
}

/// The configured store for outputs. `None` if there is none. `cluster`: the identity of the store
/// of runs, whose records decide how long outputs in a directory are kept. `None` for a run of
/// `run FILE`, whose user keeps them.
pub(super) fn output_store(
    config: &Config,
    store: &Arc<dyn Store>,
    http: &transfer::Http,
    cluster: Option<&str>,
) -> anyhow::Result<Option<Arc<dyn OutputStore>>> {
    let kept: Arc<dyn OutputStore> = match &config.outputs {
        None => return Ok(None),
        Some(config::Outputs::Directory(dir)) => Arc::new(match cluster {
            Some(cluster) => Directory::of_cluster(dir.clone(), cluster),
            None => Directory::new(dir.clone()),
        }),
        Some(config::Outputs::S3(s3)) => {
            let keys = s3.login.as_ref().map(|login| BucketKeys {
                access: login.user.clone(),
                secret: login.password.expose().to_owned(),
            });
            let bucket = Bucket::new(&BucketOptions {
                bucket: s3.bucket.clone(),
                prefix: s3.prefix.clone(),
                endpoint: s3.endpoint.clone(),
                region: s3.region.clone(),
                keys,
            });
            Arc::new(bucket.context("outputs cannot be kept in the bucket of BOB_OUTPUTS")?)
        }
        Some(config::Outputs::ArtifactStore(name)) => {
            let (store, of) = (Arc::clone(store), name.clone());
            let registered = Arc::new(move || url_of(Arc::clone(&store), of.clone()).boxed());
            Arc::new(ArtifactStore::new(http.clone(), name.to_string(), registered))
        }
    };
    Ok(Some(kept))
}

/// The current URL of a registered artifact store.
async fn url_of(store: Arc<dyn Store>, name: RegisteredName) -> Result<String, TransferError> {
    let failed =
        |cause: String| TransferError::BadParams(format!("artifact store {name}: {cause}"));
    let entry = store.get(&format!("{}{name}", names::STORES)).await;
    let entry = entry.map_err(|cause| failed(cause.to_string()))?;
    let entry = entry.ok_or_else(|| failed("it is not registered".to_owned()))?;
    let registered = serde_json::from_slice::<Registered>(&entry.value);
    registered.map(|it| it.url).map_err(|cause| failed(cause.to_string()))
}
