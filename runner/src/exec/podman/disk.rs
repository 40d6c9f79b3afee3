//! The free space of the disk that holds the engine's images and containers.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Podman;
use super::call::{EngineCall, Reply};
use super::reserve;
use crate::ports::{Disk, ExecError};

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
    /// Reads the disk from the system if possible, else from the engine.
    ///
    /// The engine takes 0.3 s and starts six programs to learn their versions. It also counts
    /// root's reserve as free. The system answers in microseconds, but might see another disk: in a
    /// container, the engine's path need not be the same place. So the system's answer is used only
    /// if its disk has exactly the size in bytes that the engine reports.
    pub(super) async fn look_at_disk(&self) -> Result<Option<Disk>, ExecError> {
        if let Some(path) = self.root()
            && let Some((_, disk)) = of_path(path, reserve::keep).await
        {
            return Ok(Some(disk));
        }
        let reply = self.http.call(EngineCall::get("/info")).await.and_then(Reply::good);
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
            *self.root.0.lock() = Some(root);
            return Ok(of_path(graph_root, reserve::keep).await.map(|(_, disk)| disk));
        }
        Ok(Some(Disk { total, free: total.saturating_sub(used) }))
    }

    fn root(&self) -> Option<PathBuf> {
        self.root.0.lock().clone()
    }

    /// Frees the reserve. Call before any removal, because the engine needs some room to remove
    /// things.
    pub(super) async fn make_room_to_remove(&self) {
        if let Some(path) = self.root() {
            of_path(path, reserve::give_up).await;
        }
    }
}

/// The size of the disk with root's reserve, and the disk without it, as the system reports them.
/// Calls `then` with the disk. Can block for long on a network file system.
async fn of_path(path: PathBuf, then: fn(&Path, &Disk)) -> Option<(u64, Disk)> {
    let asked = tokio::task::spawn_blocking(move || {
        let stat = rustix::fs::statvfs(&path).ok()?;
        let disk = Disk::of_blocks(stat.f_frsize, stat.f_blocks, stat.f_bfree, stat.f_bavail);
        then(&path, &disk);
        Some((stat.f_blocks.saturating_mul(stat.f_frsize), disk))
    });
    asked.await.ok()?
}
