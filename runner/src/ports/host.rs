//! The machine a worker runs on.

use std::time::Duration;

use protocol::run::{NodeCpu, NodeMemory};
use protocol::time::Millis;

/// Clocks, randomness, memory and load.
pub trait Host: Send + Sync {
    /// The wall clock.
    fn now(&self) -> Millis;

    /// Time since boot, including suspended time (`CLOCK_BOOTTIME`). A lease expires while its host
    /// sleeps, so the worker's own clock must advance too.
    fn since_boot(&self) -> Duration;

    /// Total memory, and memory available to a new program.
    fn memory(&self) -> NodeMemory;

    /// Number of processors, and their load.
    fn cpu(&self) -> NodeCpu;

    /// Returns a random time below `most`, to spread the reactions of many hosts to one event.
    fn jitter(&self, most: Duration) -> Duration {
        most.mul_f64(rand::random())
    }

    /// The host's name.
    fn name(&self) -> String;
}
