//! Where steps run.

mod all;
mod archive;
mod auth;
pub mod call;
mod demux;
pub mod docker;
mod given;
mod job;
pub mod local;
pub mod podman;
#[cfg(feature = "testing")]
pub mod scripted;
pub mod ssh;

pub use self::all::Executors;
