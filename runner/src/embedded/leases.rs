//! Leases and their deadlines. Kept in memory, because a lease shows that its process is alive.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::ports::LeaseId;

/// A lease of at least this length is an expiry date, not a sign of life, and outlives its process.
pub(super) const LASTING: Duration = Duration::from_secs(3600);

struct Lease {
    ttl: Duration,
    deadline: Instant,
    /// Whether its keys are being deleted. It can no longer be renewed.
    ending: bool,
}

/// All leases.
#[derive(Default)]
pub(super) struct Leases {
    by_id: HashMap<LeaseId, Lease>,
    by_deadline: BTreeSet<(Instant, i64)>,
}

impl Leases {
    /// Adds a lease that first expires at `deadline`, and then `ttl` after each renewal.
    pub(super) fn add(&mut self, id: LeaseId, ttl: Duration, deadline: Instant) {
        self.by_id.insert(id, Lease { ttl, deadline, ending: false });
        self.by_deadline.insert((deadline, id.0));
    }

    /// Returns the time to live of a valid lease.
    pub(super) fn ttl(&self, id: LeaseId, now: Instant) -> Option<Duration> {
        let lease = self.by_id.get(&id)?;
        (!lease.ending && lease.deadline > now).then_some(lease.ttl)
    }

    /// Renews a valid lease.
    pub(super) fn renew(&mut self, id: LeaseId, now: Instant) -> Option<Duration> {
        let ttl = self.ttl(id, now)?;
        let lease = self.by_id.get_mut(&id)?;
        self.by_deadline.remove(&(lease.deadline, id.0));
        lease.deadline = now + ttl;
        self.by_deadline.insert((lease.deadline, id.0));
        Some(ttl)
    }

    /// Ends a lease early. Returns false if it has ended already.
    pub(super) fn end(&mut self, id: LeaseId) -> bool {
        let Some(lease) = self.by_id.get_mut(&id).filter(|lease| !lease.ending) else {
            return false;
        };
        lease.ending = true;
        self.by_deadline.remove(&(lease.deadline, id.0));
        true
    }

    /// Ends the expired leases and returns them.
    pub(super) fn end_due(&mut self, now: Instant) -> Vec<LeaseId> {
        let mut due = Vec::new();
        while let Some((_, id)) = self.by_deadline.first().copied().filter(|(at, _)| *at <= now) {
            let id = LeaseId(id);
            if let Some(lease) = self.by_id.get_mut(&id) {
                lease.ending = true;
                self.by_deadline.remove(&(lease.deadline, id.0));
            }
            due.push(id);
        }
        due
    }

    /// Removes an ended lease, whose keys are deleted.
    pub(super) fn forget(&mut self, id: LeaseId) {
        self.by_id.remove(&id);
    }

    /// Schedules an ended lease again, because its keys could not be deleted.
    pub(super) fn reschedule(&mut self, id: LeaseId, retry: Instant) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.deadline = retry;
            self.by_deadline.insert((retry, id.0));
        }
    }

    /// Returns the deadline of the lease that expires next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn an_expired_lease_is_not_renewed() {
        let (start, id) = (Instant::now(), LeaseId(7));
        let mut leases = Leases::default();
        leases.add(id, TTL, start + TTL);
        assert_eq!(leases.renew(id, start + TTL / 2), Some(TTL));
        assert!(leases.end_due(start + TTL).is_empty(), "it was renewed");
        assert_eq!(leases.renew(id, start + TTL * 2), None);
        assert_eq!(leases.end_due(start + TTL * 2), [id]);
        assert_eq!(leases.renew(id, start), None, "its keys are being removed");
        assert!(!leases.end(id));

        leases.reschedule(id, start + TTL * 3);
        assert_eq!(leases.renew(id, start), None, "it stays ended");
        assert_eq!(leases.end_due(start + TTL * 3), [id]);
        leases.forget(id);
        assert_eq!(leases.next_deadline(), None);
    }
}
