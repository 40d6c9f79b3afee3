//! Delays between retries: capped, jittered, unlimited in number.

use std::time::Duration;

use backoff::SystemClock;
use backoff::backoff::Backoff as _;
use backoff::exponential::{ExponentialBackoff, ExponentialBackoffBuilder};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Grows from 100 ms to 5 s. Each delay is between half and one and a half times that value, so
/// that many workers do not retry at the same time.
pub(super) struct Pace(ExponentialBackoff<SystemClock>);

impl Pace {
    pub(super) fn new() -> Self {
        Self(
            ExponentialBackoffBuilder::new()
                .with_initial_interval(FIRST)
                .with_max_interval(LONGEST)
                .with_max_elapsed_time(None)
                .build(),
        )
    }

    /// Waits, and increases the next delay.
    pub(super) async fn wait(&mut self) {
        let pause = self.0.next_backoff().unwrap_or(LONGEST);
        tokio::time::sleep(pause).await;
    }

    /// Resets the delay after a success.
    pub(super) fn reset(&mut self) {
        self.0.reset();
    }
}

impl std::fmt::Debug for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pace").field("interval", &self.0.current_interval).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_grows_to_its_maximum_and_retries_never_end() {
        let mut pace = Pace::new();
        let pauses: Vec<Duration> = (0..50).map(|_| pace.0.next_backoff().unwrap()).collect();
        assert!(pauses[0] <= FIRST * 3 / 2, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST * 3 / 2), "{pauses:?}");
        assert!(pauses[40..].iter().all(|pause| *pause >= LONGEST / 2), "{pauses:?}");
    }
}
