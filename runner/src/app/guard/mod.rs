//! A process beside a worker that kills what the worker runs, where the worker cannot any more.
//!
//! | file | duty |
//! |---|---|
//! | `word` | what the worker says to it, over a pipe that is its standard input |
//! | `keeper` | the worker's side: starts it, feeds it, starts it again |
//! | `watch` | when it kills and when it ends: a rule without clock or I/O |
//! | `stand` | the guard's side: hears, looks, kills |
//! | `remains` | what there is to be killed, on whichever engine |
//!
//! It goes by what the worker itself goes by: the time until which the lease stands for sure, on the
//! clock that goes on while the host sleeps. So nothing of a worker runs any more on a host that runs
//! by the time that its lease is over and another worker may go on, on whatever engine.
//!
//! It kills by the label of the process that made a container, and nobody ever goes on with the
//! container of another process: whoever takes a run up removes what it finds of it and makes its own.

mod keeper;
mod remains;
mod stand;
mod watch;
mod word;

pub use keeper::{Form, Keeper, Told};
pub use stand::stand;
