//! Watches the engine's disk and the stream, and pauses the intake while one of them has no room.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::room::{Service, State};
use super::shared::Shared;
use super::watchdog::Heartbeat;
use super::{bases, janitor, volumes};

/// The interval between requests to an unavailable engine.
const AWAY: Duration = Duration::from_secs(1);

/// Checks the disk periodically and on request, until `stop` is cancelled.
pub(super) async fn run(shared: Arc<Shared>, heartbeat: Heartbeat, stop: CancellationToken) {
    // The loop waits for the engine, which may have much to remove.
    let _waits = heartbeat.waits();
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
            () = shared.room.requested() => true,
            () = tokio::time::sleep(pause) => false,
        };
    }
}

/// The interval between checks of the stream, which are cheap.
const STREAM: Duration = Duration::from_secs(1);

/// Pauses the intake while events cannot be published. Ends with the intake.
pub(super) async fn watch_stream(
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
    stop: CancellationToken,
) {
    let _waits = heartbeat.waits();
    while !stop.is_cancelled() {
        shared.room.note(Service::Stream, shared.ports.events.problem());
        stop.run_until_cancelled(tokio::time::sleep(STREAM)).await;
    }
}

/// Checks the disk, and removes unneeded data if it is full.
async fn look(shared: &Shared, asked: bool) {
    let began = match decide(shared).await {
        CheckResult::Room => return,
        CheckResult::None { began } => began,
    };
    if began || asked {
        janitor::sweep(shared).await;
    }
    bases::make_room(shared).await;
    volumes::make_room(shared).await;
    janitor::give_up_retained(shared).await;
    decide(shared).await;
}

/// The result of a check.
enum CheckResult {
    /// There is room, the usage is unknown, or the intake is paused for another reason.
    Room,
    None {
        /// Whether the last check still found room.
        began: bool,
    },
}

async fn decide(shared: &Shared) -> CheckResult {
    let (room, options) = (&shared.room, &shared.options.disk);
    if room.is_engine_away() {
        if shared.ports.executor.answers().await.is_err() {
            return CheckResult::Room;
        }
        info!("the container engine answers again");
        end_what_was_let_go(shared).await;
        room.set(State::Unknown);
    }
    let disk = shared.ports.executor.disk().await;
    if room.is_engine_away() {
        // The engine became unavailable meanwhile, which a disk usage does not disprove.
        return CheckResult::Room;
    }
    let disk = match disk {
        Ok(Some(disk)) => disk,
        Ok(None) => {
            room.set(State::Room);
            return CheckResult::Room;
        }
        Err(cause) => {
            warn!(%cause, "the usage of the container engine's disk is unknown");
            // Only a successful check can end the state `Full`.
            if room.state() == State::Unknown {
                room.set(State::Room);
            }
            return CheckResult::Room;
        }
    };
    room.note_disk(disk);
    let (was, percent) = (room.state(), disk.percent());
    if options.is_too_full(was, percent) {
        let began = room.set(State::Full);
        if began {
            warn!(
                disk.percent = percent,
                disk.free = disk.free,
                "the container engine's disk is {percent}% full: nothing new is taken until it is \
                 below {}%; runs in progress continue, and unneeded images are removed; `podman system df` \
                 shows what takes the room",
                options.low
            );
        }
        return CheckResult::None { began };
    }
    room.set(State::Room);
    if was == State::Full {
        info!(
            disk.percent = percent,
            "the container engine's disk is {percent}% full: there is room, and work is taken again"
        );
    }
    CheckResult::Room
}

/// Ends and removes what the engine still has of runs that were released while it was unavailable.
/// No worker may resume them for a long time, for example if they filled this disk themselves.
/// Resources of a later owner are not touched.
async fn end_what_was_let_go(shared: &Shared) {
    for run in shared.room.take_stranded() {
        if let Err(cause) = shared.ports.executor.adopt(&run, None).await {
            warn!(run.id = %run.run, %cause, "what an engine that was away has left of a run stays");
        }
    }
}
