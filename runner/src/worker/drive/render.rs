//! Renders the run's variables into the programs of a step.

use async_trait::async_trait;
use protocol::id::RunId;
use protocol::pipeline::{Params, Step, Template};
use protocol::run::Cause;

use super::completion::OperationError;
use super::operation::engine_failure;
use crate::ports::{
    ExecError, RenderError, Renderer, Rendering, Script, StepSpec, StopLevel, StopSignal,
};
use crate::rules::run::Broke;
use crate::rules::template;
use crate::worker::shared::Shared;

/// Returns the programs of a step before rendering.
pub(super) fn script_of(step: &Step) -> Option<Script> {
    let (shell, goes_on) = (step.shell.unwrap_or_default(), step.allow_failure);
    (!step.script.is_empty()).then(|| Script { shell, programs: step.script.clone(), goes_on })
}

/// Returns the rendering that a step needs before it starts, if any.
pub(super) fn rendering_of(step: &Step, values: Params, run: &RunId) -> Option<Rendering> {
    let is_rendered = step.template == Some(Template::Go)
        && step.script.iter().any(|program| template::is_template(program));
    is_rendered.then(|| Rendering { programs: step.script.clone(), values, run: run.clone() })
}

/// Renders the programs of a step, unless it is asked to end meanwhile.
pub(super) async fn rendered(
    shared: &Shared,
    mut spec: StepSpec,
    rendering: Option<Rendering>,
    stop: &StopSignal,
) -> Result<StepSpec, OperationError> {
    let Some(rendering) = rendering else { return Ok(spec) };
    let rendered = tokio::select! {
        biased;
        _ = stop.above(StopLevel::Run) => {
            return Err(engine_failure(shared, &ExecError::NotStarted).await);
        }
        rendered = shared.ports.renderer.render(rendering) => rendered,
    };
    match rendered {
        Ok(programs) => {
            if let Some(script) = &mut spec.script {
                script.programs = programs;
            }
            Ok(spec)
        }
        Err(cause @ RenderError::Template(_)) => {
            Err(Broke::new(Cause::Template, cause.to_string()).into())
        }
        Err(cause @ RenderError::Unavailable(_)) => {
            Err(Broke::new(Cause::Engine, cause.to_string()).into())
        }
    }
}

/// Renders in the calling thread without a deadline. Only for tests, which trust their programs.
#[derive(Debug, Clone, Copy, Default)]
pub struct RenderInline;

#[async_trait]
impl Renderer for RenderInline {
    async fn render(&self, rendering: Rendering) -> Result<Vec<String>, RenderError> {
        let Rendering { programs, values, run } = rendering;
        template::render_go(&programs, &values, run.as_str()).map_err(RenderError::Template)
    }
}
