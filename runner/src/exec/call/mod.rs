//! Steps that are calls to an API: they act somewhere else, and leave a result.
//!
//! A request that has an effect is sent once: where its answer is lost, nobody here knows whether it
//! took effect, and the output says so. No key of an account is ever shown.

mod address;
mod answer;
mod file;
mod http;
mod lexware;
mod pace;
mod proxmox;
mod request;
mod sevdesk;
mod tls;
mod with;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protocol::pipeline::ExecutorKind;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use self::request::{Access, Call, Halt};
use self::tls::Clients;
use self::with::With;
use crate::egress::Policy;
use crate::exec::NamedFiles;
use crate::ports::{
    ExecError, Exit, Gate, LogSink, Ran, Remote, RunScope, StepSpec, StopLevel, StopSignal,
    Workspace,
};

/// What all calls are made with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which addresses are open to what a step names.
    pub policy: Policy,
    /// Which files of the worker's host a step may name.
    pub named: NamedFiles,
    /// Below which directory a call may write a file. None: a call that is to write one is refused.
    pub files: Option<PathBuf>,
    /// How long is waited for what.
    pub times: Times,
}

/// How long a call waits.
#[derive(Debug, Clone)]
pub struct Times {
    /// Until a service takes a connection.
    pub connect: Duration,
    /// For a whole answer, where the step does not say.
    pub answer: Duration,
    /// Before a request is sent again; twice that before the next, and so on.
    pub again: Duration,
    /// Before the second look at something that goes on, and at most.
    pub looks: (Duration, Duration),
    /// For something that goes on, where the step does not say.
    pub task: Duration,
    /// Between two requests for one account of Lexware.
    pub lexware_gap: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(60),
            again: Duration::from_secs(1),
            looks: (Duration::from_millis(200), Duration::from_secs(2)),
            task: Duration::from_secs(3600),
            // Two a second are allowed.
            lexware_gap: Duration::from_millis(500),
        }
    }
}

/// The executors of calls, each with its name.
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

/// An API that steps call.
#[async_trait]
trait Api: Send + Sync + 'static {
    /// What a step asks for.
    type Asked: Send + 'static;

    /// Reads a step; nothing is sent. Every fault of the step is found here.
    fn read(&self, with: With<'_>, options: &Options) -> Result<(Self::Asked, Access), ExecError>;

    /// Sends what is needed. The answer is the data of the step's result.
    async fn act(&self, asked: Self::Asked, call: &mut Call) -> Result<Value, Halt>;
}

/// The executor of calls to one API.
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
    ) -> Result<Ran, ExecError> {
        let with = With::of(step)?;
        let (asked, access) = self.api.read(with, &self.options)?;
        // A file system that hangs does not keep a step from being stopped.
        let ready = async {
            let clients = Clients::new(with, &access, &self.options).await?;
            if gate.opened().await { Ok(clients) } else { Err(ExecError::NotStarted) }
        };
        let clients = tokio::select! {
            biased;
            _ = stop.above(StopLevel::Run) => return Err(ExecError::NotStarted),
            ready = ready => ready?,
        };
        if !gate.stands() {
            return Err(ExecError::NotStarted);
        }
        let times = self.options.times.clone();
        let mut call = Call::new(clients, access, times, (gate, out, stop.clone()));
        let api = Arc::clone(&self.api);
        // Whoever waits may go: the step does not.
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

/// What comes of a call: its result, its exit code, and the sentence that says why.
async fn ended(done: Result<Value, Halt>, call: &mut Call) -> Result<Ran, ExecError> {
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
    let ran = Ran::new(Exit { code, oom: false }, Workspace::None);
    Ok(Ran { result: Some(result), ..ran })
}
