//! Names, types and formats that cross a wire or are stored. This crate is the only one that spells
//! them. It does no I/O and reads no clock.
//!
//! | module | duty |
//! |---|---|
//! | [`id`] | validated identities |
//! | [`names`] | exchanges, queues, keys, labels |
//! | [`command`] | decoding of the commands that people publish |
//! | [`event`] | events on the stream |
//! | [`status`] | how far a run or a step is, and why it ended |
//! | [`run`] | stored values of runs, nodes and registrations |
//! | [`definition`] | the immutable parts of a run, stored under their own key |
//! | [`budget`] | the size limits of a start and a run record, and how a larger record is cut |
//! | [`pipeline`] | the one pipeline model |
//! | [`dialect`] | parsers from files and messages to the model, which report every fault at once |
//! | [`diagnostic`] | a fault: its location, message and hint |
//! | [`wait_list`] | the runs of a pipeline that hold a place or wait for one |
//! | [`quantity`], [`shell`], [`time`] | memory, shares and spans; word splitting; points in time |
//! | [`schema`] | the published schemas |
//!
//! Additions are allowed at any time. Nothing published is removed or given another meaning.

pub mod budget;
pub mod command;
pub mod definition;
pub mod diagnostic;
pub mod dialect;
pub mod event;
pub mod id;
pub mod names;
pub mod pipeline;
pub mod quantity;
pub mod run;
pub mod schema;
pub mod shell;
pub mod status;
pub mod time;
pub mod wait_list;
