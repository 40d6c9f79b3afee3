//! The bob-runner worker, and its command line.
//!
//! | room | duty |
//! |---|---|
//! | [`ports`] | what a worker needs of the world: traits only |
//! | [`rules`] | decides what should happen; pure |

pub mod ports;
pub mod rules;
