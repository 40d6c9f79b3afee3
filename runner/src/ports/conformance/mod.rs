//! One suite for each port: every adapter passes it. A suite panics where an adapter breaks the
//! contract, with the sentence that it broke.
//!
//! A suite is one future, so that it runs wherever its adapter lives: the embedded one in this
//! crate's tests, those of the cluster beside the real servers.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a suite may panic")]

mod events;
mod executor;
mod outputs;
mod queue;
mod store;

use std::future::Future;
use std::time::Duration;

pub use events::{EventsSubject, events};
pub use executor::{Act, CallSubject, ExecutorSubject, call, executor, remote};
pub use outputs::{OutputStoreSubject, outputs};
pub use queue::{QueueSubject, TakeDeadLetters, queue};
pub use store::{StoreSubject, store};

/// How long a suite waits for what must come. Generous: a busy machine is not a broken adapter.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a suite watches that something does not come.
const QUIET: Duration = Duration::from_millis(300);

/// Waits for what must come.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(late) => panic!("{what} did not happen: {late}"),
    }
}

/// Asserts that something does not come for a while.
async fn never<T>(what: &str, future: impl Future<Output = T>) {
    assert!(tokio::time::timeout(QUIET, future).await.is_err(), "{what} happened");
}
