//! A step that acts on another system and must not run twice. Its effect remains even if its worker
//! dies.

use std::sync::Arc;

use bytes::Bytes;
use protocol::event::LogStream;
use runner::ports::{
    ExecError, Exit, Gate, LogSink, RunScope, StepOutcome, StepSpec, StopLevel, StopSignal,
    Workspace,
};

use crate::engine::Executed;
use crate::plan::{EffectSide, work};
use crate::world::{Broken, Process};

async fn pass(process: &Arc<Process>, side: EffectSide) -> Result<(), ExecError> {
    process.pass("call", side).await.map_err(|Broken| ExecError::Disconnected {
        host: "elsewhere".into(),
        cause: "the plan says so".into(),
    })
}

/// Makes a step's call and records it in the journal of the process's engine.
pub async fn call(
    process: &Arc<Process>,
    run: &RunScope,
    step: &StepSpec,
    mut gate: Gate,
    out: &dyn LogSink,
    stop: &StopSignal,
) -> Result<StepOutcome, ExecError> {
    let open = tokio::select! {
        biased;
        _ = stop.above(StopLevel::Run) => false,
        open = gate.opened() => open,
    };
    if !open || !gate.is_owned() {
        return Err(ExecError::NotStarted);
    }
    pass(process, EffectSide::Before).await?;
    let (world, work) = (Arc::clone(&process.world), work(&step.words));
    let engine = &world.engines[process.engine];
    let executed = Executed {
        engine: process.engine,
        run: run.run.clone(),
        position: step.position,
        attempt: step.attempt,
        epoch: run.epoch,
        began: world.start.elapsed(),
        revision: world.store.revision(),
        ended: None,
        code: None,
    };
    world.say(|| format!("{executed:?} by w{}", process.number));
    let at = engine.begin(executed);
    out.write(LogStream::Stdout, Bytes::from(format!("{} begins\n", step.name))).await;
    let end = async {
        tokio::time::sleep(work.span).await;
        (work.code, Some(work.code))
    };
    let (code, own) = tokio::select! {
        biased;
        ended = end => ended,
        level = stop.above(StopLevel::Run) => (if level == StopLevel::Kill { 137 } else { 143 }, None),
    };
    engine.end(at, world.start.elapsed(), own);
    pass(process, EffectSide::After).await?;
    out.write(LogStream::Stdout, Bytes::from_static(b"and ends")).await;
    Ok(StepOutcome::new(Exit { code, oom: false }, Workspace::None))
}
