//! Where steps run.

pub mod podman;
#[cfg(feature = "testing")]
pub mod scripted;
