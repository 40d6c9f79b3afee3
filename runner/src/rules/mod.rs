//! Decides what a run does next. No clock, no sockets: facts in, orders out.

pub mod env;
pub mod lines;
pub mod quota;
pub mod run;
pub mod template;
