//! The executors that run steps.

pub mod access;
mod all;
mod annotations;
mod archive;
mod argv;
mod auth;
mod base_image;
mod beginning;
pub mod call;
mod copy;
mod deadline;
pub mod demux;
pub mod docker;
mod engine;
mod exhausted;
#[cfg(test)]
mod fast_clock;
mod job;
pub mod local;
mod mount;
mod named_files;
mod output;
pub mod podman;
mod secrets_dir;
pub mod ssh;
mod unexecutable;
mod with;
mod work_dir;

pub use self::all::Executors;
pub use self::named_files::NamedFiles;
