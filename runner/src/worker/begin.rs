//! What a drive begins for a step: its resource, its command, its artifact, its image.

use std::sync::Arc;

use protocol::pipeline::{Cmd, Step};
use tokio::sync::oneshot;

use super::drive::Drive;
use super::output::Output;
use super::push::Push;
use super::step::{self, Done};
use crate::ports::{ExecError, Gate, LogSink, Script, StepSpec, StopLevel};
use crate::rules::env;

fn script_of(step: &Step) -> Option<Script> {
    (!step.script.is_empty()).then(|| Script {
        shell: step.shell.unwrap_or_default(),
        programs: step.script.clone(),
        goes_on: step.allow_failure,
    })
}

impl Drive {
    pub(super) fn fetch(&mut self, position: usize) {
        let resource = self
            .step(position)
            .and_then(|step| self.pipeline()?.resource(step.needs_resource.as_deref()?))
            .cloned();
        let (Some(resource), Some(on)) = (resource, self.on(position)) else {
            return self.broke(position, "fetch");
        };
        self.tell_logger(&format!("fetching and mounting resource {}", resource.name));
        let (shared, scope, stop) =
            (Arc::clone(&self.shared), self.scope.clone(), self.stop_of(position));
        self.begin(Some(position), Box::pin(step::fetch(shared, scope, on, resource, stop)));
    }

    pub(super) fn start(&mut self, position: usize) {
        let Some(on) = self.on(position) else { return self.broke(position, "start") };
        let Some(spec) = self.spec(position) else { return self.broke(position, "start") };
        let output = Arc::new(Output::new(
            Arc::clone(&self.emitter),
            self.feed.clone(),
            spec.name.clone(),
            spec.attempt,
        ));
        let (open, opened) = oneshot::channel();
        let stop = self.stop_of(position);
        self.progress.steps.entry(position).or_default().gate = Some(open);
        let held = self.held.clone();
        let asked = (self.held.clone(), Arc::clone(&self.shared.ports.host));
        let stands = move || asked.0.stands(&*asked.1);
        let gate = Gate::new(async move { opened.await.unwrap_or(false) }, stands);
        let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
        let running = async move {
            let in_time = {
                let output = Arc::clone(&output);
                shared.tasks.spawn(async move { output.publish_in_time().await })
            };
            let sink: Arc<dyn LogSink> = Arc::clone(&output) as Arc<dyn LogSink>;
            let executor = &shared.ports.executor;
            let ran = executor.run_step(&scope, &on, &spec, gate, sink, &stop).await;
            let (stdout, stderr) = output.finish().await;
            in_time.abort();
            // A worker that was held up sees the guard's killing before it sees that its lease is
            // lost; where it is, the drive hears of that first.
            held.settled(&*shared.ports.host).await;
            match ran {
                Ok(ran) => step::ended(&shared, &scope, ran, &stop, (stdout, stderr)).await,
                Err(ExecError::NotStarted) if stop.level() == StopLevel::Run => Done::NotOurs,
                Err(cause) => step::broke_saying(&shared, &cause, (stdout, stderr)).await,
            }
        };
        self.begin(Some(position), Box::pin(running));
    }

    /// A step as its executor is to run it.
    fn spec(&self, position: usize) -> Option<StepSpec> {
        let (record, options) = (self.run.record(), &self.shared.options);
        let pipeline = record.pipeline.as_ref()?;
        let step = pipeline.step(position)?;
        let limits = pipeline.quotas.as_ref().and_then(|quotas| quotas.limits.clone());
        let network = step.network.as_ref().or(pipeline.network.as_ref());
        Some(StepSpec {
            words: step.cmd.as_ref().map(Cmd::words).unwrap_or_default(),
            script: script_of(step),
            env: env::of_step(pipeline, &record.vars, step),
            work_dir: env::work_dir(step),
            network: network.or(options.network.as_ref()).cloned(),
            limits: limits.unwrap_or_default(),
            ..self.ended_step(position)?
        })
    }

    pub(super) fn upload(&mut self, position: usize) {
        let artifact = self.step(position).and_then(|step| step.produces_artifact.clone());
        let left = self.progress.steps.get(&position).and_then(|step| step.left.clone());
        let (Some(artifact), Some(left)) = (artifact, left) else {
            return self.broke(position, "upload");
        };
        self.tell_logger(&format!("uploading artifact {}", artifact.name));
        let record = self.run.record();
        let names = (record.group.clone(), record.name.clone());
        let artifact = (artifact, self.run.attempt(position));
        let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
        let stop = self.progress.steps.entry(position).or_default().stop.clone();
        self.begin(
            Some(position),
            Box::pin(step::upload(shared, scope, left, names, artifact, stop)),
        );
    }

    /// A step that has ended, as far as its name goes.
    fn ended_step(&self, position: usize) -> Option<StepSpec> {
        self.step(position).map(|step| StepSpec {
            name: step.name.clone(),
            position,
            attempt: self.run.attempt(position),
            executor: step.executor,
            script: None,
            words: Vec::new(),
            env: protocol::pipeline::Vars::new(),
            work_dir: None,
            network: None,
            limits: protocol::pipeline::Limits::default(),
        })
    }

    pub(super) fn push(&mut self, position: usize) {
        let kept = self.progress.kept.get(&position).cloned();
        if let (Some(step), Some(kept)) = (self.ended_step(position), kept)
            && self.shared.engine.checkpoints
        {
            let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
            self.pushes.add(shared, Push { scope, kept, step, tell: self.tell.clone() });
        }
    }

    pub(super) fn commit(&mut self, position: usize) {
        let left = self.progress.steps.get_mut(&position).and_then(|step| step.left.take());
        let (Some(spec), Some(left)) = (self.ended_step(position), left) else {
            return self.broke(position, "commit");
        };
        let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
        let kept = async move {
            match shared.ports.executor.checkpoint(&scope, left, &spec).await {
                Ok(workspace) => Done::Committed(workspace),
                Err(cause) => step::broke(&shared, &cause).await,
            }
        };
        self.begin(Some(position), Box::pin(kept));
    }
}
