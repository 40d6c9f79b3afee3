//! The bob-runner worker, and its command line.
//!
//! | room | duty |
//! |---|---|
//! | [`ports`] | what a worker needs of the world: traits only |
//! | [`rules`] | decides what should happen; pure |
//! | [`worker`] | makes it happen |

pub mod config;
pub mod exec;
pub mod ports;
pub mod rules;
pub mod telemetry;
pub mod worker;
