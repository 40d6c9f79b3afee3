//! The bob-runner worker, and its command line.
//!
//! | room | duty |
//! |---|---|
//! | [`app`] | the composition root: the only place that names adapters |
//! | [`cli`] | the commands of the program |
//! | [`client`] | the operations of users: start and stop runs, read state, logs and events |
//! | [`cluster`] | RabbitMQ and etcd behind the ports |
//! | [`config`] | every setting: file, variables, flags, all faults at once |
//! | [`egress`] | decides to which addresses the worker may connect on behalf of a message |
//! | [`embedded`] | the same ports in one process over one file |
//! | [`exec`] | the executors that run steps |
//! | [`host`] | clocks, memory and load of the machine |
//! | [`http`] | the HTTP API of a node |
//! | [`ports`] | the worker's interface to the outside: traits and small types |
//! | [`rules`] | decides what a run does next; pure |
//! | [`telemetry`] | the worker's own log |
//! | [`transfer`] | resources in, artifacts and logs out, over HTTP |
//! | [`worker`] | consumes commands, and owns and drives runs |
//!
//! `ARCHITECTURE.md` follows a run through the rooms. `tests/layers.rs` checks which room imports
//! which.

pub mod app;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod egress;
pub mod embedded;
pub mod exec;
pub mod host;
pub mod http;
pub mod ports;
pub mod rules;
pub mod telemetry;
pub mod transfer;
pub mod worker;
