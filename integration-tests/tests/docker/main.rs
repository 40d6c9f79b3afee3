//! The executor of Docker engines: on podman's API of that kind, and on Debian's docker.io where its
//! daemon starts (`scripts/services up --only podman,docker`).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod engine;
mod files;
mod jobs;
mod steps;
