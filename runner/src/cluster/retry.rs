//! The pauses between attempts to reach a server of the cluster again.

use std::time::Duration;

use crate::ports::Pauses;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Pauses from about 100 ms to about 5 s.
pub(super) fn reconnect_pauses() -> Pauses {
    Pauses::jittered(FIRST, LONGEST)
}
