//! The machine a worker runs on.

use std::time::Duration;

use protocol::run::{NodeCpu, NodeMemory};
use protocol::time::Millis;

/// Clocks, memory and load.
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

    /// The host's name.
    fn name(&self) -> String;
}
