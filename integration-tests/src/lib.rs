//! Helpers shared by the tests against real services in `tests/`.
#![expect(clippy::expect_used, clippy::panic, reason = "what tests share may panic")]

pub mod engine;
pub mod prefixed;
pub mod proxy;
pub mod raw;
pub mod services;
