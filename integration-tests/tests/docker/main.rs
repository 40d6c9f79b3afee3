//! The executor for Docker engines, on podman's Docker API and on Debian's docker.io if its daemon
//! starts (`scripts/services up --only podman,docker`).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod engine;
mod files;
mod jobs;
mod steps;
