//! Growing pauses between attempts at a call, or between polls.

use std::time::Duration;

use backoff::SystemClock;
use backoff::backoff::Backoff as _;
use backoff::exponential::{ExponentialBackoff, ExponentialBackoffBuilder};

/// Pauses that grow up to a limit. Their number is unlimited.
pub struct Pauses(ExponentialBackoff<SystemClock>);

impl Pauses {
    /// Pauses that double from `first` up to `longest`.
    #[must_use]
    pub fn doubling(first: Duration, longest: Duration) -> Self {
        Self::new(first, longest, 2.0, 0.0)
    }

    /// Pauses that grow by half from `first` up to `longest`. Each is drawn between half and one
    /// and a half times that value, so that many workers do not retry at the same time.
    #[must_use]
    pub fn jittered(first: Duration, longest: Duration) -> Self {
        Self::new(first, longest, 1.5, 0.5)
    }

    fn new(first: Duration, longest: Duration, multiplier: f64, randomization: f64) -> Self {
        Self(
            ExponentialBackoffBuilder::new()
                .with_initial_interval(first)
                .with_multiplier(multiplier)
                .with_max_interval(longest)
                .with_randomization_factor(randomization)
                .with_max_elapsed_time(None)
                .build(),
        )
    }

    /// Returns the next pause, and increases the one after it.
    pub fn take_next(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(self.0.max_interval)
    }

    /// Waits for the next pause.
    ///
    /// # Cancel safety
    /// Cancelling skips the rest of the pause.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.take_next()).await;
    }

    /// Starts again with the first pause.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

impl std::fmt::Debug for Pauses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pauses").field("next", &self.0.current_interval).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    #[test]
    fn doubling_pauses_grow_to_the_limit_and_start_again_after_a_reset() {
        let mut pauses = Pauses::doubling(Duration::from_millis(20), Duration::from_millis(50));
        let next = |pauses: &mut Pauses| pauses.take_next().as_millis();
        assert_eq!([next(&mut pauses), next(&mut pauses), next(&mut pauses)], [20, 40, 50]);
        assert_eq!(next(&mut pauses), 50);
        pauses.reset();
        assert_eq!(next(&mut pauses), 20);
    }

    #[test]
    fn jittered_pauses_grow_to_their_maximum_and_never_end() {
        let mut pauses = Pauses::jittered(FIRST, LONGEST);
        let drawn: Vec<Duration> = (0..50).map(|_| pauses.take_next()).collect();
        assert!(drawn[0] <= FIRST * 3 / 2, "{drawn:?}");
        assert!(drawn.iter().all(|pause| *pause <= LONGEST * 3 / 2), "{drawn:?}");
        assert!(drawn[40..].iter().all(|pause| *pause >= LONGEST / 2), "{drawn:?}");
    }
}
