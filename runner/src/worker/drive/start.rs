//! Operations that a drive starts for a step: resource, command, artifact, image.

use std::sync::Arc;

use protocol::event::LogStream;
use protocol::id::StepPosition;
use protocol::pipeline::{Cmd, OnLogLimit, Params, Pipeline, Step, Vars};
use protocol::quantity::Span;
use protocol::run::Cause;
use tokio::sync::oneshot;

use super::attempt::Attempt;
use super::completion::Completed;
use super::operation::{self, engine_failure};
use super::output::{AtLimit, Output};
use super::push::Push;
use super::render::{rendering_of, script_of};
use super::state::Drive;
use crate::ports::{Gate, JOB_DIR, Rendering, StepEnd, StepSpec, StopSignal};
use crate::rules::run::{Broke, Input};
use crate::rules::{env, job, template};

impl Drive {
    pub(super) fn fetch(&mut self, position: StepPosition) {
        let resource = self
            .step(position)
            .and_then(|step| self.pipeline()?.resource(step.needs_resource.as_deref()?))
            .cloned();
        let (Some(resource), Some(on)) = (resource, self.on(position)) else {
            return self.log_broken(position, "fetch");
        };
        self.log_line(&format!("fetching and mounting resource {}", resource.name));
        // A hand-over interrupts even a step that must not run twice: its command has not started.
        let stop = self.signals.leave.part();
        self.progress.steps.entry(position).or_default().stop = stop.clone();
        let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
        let fetched = operation::fetch(shared, scope, on, resource, stop);
        let fetched = async move { Ok(Completed::fetched(position, fetched.await?)) };
        self.begin(Some(position), Box::pin(fetched));
    }

    /// `secrets` is an error if the step's secrets are not available.
    pub(super) fn start(&mut self, position: StepPosition, secrets: Result<(), String>) {
        if let Err(why) = secrets {
            return self.broke(position, Broke::new(Cause::Rejected, why));
        }
        let Some(on) = self.on(position) else { return self.log_broken(position, "start") };
        let (spec, rendering) = match self.spec(position) {
            Some(Ok(spec)) => spec,
            Some(Err(why)) => return self.broke(position, Broke::new(Cause::Template, why)),
            None => return self.log_broken(position, "start"),
        };
        let stop = self.stop_of(position);
        let output = self.output_of(position, &spec, &stop);
        let gate = self.gate(position);
        self.progress.steps.entry(position).or_default().output = Some(Arc::clone(&output));
        let attempt = Attempt {
            shared: Arc::clone(&self.shared),
            held: self.held.clone(),
            scope: self.scope.clone(),
            position,
            request: self.request(position),
            output,
            stop,
        };
        self.begin(Some(position), Box::pin(attempt.run(on, spec, rendering, gate)));
    }

    /// Creates the gate of a step. [`Effect::OpenGate`](crate::rules::run::Effect::OpenGate) opens it.
    fn gate(&mut self, position: StepPosition) -> Gate {
        let (open, opened) = oneshot::channel();
        self.progress.steps.entry(position).or_default().gate = Some(open);
        let (held, host) = (self.held.clone(), Arc::clone(&self.shared.ports.host));
        let stands = move || held.is_valid(&*host);
        Gate::new(async move { opened.await.unwrap_or(false) }, stands)
    }

    /// Creates the output of a step.
    fn output_of(&self, position: StepPosition, spec: &StepSpec, stop: &StopSignal) -> Arc<Output> {
        let at_limit = self.at_limit(position, stop);
        let keeps_tail = self.pipeline().is_some_and(|pipeline| pipeline.on_error.is_some());
        Arc::new(Output::new(
            Arc::clone(&self.emitter),
            self.feed.clone(),
            spec.name.clone(),
            spec.attempt,
            keeps_tail,
            self.secrets.mask(),
            (self.budget.clone(), at_limit),
        ))
    }

    fn at_limit(&self, position: StepPosition, stop: &StopSignal) -> AtLimit {
        match self.step(position).map(|step| step.on_log_limit) {
            Some(OnLogLimit::Fail) => AtLimit::Stop(stop.clone(), self.shared.options.kill_grace),
            Some(OnLogLimit::Discard) | None => AtLimit::Discard,
        }
    }

    /// Returns the values for a template: those of the start, and the failure for `on-error`.
    fn template_values(&self, position: StepPosition) -> Params {
        let record = self.run.record();
        let mut values = template::values(&record.vars, &record.params);
        let is_last =
            self.pipeline().is_some_and(|pipeline| position == pipeline.on_error_position());
        let Some(failed) = self.run.failed_step().filter(|_| is_last) else { return values };
        let at = self.pipeline().and_then(|pipeline| pipeline.position(&failed.name));
        let output = at.and_then(|at| self.progress.steps.get(&at)?.output.as_ref());
        let said = |stream| output.map(|output| output.tail(stream)).unwrap_or_default();
        let code = failed.exit_code.map_or_else(|| "-1".to_owned(), |code| code.to_string());
        let of_failed = [
            ("failedTaskName", failed.name.to_string()),
            ("failedTaskExitCode", code),
            ("failedTaskError", failed.message.clone().unwrap_or_default()),
            ("failedTaskStdout", said(LogStream::Stdout)),
            ("failedTaskStderr", said(LogStream::Stderr)),
        ];
        values.extend(of_failed.map(|(name, text)| (name.to_owned(), text.into())));
        values
    }

    /// Returns a step for its executor, and the rendering it still needs. An `Err` is a message.
    fn spec(
        &self,
        position: StepPosition,
    ) -> Option<Result<(StepSpec, Option<Rendering>), String>> {
        let (record, options) = (self.run.record(), &self.shared.options);
        let pipeline = record.pipeline.as_ref()?;
        let step = match job::filled(record, position)? {
            Ok(step) => step,
            Err(why) => return Some(Err(why)),
        };
        let step = &*step;
        let limits = pipeline.quotas.as_ref().and_then(|quotas| quotas.limits.clone());
        let network = step.network.as_ref().or(pipeline.network.as_ref());
        let rendering = rendering_of(step, self.template_values(position), &record.run_id);
        let spec = StepSpec {
            words: step.cmd.as_ref().map(Cmd::words).unwrap_or_default(),
            script: script_of(step),
            entrypoint: step.entrypoint.clone(),
            env: self.env_of(pipeline, step),
            work_dir: env::work_dir(step),
            network: network.or(options.network.as_ref()).cloned(),
            limits: limits.unwrap_or_default(),
            with: match self.with_secrets(position, step) {
                Ok(with) => with,
                Err(why) => return Some(Err(why)),
            },
            secrets: self.executor_secrets(position),
            ..self.ended_step(position)?
        };
        Some(Ok((spec, rendering)))
    }

    /// Returns the environment of a step. For a job, it includes the job's ID.
    fn env_of(&self, pipeline: &Pipeline, step: &Step) -> Vars {
        let record = self.run.record();
        let own = env::of_step(pipeline, &record.vars, step);
        if !step.executor.capabilities().has_own_images {
            return own;
        }
        let mut env = self.shared.options.job_env.clone();
        env.insert("JOB_ID".to_owned(), job::id(&record.run_id, step));
        env.extend(own);
        env.insert("JOB_WORKDIR".to_owned(), JOB_DIR.to_owned());
        env
    }

    pub(super) fn upload(&mut self, position: StepPosition) {
        let artifact = self.step(position).and_then(|step| step.produces_artifact.clone());
        let left = self.progress.steps.get(&position).and_then(|step| step.left.clone());
        let (Some(artifact), Some(left)) = (artifact, left) else {
            return self.log_broken(position, "upload");
        };
        self.log_line(&format!("uploading artifact {}", artifact.name));
        let record = self.run.record();
        let names = (record.group.clone(), record.name.clone());
        let artifact = (artifact, self.run.attempt(position));
        let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
        let stop = self.progress.steps.entry(position).or_default().stop.clone();
        let forbidden = self.secrets.mask().forbidden();
        let sent = operation::upload(shared, scope, left, names, artifact, (forbidden, stop));
        let uploaded = async move { sent.await.map(|()| Input::Uploaded(position).into()) };
        self.begin(Some(position), Box::pin(uploaded));
    }

    /// Returns the specification of an ended step, reduced to what identifies it.
    fn ended_step(&self, position: StepPosition) -> Option<StepSpec> {
        self.step(position).map(|step| StepSpec {
            name: step.name.clone(),
            position: position.index(),
            attempt: self.run.attempt(position),
            executor: step.executor,
            script: None,
            entrypoint: None,
            words: Vec::new(),
            env: protocol::pipeline::Vars::new(),
            work_dir: None,
            network: None,
            limits: protocol::pipeline::Limits::default(),
            with: serde_json::Map::new(),
            secrets: self.secret_search(),
            end: StepEnd {
                signal: step.stop_signal.unwrap_or_default(),
                grace: step.kill_grace.map(Span::as_duration),
            },
        })
    }

    pub(super) fn push(&mut self, position: StepPosition) {
        let kept = self.progress.kept.get(&position).cloned();
        if let (Some(step), Some(kept)) = (self.ended_step(position), kept)
            && self.shared.engine.checkpoints
        {
            let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
            self.pushes.add(shared, Push { scope, kept, step, tell: self.signals.tell.clone() });
        }
    }

    pub(super) fn commit(&mut self, position: StepPosition) {
        let left = self.progress.steps.get_mut(&position).and_then(|step| step.left.take());
        let (Some(spec), Some(left)) = (self.ended_step(position), left) else {
            return self.log_broken(position, "commit");
        };
        let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
        let committed = async move {
            match shared.ports.executor.checkpoint(&scope, left, &spec).await {
                Ok(workspace) => {
                    Ok(Completed::committed(position, workspace, shared.engine.id.clone()))
                }
                Err(cause) => Err(engine_failure(&shared, &cause).await),
            }
        };
        self.begin(Some(position), Box::pin(committed));
    }
}
