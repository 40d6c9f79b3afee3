//! The worker's interface to the outside: traits, and the small types in their signatures. Also what
//! all adapters share: growing pauses and errors with their causes. No adapters.
//!
//! Every adapter of a port passes the same conformance suite, in the crate `test-support`.

mod causes;
mod disk;
mod events;
mod executor;
mod guard;
mod host;
mod outputs;
mod pauses;
mod queue;
mod render;
mod searched;
mod secrets;
mod step;
mod store;
mod transfer;

use std::sync::Arc;

pub use causes::{append_causes, causes, with_causes};
pub use disk::{BaseImage, Disk, matches_reference};
pub use events::{EventStream, Events, EventsError, Position, Published, Ticket};
pub use executor::{EngineInfo, ExecError, Executor, Images, Remote, STARTS_WITHIN, Steps};
pub use guard::{Guard, Unguarded};
pub use host::Host;
pub use outputs::{
    ArchiveMatch, KeptFile, KeptOutputs, Notices, OutputLocation, OutputStore, Outputs, Stored,
};
pub use pauses::Pauses;
pub use queue::{Consumer, Delivery, Message, Queue, QueueError, Route, Settle, Source};
pub use render::{RenderError, Renderer, Rendering};
pub use searched::{Leak, searched};
pub use secrets::{
    Destination, NoSecrets, Purpose, Search, Secret, SecretMatcher, Secrets, SecretsError,
    StepSecret, StepSecrets,
};
pub use step::{
    Checkpoint, Exit, Gate, JOB_DIR, LeftoverRun, LogSink, RunScope, Script, StepEnd, StepOutcome,
    StepSpec, StopLevel, StopSignal, Workspace,
};
pub use store::{
    Change, Changes, Claim, Compare, Entry, Expect, Granted, LeaseId, Listing, Op, Read, Store,
    StoreError, Txn, TxnReply,
};
pub use transfer::{ByteStream, LoggerFeed, Origin, Transfer, TransferError};

/// All ports of a worker. `app` fills the struct; tests replace single fields.
#[derive(Clone)]
pub struct Ports {
    /// Source of commands.
    pub queue: Arc<dyn Queue>,
    /// Shared state.
    pub store: Arc<dyn Store>,
    /// The event stream.
    pub events: Arc<dyn Events>,
    /// Runs steps.
    pub executor: Arc<dyn Executor>,
    /// Transfers resources, artifacts and logs.
    pub transfer: Arc<dyn Transfer>,
    /// The machine: clocks, memory, load.
    pub host: Arc<dyn Host>,
    /// Renders templates.
    pub renderer: Arc<dyn Renderer>,
    /// Source of the steps' secrets.
    pub secrets: Arc<dyn Secrets>,
    /// Keeps outputs of steps. `None` if no output store is configured.
    pub outputs: Option<Arc<dyn Outputs>>,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").finish_non_exhaustive()
    }
}
