//! Whether a run fits a worker.

use std::time::Duration;

use protocol::pipeline::Pipeline;
use protocol::run::NodeMemory;

/// Whether there is memory for a run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// There is.
    Now,
    /// Not now: asked for, and free (bytes).
    Later {
        /// What the pipeline requests.
        asked: u64,
        /// What is free.
        free: u64,
    },
    /// Never on this worker: asked for, and there in all (bytes).
    Never {
        /// What the pipeline requests.
        asked: u64,
        /// What the worker has.
        total: u64,
    },
}

/// Compares what a pipeline requests with what a worker has.
#[must_use]
pub fn fit(pipeline: &Pipeline, memory: NodeMemory) -> Fit {
    let asked = pipeline
        .quotas
        .as_ref()
        .and_then(|quotas| quotas.requests.as_ref())
        .and_then(|requests| requests.mem.as_ref())
        .map_or(0, |mem| mem.bytes());
    if asked > memory.total {
        Fit::Never { asked, total: memory.total }
    } else if asked > memory.free {
        Fit::Later { asked, free: memory.free }
    } else {
        Fit::Now
    }
}

/// How long a start that does not fit waits before it is published again: 1 s, doubled each time,
/// 30 s at most.
#[must_use]
pub fn delay(times_rejected: u32) -> Duration {
    Duration::from_secs(1u64.checked_shl(times_rejected).unwrap_or(u64::MAX).min(30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_of_a_rejected_start_doubles_from_one_to_thirty_seconds() {
        let delays: Vec<u64> = (0..7).map(|n| delay(n).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(delay(u32::MAX).as_secs(), 30);
    }
}
