//! Template rendering outside the worker's own threads.

use async_trait::async_trait;
use protocol::id::RunId;
use protocol::pipeline::Params;
use thiserror::Error;

/// The programs of one step, and the variables available to them.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendering {
    /// The programs, in the order in which the step runs them.
    pub programs: Vec<String>,
    /// The variables.
    pub values: Params,
    /// The run that the step belongs to.
    pub run: RunId,
}

/// Why rendering failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RenderError {
    /// A program is invalid. Rendering it again fails again.
    #[error("{0}")]
    Template(String),
    /// The renderer failed.
    #[error("cannot render the scripts of the step: {0}")]
    Unavailable(String),
}

/// Renders programs within time and memory limits, even hostile ones.
#[async_trait]
pub trait Renderer: Send + Sync {
    /// Renders the programs of a step.
    ///
    /// # Errors
    /// [`RenderError`]
    ///
    /// # Cancel safety
    /// If the future is dropped, the rendering ends.
    async fn render(&self, rendering: Rendering) -> Result<Vec<String>, RenderError>;
}
