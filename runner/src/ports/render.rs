//! Rendering of templates away from the worker's own threads.

use async_trait::async_trait;
use protocol::id::RunId;
use protocol::pipeline::Params;
use thiserror::Error;

/// The programs of one step, and the variables that they may name.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendering {
    /// The programs, in the order in which the step runs them.
    pub programs: Vec<String>,
    /// The variables.
    pub values: Params,
    /// The run.
    pub run: RunId,
}

/// Why programs were not rendered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RenderError {
    /// A program is at fault: it fails again each time.
    #[error("{0}")]
    Template(String),
    /// The renderer is at fault.
    #[error("cannot render the scripts of the step: {0}")]
    Unavailable(String),
}

/// Renders programs within a time and memory limit, whatever they are.
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
