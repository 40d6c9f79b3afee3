//! One conformance suite for each port; every adapter must pass it. If an adapter breaks the
//! contract, the suite panics and names the broken rule.
//!
//! A suite is a single future that runs next to its adapter: the embedded adapters run it in the
//! tests of `runner`, the cluster adapters in the tests with real servers.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a suite may panic")]

mod events;
mod executor;
mod outputs;
mod queue;
mod step;
mod store;

use std::future::Future;
use std::time::Duration;

pub use events::{EventsSubject, events};
pub use executor::{Act, CallSubject, ExecutorSubject, call, executor, remote};
pub use outputs::{OutputStoreSubject, outputs};
pub use queue::{QueueSubject, TakeDeadLetters, queue};
pub use step::StepBuilder;
pub use store::{StoreSubject, store};

/// How long a suite waits for an expected event. Generous, because a busy machine is not a fault.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a suite waits before it concludes that something does not happen.
const QUIET: Duration = Duration::from_millis(300);

/// Waits for an expected event; panics after [`PATIENCE`].
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(late) => panic!("{what} did not happen: {late}"),
    }
}

/// Asserts that something does not happen within [`QUIET`].
async fn never<T>(what: &str, future: impl Future<Output = T>) {
    assert!(tokio::time::timeout(QUIET, future).await.is_err(), "{what} happened");
}
