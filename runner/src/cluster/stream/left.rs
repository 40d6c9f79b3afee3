//! Publishes the events that earlier workers of this cluster left on disk. Those workers ended or
//! were killed before the broker had confirmed the events.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::id::{Epoch, RunId};
use tracing::{debug, info, warn};

use super::buffer::Waiting;
use super::segment::{SEGMENT, UNREADABLE, decode_all};
use super::shared::Shared;
use super::spill::{LOCK, LOST, SpillRoot};
use crate::cluster::amqp::Link;

/// The interval between scans. A worker with the same disk may end at any time.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The directory of an ended worker. No other worker publishes it while this value exists.
#[derive(Debug)]
pub(super) struct LeftoverDirectory {
    dir: PathBuf,
    _lock: File,
    segments: Vec<PathBuf>,
    lost: BTreeMap<RunId, Epoch>,
}

impl LeftoverDirectory {
    /// Claims a directory. Returns `None` if its worker is alive or another worker was faster.
    fn claim(dir: PathBuf) -> io::Result<Option<Self>> {
        let lock = File::open(dir.join(LOCK))?;
        if lock.try_lock().is_err() {
            return Ok(None);
        }
        let segments = segments_in(&dir)?;
        let lost = lost_in(&dir)?;
        Ok(Some(Self { dir, _lock: lock, segments, lost }))
    }

    fn is_lost(&self, waiting: &Waiting) -> bool {
        self.lost.iter().any(|(run, up_to)| waiting.belongs_to(run, *up_to))
    }

    /// Removes the directory after all of its segments were published.
    fn remove(self) {
        // An unreadable segment stays, together with its directory.
        let is_done = segments_in(&self.dir).is_ok_and(|left| left.is_empty())
            && fs::read_dir(&self.dir).is_ok_and(|entries| {
                !entries.flatten().any(|entry| {
                    Path::new(&entry.file_name()).extension().is_some_and(|end| end == UNREADABLE)
                })
            });
        if is_done && let Err(cause) = fs::remove_dir_all(&self.dir) {
            debug!(dir = %self.dir.display(), %cause, "an empty spill directory cannot be removed");
        }
    }
}

/// Reads the lost runs of a directory. An invalid file must not block its directory: their events
/// are published then, which readers of the stream tolerate.
fn lost_in(dir: &Path) -> io::Result<BTreeMap<RunId, Epoch>> {
    let path = dir.join(LOST);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(cause) => return Err(cause),
    };
    Ok(serde_json::from_slice(&bytes).unwrap_or_else(|cause| {
        warn!(path = %path.display(), %cause, "the list of lost runs is invalid and is ignored");
        // Renamed, so that the next scan does not warn again.
        fs::rename(&path, dir.join(format!("{LOST}.invalid"))).ok();
        BTreeMap::new()
    }))
}

/// Returns the segments in a directory, oldest first.
fn segments_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == SEGMENT) {
            segments.push(path);
        }
    }
    segments.sort();
    Ok(segments)
}

/// Returns the directories of ended workers and the total size of their segments.
pub(super) fn find(place: &SpillRoot) -> io::Result<(Vec<LeftoverDirectory>, u64)> {
    let (mut all, mut bytes) = (Vec::new(), 0);
    for entry in fs::read_dir(place.dir())? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(|name| place.is_of_this_cluster(name)) {
            continue;
        }
        match LeftoverDirectory::claim(entry.path()) {
            Ok(Some(left)) => {
                let sizes = left.segments.iter().filter_map(|path| path.metadata().ok());
                bytes += sizes.map(|metadata| metadata.len()).sum::<u64>();
                all.push(left);
            }
            Ok(None) => {}
            // Another worker has just removed it.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => {
                let dir = entry.path();
                warn!(dir = %dir.display(), %cause, "events that an earlier worker left are not readable");
            }
        }
    }
    Ok((all, bytes))
}

/// Scans for events of earlier workers and publishes them while the broker accepts events.
pub(super) async fn publish(shared: Arc<Shared>, link: Link, place: SpillRoot) {
    // `live` only fails once this worker has closed the link.
    while link.live().await.is_ok() {
        let looking = {
            let place = place.clone();
            tokio::task::spawn_blocking(move || find(&place)).await
        };
        match looking {
            Ok(Ok((all, bytes))) => {
                place.set_leftover_size(bytes);
                for left in all {
                    publish_one(&shared, left).await;
                }
                place.set_leftover_size(0);
            }
            Ok(Err(cause)) => {
                warn!(dir = %place.dir().display(), %cause, "cannot look for events of earlier workers");
            }
            // The runtime is shutting down.
            Err(_) => return,
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn publish_one(shared: &Shared, left: LeftoverDirectory) {
    let mut events = 0;
    for path in left.segments.clone() {
        let reading = path.clone();
        let read = tokio::task::spawn_blocking(move || {
            let bytes = fs::read(reading)?;
            let length = bytes.len();
            decode_all(&bytes.into()).map(|(all, used)| (all, length - used))
        });
        let (all, torn) = match read.await {
            Ok(Ok(read)) => read,
            Ok(Err(cause)) => {
                warn!(path = %path.display(), %cause, "events that an earlier worker left are not readable");
                fs::rename(&path, path.with_extension(UNREADABLE)).ok();
                continue;
            }
            Err(_) => return,
        };
        if torn > 0 {
            warn!(path = %path.display(), bytes = torn, "the end of a spill file is cut off");
        }
        let mut last = 0;
        for waiting in all.into_iter().filter(|waiting| !left.is_lost(waiting)) {
            let Ok(ticket) = shared.push(waiting.run, waiting.epoch, waiting.body).await else {
                return;
            };
            last = ticket;
            events += 1;
        }
        // One segment at a time: if this worker ends meanwhile, the next one publishes the rest.
        if shared.done(last).await.is_err() {
            return;
        }
        fs::remove_file(&path).ok();
    }
    if events > 0 {
        info!(events, dir = %left.dir.display(), "events that an earlier worker left are published");
    }
    left.remove();
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::buffer::Leftover;
    use super::super::spill::Spill;
    use super::*;

    fn event(ticket: u64) -> Waiting {
        let run = Some("r-a".parse().unwrap());
        Waiting::new(ticket, run, Some(Epoch(7)), Bytes::from_static(b"{}"))
    }

    fn place(dir: &Path, prefix: &str) -> SpillRoot {
        SpillRoot::new(dir, prefix.to_owned(), 1 << 20)
    }

    #[test]
    fn only_events_of_dead_workers_of_the_same_cluster_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let own = place(dir.path(), "events-a-");
        let mut lives = Spill::open(own.clone()).unwrap();
        lives.append(&[event(1)]).unwrap();
        let foreign = Spill::open(place(dir.path(), "events-b-")).unwrap();
        foreign.keep(Leftover { front: vec![event(1)], ..Leftover::default() }).unwrap();
        assert_eq!(find(&own).unwrap().0.len(), 0);
        let lost = BTreeMap::from([("r-b".parse().unwrap(), Epoch(3))]);
        let tail = vec![event(2)];
        lives.keep(Leftover { front: Vec::new(), tail, lost: lost.clone() }).unwrap();
        let (found, bytes) = find(&own).unwrap();
        assert_eq!((found.len(), found[0].segments.len(), bytes > 0), (1, 1, true));
        assert_eq!(found[0].lost, lost);
        assert_eq!(find(&own).unwrap().0.len(), 0, "they are taken already");
    }

    #[test]
    fn a_directory_is_removed_once_its_segments_are() {
        let dir = tempfile::tempdir().unwrap();
        let own = place(dir.path(), "events-a-");
        let spill = Spill::open(own.clone()).unwrap();
        spill.keep(Leftover { front: vec![event(1)], ..Leftover::default() }).unwrap();
        let left = find(&own).unwrap().0.remove(0);
        left.remove();
        let left = find(&own).unwrap().0.remove(0);
        fs::remove_file(&left.segments[0]).unwrap();
        left.remove();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_truncated_list_of_lost_runs_does_not_block_the_events() {
        let dir = tempfile::tempdir().unwrap();
        let own = place(dir.path(), "events-a-");
        let spill = Spill::open(own.clone()).unwrap();
        let kept = spill.keep(Leftover { front: vec![event(1)], ..Leftover::default() }).unwrap();
        let list = kept.dir.unwrap().join(LOST);
        fs::write(&list, br#"{"r-a":"#).unwrap();
        for _ in 0..2 {
            let (found, _) = find(&own).unwrap();
            assert_eq!((found.len(), found[0].segments.len(), found[0].lost.len()), (1, 1, 0));
            assert!(!list.exists(), "one warning is enough");
        }
    }
}
