//! The worker's lease. All its claims are attached to it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::retry::Retry;
use super::shared::Shared;
use super::watchdog::Heartbeat;
use crate::ports::{Guard, Host, LeaseId, StoreError};

/// A lease that is valid as far as this worker knows.
#[derive(Clone)]
pub(super) struct HeldLease {
    /// The lease's ID.
    pub(super) lease: LeaseId,
    /// Cancelled once the lease is lost. Nothing is written, published or uploaded under it
    /// afterwards.
    pub(super) lost: CancellationToken,
    /// The end of its guaranteed validity, in milliseconds of the boot clock, unless it is renewed.
    until: Arc<AtomicU64>,
    guard: Arc<dyn Guard>,
}

impl std::fmt::Debug for HeldLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl HeldLease {
    /// Feeds the guard before anything can start under the lease.
    fn new(lease: LeaseId, sent: Duration, ttl: Duration, guard: &Arc<dyn Guard>) -> Self {
        let held = Self {
            lease,
            lost: CancellationToken::new(),
            until: Arc::default(),
            guard: Arc::clone(guard),
        };
        let until = sent + assumed_validity(ttl);
        held.guard.feed(until);
        held.extend(until);
        held
    }

    /// Applies a renewal that was sent at `sent`. Returns false if it came too late.
    #[must_use = "a lease that was renewed too late is lost"]
    fn renewed(&self, host: &dyn Host, sent: Duration, ttl: Duration) -> bool {
        let until = sent + assumed_validity(ttl);
        self.guard.feed(until);
        // Check only now. If the lease is still valid, the guard received the new deadline before
        // the old one passed, and has killed nothing. If it is not, the guard may have killed.
        let stands = self.is_valid(host);
        if stands {
            self.extend(until);
        }
        stands
    }

    fn extend(&self, until: Duration) {
        // Round down, so that the guard's deadline is never earlier than the worker's.
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.until.store(until, Ordering::Release);
    }

    /// Waits until the lease is known to be valid or lost. The guard may have killed a step that
    /// ended in the meantime, so its exit is not a result.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn settled(&self, host: &dyn Host) {
        while !self.lost.is_cancelled() && !self.is_valid(host) {
            tokio::select! {
                biased;
                () = self.lost.cancelled() => {}
                () = tokio::time::sleep(AWAKE) => {}
            }
        }
    }

    /// Returns true if the lease is known to be valid. This works even if the process was suspended
    /// and has not yet noticed the loss.
    pub(super) fn is_valid(&self, host: &dyn Host) -> bool {
        let until = Duration::from_millis(self.until.load(Ordering::Acquire));
        !self.lost.is_cancelled() && host.since_boot() < until
    }
}

/// Returns the time for which a lease is assumed to be valid after a renewal.
fn assumed_validity(ttl: Duration) -> Duration {
    ttl * 2 / 3
}

/// The current lease, if there is one.
pub(super) type Current = watch::Receiver<Option<HeldLease>>;

/// Announces changes of the lease to its subscribers. Each has its own channel, so that they are
/// notified in the order of subscription. The waiters of a single channel wake up in random order,
/// which would make simulations of a worker irreproducible.
#[derive(Debug, Default)]
pub(super) struct Announcer(Vec<watch::Sender<Option<HeldLease>>>);

impl Announcer {
    /// Adds a subscriber.
    pub(super) fn subscribe(&mut self) -> Current {
        let (sender, current) = watch::channel(None);
        self.0.push(sender);
        current
    }

    fn announce(&self, held: Option<&HeldLease>) {
        for sender in &self.0 {
            sender.send_replace(held.cloned());
        }
    }
}

/// Keeps a lease until `stop`. Renews it at a third of its time to live, and takes a new one if it
/// was lost. Revokes it at the end.
pub(super) async fn keep(
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
    guard: Arc<dyn Guard>,
    announcer: Announcer,
    stop: CancellationToken,
) {
    let keeper = Keeper { shared: &shared, heartbeat: &heartbeat, stop: &stop };
    let mut retry = Retry::new(&*shared.ports.host, &heartbeat, RETRY_FIRST, RETRY_MOST);
    while !stop.is_cancelled() && shared.watchdog.fault().is_none() {
        heartbeat.beat();
        // The time to live starts with the request, because the store may grant the lease right
        // then.
        let sent = shared.ports.host.since_boot();
        let granted = tokio::select! {
            biased;
            granted = shared.ports.store.grant(shared.options.lease_ttl) => granted,
            () = stop.cancelled() => return,
            () = shared.watchdog.tripped() => return,
        };
        match granted {
            Ok(granted)
                if shared.ports.host.since_boot() >= sent + assumed_validity(granted.ttl) =>
            {
                // The lease would be regarded as lost already.
                warn!(lease = granted.lease.0, "the store granted a lease too late");
                keeper.revoke(granted.lease).await;
            }
            Ok(granted) => {
                retry.reset();
                let held = HeldLease::new(granted.lease, sent, granted.ttl, &guard);
                keeper.hold(&announcer, held, (sent, granted.ttl)).await;
            }
            Err(cause) => {
                warn!(%cause, "no lease can be taken; nothing is taken from the queues");
                tokio::select! {
                    biased;
                    () = retry.wait() => {}
                    () = stop.cancelled() => {}
                    () = shared.watchdog.tripped() => {}
                }
            }
        }
    }
}

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(2);

/// Upper bound on the time a drive needs to verify that its steps have ended: the executor's
/// timeout for an unavailable engine plus [`STARTS_WITHIN`].
const PROVEN_WITHIN: Duration = Duration::from_secs(300);

/// The maximum delay before a worker notices that its host was suspended.
const AWAKE: Duration = Duration::from_millis(500);

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Lost,
    Stopped,
    /// A loop of this worker has failed or stalled.
    GivenUp,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lost => "lost",
            Self::Stopped => "not wanted any more",
            Self::GivenUp => "given up",
        })
    }
}

/// Keeps the worker's lease, in the task that renews it.
struct Keeper<'a> {
    shared: &'a Shared,
    heartbeat: &'a Heartbeat,
    /// Cancelled when the worker gives up the lease.
    stop: &'a CancellationToken,
}

impl Keeper<'_> {
    /// Announces a lease and renews it until it is lost or no longer needed. Then ends what ran under it.
    async fn hold(
        &self,
        announcer: &Announcer,
        held: HeldLease,
        (sent, ttl): (Duration, Duration),
    ) {
        let shared = self.shared;
        // Cancels `lost` even after a panic.
        let _lost = held.lost.clone().drop_guard();
        info!(lease = held.lease.0, "the lease is taken");
        announcer.announce(Some(&held));
        let ended = self.renew(&held, sent, ttl).await;
        announcer.announce(None);
        held.lost.cancel();
        match ended {
            Ended::Lost | Ended::GivenUp => {
                shared.roster.kill_all();
                warn!(lease = held.lease.0, "the lease is {ended}; what ran under it is killed");
                self.keep_until_ended(held.lease, ttl).await;
            }
            Ended::Stopped => {}
        }
        // If runs remain, let the lease expire. The guard ends their steps before that.
        if shared.roster.is_idle() {
            self.revoke(held.lease).await;
        }
    }

    /// Renews the lease until it is lost or no longer needed. It counts as lost at two thirds of the
    /// granted time without a renewal, on a clock that includes suspended time.
    async fn renew(&self, held: &HeldLease, mut good_since: Duration, ttl: Duration) -> Ended {
        let (shared, host) = (self.shared, &self.shared.ports.host);
        let mut pause = ttl / 3;
        loop {
            // Wake up regularly, because tokio's clock stops while the host is suspended.
            let due = host.since_boot() + pause;
            loop {
                let left = due.saturating_sub(host.since_boot());
                if left.is_zero() {
                    break;
                }
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(left.min(AWAKE)) => {}
                    () = self.stop.cancelled() => return Ended::Stopped,
                    () = shared.watchdog.tripped() => return Ended::GivenUp,
                }
                self.heartbeat.beat();
            }
            let sent = host.since_boot();
            let left = (good_since + assumed_validity(ttl)).saturating_sub(sent);
            if left.is_zero() {
                return Ended::Lost;
            }
            let renewed =
                tokio::time::timeout(left, shared.ports.store.keep_alive(held.lease)).await;
            if host.since_boot().saturating_sub(good_since) >= assumed_validity(ttl) {
                // The reply came too late to be relied on, whatever it says.
                return Ended::Lost;
            }
            match renewed {
                Ok(Ok(())) if !held.renewed(&**host, sent, ttl) => return Ended::Lost,
                Ok(Ok(())) => {
                    good_since = sent;
                    pause = ttl / 3;
                }
                Ok(Err(StoreError::LeaseGone(_))) | Err(_) => return Ended::Lost,
                Ok(Err(cause)) => {
                    warn!(%cause, "the lease was not renewed");
                    pause = (ttl / 20).min(Duration::from_millis(500));
                }
            }
        }
    }

    /// Renews a lease that was given up until every drive has verified that its steps have ended. Until
    /// then, no other worker must own their runs. Returns earlier if the lease expires or `stop` is
    /// cancelled, and after [`PROVEN_WITHIN`].
    async fn keep_until_ended(&self, lease: LeaseId, ttl: Duration) {
        let (shared, host) = (self.shared, &self.shared.ports.host);
        let began = host.since_boot();
        while host.since_boot().saturating_sub(began) < PROVEN_WITHIN {
            tokio::select! {
                biased;
                () = shared.roster.idle() => return,
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(ttl / 6) => {}
            }
            self.heartbeat.beat();
            // If the store does not answer, the lease expires. Nothing more can be done.
            let renewed = tokio::time::timeout(ttl / 3, shared.ports.store.keep_alive(lease)).await;
            if let Ok(Err(StoreError::LeaseGone(_))) = renewed {
                warn!(lease = lease.0, runs = ?shared.roster.ids(), "the lease is gone before these runs");
                return;
            }
        }
        warn!(lease = lease.0, runs = ?shared.roster.ids(), "the lease is kept no longer for these runs");
    }

    /// Revokes a lease, retrying until the store answers. The next owner of its runs then need not wait
    /// until it expires.
    async fn revoke(&self, lease: LeaseId) {
        let shared = self.shared;
        let attempt = || async {
            match shared.ports.store.revoke(lease).await {
                Ok(()) | Err(StoreError::LeaseGone(_)) => ControlFlow::Break(()),
                Err(cause) if cause.retryable() => ControlFlow::Continue(()),
                Err(cause) => {
                    warn!(%cause, lease = lease.0, "the lease could not be revoked");
                    ControlFlow::Break(())
                }
            }
        };
        // An ending worker does not wait: the lease expires by itself.
        let retry = Retry::new(&*shared.ports.host, self.heartbeat, RETRY_FIRST, RETRY_MOST);
        retry.until(self.stop, attempt).await;
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use protocol::run::{NodeCpu, NodeMemory};
    use protocol::time::Millis;

    use super::*;

    /// A clock that only advances while the guard is fed.
    #[derive(Default)]
    struct Slow {
        now: AtomicU64,
        feeding_takes: AtomicU64,
        fed: Mutex<Vec<u64>>,
    }

    impl Host for Slow {
        fn now(&self) -> Millis {
            Millis(0)
        }

        fn since_boot(&self) -> Duration {
            Duration::from_millis(self.now.load(Ordering::Relaxed))
        }

        fn memory(&self) -> NodeMemory {
            NodeMemory { free: 0, total: 0 }
        }

        fn cpu(&self) -> NodeCpu {
            NodeCpu { count: 1, load: 0.0 }
        }

        fn name(&self) -> String {
            String::new()
        }
    }

    impl Guard for Slow {
        fn feed(&self, until: Duration) {
            self.fed.lock().push(until.as_millis().try_into().unwrap());
            let takes = self.feeding_takes.load(Ordering::Relaxed);
            self.now.fetch_add(takes, Ordering::Relaxed);
        }

        fn dismiss(&self) {}
    }

    const TTL: Duration = Duration::from_millis(3000);

    fn held() -> (Arc<Slow>, HeldLease) {
        let slow = Arc::new(Slow::default());
        let guard: Arc<dyn Guard> = Arc::<Slow>::clone(&slow);
        let held = HeldLease::new(LeaseId(1), Duration::ZERO, TTL, &guard);
        (slow, held)
    }

    #[test]
    fn a_lease_is_renewed_where_the_guard_has_heard_of_it_in_time() {
        let (slow, held) = held();
        slow.now.store(1999, Ordering::Relaxed);
        assert!(held.renewed(&*slow, Duration::from_millis(1000), TTL));
        assert_eq!(*slow.fed.lock(), [2000, 3000]);
        slow.now.store(2999, Ordering::Relaxed);
        assert!(held.is_valid(&*slow));
        slow.now.store(3000, Ordering::Relaxed);
        assert!(!held.is_valid(&*slow));
    }

    #[test]
    fn a_worker_that_was_held_up_while_it_fed_its_guard_has_lost_its_lease() {
        let (slow, held) = held();
        slow.now.store(1999, Ordering::Relaxed);
        slow.feeding_takes.store(1, Ordering::Relaxed);
        // The guard may have killed at 2000 before it received the deadline 3000.
        assert!(!held.renewed(&*slow, Duration::from_millis(1000), TTL));
        assert!(!held.is_valid(&*slow), "a step that ends from now on has no result");
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_when_the_lease_does_not_stand_waits_until_it_is_known_to() {
        let (slow, held) = held();
        held.settled(&*slow).await;
        slow.now.store(2000, Ordering::Relaxed);
        let settled = held.settled(&*slow);
        tokio::pin!(settled);
        assert!(tokio::time::timeout(AWAKE * 3, &mut settled).await.is_err());
        held.lost.cancel();
        settled.await;
    }
}
