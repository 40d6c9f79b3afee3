//! The loops of a worker: how they start and end.

use std::sync::Arc;
use std::time::Duration;

use protocol::event::Reason;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::options::Shutdown;
use super::shared::{LAST_EVENTS, Shared};
use super::watchdog::Heartbeat;
use super::{
    callbacks, control, intake, janitor, lease, marks, node, promotion, reclaim, rescue, retention,
    room_watch, store_probe,
};
use crate::ports::{Guard, Source};
use crate::rules::run::StopWhy;

/// The loops of a worker.
pub(super) struct Loops {
    /// The loops that accept work.
    starts: TaskTracker,
    /// The loop that consumes stops, which continues during the drain.
    stops: TaskTracker,
    others: TaskTracker,
    refresh: JoinHandle<()>,
    /// Ends `stops`, and then the lease.
    leased: CancellationToken,
}

impl Loops {
    pub(super) fn start(shared: &Arc<Shared>, guard: &Arc<dyn Guard>, shutdown: &Shutdown) -> Self {
        let (dog, mut leases) = (&shared.watchdog, lease::Announcer::default());
        let (starts, stops, others) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        let leased = CancellationToken::new();
        let state = || Arc::clone(shared);
        dog.spawn(&others, "the handling of new leases", |heartbeat| {
            after_lease(state(), heartbeat, leases.subscribe())
        });
        let refresh = dog.spawn(&others, "the refresh of the node's entry", |heartbeat| {
            node::refresh(state(), heartbeat, leases.subscribe())
        });
        let intake = &shutdown.intake;
        dog.spawn(&starts, "the intake of starts", |heartbeat| {
            intake::jobs(state(), heartbeat, leases.subscribe(), intake.clone())
        });
        if shared.options.rescue {
            dog.spawn(&starts, "the rescue", |heartbeat| {
                rescue::run(state(), heartbeat, leases.subscribe(), intake.clone())
            });
            dog.spawn(&starts, "the promotion of waiting runs", |heartbeat| {
                promotion::run(state(), heartbeat, intake.clone())
            });
            dog.spawn(&starts, "the disk check", |heartbeat| {
                room_watch::run(state(), heartbeat, intake.clone())
            });
            dog.spawn(&starts, "the stream check", |heartbeat| {
                room_watch::watch_stream(state(), heartbeat, intake.clone())
            });
            dog.spawn(&starts, "the janitor", |heartbeat| {
                janitor::run(state(), heartbeat, leases.subscribe(), intake.clone())
            });
            dog.spawn(&starts, "the retention", |heartbeat| {
                retention::run(state(), heartbeat, leases.subscribe(), intake.clone())
            });
        }
        if shared.options.own_queue {
            let lease = leases.subscribe();
            dog.spawn(&starts, "the intake of its own queue", |heartbeat| {
                intake::control(state(), heartbeat, lease, Source::Node, intake.clone())
            });
        }
        let lease = leases.subscribe();
        dog.spawn(&stops, "the intake of stops", |heartbeat| {
            intake::control(state(), heartbeat, lease, Source::Control, leased.clone())
        });
        dog.spawn(&others, "the probe of the store", |heartbeat| {
            store_probe::run(state(), heartbeat, leased.clone())
        });
        dog.spawn(&others, "the renewal of marks", |heartbeat| {
            marks::renew_seen(state(), heartbeat, leased.clone())
        });
        dog.spawn(&others, "the callbacks", |heartbeat| {
            callbacks::run(state(), heartbeat, leased.clone())
        });
        dog.spawn(&others, "the renewal of the lease", |heartbeat| {
            lease::keep(state(), heartbeat, Arc::clone(guard), leases, leased.clone())
        });
        Self { starts, stops, others, refresh, leased }
    }

    /// Waits until the worker is asked to end, and then ends it.
    pub(super) async fn end_in_order(&self, shared: &Arc<Shared>, shutdown: &Shutdown) {
        shutdown.intake.cancelled().await;
        let is_over = Instant::now() + shared.options.drain;
        shared.draining.cancel();
        shared.tell_draining();
        self.drain(shared, shutdown, is_over).await;
        self.leased.cancel();
        ended(shared, &self.stops, LOOP_ENDS_WITHIN).await;
        // A stop received at the last moment may have caused an ending to publish.
        let within = pause_in_outage(shared, LAST_EVENTS);
        tokio::time::timeout(within, shared.tasks.wait()).await.ok();
        self.refresh.abort();
        ended(shared, &self.others, LOOP_ENDS_WITHIN).await;
    }

    /// Lets the runs finish until `is_over` or the second signal. Then hands them over, or stops
    /// them if no other worker would resume them.
    async fn drain(&self, shared: &Arc<Shared>, shutdown: &Shutdown, is_over: Instant) {
        shared.tasks.close();
        let all_ended = async {
            // Once these have ended, a start that was being claimed is either owned or back in its
            // queue.
            ended(shared, &self.starts, LOOP_ENDS_WITHIN).await;
            shared.tasks.wait().await;
        };
        tokio::select! {
            biased;
            () = all_ended => return,
            () = tokio::time::sleep_until(is_over) => {
                info!("the drain time is over; what still runs ends here");
            }
            () = shutdown.abort.cancelled() => {}
        }
        let end_all = || {
            if shared.options.rescue {
                shared.roster.hand_over_all(shared.options.kill_grace)
            } else {
                shared.roster.ask_all(&StopWhy::Shutdown, shared.options.kill_grace)
            }
        };
        let grace = end_all();
        let all_ended = async {
            if !self.starts.is_empty() {
                ended(shared, &self.starts, LOOP_ENDS_WITHIN).await;
                // Includes runs that were claimed meanwhile.
                end_all();
            }
            shared.tasks.wait().await;
        };
        tokio::select! {
            biased;
            () = all_ended => {}
            () = give_up_the_stream(shared, grace + STREAM_TAKES_WITHIN) => {}
            () = tokio::time::sleep(grace + ENDS_WITHIN) => {
                warn!(runs = ?shared.roster.ids(), "these runs have not ended in time, and are left");
            }
        }
    }

    /// Ends the worker even if a loop stalls. Gives up the lease first, which releases every run.
    pub(super) async fn break_off(&self, shared: &Arc<Shared>, shutdown: &Shutdown) {
        shutdown.intake.cancel();
        shutdown.abort.cancel();
        shared.draining.cancel();
        self.refresh.abort();
        for tracker in [&self.others, &self.starts, &self.stops, &shared.tasks] {
            tracker.close();
        }
        let let_go = async {
            self.others.wait().await;
            self.leased.cancel();
            shared.tasks.wait().await;
        };
        let within = shared.options.kill_grace + ENDS_WITHIN;
        if tokio::time::timeout(within, let_go).await.is_err() {
            warn!(runs = ?shared.roster.ids(), "not all of this worker has ended in time");
        }
        self.leased.cancel();
    }
}

/// Upper bound on the time that stopped runs need beyond their grace, for cleanup and the stream's
/// confirmation. The next worker finds the rest in the store.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// How long a loop may take to end. Exceeds the timeouts of operations with the broker.
const LOOP_ENDS_WITHIN: Duration = Duration::from_secs(20);

/// How long the broker has to confirm the last events of runs whose steps have ended. If it is
/// unavailable, the worker leaves them on disk, and has the same time again to hand its runs over.
const STREAM_TAKES_WITHIN: Duration = Duration::from_millis(1500);

/// The maximum time for each wait at a worker's end if the broker is unavailable.
const ENDS_ANYWAY_WITHIN: Duration = Duration::from_secs(1);

/// Returns `usual`, or less if the broker is unavailable.
fn pause_in_outage(shared: &Shared, usual: Duration) -> Duration {
    match shared.ports.events.problem() {
        Some(_) => usual.min(ENDS_ANYWAY_WITHIN),
        None => usual,
    }
}

/// Waits for `after`, then makes everything stop waiting for an unavailable broker. Returns if the
/// runs do not end in spite of that.
async fn give_up_the_stream(shared: &Shared, after: Duration) {
    tokio::time::sleep(after).await;
    while shared.ports.events.problem().is_none() {
        tokio::time::sleep(ENDS_ANYWAY_WITHIN / 4).await;
    }
    let runs = shared.roster.ids();
    warn!(?runs, "the broker is unavailable: what it has not confirmed is kept on disk");
    shared.leaving.cancel();
    tokio::time::sleep(STREAM_TAKES_WITHIN).await;
    warn!(runs = ?shared.roster.ids(), "these runs have not ended in time, and are left");
}

/// Waits for loops that were asked to end, for at most `within`.
async fn ended(shared: &Shared, loops: &TaskTracker, within: Duration) {
    loops.close();
    if tokio::time::timeout(pause_in_outage(shared, within), loops.wait()).await.is_err() {
        let loops = shared.watchdog.unfinished();
        warn!(?loops, "not every loop of this worker has ended in time: it ends without them");
    }
}

/// Handles each new lease: reports readiness, watches for stops, and ends the runs that were lost
/// with the previous one.
async fn after_lease(shared: Arc<Shared>, heartbeat: Heartbeat, mut lease: lease::Current) {
    let mut ready = false;
    let mut last = None;
    loop {
        // The next lease may be there before the loss of the last one was noticed.
        let is_new = |held: &Option<lease::HeldLease>| {
            held.as_ref().is_some_and(|held| Some(held.lease) != last)
        };
        let held = {
            let _waits = heartbeat.waits();
            match lease.wait_for(is_new).await {
                Ok(held) => held.clone(),
                Err(_) => return,
            }
        };
        let Some(held) = held else { continue };
        if !ready {
            ready = true;
            let message = format!("{} takes work", shared.options.node);
            info!(owner.id = %shared.options.node, "ready: {message}");
            shared.publish(&heartbeat, shared.event(Reason::RunnerReady, message)).await;
        }
        // A drain does not wait for these tasks: both end with the lease.
        let (dog, both) = (&shared.watchdog, TaskTracker::new());
        dog.spawn(&both, "the watch of stops", |heartbeat| {
            control::watch_stops(Arc::clone(&shared), heartbeat, held.clone())
        });
        dog.spawn(&both, "the reclaim of lost runs", |heartbeat| {
            reclaim::reclaim(Arc::clone(&shared), heartbeat, held.clone())
        });
        both.close();
        let _waits = heartbeat.waits();
        both.wait().await;
        last = Some(held.lease);
    }
}
