//! Decides when a guard kills and when it ends. All times are of the boot clock.

use std::time::Duration;

use super::message::GuardMessage;
use crate::exec::podman::ListedContainers;
use crate::ports::STARTS_WITHIN;

/// How long a guard without a worker keeps trying to kill.
const TRIES_FOR: Duration = Duration::from_secs(600);
/// The next action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextAction {
    /// Listen for messages, at most for this long.
    Listen(Option<Duration>),
    /// List the containers and kill them.
    Kill,
    /// End.
    End,
}

/// The state of a worker, as seen by its guard.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The time until which the worker's lease is valid.
    until: Option<Duration>,
    /// The time of the worker's death. Nothing else closes its end of the pipe.
    gone: Option<Duration>,
    goodbye: bool,
    /// Nothing of the worker runs or is about to start.
    is_clean: bool,
}

impl Watch {
    pub(super) fn on_message(&mut self, word: &GuardMessage) {
        match word {
            GuardMessage::Engine(_) | GuardMessage::Docker(_) => {}
            GuardMessage::StandsUntil(millis) => {
                // A worker whose containers were killed while it was frozen can recover.
                self.until = Some(Duration::from_millis(*millis));
                self.is_clean = false;
            }
            GuardMessage::Goodbye => self.goodbye = true,
        }
    }

    /// The pipe is closed: the worker is dead.
    pub(super) fn is_alone(&mut self, now: Duration) {
        if self.gone.is_none() {
            self.gone = Some(now);
            self.is_clean = false;
        }
    }

    /// Takes the result of a listing.
    pub(super) fn on_listing(&mut self, now: Duration, seen: &ListedContainers) {
        let since = self.gone.or(self.until).unwrap_or(now);
        let may_start = seen.made > 0 && now.saturating_sub(since) < STARTS_WITHIN;
        self.is_clean = seen.running.is_empty() && !may_start;
    }

    /// The reason for killing, for the log.
    pub(super) fn reason(&self) -> &'static str {
        match self.gone {
            Some(_) => "its worker is dead",
            None => {
                "its worker has not renewed its lease in time: it is frozen, or etcd does not answer"
            }
        }
    }

    pub(super) fn due(&self, now: Duration) -> NextAction {
        match (self.gone, self.until) {
            _ if self.goodbye => NextAction::End,
            // A worker that never had a lease never started anything.
            (Some(_), None) => NextAction::End,
            (Some(gone), _) if self.is_clean || now.saturating_sub(gone) >= TRIES_FOR => {
                NextAction::End
            }
            // A dead worker cannot recover, so do not wait for the end of its lease.
            (Some(_), Some(_)) => NextAction::Kill,
            (None, None) => NextAction::Listen(None),
            (None, Some(until)) if now < until => NextAction::Listen(Some(until - now)),
            (None, Some(_)) if self.is_clean => NextAction::Listen(None),
            (None, Some(_)) => NextAction::Kill,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn fed(until: u64) -> Watch {
        let mut watch = Watch::default();
        watch.on_message(&GuardMessage::Engine("unix:///e".into()));
        watch.on_message(&GuardMessage::owned_until(at(until)));
        watch
    }

    fn runs(count: usize) -> ListedContainers {
        ListedContainers { running: vec!["id".into(); count], made: 0 }
    }

    fn made() -> ListedContainers {
        ListedContainers { running: Vec::new(), made: 1 }
    }

    #[test]
    fn a_worker_that_only_lost_etcd_is_not_considered_dead() {
        let mut watch = fed(10);
        assert_eq!(watch.due(at(10)), NextAction::Kill);
        assert!(
            watch.reason().contains("it is frozen, or etcd does not answer"),
            "{}",
            watch.reason()
        );
        assert!(!watch.reason().contains("dead"), "{}", watch.reason());
        watch.gone = Some(at(11));
        assert_eq!(watch.reason(), "its worker is dead");
    }

    #[test]
    fn nothing_is_killed_while_the_lease_is_valid() {
        assert_eq!(Watch::default().due(at(1000)), NextAction::Listen(None));
        let mut watch = fed(10);
        assert_eq!(watch.due(at(4)), NextAction::Listen(Some(at(6))));
        watch.on_message(&GuardMessage::owned_until(at(20)));
        assert_eq!(watch.due(at(10)), NextAction::Listen(Some(at(10))));
    }

    #[test]
    fn containers_of_a_silent_worker_are_killed_until_none_is_left() {
        let mut watch = fed(10);
        assert_eq!(watch.due(at(10)), NextAction::Kill);
        watch.on_listing(at(10), &runs(2));
        assert_eq!(watch.due(at(11)), NextAction::Kill, "it looks again");
        watch.on_listing(at(11), &runs(0));
        assert_eq!(watch.due(at(11)), NextAction::Listen(None));
        assert_eq!(
            watch.due(at(100_000)),
            NextAction::Listen(None),
            "nothing is started meanwhile"
        );
    }

    #[test]
    fn a_worker_that_returns_is_guarded_again() {
        let mut watch = fed(10);
        watch.on_listing(at(10), &runs(1));
        watch.on_message(&GuardMessage::owned_until(at(30)));
        assert_eq!(
            watch.due(at(12)),
            NextAction::Listen(Some(at(18))),
            "no look that was begun counts"
        );
        assert_eq!(watch.due(at(30)), NextAction::Kill);
        watch.on_listing(at(30), &runs(0));
        watch.on_message(&GuardMessage::owned_until(at(50)));
        assert_eq!(watch.due(at(50)), NextAction::Kill, "what was clean is looked at again");
    }

    #[test]
    fn the_guard_waits_for_starting_containers_but_not_forever() {
        let mut watch = fed(10);
        watch.on_listing(at(10), &made());
        assert_eq!(watch.due(at(11)), NextAction::Kill);
        let over = at(10) + STARTS_WITHIN;
        watch.on_listing(over - at(1), &made());
        assert_eq!(watch.due(over - at(1)), NextAction::Kill);
        watch.on_listing(over, &made());
        assert_eq!(watch.due(over), NextAction::Listen(None), "it can no longer be started");
    }

    #[test]
    fn containers_of_a_dead_worker_are_killed_at_once_and_the_guard_exits() {
        let mut watch = fed(10);
        watch.is_alone(at(4));
        assert_eq!(watch.due(at(4)), NextAction::Kill);
        watch.on_listing(at(4), &runs(1));
        assert_eq!(watch.due(at(5)), NextAction::Kill);
        watch.on_listing(at(5), &runs(0));
        assert_eq!(watch.due(at(5)), NextAction::End);
    }

    #[test]
    fn a_worker_that_dies_after_its_containers_were_killed_is_checked_again() {
        let mut watch = fed(10);
        watch.on_listing(at(10), &runs(0));
        watch.is_alone(at(20));
        assert_eq!(watch.due(at(20)), NextAction::Kill);
    }

    #[test]
    fn a_guard_does_not_wait_forever_for_a_silent_engine() {
        let mut watch = fed(10);
        watch.is_alone(at(12));
        watch.is_alone(at(500));
        assert_eq!(watch.due(at(611)), NextAction::Kill);
        assert_eq!(watch.due(at(612)), NextAction::End);
    }

    #[test]
    fn a_dismissed_or_unneeded_guard_exits_without_a_check() {
        let mut watch = fed(10);
        watch.on_message(&GuardMessage::Goodbye);
        watch.is_alone(at(11));
        assert_eq!(watch.due(at(11)), NextAction::End);
        let mut never = Watch::default();
        never.is_alone(at(1));
        assert_eq!(never.due(at(1)), NextAction::End);
    }
}
