//! What can be typed.

use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use protocol::dialect::Dialect;
use protocol::id::{PipelineId, RegisteredName, RunId, StepName};
use protocol::quantity::Span;
use protocol::run::Status;
use protocol::schema::What;

use super::later::{NO_OPENAPI, OPENAPI};
use super::typed::{Add, Completions, Diff, OpenShell, Pattern, Rerun, Run, Stop, Submit};

/// Runs pipelines: each step a rootless container, committed, its output on a stream.
#[derive(Debug, Parser)]
#[command(
    name = "bob-runner",
    version = super::about::title(),
    max_term_width = 100,
    after_help = EXAMPLES
)]
pub(super) struct Typed {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  bob-runner run hello.yaml             run a file here and now, without any server
  bob-runner validate *.yaml            every fault of these files at once
  bob-runner serve                      work for a cluster (RabbitMQ, etcd)
  bob-runner submit hello.yaml -f       send a run to the cluster and follow it
  bob-runner ps                         what runs now
  bob-runner doctor                     what this machine and the services lack

Exit codes: 0 passed, 1 failed, 2 wrong usage, 3 stopped, 65 invalid file, 69 a service cannot be
reached, 78 wrong settings, 130 and 143 ended by a signal.
`bob-runner settings` shows what is set, docs/settings.md what can be.";

/// What goes with every command.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// The settings file [default: the first of ./, ~/.config/bob-runner/, /etc/bob-runner/]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) config: Option<PathBuf>,
    /// Sets one setting, by its name in the file; wins over variables
    #[arg(long, global = true, value_name = "NAME=VALUE")]
    pub(super) set: Vec<String>,
    /// How data is shown
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub(super) output: Output,
    /// When colours are used; `NO_COLOR` switches them off too
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub(super) color: Color,
}

/// How data is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Text,
    /// For programs: one document, or one object a line where things come one by one
    Json,
}

/// When colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a file here and now, without any server
    #[command(after_help = "\
Runs FILE in a rootless container of this machine, shows its output as it comes, and exits with the
run's result. Ctrl-C stops the run; a second one ends the program at once.

The output of the steps goes to standard output and standard error, byte for byte; what is said
about the run goes to standard error. On a terminal a list of the steps stands below the output.

Examples:
  bob-runner run hello.yaml
  bob-runner run hello.yaml --var NAME=world -o json
  generate-pipeline | bob-runner run -")]
    Run(Run),
    /// Run a job file as `run` does, its jobs knowing nothing of each other
    #[command(
        hide = true,
        after_help = "\
As `run FILE` of a job file, but nothing is filled in for ${...}: no job has what those before it have
found out. Before each job its number in the file and its executor are said. It is here for those
who type it already; without it, `run` does more.

Example:
  bob-runner run-multi jobs.yml --workdir /srv/jobs"
    )]
    RunMulti(Run),
    /// Work for a cluster: take commands, run pipelines, publish events
    #[command(after_help = "\
The first SIGTERM or Ctrl-C drains: nothing new is taken, what runs may finish within
BOB_DRAIN_SECONDS, and what is left then is handed over: another worker goes on after its last
committed step. The second hands over now. The third ends the program at once.

Examples:
  bob-runner serve
  bob-runner serve --set worker.max-parallel-runs=8")]
    Serve(Serve),
    /// End what a worker runs where the worker cannot
    #[command(hide = true)]
    Guard(super::guard::Guard),
    /// Send a run to the cluster; prints its id
    #[command(after_help = "\
The same --run-id sent twice is one run, so a submit whose answer was lost can be repeated.

Examples:
  bob-runner submit hello.yaml                    a file: its definition goes with the message
  bob-runner submit dev/hello --var NAME=world    a pipeline that is stored
  bob-runner submit dev/hello --follow            show its log, exit with its result")]
    Submit(Submit),
    /// Add a job: a shell command, run first in, first out
    Add(Add),
    /// Start a new run where an ended one has come to
    #[command(after_help = "\
The new run has the definition and the variables of RUN, and begins after the last step that RUN has
committed, or with the step that --from names: what is before it does not run again. What the steps
of RUN left has to be kept for that, which a `retention` in its pipeline asks for.

Examples:
  bob-runner rerun r-0198c1d2 --follow             once more from the step that failed
  bob-runner rerun r-0198c1d2 --from test          from that step on")]
    Rerun(Rerun),
    /// List the files that a step of a run changed
    #[command(after_help = "\
Looks at the images that the run's steps left on this machine's engine, which has to hold them still:
give the pipeline a `retention`. A is a file that is new, C one that is not what it was, D one that
is gone.

Example:
  bob-runner diff r-0198c1d2 build")]
    Diff(Diff),
    /// Open a shell in what a step of a run left
    #[command(after_help = "\
The shell runs in a container of its own on this machine's engine, by podman, and what is done there
goes with it.

Examples:
  bob-runner shell r-0198c1d2                      after the last step that was committed
  bob-runner shell r-0198c1d2 --after build
  bob-runner shell r-0198c1d2 -- cat /etc/os-release")]
    Shell(OpenShell),
    /// Stop a run
    #[command(after_help = "Example:\n  bob-runner stop r-0198c1d2 --reason 'wrong branch'")]
    Stop(Stop),
    /// Accept no new run of a pipeline; what runs goes on
    Pause(Pipeline),
    /// Accept runs of a pipeline again
    Unpause(Pipeline),
    /// Show the output of a run's steps
    #[command(after_help = "\
What the steps wrote goes to standard output, byte for byte and in the order of the stream; with
--stderr their standard error goes to ours. What the runner says goes to standard error.

Examples:
  bob-runner logs r-0198c1d2
  bob-runner logs -f r-0198c1d2 --step build
  bob-runner logs -o json r-0198c1d2        every event of the run, one a line")]
    Logs(Logs),
    /// Show the event stream
    #[command(after_help = "\
Without -f, what the stream holds; with it, that and what comes. With --run, one run's events by the
reader's rules: what is repeated is dropped, state comes from the run's last owner.

Examples:
  bob-runner events --since 10m
  bob-runner events -f --new
  bob-runner events --run r-0198c1d2 -o json")]
    Events(Events),
    /// What was dead-lettered: list it, send it again
    #[command(subcommand, hide = true)]
    Dlq(super::later::Dlq),
    /// List runs: those that are open, or all with -a
    #[command(after_help = "\
Examples:
  bob-runner ps
  bob-runner ps -a -n 20 --pipeline dev/hello
  bob-runner ps --status failed -o json")]
    Ps(Ps),
    /// Show one run, with its steps
    Show(Show),
    /// List the workers of the cluster
    Nodes,
    /// Store, list and delete pipelines
    #[command(subcommand)]
    Pipeline(Pipelines),
    /// Register, list and delete resource providers
    #[command(subcommand)]
    Provider(Registered),
    /// Register, list and delete artifact stores
    #[command(subcommand)]
    Store(Registered),
    /// Register, list and delete loggers
    #[command(subcommand)]
    Logger(Registered),
    /// Say everything that is wrong with pipeline files; runs nothing
    #[command(after_help = "\
Examples:
  bob-runner validate hello.yaml build.json
  bob-runner validate --here hello.yaml      judge this host too: can it do what the file asks for?
  cat hello.yaml | bob-runner validate -")]
    Validate(Validate),
    /// Print what a pipeline file means, as JSON with every default written out
    Plan(Plan),
    /// Print a published schema
    #[command(after_help = "Example:\n  bob-runner schema pipeline > pipeline.schema.json")]
    Schema(Schema),
    /// Show every setting: its value, and where it comes from
    Settings,
    /// Check this machine and the services, and say what to do
    #[command(after_help = "\
Ends with 69 where something that is needed is down. In embedded mode only the engine is needed.

Example:
  bob-runner doctor -o json")]
    Doctor,
    /// Print version, commit and protocol
    Version,
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  bob-runner completions bash > /etc/bash_completion.d/bob-runner
  bob-runner completions zsh > ~/.zfunc/_bob-runner
  bob-runner completions fish > ~/.config/fish/completions/bob-runner.fish")]
    Completions(Completions),
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Where queue and state are: cluster or embedded
    #[arg(long, value_name = "MODE")]
    pub(super) mode: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Pipeline {
    /// The pipeline
    #[arg(value_name = "GROUP/NAME", value_parser = PipelineId::from_path)]
    pub(super) pipeline: PipelineId,
}

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// The run
    pub(super) run: RunId,
    /// Go on until the run has ended
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Only this step
    #[arg(long, value_name = "NAME")]
    pub(super) step: Option<StepName>,
    /// Send what steps wrote to standard error to ours, and not to standard output
    #[arg(long)]
    pub(super) stderr: bool,
}

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Go on with what comes
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Only the events of this run
    #[arg(long)]
    pub(super) run: Option<RunId>,
    /// Only what was published in this time, such as 90s, 10m or 2d
    #[arg(long, value_name = "SPAN", conflicts_with = "run")]
    pub(super) since: Option<Span>,
    /// Only what comes from now on
    #[arg(long, requires = "follow", conflicts_with_all = ["since", "run"])]
    pub(super) new: bool,
}

#[derive(Debug, Args)]
pub(super) struct Ps {
    /// Those that have ended too
    #[arg(short, long)]
    pub(super) all: bool,
    /// Only runs of this pipeline
    #[arg(long, value_name = "GROUP/NAME", value_parser = PipelineId::from_path)]
    pub(super) pipeline: Option<PipelineId>,
    /// Only runs in this state
    #[arg(long, value_parser = status)]
    pub(super) status: Option<Status>,
    /// At most so many, the newest
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub(super) limit: Option<usize>,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// The run
    pub(super) run: RunId,
}

#[derive(Debug, Subcommand)]
pub(super) enum Pipelines {
    /// Store the pipelines of files under their names; one that is paused stays so
    #[command(after_help = "Example:\n  bob-runner pipeline apply pipelines/*.yaml")]
    Apply(Files),
    /// List what is stored
    List,
    /// Delete a pipeline, unless a run of it is open
    Delete(Pipeline),
}

#[derive(Debug, Subcommand)]
pub(super) enum Registered {
    /// Register under a name: by a file with `name` and `url`, or by both as flags
    #[command(after_help = "\
Examples:
  bob-runner logger apply --name logs --url http://logs.local:8002
  bob-runner logger apply logs.yaml")]
    Apply(Register),
    /// List what is registered
    List,
    /// Delete a registration
    Delete(Unregister),
}

#[derive(Debug, Args)]
pub(super) struct Files {
    /// Files, JSON or YAML; `-` is standard input
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) files: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Register {
    /// Files with `name` and `url`, JSON or YAML; `-` is standard input
    #[arg(
        required_unless_present = "name",
        conflicts_with_all = ["name", "url"],
        value_name = "FILE",
        value_hint = ValueHint::FilePath
    )]
    pub(super) files: Vec<String>,
    /// The name
    #[arg(long, requires = "url")]
    pub(super) name: Option<String>,
    /// Where it answers: http:// or https://
    #[arg(long, requires = "name", value_hint = ValueHint::Url)]
    pub(super) url: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Unregister {
    /// The name
    pub(super) name: RegisteredName,
}

#[derive(Debug, Args)]
pub(super) struct Validate {
    #[command(flatten)]
    pub(super) files: Files,
    /// How the files are written: bob, prunner, job or ci [default: told from each file]
    #[arg(long, value_name = "DIALECT", value_parser = dialect)]
    pub(super) dialect: Option<Dialect>,
    #[command(flatten)]
    pub(super) pattern: Pattern,
    /// Judge this host too: whether its engine can do what the files ask for
    #[arg(long)]
    pub(super) here: bool,
}

#[derive(Debug, Args)]
pub(super) struct Plan {
    /// The pipeline file, JSON or YAML; `-` is standard input; a directory of prunner files
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(super) file: String,
    /// How the file is written: bob, prunner, job or ci [default: told from the file]
    #[arg(long, value_name = "DIALECT", value_parser = dialect)]
    pub(super) dialect: Option<Dialect>,
    #[command(flatten)]
    pub(super) pattern: Pattern,
}

#[derive(Debug, Args)]
pub(super) struct Schema {
    /// Of what
    #[arg(value_parser = schema_names())]
    pub(super) what: What,
}

pub(super) fn dialect(typed: &str) -> Result<Dialect, String> {
    let named = Dialect::NAMED.into_iter().find(|(name, _)| *name == typed);
    named.map(|(_, dialect)| dialect).ok_or_else(|| "bob, prunner, job and ci are known".to_owned())
}

pub(super) fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it must be NAME=VALUE")?;
    match protocol::command::bad_variable(name, value) {
        Some(expected) => Err(format!("it must have {expected}")),
        None => Ok((name.to_owned(), value.to_owned())),
    }
}

pub(super) fn param(text: &str) -> Result<(String, serde_json::Value), String> {
    let named = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, json) = named.ok_or("it must be NAME=JSON")?;
    // The cause names the place, and nothing of what stands there.
    let value = serde_json::from_str(json).map_err(|cause| format!("it is no JSON: {cause}"))?;
    Ok((name.to_owned(), value))
}

fn status(text: &str) -> Result<Status, String> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|_unknown| {
        "it must be one of pending, initializing, initialized, running, passed, failed, stopped"
            .into()
    })
}

fn schema_names() -> impl clap::builder::TypedValueParser<Value = What> {
    use clap::builder::TypedValueParser as _;
    let known = What::ALL.map(What::as_str).map(PossibleValue::new);
    let later = PossibleValue::new(OPENAPI).hide(true);
    let names = known.into_iter().chain([later]);
    clap::builder::PossibleValuesParser::new(names).try_map(|name| match name.as_str() {
        OPENAPI => Err(NO_OPENAPI.to_owned()),
        name => name.parse::<What>().map_err(|unknown| unknown.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Typed::command().debug_assert();
    }

    #[test]
    fn variables_have_a_name_and_may_have_an_empty_value() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(variable("A="), Ok(("A".into(), String::new())));
        for bad in ["A", "=b", "A=\0"] {
            assert!(variable(bad).is_err(), "{bad:?} was taken");
        }
    }
}
