//! The environment of a step.

use protocol::pipeline::{Pipeline, PullPolicy, Step, Vars};

/// Pipeline's variables, under those of the start, under the step's own. The image's environment
/// lies below all of them; the executor knows it.
#[must_use]
pub fn of_step(pipeline: &Pipeline, start: &Vars, step: &Step) -> Vars {
    let mut vars = pipeline.vars.clone();
    // Those of the start stand in a template's text, and nowhere else.
    let start = Some(start).filter(|_| step.template.is_none());
    for (name, value) in start.into_iter().flatten().chain(&step.vars) {
        vars.insert(name.clone(), value.clone());
    }
    vars
}

/// Where a step that needs a resource works.
#[must_use]
pub fn work_dir(step: &Step) -> Option<String> {
    step.needs_resource.as_ref().map(|resource| format!("{MOUNTS}/{resource}"))
}

/// When the image of a run is pulled: its steps share one, so the first step that says so is heard
/// before the pipeline.
#[must_use]
pub fn pull(pipeline: &Pipeline) -> Option<PullPolicy> {
    pipeline.steps.iter().find_map(|step| step.pull).or(pipeline.pull)
}

/// Where resources are mounted (the contract of a Bob pipeline).
pub const MOUNTS: &str = "/root";
