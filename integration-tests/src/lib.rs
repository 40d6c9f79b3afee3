//! Tests against real services live in `tests/`; what they share is here.

pub mod engine;
pub mod services;
