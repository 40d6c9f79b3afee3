//! The machine a worker runs on.

use std::time::Duration;

use protocol::run::{NodeCpu, NodeMemory};
use protocol::time::Millis;

/// Clocks, chance, memory and load.
pub trait Host: Send + Sync {
    /// The wall clock.
    fn now(&self) -> Millis;

    /// Time since boot, suspended time included (`CLOCK_BOOTTIME`): a lease runs out while its host
    /// sleeps, and so must our idea of it.
    fn since_boot(&self) -> Duration;

    /// Total memory, and what a new program could use.
    fn memory(&self) -> NodeMemory;

    /// Processors, and their load.
    fn cpu(&self) -> NodeCpu;

    /// A random time below `most`, so that what many hosts see at once is not done by all at once.
    fn jitter(&self, most: Duration) -> Duration {
        most.mul_f64(rand::random())
    }

    /// The host's name.
    fn name(&self) -> String;
}
