//! A separate process that kills a worker's containers when the worker no longer can.
//!
//! | file | duty |
//! |---|---|
//! | `message` | the messages from the worker, sent over the guard's standard input |
//! | `keeper` | the worker's side: starts, informs and restarts the guard |
//! | `watch` | when the guard kills and when it ends: a rule without clock or I/O |
//! | `process` | the guard's side: reads messages, lists containers and kills them |
//! | `remains` | the worker's containers on each engine |
//!
//! The guard uses the same deadline as the worker: the time until which the lease is certainly
//! valid, on the clock that runs while the host sleeps. So no container of a worker is left on a
//! running host when its lease has expired. Another worker can then resume the run on any engine.
//!
//! It finds containers by the label of the process that created them. No other process ever
//! continues to use them: a new owner removes an older owner's containers and creates its own.

mod keeper;
mod message;
mod process;
mod remains;
mod watch;

pub use keeper::{Form, GuardSettings, Keeper};
pub use process::guard_worker;
