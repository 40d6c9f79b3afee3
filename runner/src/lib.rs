//! The bob-runner worker, and its command line.
//!
//! | room | duty |
//! |---|---|
//! | [`app`] | the composition root: the only place that names adapters |
//! | [`cli`] | the commands of the program |
//! | [`cluster`] | RabbitMQ and etcd behind the ports |
//! | [`config`] | every setting: file, variables, flags, all faults at once |
//! | [`egress`] | which addresses the worker connects to because a message names them |
//! | [`embedded`] | the same ports in one process over one file |
//! | [`exec`] | where steps run |
//! | [`host`] | clocks, memory and load of the machine |
//! | [`ports`] | what a worker needs of the world: traits only |
//! | [`rules`] | decides what should happen; pure |
//! | [`telemetry`] | the worker's own log |
//! | [`transfer`] | resources in, artifacts and logs out, over HTTP |
//! | [`worker`] | makes it happen |
//!
//! `ARCHITECTURE.md` walks a run through them; `tests/layers.rs` holds them to who may import whom.

pub mod app;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod egress;
pub mod embedded;
pub mod exec;
pub mod host;
pub mod ports;
pub mod rules;
pub mod telemetry;
pub mod transfer;
pub mod worker;
