//! How full the disk is that the engine keeps its images and containers on.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use super::Podman;
use super::call::{Ask, Reply};
use super::reserve;
use crate::ports::{Disk, ExecError};

/// Where the engine's store lies, once it is proven to be the same disk here.
#[derive(Debug, Default)]
pub(super) struct Root(Mutex<Option<PathBuf>>);

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    store: Store,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Store {
    graph_root: PathBuf,
    graph_root_allocated: u64,
    graph_root_used: u64,
}

impl Podman {
    /// Asks the system where it can, else the engine.
    ///
    /// The engine's own answer takes it 0.3 s and six programs that it starts for their versions, and
    /// counts what is reserved for root as free. The system's is there in microseconds, but may be that
    /// of another disk: the engine's path need not be the same place in this process's mounts, as in a
    /// container. So the system is believed where its disk is as large, to the byte, as the engine says.
    pub(super) async fn look_at_disk(&self) -> Result<Option<Disk>, ExecError> {
        if let Some(path) = self.root()
            && let Some((_, disk)) = of_path(path, reserve::keep).await
        {
            return Ok(Some(disk));
        }
        let reply = self.http.call(Ask::get("/info")).await.and_then(Reply::good);
        let info = reply.and_then(|reply| reply.json::<Info>());
        let Store { graph_root, graph_root_allocated: total, graph_root_used: used } =
            info.map_err(|fault| fault.at("asking how full its disk is", &self.http))?.store;
        if total == 0 {
            return Ok(None);
        }
        if self.http.is_local()
            && let Some((blocks, _)) = of_path(graph_root.clone(), |_, _| ()).await
            && blocks == total
        {
            let root = graph_root.clone();
            *self.root.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(root);
            return Ok(of_path(graph_root, reserve::keep).await.map(|(_, disk)| disk));
        }
        Ok(Some(Disk { total, free: total.saturating_sub(used) }))
    }

    fn root(&self) -> Option<PathBuf> {
        self.root.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// To be called before something is removed: the engine needs a little room for that.
    pub(super) async fn make_room_to_remove(&self) {
        if let Some(path) = self.root() {
            of_path(path, reserve::give_up).await;
        }
    }
}

/// The size of the disk at a path with root's reserve, and the disk without it, as the system says;
/// after `then`, which acts on it. A file system behind a network may take long.
async fn of_path(path: PathBuf, then: fn(&Path, &Disk)) -> Option<(u64, Disk)> {
    let asked = tokio::task::spawn_blocking(move || {
        let stat = rustix::fs::statvfs(&path).ok()?;
        let disk = Disk::of_blocks(stat.f_frsize, stat.f_blocks, stat.f_bfree, stat.f_bavail);
        then(&path, &disk);
        Some((stat.f_blocks.saturating_mul(stat.f_frsize), disk))
    });
    asked.await.ok()?
}
