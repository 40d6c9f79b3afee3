//! The program `bob-runner serve` on RabbitMQ, etcd and podman, seen from outside: the clients
//! follow docs/wire.md and share no code with the runner.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic, and runs a server of its own"
)]
#![allow(clippy::print_stderr, reason = "the log of a program is shown if its test failed")]

mod after;
mod broker;
mod calls;
mod ci;
mod ci_rows;
mod containers;
mod contract;
mod engine_away;
mod following;
mod full_disk;
mod graph;
mod guard;
mod history;
mod job;
mod job_rows;
mod keys;
mod leaving;
mod logs;
mod memory;
mod native;
mod outside;
mod place;
mod program;
mod prunner;
mod reader;
mod rerun;
#[expect(dead_code, reason = "the tests of transfers use more of it")]
#[path = "../../../runner/tests/transfer/server.rs"]
mod server;
mod takeover;
mod writing;
