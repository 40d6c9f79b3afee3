//! Decides what a run does next. No clock, no sockets: facts in, orders out.

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
pub mod run;
pub mod template;
