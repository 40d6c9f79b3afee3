//! The end of an operation: a fact for the rules, and a product for later operations of the drive.

use protocol::id::StepPosition;

use crate::ports::{Exit, StepOutcome, Workspace};
use crate::rules::run::{Broke, Exited, Input};

/// A completed operation.
pub(super) struct Completed {
    pub(super) fact: Input,
    pub(super) product: Product,
}

/// The part of an operation's result that later operations of the drive use.
pub(super) enum Product {
    Nothing,
    /// The workspace from which the first steps start.
    Base(Workspace),
    /// The workspaces of committed steps.
    Committed(Vec<(StepPosition, Workspace)>),
    /// The workspace from which a step starts, with its resource.
    Fetched(StepPosition, Workspace),
    /// The exit, the files and the result of a step's command.
    Exited(StepPosition, StepOutcome),
}

/// Why an operation failed.
pub(super) enum OperationError {
    /// It broke, which is a fact for the rules.
    Broke(Broke),
    /// The drive cannot continue.
    Interrupted(Interrupted),
}

/// Why a drive cannot continue after an operation. The worker releases the run, and the rules receive
/// no fact.
#[derive(Debug)]
pub(super) enum Interrupted {
    /// The step must not start although no end was requested: the run is lost, or about to be.
    OwnershipLost,
    /// The engine became unreachable during the operation, whose outcome is unknown.
    EngineUnreachable(String),
}

impl From<Broke> for OperationError {
    fn from(broke: Broke) -> Self {
        Self::Broke(broke)
    }
}

impl From<Input> for Completed {
    fn from(fact: Input) -> Self {
        Self { fact, product: Product::Nothing }
    }
}

impl Completed {
    pub(super) fn prepared(base: Workspace) -> Self {
        Self { fact: Input::Prepared, product: Product::Base(base) }
    }

    /// `missing`: the steps whose checkpoints are not available.
    pub(super) fn adopted(
        adopted: Vec<(StepPosition, Workspace)>,
        missing: Vec<StepPosition>,
    ) -> Self {
        Self { fact: Input::Adopted { missing }, product: Product::Committed(adopted) }
    }

    pub(super) fn fetched(position: StepPosition, workspace: Workspace) -> Self {
        let product = Product::Fetched(position, workspace);
        Self { fact: Input::Fetched(position), product }
    }

    /// `output_bytes`: the sizes of standard output and standard error.
    pub(super) fn exited(
        position: StepPosition,
        ran: StepOutcome,
        output_bytes: (u64, u64),
    ) -> Self {
        let (Exit { code, oom }, (stdout_bytes, stderr_bytes)) = (ran.exit, output_bytes);
        let exited = Exited { code, oom, stdout_bytes, stderr_bytes };
        Self { fact: Input::Exited(position, exited), product: Product::Exited(position, ran) }
    }

    /// `engine`: the engine that holds the image.
    pub(super) fn committed(position: StepPosition, workspace: Workspace, engine: String) -> Self {
        let image = workspace.image().unwrap_or_default().to_owned();
        let fact = Input::Committed { position, image, engine };
        Self { fact, product: Product::Committed(vec![(position, workspace)]) }
    }
}
