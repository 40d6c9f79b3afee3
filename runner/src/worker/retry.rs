//! Retries calls of ports: grows the pause between attempts, and ticks the task's heartbeat at each of
//! them, so that the watchdog does not mistake a task that waits for a service for a stalled one.

use std::ops::ControlFlow;
use std::time::Duration;

use backoff::SystemClock;
use backoff::backoff::Backoff as _;
use backoff::exponential::{ExponentialBackoff, ExponentialBackoffBuilder};
use tokio_util::sync::CancellationToken;

use super::watchdog::beat;
use crate::ports::Host;

/// The pauses between the attempts at one call. Each is twice as long as the one before it, up to a
/// limit, plus up to a quarter of itself, so that workers do not retry in step.
pub(super) struct Retry<'a> {
    host: &'a dyn Host,
    pauses: ExponentialBackoff<SystemClock>,
    longest: Duration,
}

impl<'a> Retry<'a> {
    /// Pauses from `first` to `longest`.
    pub(super) fn new(host: &'a dyn Host, first: Duration, longest: Duration) -> Self {
        let pauses = ExponentialBackoffBuilder::new()
            .with_initial_interval(first)
            .with_multiplier(2.0)
            .with_max_interval(longest)
            // The host draws the jitter instead: a seed of the simulation must be one history.
            .with_randomization_factor(0.0)
            .with_max_elapsed_time(None)
            .build();
        Self { host, pauses, longest }
    }

    /// Pauses for a call of the store: from 50 ms to 1 s.
    pub(super) fn of_store(host: &'a dyn Host) -> Self {
        Self::new(host, Duration::from_millis(50), Duration::from_secs(1))
    }

    /// Waits before the next attempt. `Break` if `end` is cancelled, at once or while waiting.
    ///
    /// # Cancel safety
    /// Cancelling skips the rest of the pause.
    pub(super) async fn pause(&mut self, end: &CancellationToken) -> ControlFlow<()> {
        let pause = self.pauses.next_backoff().unwrap_or(self.longest);
        let pause = pause + self.host.jitter(pause / 4);
        let waited = end.run_until_cancelled(tokio::time::sleep(pause)).await;
        beat();
        if waited.is_some() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
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
            beat();
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
    use protocol::run::{NodeCpu, NodeMemory};
    use protocol::time::Millis;

    use super::*;

    struct NoJitter;

    impl Host for NoJitter {
        fn now(&self) -> Millis {
            Millis(0)
        }

        fn since_boot(&self) -> Duration {
            Duration::ZERO
        }

        fn memory(&self) -> NodeMemory {
            NodeMemory { free: 0, total: 0 }
        }

        fn cpu(&self) -> NodeCpu {
            NodeCpu { count: 1, load: 0.0 }
        }

        fn jitter(&self, _most: Duration) -> Duration {
            Duration::ZERO
        }

        fn name(&self) -> String {
            String::new()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_the_limit_until_the_call_answers() {
        let (mut times, began) = (Vec::new(), tokio::time::Instant::now());
        let retry = Retry::new(&NoJitter, Duration::from_millis(50), Duration::from_millis(150));
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
        let answer: Option<()> = Retry::of_store(&NoJitter)
            .until(&end, || {
                attempts += 1;
                std::future::ready(ControlFlow::Continue(()))
            })
            .await;
        assert_eq!((answer, attempts), (None, 1));
    }
}
