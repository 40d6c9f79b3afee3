//! Steps that call an API. They act on another system and return a result.
//!
//! A request with an effect is sent once. If its response is lost, it is unknown whether the
//! request took effect, and the step's output says so. Account keys are never shown.

mod access;
mod address;
mod answer;
mod api;
mod file;
mod http;
mod lexware;
mod options;
mod pace;
mod proxmox;
mod request;
mod sevdesk;
mod tls;
mod with;

use std::sync::Arc;

use async_trait::async_trait;
use protocol::pipeline::ExecutorKind;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use self::api::Api;
pub use self::options::{Options, Times};
use self::request::{Call, Halt};
use self::tls::Clients;
use self::with::StepArguments;
use crate::ports::{
    ExecError, Exit, Gate, LogSink, Remote, RunScope, StepOutcome, StepSpec, StopLevel, StopSignal,
    Workspace,
};

/// All executors of calls, by kind.
#[must_use]
pub fn all(options: &Options) -> Vec<(ExecutorKind, Arc<dyn Remote>)> {
    let gap = options.times.lexware_gap;
    vec![
        (ExecutorKind::Http, Calls::over(http::Http, options)),
        (ExecutorKind::Proxmox, Calls::over(proxmox::Proxmox, options)),
        (ExecutorKind::Sevdesk, Calls::over(sevdesk::Sevdesk, options)),
        (ExecutorKind::Lexware, Calls::over(lexware::Lexware::new(gap), options)),
    ]
}

/// The executor for one API.
struct Calls<A> {
    api: Arc<A>,
    options: Options,
    tasks: TaskTracker,
}

impl<A: Api> Calls<A> {
    fn over(api: A, options: &Options) -> Arc<dyn Remote> {
        let (options, tasks) = (options.clone(), TaskTracker::new());
        Arc::new(Self { api: Arc::new(api), options, tasks })
    }
}

#[async_trait]
impl<A: Api> Remote for Calls<A> {
    async fn run_step(
        &self,
        _run: &RunScope,
        step: &StepSpec,
        mut gate: Gate,
        out: Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<StepOutcome, ExecError> {
        let with = StepArguments::of(step)?;
        let (asked, access) = self.api.read(with, &self.options)?;
        // Stay stoppable while a file is read: the file system can hang.
        let ready = async {
            let clients = Clients::new(with, &access, &self.options).await?;
            if gate.opened().await { Ok(clients) } else { Err(ExecError::NotStarted) }
        };
        let clients = tokio::select! {
            biased;
            _ = stop.above(StopLevel::Run) => return Err(ExecError::NotStarted),
            ready = ready => ready?,
        };
        if !gate.is_owned() {
            return Err(ExecError::NotStarted);
        }
        let times = self.options.times.clone();
        let mut call = Call::new(clients, access, times, (gate, out, stop.clone()));
        let api = Arc::clone(&self.api);
        // The caller can be dropped, but the call must continue to its end.
        let ran = self.tasks.spawn(async move {
            let done = api.act(asked, &mut call).await;
            ended(done, &mut call).await
        });
        let lost = |cause| ExecError::Engine {
            doing: format!("a call of executor {}", step.executor.as_str()),
            cause: format!("{cause}"),
        };
        ran.await.map_err(lost)?
    }
}

/// Turns the outcome of a call into its result, exit code and error message.
async fn ended(done: Result<Value, Halt>, call: &mut Call) -> Result<StepOutcome, ExecError> {
    let (code, mut data, error) = match done {
        Ok(data) => (0, data, String::new()),
        Err(Halt::Failed { why, data, code }) => (code, data, call.hide(&why)),
        Err(Halt::Stopped(what)) => (143, Value::Null, call.hide(&format!("stopped: {what}"))),
        Err(Halt::NotOurs { sent: false }) => return Err(ExecError::NotStarted),
        Err(Halt::NotOurs { sent: true }) => {
            let why = "the worker may have lost the run: nothing more is sent for this step";
            (1, Value::Null, why.to_owned())
        }
    };
    if !error.is_empty() {
        call.complain(&error).await;
    }
    call.hide_in(&mut data);
    let result = json!({ "success": code == 0, "data": data, "error": error });
    let ran = StepOutcome::new(Exit { code, oom: false }, Workspace::None);
    Ok(StepOutcome { result: Some(result), ..ran })
}
