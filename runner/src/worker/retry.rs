//! Retries calls of ports with growing pauses. Each attempt counts as progress of the task: the watchdog
//! must not abort a task that retries an unavailable service.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::watchdog::Heartbeat;
use crate::ports::{Host, Pauses};

/// The pauses between the attempts at one call. Each is twice as long as the one before it, up to a
/// limit, plus up to a quarter of itself, so that workers do not retry in step.
pub(super) struct Retry<'a> {
    host: &'a dyn Host,
    heartbeat: Heartbeat,
    pauses: Pauses,
}

impl<'a> Retry<'a> {
    /// Pauses from `first` to `longest`. `heartbeat` is that of the task that retries.
    pub(super) fn new(
        host: &'a dyn Host,
        heartbeat: &Heartbeat,
        first: Duration,
        longest: Duration,
    ) -> Self {
        // The host draws the jitter: a seed of the simulation must be one history.
        let pauses = Pauses::doubling(first, longest);
        Self { host, heartbeat: heartbeat.clone(), pauses }
    }

    /// Pauses for a call of the store: from 50 ms to 1 s.
    pub(super) fn of_store(host: &'a dyn Host, heartbeat: &Heartbeat) -> Self {
        Self::new(host, heartbeat, Duration::from_millis(50), Duration::from_secs(1))
    }

    /// Returns to the first pause, after a call that succeeded.
    pub(super) fn reset(&mut self) {
        self.pauses.reset();
    }

    /// Waits before the next attempt. The watchdog treats the task as idle meanwhile.
    ///
    /// # Cancel safety
    /// Cancelling skips the rest of the pause.
    pub(super) async fn wait(&mut self) {
        let pause = self.pauses.take_next();
        let pause = pause + self.host.jitter(pause / 4);
        let _waits = self.heartbeat.waits();
        tokio::time::sleep(pause).await;
    }

    /// Like [`Self::wait`]. `Break` if `end` is cancelled, at once or while waiting.
    ///
    /// # Cancel safety
    /// Cancelling skips the rest of the pause.
    pub(super) async fn pause(&mut self, end: &CancellationToken) -> ControlFlow<()> {
        match end.run_until_cancelled(self.wait()).await {
            Some(()) => ControlFlow::Continue(()),
            None => ControlFlow::Break(()),
        }
    }

    /// Attempts a call until it returns `Break`. `None` if `end` is cancelled between two attempts.
    ///
    /// # Cancel safety
    /// As that of the call.
    pub(super) async fn until<T, F>(
        mut self,
        end: &CancellationToken,
        mut attempt: impl FnMut() -> F,
    ) -> Option<T>
    where
        F: Future<Output = ControlFlow<T>>,
    {
        loop {
            self.heartbeat.beat();
            if let ControlFlow::Break(answer) = attempt().await {
                return Some(answer);
            }
            if self.pause(end).await.is_break() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::fakes::StoppedClock;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_the_limit_until_the_call_answers() {
        let (mut times, began) = (Vec::new(), tokio::time::Instant::now());
        let (first, longest) = (Duration::from_millis(50), Duration::from_millis(150));
        let retry = Retry::new(&StoppedClock, &Heartbeat::unwatched(), first, longest);
        let answer = retry
            .until(&CancellationToken::new(), || {
                times.push(began.elapsed().as_millis());
                let is_last = times.len() == 5;
                async move {
                    if is_last { ControlFlow::Break("done") } else { ControlFlow::Continue(()) }
                }
            })
            .await;
        assert_eq!(answer, Some("done"));
        assert_eq!(times, [0, 50, 150, 300, 450]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_retry_ends_at_once() {
        let end = CancellationToken::new();
        end.cancel();
        let mut attempts = 0;
        let answer: Option<()> = Retry::of_store(&StoppedClock, &Heartbeat::unwatched())
            .until(&end, || {
                attempts += 1;
                std::future::ready(ControlFlow::Continue(()))
            })
            .await;
        assert_eq!((answer, attempts), (None, 1));
    }
}
