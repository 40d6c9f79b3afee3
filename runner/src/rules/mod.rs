//! Decides what a run does next. Pure: facts in, orders out, without clock or I/O.

pub mod admission;
pub mod callback;
pub mod destination;
pub mod dollar;
pub mod env;
pub mod job;
pub mod lines;
pub mod mask;
pub mod named;
pub mod outbox;
pub mod quota;
pub mod retention;
pub mod run;
pub mod template;
