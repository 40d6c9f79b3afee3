//! The environment of a step.

use protocol::pipeline::{Pipeline, PullPolicy, Step, Vars};

/// Merges the variables of the pipeline, the start and the step; later ones take precedence. The
/// executor merges them over the image's environment.
#[must_use]
pub fn of_step(pipeline: &Pipeline, start: &Vars, step: &Step) -> Vars {
    let mut vars = pipeline.vars.clone();
    // Variables of the start are rendered into a template, not added to its environment.
    let start = Some(start).filter(|_| step.template.is_none());
    for (name, value) in start.into_iter().flatten().chain(&step.vars) {
        vars.insert(name.clone(), value.clone());
    }
    vars
}

/// Returns the working directory of a step that needs a resource.
#[must_use]
pub fn work_dir(step: &Step) -> Option<String> {
    step.needs_resource.as_ref().map(|resource| format!("{MOUNTS}/{resource}"))
}

/// Returns the pull policy of a run. Its steps share one image, so the first step with a policy
/// takes precedence over the pipeline.
#[must_use]
pub fn pull(pipeline: &Pipeline) -> Option<PullPolicy> {
    pipeline.steps.iter().find_map(|step| step.pull).or(pipeline.pull)
}

/// The directory in which resources are mounted, as defined by the contract of Bob pipelines.
pub const MOUNTS: &str = "/root";
