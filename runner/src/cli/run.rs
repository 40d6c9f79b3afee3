//! `run`: runs one file on this machine, in this process.

use std::collections::HashMap;

use protocol::dialect::Dialect;
use protocol::event::Reason;
use protocol::id::{RunId, StepName};
use protocol::pipeline::{Params, Pipeline, Vars};

use super::exit::{Exit, Failure};
use super::job::{Results, Settings};
use super::output::Style;
use super::screen::{Screen, Size};
use super::session::Session;
use super::signals::Signals;
use super::typed::Run;
use super::view::{Piece, PlainView, StepErrors};
use super::writer::Writer;
use super::{Context, DefaultVerbosity, files, job};
use crate::app::client::{Client, LogItem, Missing};
use crate::app::{self, KeptParent};
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
    let mut view = RunView::new(style, &order.pipeline, &order.run)?;
    view.titles = titles;
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

/// The display of a run. If standard output fails, the display stops but the run continues.
pub(super) struct RunView {
    form: ViewForm,
    /// A title to print once before a step.
    titles: HashMap<StepName, String>,
    pub(super) writer: Writer,
}

enum ViewForm {
    /// One event per line.
    Json,
    /// Plain text.
    Plain(PlainView),
    /// A live view on a terminal.
    Screen(Screen),
}

impl RunView {
    fn new(style: Style, pipeline: &Pipeline, run: &RunId) -> Result<Self, Failure> {
        let writer = Writer::start(style)?;
        let form = if style.json {
            ViewForm::Json
        } else if style.terminal {
            ViewForm::Screen(Screen::new(pipeline, style.colour, size(), now()))
        } else {
            let text = format!("[bob] run {run} of {}/{}\n", pipeline.group, pipeline.name);
            writer.send(Piece::Err(text.into_bytes()));
            ViewForm::Plain(PlainView::new(StepErrors::Apart, None, style))
        };
        Ok(Self { form, titles: HashMap::new(), writer })
    }

    pub(super) fn show(&mut self, item: &LogItem) {
        if let LogItem::State(event) = item
            && matches!(event.reason, Reason::StepStarted { .. })
            && let Some(title) = event.step.as_ref().and_then(|step| self.titles.remove(step))
        {
            self.report(&title);
        }
        let pieces = match &mut self.form {
            ViewForm::Json => vec![json_line(item)],
            ViewForm::Plain(plain) => plain.on(item),
            ViewForm::Screen(screen) => vec![Piece::Out(screen.on(item, now()))],
        };
        self.write(pieces);
    }

    /// Redraws the elapsed times on a terminal, unless output is blocked.
    pub(super) fn tick(&mut self) {
        if let ViewForm::Screen(screen) = &mut self.form
            && self.writer.has_room()
        {
            let bytes = screen.tick(size(), now());
            self.write(vec![Piece::Out(bytes)]);
        }
    }

    pub(super) fn report(&mut self, text: &str) {
        let piece = match &mut self.form {
            ViewForm::Plain(plain) => plain.note(text),
            // The live view must not be overwritten.
            ViewForm::Screen(screen) if self.writer.unwritten().is_none() => {
                Piece::Out(screen.print(text, now()))
            }
            ViewForm::Json | ViewForm::Screen(_) => {
                Piece::Err(format!("[bob] {text}\n").into_bytes())
            }
        };
        self.write(vec![piece]);
    }

    fn write(&mut self, pieces: Vec<Piece>) {
        pieces.into_iter().for_each(|piece| self.writer.send(piece));
    }

    pub(super) fn end(&mut self, missing: &[Missing]) {
        self.tick();
        for missing in missing {
            self.report(&format!("missing: {missing}"));
        }
    }
}

/// The exit of the program after a run with this result.
pub(super) fn ended(unwritten: Option<Failure>, run: &RunId, exit: Exit) -> Result<Exit, Failure> {
    // A closed pipe has no message.
    let Some(cause) = unwritten.and_then(|failure| failure.message) else {
        return Ok(exit);
    };
    let exit = if exit == Exit::Ok { Exit::Failed } else { exit };
    Err(Failure::new(exit, format!("run {run} has ended, and not all of it was shown: {cause}")))
}

/// An event as published on the stream, on one line.
pub(super) fn json_line(item: &LogItem) -> Piece {
    let mut bytes = match item {
        LogItem::State(event) => event.to_json(),
        LogItem::Text(text) => text.event.to_json(),
        LogItem::Missing(missing) => {
            return Piece::Err(format!("[bob] missing: {missing}\n").into_bytes());
        }
    };
    bytes.push(b'\n');
    Piece::Out(bytes)
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn size() -> Size {
    // Some terminals report a size of 0.
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            Size { columns: usize::from(size.ws_col), rows: usize::from(size.ws_row) }
        }
        Ok(_) | Err(_) => Size { columns: 80, rows: 24 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(unwritten: Option<Failure>, exit: Exit) -> Result<Exit, Failure> {
        super::ended(unwritten, &"r-1".parse().unwrap(), exit)
    }

    #[test]
    fn a_run_that_could_not_be_shown_reports_that_and_does_not_pass() {
        let full = || Some(Failure::new(Exit::Failed, "cannot write to standard output: full"));
        let failure = ended(full(), Exit::Ok).unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.unwrap().ends_with("cannot write to standard output: full"));
        assert_eq!(ended(full(), Exit::Stopped).unwrap_err().exit, Exit::Stopped);
        assert_eq!(ended(None, Exit::Ok), Ok(Exit::Ok));
        let gone = Some(Failure::already_reported(Exit::Ok));
        assert_eq!(ended(gone, Exit::Stopped), Ok(Exit::Stopped), "no one can receive it");
    }
}
