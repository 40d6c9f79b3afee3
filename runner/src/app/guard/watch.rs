//! Decides when a guard kills and when it ends. All times are of the boot clock.

use std::time::Duration;

use super::word::Word;
use crate::exec::podman::Seen;
use crate::ports::STARTS_WITHIN;

/// How long a guard without a worker keeps trying to kill.
const TRIES_FOR: Duration = Duration::from_secs(600);
/// The next action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Listen for messages, at most for this long.
    Listen(Option<Duration>),
    /// List the containers and kill them.
    Kill,
    /// End.
    End,
}

/// What a guard knows about its worker.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The time until which the worker's lease is valid.
    until: Option<Duration>,
    /// The time of the worker's death: only that closes its end of the pipe.
    gone: Option<Duration>,
    goodbye: bool,
    /// Nothing of the worker runs or is about to start.
    is_clean: bool,
}

impl Watch {
    pub(super) fn hears(&mut self, word: &Word) {
        match word {
            Word::Engine(_) | Word::Docker(_) => {}
            Word::StandsUntil(millis) => {
                // A worker whose containers were killed while it was frozen can recover.
                self.until = Some(Duration::from_millis(*millis));
                self.is_clean = false;
            }
            Word::Goodbye => self.goodbye = true,
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
    pub(super) fn saw(&mut self, now: Duration, seen: &Seen) {
        let since = self.gone.or(self.until).unwrap_or(now);
        let may_start = seen.made > 0 && now.saturating_sub(since) < STARTS_WITHIN;
        self.is_clean = seen.running.is_empty() && !may_start;
    }

    /// The reason for killing, for the log.
    pub(super) fn why(&self) -> &'static str {
        match self.gone {
            Some(_) => "its worker is dead",
            None => {
                "its worker has not renewed its lease in time: it is frozen, or etcd does not answer"
            }
        }
    }

    pub(super) fn due(&self, now: Duration) -> Due {
        match (self.gone, self.until) {
            _ if self.goodbye => Due::End,
            // A worker that never had a lease never started anything.
            (Some(_), None) => Due::End,
            (Some(gone), _) if self.is_clean || now.saturating_sub(gone) >= TRIES_FOR => Due::End,
            // A dead worker cannot recover, so do not wait for the end of its lease.
            (Some(_), Some(_)) => Due::Kill,
            (None, None) => Due::Listen(None),
            (None, Some(until)) if now < until => Due::Listen(Some(until - now)),
            (None, Some(_)) if self.is_clean => Due::Listen(None),
            (None, Some(_)) => Due::Kill,
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
        watch.hears(&Word::Engine("unix:///e".into()));
        watch.hears(&Word::stands_until(at(until)));
        watch
    }

    fn runs(count: usize) -> Seen {
        Seen { running: vec!["id".into(); count], made: 0 }
    }

    fn made() -> Seen {
        Seen { running: Vec::new(), made: 1 }
    }

    #[test]
    fn a_worker_that_only_lost_etcd_is_not_called_dead() {
        let mut watch = fed(10);
        assert_eq!(watch.due(at(10)), Due::Kill);
        assert!(watch.why().contains("it is frozen, or etcd does not answer"), "{}", watch.why());
        assert!(!watch.why().contains("dead"), "{}", watch.why());
        watch.gone = Some(at(11));
        assert_eq!(watch.why(), "its worker is dead");
    }

    #[test]
    fn nothing_is_killed_while_the_lease_stands() {
        assert_eq!(Watch::default().due(at(1000)), Due::Listen(None));
        let mut watch = fed(10);
        assert_eq!(watch.due(at(4)), Due::Listen(Some(at(6))));
        watch.hears(&Word::stands_until(at(20)));
        assert_eq!(watch.due(at(10)), Due::Listen(Some(at(10))));
    }

    #[test]
    fn a_silent_workers_containers_are_killed_until_a_look_finds_none() {
        let mut watch = fed(10);
        assert_eq!(watch.due(at(10)), Due::Kill);
        watch.saw(at(10), &runs(2));
        assert_eq!(watch.due(at(11)), Due::Kill, "it looks again");
        watch.saw(at(11), &runs(0));
        assert_eq!(watch.due(at(11)), Due::Listen(None));
        assert_eq!(watch.due(at(100_000)), Due::Listen(None), "nobody starts anything meanwhile");
    }

    #[test]
    fn a_worker_that_comes_back_is_guarded_again() {
        let mut watch = fed(10);
        watch.saw(at(10), &runs(1));
        watch.hears(&Word::stands_until(at(30)));
        assert_eq!(watch.due(at(12)), Due::Listen(Some(at(18))), "no look that was begun counts");
        assert_eq!(watch.due(at(30)), Due::Kill);
        watch.saw(at(30), &runs(0));
        watch.hears(&Word::stands_until(at(50)));
        assert_eq!(watch.due(at(50)), Due::Kill, "what was clean is looked at again");
    }

    #[test]
    fn what_is_about_to_run_is_waited_for_but_not_for_ever() {
        let mut watch = fed(10);
        watch.saw(at(10), &made());
        assert_eq!(watch.due(at(11)), Due::Kill);
        let over = at(10) + STARTS_WITHIN;
        watch.saw(over - at(1), &made());
        assert_eq!(watch.due(over - at(1)), Due::Kill);
        watch.saw(over, &made());
        assert_eq!(watch.due(over), Due::Listen(None), "nobody can start it any longer");
    }

    #[test]
    fn a_dead_workers_containers_are_killed_at_once_and_then_it_ends() {
        let mut watch = fed(10);
        watch.is_alone(at(4));
        assert_eq!(watch.due(at(4)), Due::Kill);
        watch.saw(at(4), &runs(1));
        assert_eq!(watch.due(at(5)), Due::Kill);
        watch.saw(at(5), &runs(0));
        assert_eq!(watch.due(at(5)), Due::End);
    }

    #[test]
    fn one_that_died_after_it_was_killed_for_is_looked_at_once_more() {
        let mut watch = fed(10);
        watch.saw(at(10), &runs(0));
        watch.is_alone(at(20));
        assert_eq!(watch.due(at(20)), Due::Kill);
    }

    #[test]
    fn an_engine_that_never_answers_keeps_no_guard_for_ever() {
        let mut watch = fed(10);
        watch.is_alone(at(12));
        watch.is_alone(at(500));
        assert_eq!(watch.due(at(611)), Due::Kill);
        assert_eq!(watch.due(at(612)), Due::End);
    }

    #[test]
    fn one_that_was_dismissed_or_never_needed_ends_without_a_look() {
        let mut watch = fed(10);
        watch.hears(&Word::Goodbye);
        watch.is_alone(at(11));
        assert_eq!(watch.due(at(11)), Due::End);
        let mut never = Watch::default();
        never.is_alone(at(1));
        assert_eq!(never.due(at(1)), Due::End);
    }
}
