//! Who holds what until when. In memory: a lease says that a process lives.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::ports::LeaseId;

/// A lease of at least this length is a date and no sign of life: it outlives the process.
pub(super) const LASTING: Duration = Duration::from_secs(3600);

struct Lease {
    ttl: Duration,
    deadline: Instant,
    /// Its keys are being removed, and nothing renews it any more.
    ending: bool,
}

/// The leases that there are.
#[derive(Default)]
pub(super) struct Leases {
    by_id: HashMap<LeaseId, Lease>,
    by_deadline: BTreeSet<(Instant, i64)>,
}

impl Leases {
    /// Adds a lease that runs out at `deadline`, and after `ttl` once it is renewed.
    pub(super) fn add(&mut self, id: LeaseId, ttl: Duration, deadline: Instant) {
        self.by_id.insert(id, Lease { ttl, deadline, ending: false });
        self.by_deadline.insert((deadline, id.0));
    }

    /// The time to live of a lease that stands.
    pub(super) fn ttl(&self, id: LeaseId, now: Instant) -> Option<Duration> {
        let lease = self.by_id.get(&id)?;
        (!lease.ending && lease.deadline > now).then_some(lease.ttl)
    }

    /// Renews a lease that stands.
    pub(super) fn renew(&mut self, id: LeaseId, now: Instant) -> Option<Duration> {
        let ttl = self.ttl(id, now)?;
        let lease = self.by_id.get_mut(&id)?;
        self.by_deadline.remove(&(lease.deadline, id.0));
        lease.deadline = now + ttl;
        self.by_deadline.insert((lease.deadline, id.0));
        Some(ttl)
    }

    /// Ends a lease before its time; `false` where it has ended or is about to.
    pub(super) fn end(&mut self, id: LeaseId) -> bool {
        let Some(lease) = self.by_id.get_mut(&id).filter(|lease| !lease.ending) else {
            return false;
        };
        lease.ending = true;
        self.by_deadline.remove(&(lease.deadline, id.0));
        true
    }

    /// Ends the leases that have run out, and says which.
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

    /// The keys of an ended lease are gone.
    pub(super) fn forget(&mut self, id: LeaseId) {
        self.by_id.remove(&id);
    }

    /// The keys of an ended lease could not be removed: it is due again at `retry`.
    pub(super) fn due_again(&mut self, id: LeaseId, retry: Instant) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.deadline = retry;
            self.by_deadline.insert((retry, id.0));
        }
    }

    /// When the next lease runs out.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_has_run_out_is_not_renewed() {
        let (start, id) = (Instant::now(), LeaseId(7));
        let mut leases = Leases::default();
        leases.add(id, TTL, start + TTL);
        assert_eq!(leases.renew(id, start + TTL / 2), Some(TTL));
        assert!(leases.end_due(start + TTL).is_empty(), "it was renewed");
        assert_eq!(leases.renew(id, start + TTL * 2), None);
        assert_eq!(leases.end_due(start + TTL * 2), [id]);
        assert_eq!(leases.renew(id, start), None, "its keys are being removed");
        assert!(!leases.end(id));

        leases.due_again(id, start + TTL * 3);
        assert_eq!(leases.renew(id, start), None, "it stays ended");
        assert_eq!(leases.end_due(start + TTL * 3), [id]);
        leases.forget(id);
        assert_eq!(leases.next_deadline(), None);
    }
}
