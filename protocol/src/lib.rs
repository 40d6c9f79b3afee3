//! What crosses a wire or is stored: the only place that spells these names. No I/O, no clock.
//!
//! | module | duty |
//! |---|---|
//! | [`id`] | identities, checked at the door |
//! | [`names`] | exchanges, queues, keys, labels |
//! | [`command`] | what people publish, decoded |
//! | [`event`] | what stands on the stream |
//! | [`run`] | what is stored of a run and a node |
//! | [`definition`] | the immutable parts of a run, which have a key of their own |
//! | [`budget`] | how large a run record may be, and what is cut if it is larger |
//! | [`pipeline`] | the one model |
//! | [`dialect`] | files and messages into the model, with every fault at once |
//! | [`diagnostic`] | a fault: where, what, hint |
//! | [`quantity`], [`shell`], [`time`] | memory, shares, spans; words; points in time |
//! | [`schema`] | the published schemas |
//!
//! Additions are allowed at any time; what is published is not removed or given another meaning.

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
pub mod time;
