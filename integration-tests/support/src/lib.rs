//! Shared by the tests of the worker, the integration tests and the fault rig.
//!
//! | module | duty |
//! |---|---|
//! | [`conformance`] | one suite for each port, which every adapter must pass |
//! | [`worker_suite`] | tests of a worker over any adapters |
//! | [`scripted`] | an executor in the test's own process, whose steps do what their words say |
//! | [`services`] | RabbitMQ, etcd and podman, of the environment or of a test's own |
//! | [`engine`] | steps on a real container engine |
//! | [`raw`] | requests to the services without the worker's adapters |
//! | [`proxy`] | a TCP proxy that breaks connections |
//! | [`prefixed`] | a store whose keys have a prefix |
//! | [`skipped`] | the list of tests that are skipped because a service is missing |

#![expect(clippy::expect_used, clippy::panic, reason = "test helpers may panic")]

pub mod conformance;
pub mod engine;
pub mod prefixed;
pub mod proxy;
pub mod raw;
pub mod scripted;
pub mod services;
pub mod skipped;
pub mod worker_suite;
