//! Time that passes quickly, for tests of deadlines whose other side is a real socket or process.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{advance, pause, resume, sleep};

/// More than any deadline of this crate.
const LONGEST: Duration = Duration::from_secs(3 * 3600);
const STEP: Duration = Duration::from_secs(2);

/// Drives a future while the clock runs two seconds at a time. The clock is real between two of
/// these steps, because a paused clock also jumps while I/O is on its way.
///
/// # Panics
/// If the future is not done after three hours of that time.
pub(super) async fn quickly<T>(doing: impl Future<Output = T>) -> T {
    let mut doing = pin!(doing);
    let mut passed = Duration::ZERO;
    while passed < LONGEST {
        tokio::select! {
            biased;
            done = &mut doing => return done,
            () = sleep(Duration::from_millis(2)) => {}
        }
        pause();
        advance(STEP).await;
        resume();
        passed += STEP;
    }
    panic!("it has no deadline");
}
