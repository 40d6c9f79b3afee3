//! The security boundaries of docs/security.md, one test for each: what a message cannot make a
//! worker do.
//!
//! A module covers one boundary. A test sends input that once crossed it, and checks that the run
//! is rejected and that nothing on the host changed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic, and runs a server of its own"
)]
#![allow(clippy::print_stderr, reason = "the log of a program is shown if its test failed")]

mod adapters;
mod addresses;
#[path = "../docker/engine.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the suite of the Docker adapter")]
mod docker;
mod images;
#[path = "../serve/keys.rs"]
#[allow(dead_code, reason = "the suite `serve` uses the rest")]
mod keys;
mod mount;
mod named_files;
mod network;
mod output;
#[path = "../serve/place.rs"]
#[allow(dead_code, reason = "the suite `serve` uses the rest")]
mod place;
mod reruns;
mod run;
mod secret_scopes;
mod secrets;
mod settings_file;
mod templates;
mod volumes;
mod work_dir;
