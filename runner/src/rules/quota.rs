//! Compares the memory a run requests with the memory of a worker.

use std::time::Duration;

use protocol::pipeline::Pipeline;
use protocol::run::NodeMemory;

/// Whether a worker has the memory for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryFit {
    /// The worker has enough free memory.
    Now,
    /// The worker does not have enough free memory now.
    Later {
        /// The memory requested by the pipeline, in bytes.
        asked: u64,
        /// The free memory in bytes.
        free: u64,
    },
    /// The worker does not have enough memory in total.
    Never {
        /// The memory requested by the pipeline, in bytes.
        asked: u64,
        /// The total memory in bytes.
        total: u64,
    },
}

/// Compares the request of a pipeline with a worker's memory.
#[must_use]
pub fn check_memory(pipeline: &Pipeline, memory: NodeMemory) -> MemoryFit {
    let asked = pipeline
        .quotas
        .as_ref()
        .and_then(|quotas| quotas.requests.as_ref())
        .and_then(|requests| requests.mem.as_ref())
        .map_or(0, |mem| mem.bytes());
    if asked > memory.total {
        MemoryFit::Never { asked, total: memory.total }
    } else if asked > memory.free {
        MemoryFit::Later { asked, free: memory.free }
    } else {
        MemoryFit::Now
    }
}

/// Returns the delay before a start is published again: 1 s, doubled each time, at most 30 s.
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
