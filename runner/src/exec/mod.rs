//! Where steps run.

#[cfg(feature = "testing")]
pub mod scripted;
