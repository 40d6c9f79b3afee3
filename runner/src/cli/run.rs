//! `run`: runs one file on this machine, in this process.

use std::collections::HashMap;

use protocol::dialect::Dialect;
use protocol::id::{RunId, StepName};
use protocol::pipeline::{Params, Pipeline, Vars};

use super::context::{Context, DefaultVerbosity};
use super::exit::{Exit, Failure};
use super::files;
use super::job::{self, Results, Settings};
use super::output::Style;
use super::run_view::RunView;
use super::session::Session;
use super::signals::Signals;
use super::typed::Run;
use crate::app::{self, KeptParent};
use crate::client::Client;
use crate::config::Config;
use crate::config::env_files::{self, StepEnv};

pub(super) async fn run(context: &Context, typed: Run, results: Results) -> Result<Exit, Failure> {
    let named = context.flags.config.as_deref().filter(|file| job::is_named(file));
    // Such a file holds the settings of job files, not the program's own.
    let without_file = named.map(|_| context.without_file());
    let mut config = without_file.as_ref().unwrap_or(context).config(DefaultVerbosity::Hardly)?;
    let (mut pipeline, step_env) = understood(context, &typed)?;
    config.step_env = step_env;
    let dirs = (typed.workdir, typed.log_dir);
    let settings = job::settings_of(context, &pipeline, named, dirs)?;
    if let Some(settings) = &settings {
        settings.apply_defaults(&mut pipeline);
    }
    let titles = job::titles(&mut pipeline, results)?;
    let order = Order {
        config,
        pipeline,
        vars: typed.vars.into_iter().collect(),
        params: typed.params.into_iter().collect(),
        is_named: typed.run_id.is_some(),
        run: typed.run_id.unwrap_or_else(Client::new_run_id),
        after: None,
    };
    start(context.style, &order, titles, settings.as_ref()).await
}

/// A run to start on this machine.
pub(super) struct Order {
    pub(super) config: Config,
    pub(super) pipeline: Pipeline,
    pub(super) vars: Vars,
    pub(super) params: Params,
    pub(super) run: RunId,
    /// Whether the user chose the id.
    pub(super) is_named: bool,
    /// The ended run whose committed steps are taken over.
    pub(super) after: Option<KeptParent>,
}

impl Order {
    fn start(&self) -> app::Start<'_> {
        app::Start {
            pipeline: &self.pipeline,
            vars: &self.vars,
            params: &self.params,
            run: &self.run,
            is_named: self.is_named,
            after: self.after.as_ref(),
        }
    }
}

/// Starts a run, displays it, and returns its result.
pub(super) async fn start(
    style: Style,
    order: &Order,
    titles: HashMap<StepName, String>,
    settings: Option<&Settings>,
) -> Result<Exit, Failure> {
    order.start().check().map_err(anyhow::Error::from)?;
    let mut signals = Signals::listen()?;
    let view = RunView::new(style, &order.pipeline, &order.run, titles)?;
    let files = match settings {
        Some(settings) => Some(job::Files::make(settings, &order.pipeline, &order.run)?),
        None => None,
    };
    let jobs = settings.map(|settings| app::Jobs {
        work_dir: settings.work_dir.clone(),
        log_dir: settings.log_dir.to_string_lossy().into_owned(),
    });
    let mut here = tokio::select! {
        here = app::run_here(&order.config, order.start(), jobs) => here?,
        // Nothing has started yet.
        signal = signals.next() => return Ok(signal),
    };
    let mut session = Session::new(&order.run, view, signals, files);
    let outcome = session.follow(&mut here).await;
    session.end(here, outcome).await
}

/// The pipeline to run, and additional environment variables for its steps on this host.
fn understood(context: &Context, typed: &Run) -> Result<(Pipeline, StepEnv), Failure> {
    let source = files::Source {
        file: &typed.file,
        dialect: typed.dialect,
        pattern: typed.pattern.pattern.as_deref(),
    };
    let (pipeline, dialect) = files::to_run(context, source, typed.pipeline.as_deref())?;
    Ok((pipeline, step_env(context, dialect, &typed.env_files)?))
}

/// Additional environment variables for the tasks of a prunner file. Empty for other files.
fn step_env(
    context: &Context,
    dialect: Option<Dialect>,
    typed: &[String],
) -> Result<StepEnv, Failure> {
    if dialect != Some(Dialect::Prunner) {
        return match typed {
            [] => Ok(StepEnv::new()),
            [..] => Err(Failure::new(Exit::Usage, "--env-files is for prunner files")),
        };
    }
    let files = env_files::named(typed, &context.environment);
    let read = env_files::read(&files).map_err(|why| Failure::new(Exit::Invalid, why))?;
    read.1.iter().for_each(|warning| context.warn(warning));
    Ok(read.0)
}
