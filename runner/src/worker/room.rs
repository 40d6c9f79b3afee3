//! Takes nothing new while the engine's disk is too full, as a run that meets a full disk fails and
//! takes others with it; nor while the engine does not answer. What runs goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::run::NodeDisk;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::watchdog::waits;
use super::{Shared, bases, janitor};
use crate::ports::{Disk, RunScope};

/// What a worker is told of its engine's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskOptions {
    /// From so many percent on it takes nothing new.
    pub high: u8,
    /// Below so many percent it takes work again; less than `high`.
    pub low: u8,
    /// How often it looks.
    pub look: Duration,
    /// How many bytes the base images may take that the executor has pulled; 0: as many as they like.
    pub base_images_bytes: u64,
}

/// How often an engine that is away is asked.
const AWAY: Duration = Duration::from_secs(1);

impl Default for DiskOptions {
    fn default() -> Self {
        let look = Duration::from_secs(30);
        Self { high: 85, low: 80, look, base_images_bytes: 20 << 30 }
    }
}

impl DiskOptions {
    /// Whether a disk is too full: what was so stays it until it is below the lower mark.
    fn is_too_full(&self, was: State, percent: u8) -> bool {
        match was {
            State::Unknown | State::Room | State::Away => percent >= self.high,
            State::Full => percent >= self.low,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody has looked yet.
    Unknown,
    /// Work is taken.
    Room,
    /// None is.
    Full,
    /// The same, as the engine does not answer.
    Away,
}

/// A service without which a worker takes no runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Service {
    /// Where events are published.
    Stream,
}

/// Whether there is room for more.
#[derive(Debug)]
pub(super) struct Room {
    /// Somebody looks.
    watched: bool,
    state: Mutex<State>,
    /// Who waits is woken in the order of waiting, unlike with tokio's `watch`: a seed of the
    /// simulation has to be one history.
    changed: Notify,
    /// The services that cannot be used, and why.
    obstacles: Mutex<BTreeMap<Service, String>>,
    seen: Mutex<Option<Disk>>,
    /// Somebody wants a look now.
    asked: Notify,
    /// The runs that were let go as the engine was away: what they ran in is there again with it.
    stranded: Mutex<Vec<RunScope>>,
    /// The images that runs have begun on since that was noted.
    used: Mutex<BTreeSet<String>>,
    /// One sweep at a time.
    pub(super) sweeping: tokio::sync::Mutex<()>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in them is whole whatever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Room {
    /// `watched`: somebody will look. Else there is always room.
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

    /// Whether work may be taken.
    pub(super) fn is_there(&self) -> bool {
        self.state() == State::Room && locked(&self.obstacles).is_empty()
    }

    /// Resolves when work may be taken.
    ///
    /// # Cancel safety
    /// Safe, as are all waits here.
    pub(super) async fn there(&self) {
        self.reached(Self::is_there).await;
    }

    /// Resolves when no work may be taken.
    pub(super) async fn gone(&self) {
        self.reached(|room| !room.is_there()).await;
    }

    /// Resolves when somebody has looked.
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

    /// A run has met a full disk, whatever the engine says of it: nothing is taken before there was
    /// a look. Where nobody looks the next run may try.
    pub(super) fn ran_out(&self) {
        if self.watched && self.set(State::Full) {
            warn!("a run has met a full disk: nothing new is taken until there is room");
        }
    }

    /// The engine does not answer: nothing is taken before it does. `run`: what has met that, and is
    /// let go.
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

    /// Whether nothing is taken as the engine does not answer.
    pub(super) fn is_engine_away(&self) -> bool {
        self.state() == State::Away
    }

    /// Notes whether a service can be used, and why not. While it cannot, no runs are taken.
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

    /// Why nothing is taken, if a service is the reason.
    pub(super) fn obstacle(&self) -> Option<String> {
        let obstacles = locked(&self.obstacles);
        let all: Vec<&str> = obstacles.values().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Something was removed: it is time to look.
    pub(super) fn look_now(&self) {
        self.asked.notify_one();
    }

    /// A run begins on an image.
    pub(super) fn uses(&self, image: &str) {
        locked(&self.used).insert(image.to_owned());
    }

    /// The images that runs have begun on since the last call.
    pub(super) fn take_used(&self) -> BTreeSet<String> {
        std::mem::take(&mut *locked(&self.used))
    }

    /// What the node says of its disk.
    pub(super) fn entry(&self) -> Option<NodeDisk> {
        let full = self.state() == State::Full;
        let seen = *locked(&self.seen);
        seen.map(|Disk { total, free }| NodeDisk { free, total, full })
    }

    /// Tells of changes between room and none.
    pub(super) fn changes(&self) -> Notified<'_> {
        self.changed.notified()
    }

    fn state(&self) -> State {
        *locked(&self.state)
    }

    /// `true`: it was another.
    fn set(&self, state: State) -> bool {
        let was = std::mem::replace(&mut *locked(&self.state), state);
        if was != state {
            self.changed.notify_waiters();
        }
        was != state
    }
}

/// Looks now and then, and where a run has met a full disk, until the worker takes nothing any more.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    // What it waits for is the engine, which takes as long as there is to remove.
    let _waits = waits();
    let mut asked = false;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = look(&shared, asked) => {}
        }
        let pause = if shared.room.is_engine_away() { AWAY } else { shared.options.disk.look };
        asked = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = shared.room.asked.notified() => true,
            () = tokio::time::sleep(pause) => false,
        };
    }
}

/// The time between two looks at the stream: they cost nothing.
const STREAM: Duration = Duration::from_secs(1);

/// Pauses the intake while events cannot be published. Ends with the intake.
pub(super) async fn watch_stream(shared: Arc<Shared>, stop: CancellationToken) {
    let _waits = waits();
    while !stop.is_cancelled() {
        shared.room.note(Service::Stream, shared.ports.events.trouble());
        stop.run_until_cancelled(tokio::time::sleep(STREAM)).await;
    }
}

/// Decides whether there is room, and makes some where there is none.
async fn look(shared: &Shared, asked: bool) {
    let began = match decide(shared).await {
        Found::Room => return,
        Found::None { began } => began,
    };
    if began || asked {
        janitor::sweep(shared).await;
    }
    bases::make_room(shared).await;
    decide(shared).await;
}

/// What a look has shown.
enum Found {
    /// There is room, or nobody knows, or it is not for want of it that nothing is taken.
    Room,
    None {
        /// There was some before.
        began: bool,
    },
}

async fn decide(shared: &Shared) -> Found {
    let (room, options) = (&shared.room, &shared.options.disk);
    if room.is_engine_away() {
        if shared.ports.executor.answers().await.is_err() {
            return Found::Room;
        }
        info!("the container engine answers again");
        end_what_was_let_go(shared).await;
        room.set(State::Unknown);
    }
    let disk = shared.ports.executor.disk().await;
    if room.is_engine_away() {
        // It went meanwhile, which no figure of its disk takes back.
        return Found::Room;
    }
    let disk = match disk {
        Ok(Some(disk)) => disk,
        Ok(None) => {
            room.set(State::Room);
            return Found::Room;
        }
        Err(cause) => {
            warn!(%cause, "how full the container engine's disk is is not known");
            // Only a look that succeeds tells of an end.
            if room.state() == State::Unknown {
                room.set(State::Room);
            }
            return Found::Room;
        }
    };
    *locked(&room.seen) = Some(disk);
    let (was, percent) = (room.state(), disk.percent());
    if options.is_too_full(was, percent) {
        let began = room.set(State::Full);
        if began {
            warn!(
                disk.percent = percent,
                disk.free = disk.free,
                "the container engine's disk is {percent}% full: nothing new is taken until it is \
                 below {}%; what runs goes on, and what nobody needs is removed; `podman system df` \
                 shows what takes the room",
                options.low
            );
        }
        return Found::None { began };
    }
    room.set(State::Room);
    if was == State::Full {
        info!(
            disk.percent = percent,
            "the container engine's disk is {percent}% full: there is room, and work is taken again"
        );
    }
    Found::Room
}

/// Ends what the engine still runs, or keeps, of the runs that were let go while it was away: nobody may
/// come to go on with them for a long time, as on a disk that they themselves have filled. What a
/// follower has made is not touched.
async fn end_what_was_let_go(shared: &Shared) {
    let stranded = std::mem::take(&mut *locked(&shared.room.stranded));
    for run in stranded {
        if let Err(cause) = shared.ports.executor.adopt(&run, None).await {
            warn!(run.id = %run.run, %cause, "what an engine that was away has left of a run stays");
        }
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
        room.there().await;
        room.note(Service::Stream, Some("cannot publish".to_owned()));
        room.gone().await;
        assert!(!room.is_there());
        assert_eq!(room.obstacle().as_deref(), Some("cannot publish"));
        room.note(Service::Stream, None);
        room.there().await;
        assert_eq!(room.obstacle(), None);
    }

    #[tokio::test]
    async fn a_run_that_met_a_full_disk_closes_what_was_open() {
        let room = Room::new(true);
        assert!(!room.is_there(), "nobody has looked yet");
        room.set(State::Room);
        room.there().await;
        room.ran_out();
        room.gone().await;
        assert!(!room.is_there());
        let room = Room::new(false);
        room.ran_out();
        assert!(room.is_there(), "nobody would ever look");
        room.uses("a");
        room.uses("a");
        assert_eq!(room.take_used().len(), 1);
        assert!(room.take_used().is_empty());
    }
}
