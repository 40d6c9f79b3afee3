//! Pauses the intake while the engine's disk is too full or the engine does not answer. A run that
//! meets a full disk fails, and may make other runs fail. Runs in progress continue.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use protocol::run::NodeDisk;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tracing::{info, warn};

use crate::ports::{Disk, RunScope};

/// Settings for the engine's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskOptions {
    /// The usage in percent at which the worker stops accepting work.
    pub high: u8,
    /// The usage in percent below which it accepts work again. Less than `high`.
    pub low: u8,
    /// The interval between checks.
    pub look: Duration,
    /// The maximum size of the pulled base images in bytes. 0 means no limit.
    pub base_images_bytes: u64,
}

impl Default for DiskOptions {
    fn default() -> Self {
        let look = Duration::from_secs(30);
        Self { high: 85, low: 80, look, base_images_bytes: 20 << 30 }
    }
}

impl DiskOptions {
    /// Returns true if a disk is too full. Once it was, it must fall below the low mark.
    pub(super) fn is_too_full(&self, was: State, percent: u8) -> bool {
        match was {
            State::Unknown | State::Room | State::Away => percent >= self.high,
            State::Full => percent >= self.low,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not yet checked.
    Unknown,
    /// Work is accepted.
    Room,
    /// No work is accepted, because the disk is full.
    Full,
    /// No work is accepted, because the engine does not answer.
    Away,
}

/// A service without which a worker accepts no runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Service {
    /// The event stream.
    Stream,
}

/// Whether the worker can accept work.
#[derive(Debug)]
pub(super) struct Room {
    /// Whether the disk is checked.
    watched: bool,
    state: Mutex<State>,
    /// Wakes its waiters in order, unlike tokio's `watch`. The simulation needs one history per
    /// seed.
    changed: Notify,
    /// The unavailable services, with the reasons.
    obstacles: Mutex<BTreeMap<Service, String>>,
    seen: Mutex<Option<Disk>>,
    /// Requests a check now.
    asked: Notify,
    /// Runs released because the engine was unavailable. Their containers reappear with it.
    stranded: Mutex<Vec<RunScope>>,
    /// The images from which runs have started since the last `take_used`.
    used: Mutex<BTreeSet<String>>,
    /// Held during a sweep, so that there is one at a time.
    pub(super) sweeping: tokio::sync::Mutex<()>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The guarded values are consistent even after a panic.
    mutex.lock()
}

impl Room {
    /// If `watched` is false, the disk is never checked, and there is always room.
    pub(super) fn new(watched: bool) -> Self {
        let state = if watched { State::Unknown } else { State::Room };
        Self {
            watched,
            state: Mutex::new(state),
            changed: Notify::new(),
            obstacles: Mutex::default(),
            seen: Mutex::default(),
            asked: Notify::new(),
            stranded: Mutex::default(),
            used: Mutex::default(),
            sweeping: tokio::sync::Mutex::default(),
        }
    }

    /// Returns true if work may be accepted.
    pub(super) fn is_there(&self) -> bool {
        self.state() == State::Room && locked(&self.obstacles).is_empty()
    }

    /// Waits until work may be accepted.
    ///
    /// # Cancel safety
    /// This method is cancel safe, as are all waits of this type.
    pub(super) async fn available(&self) {
        self.reached(Self::is_there).await;
    }

    /// Waits until no work may be accepted.
    pub(super) async fn unavailable(&self) {
        self.reached(|room| !room.is_there()).await;
    }

    /// Waits until the disk was checked for the first time.
    pub(super) async fn known(&self) {
        self.reached(|room| room.state() != State::Unknown).await;
    }

    async fn reached(&self, is: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            if is(self) {
                return;
            }
            changed.await;
        }
    }

    /// Notes that a run met a full disk, whatever the engine reports. No work is accepted before
    /// the next check. Has no effect if the disk is not checked.
    pub(super) fn note_full(&self) {
        if self.watched && self.set(State::Full) {
            warn!("a run has met a full disk: nothing new is taken until there is room");
        }
    }

    /// Notes that the engine does not answer. No work is accepted until it does. `run` is the run
    /// that is released for this reason.
    pub(super) fn engine_went(&self, run: Option<RunScope>) {
        if !self.watched {
            return;
        }
        locked(&self.stranded).extend(run);
        if self.set(State::Away) {
            warn!("the container engine does not answer: nothing new is taken until it does");
            self.asked.notify_one();
        }
    }

    /// Returns true if no work is accepted because the engine does not answer.
    pub(super) fn is_engine_away(&self) -> bool {
        self.state() == State::Away
    }

    /// Notes whether a service is available, and why not. No runs are accepted while it is not.
    pub(super) fn note(&self, service: Service, obstacle: Option<String>) {
        let is_new = {
            let mut obstacles = locked(&self.obstacles);
            let had = match &obstacle {
                Some(why) => obstacles.insert(service, why.clone()),
                None => obstacles.remove(&service),
            };
            had.is_some() != obstacle.is_some()
        };
        if is_new {
            match obstacle {
                Some(why) => warn!(
                    "{why}: nothing new is taken until that changes; runs in progress continue"
                ),
                None => info!(?service, "the service can be used again: work is taken"),
            }
            self.changed.notify_waiters();
        }
    }

    /// Returns the unavailable services' reasons, if there are any.
    pub(super) fn obstacle(&self) -> Option<String> {
        let obstacles = locked(&self.obstacles);
        let all: Vec<&str> = obstacles.values().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Completes when a check is requested.
    pub(super) fn requested(&self) -> Notified<'_> {
        self.asked.notified()
    }

    /// Notes the usage of the engine's disk.
    pub(super) fn note_disk(&self, disk: Disk) {
        *locked(&self.seen) = Some(disk);
    }

    /// Returns the runs that were released because the engine was unavailable, once.
    pub(super) fn take_stranded(&self) -> Vec<RunScope> {
        std::mem::take(&mut *locked(&self.stranded))
    }

    /// Requests a check, because something was removed.
    pub(super) fn look_now(&self) {
        self.asked.notify_one();
    }

    /// Notes that a run starts from an image.
    pub(super) fn note_use(&self, image: &str) {
        locked(&self.used).insert(image.to_owned());
    }

    /// Returns the images from which runs have started since the last call.
    pub(super) fn take_used(&self) -> BTreeSet<String> {
        std::mem::take(&mut *locked(&self.used))
    }

    /// Returns the disk usage for the node's entry.
    pub(super) fn entry(&self) -> Option<NodeDisk> {
        let full = self.state() == State::Full;
        let seen = *locked(&self.seen);
        seen.map(|Disk { total, free }| NodeDisk { free, total, full })
    }

    /// Notifies of changes of the state.
    pub(super) fn changes(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub(super) fn state(&self) -> State {
        *locked(&self.state)
    }

    /// Returns true if the state changed.
    pub(super) fn set(&self, state: State) -> bool {
        let was = std::mem::replace(&mut *locked(&self.state), state);
        if was != state {
            self.changed.notify_waiters();
        }
        was != state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_too_full_has_room_only_below_the_lower_mark() {
        let options = DiskOptions::default();
        for (was, percent, full) in [
            (State::Unknown, 84, false),
            (State::Unknown, 85, true),
            (State::Room, 84, false),
            (State::Room, 85, true),
            (State::Full, 80, true),
            (State::Full, 79, false),
        ] {
            assert_eq!(options.is_too_full(was, percent), full, "{was:?} {percent}");
        }
    }

    #[tokio::test]
    async fn a_service_that_cannot_be_used_closes_the_intake_and_names_the_reason() {
        let room = Room::new(false);
        room.available().await;
        room.note(Service::Stream, Some("cannot publish".to_owned()));
        room.unavailable().await;
        assert!(!room.is_there());
        assert_eq!(room.obstacle().as_deref(), Some("cannot publish"));
        room.note(Service::Stream, None);
        room.available().await;
        assert_eq!(room.obstacle(), None);
    }

    #[tokio::test]
    async fn a_run_that_met_a_full_disk_closes_what_was_open() {
        let room = Room::new(true);
        assert!(!room.is_there(), "nobody has looked yet");
        room.set(State::Room);
        room.available().await;
        room.note_full();
        room.unavailable().await;
        assert!(!room.is_there());
        let room = Room::new(false);
        room.note_full();
        assert!(room.is_there(), "nobody would ever look");
        room.note_use("a");
        room.note_use("a");
        assert_eq!(room.take_used().len(), 1);
        assert!(room.take_used().is_empty());
    }
}
