//! Where steps run.

mod all;
pub mod call;
pub mod local;
pub mod podman;
#[cfg(feature = "testing")]
pub mod scripted;
pub mod ssh;

pub use self::all::Executors;
