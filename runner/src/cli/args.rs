//! The command-line arguments.

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

/// Run pipelines of container steps: each step is committed, and its output published to a stream
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

/// Options of every command.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// Settings file [default: the first of ./, ~/.config/bob-runner/, /etc/bob-runner/]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) config: Option<PathBuf>,
    /// Set one setting by its name in the settings file, overriding the file and the environment
    #[arg(long, global = true, value_name = "NAME=VALUE")]
    pub(super) set: Vec<String>,
    /// Output format
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub(super) output: Output,
    /// When to use colours; the variable `NO_COLOR` also turns them off
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub(super) color: Color,
}

/// The output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Human-readable text
    Text,
    /// JSON for programs: one document, or one object per line for streams of items
    Json,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// Only if the output is a terminal
    Auto,
    /// Even if the output is not a terminal
    Always,
    /// Without any colour
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a pipeline file on this machine, without a server
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
    /// Run a job file like `run`, but without sharing results between its jobs
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
    /// Run a worker that takes commands from the cluster, runs pipelines and publishes events
    #[command(after_help = "\
The first SIGTERM or Ctrl-C drains: nothing new is taken, what runs may finish within
BOB_DRAIN_SECONDS, and what is left then is handed over: another worker goes on after its last
committed step. The second hands over now. The third ends the program at once.

Examples:
  bob-runner serve
  bob-runner serve --set worker.max-parallel-runs=8")]
    Serve(Serve),
    /// Kill the steps of a worker that cannot do so itself
    #[command(hide = true)]
    Guard(super::guard::Guard),
    /// Submit a run to the cluster and print its id
    #[command(after_help = "\
The same --run-id sent twice is one run, so a submit whose answer was lost can be repeated.

Examples:
  bob-runner submit hello.yaml                    a file: its definition goes with the message
  bob-runner submit dev/hello --var NAME=world    a pipeline that is stored
  bob-runner submit dev/hello --follow            show its log, exit with its result")]
    Submit(Submit),
    /// Queue a shell command as a job, first in, first out
    Add(Add),
    /// Start a new run from a committed step of an ended run
    #[command(after_help = "\
The new run has the definition and the variables of RUN, and begins after the last step that RUN has
committed, or with the step that --from names: what is before it does not run again. What the steps
of RUN left has to be kept for that, which a `retention` in its pipeline asks for.

Examples:
  bob-runner rerun r-0198c1d2 --follow             once more from the step that failed
  bob-runner rerun r-0198c1d2 --from test          from that step on")]
    Rerun(Rerun),
    /// List the files that a step changed in its image
    #[command(after_help = "\
Looks at the images that the run's steps left on this machine's engine, which has to hold them still:
give the pipeline a `retention`. A is a file that is new, C one that is not what it was, D one that
is gone.

Example:
  bob-runner diff r-0198c1d2 build")]
    Diff(Diff),
    /// Open a shell in the image that a step committed
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
    /// Stop accepting new runs of a pipeline; runs in progress continue
    Pause(Pipeline),
    /// Accept new runs of a paused pipeline again
    Unpause(Pipeline),
    /// Print the output of a run's steps
    #[command(after_help = "\
What the steps wrote goes to standard output, byte for byte and in the order of the stream; with
--stderr their standard error goes to ours. What the runner says goes to standard error.

Examples:
  bob-runner logs r-0198c1d2
  bob-runner logs -f r-0198c1d2 --step build
  bob-runner logs -o json r-0198c1d2        every event of the run, one a line")]
    Logs(Logs),
    /// Print the event stream
    #[command(after_help = "\
Without -f, what the stream holds; with it, that and what comes. With --run, one run's events by the
reader's rules: what is repeated is dropped, state comes from the run's last owner.

Examples:
  bob-runner events --since 10m
  bob-runner events -f --new
  bob-runner events --run r-0198c1d2 -o json")]
    Events(Events),
    /// List dead-lettered messages, or send them again
    #[command(subcommand, hide = true)]
    Dlq(super::later::Dlq),
    /// List open runs, or all runs with --all
    #[command(after_help = "\
Examples:
  bob-runner ps
  bob-runner ps -a -n 20 --pipeline dev/hello
  bob-runner ps --status failed -o json")]
    Ps(Ps),
    /// Show one run and its steps
    Show(Show),
    /// List the workers of the cluster
    Nodes,
    /// Store, list or delete pipelines
    #[command(subcommand)]
    Pipeline(Pipelines),
    /// Register, list or delete resource providers
    #[command(subcommand)]
    Provider(Registered),
    /// Register, list or delete artifact stores
    #[command(subcommand)]
    Store(Registered),
    /// Register, list or delete loggers
    #[command(subcommand)]
    Logger(Registered),
    /// Report every error in pipeline files without running them
    #[command(after_help = "\
Examples:
  bob-runner validate hello.yaml build.json
  bob-runner validate --here hello.yaml      judge this host too: can it do what the file asks for?
  cat hello.yaml | bob-runner validate -")]
    Validate(Validate),
    /// Print a pipeline file as normalized JSON, with every default written out
    Plan(Plan),
    /// Print a published schema
    #[command(after_help = "Example:\n  bob-runner schema pipeline > pipeline.schema.json")]
    Schema(Schema),
    /// Show every setting with its value and its source
    Settings,
    /// Check this machine and the services it needs, and suggest fixes
    #[command(after_help = "\
Ends with 69 where something that is needed is down. In embedded mode only the engine is needed.

Example:
  bob-runner doctor -o json")]
    Doctor,
    /// Print the version, commit and protocol version
    Version,
    /// Generate a completion script for a shell
    #[command(after_help = "\
Examples:
  bob-runner completions bash > /etc/bash_completion.d/bob-runner
  bob-runner completions zsh > ~/.zfunc/_bob-runner
  bob-runner completions fish > ~/.config/fish/completions/bob-runner.fish")]
    Completions(Completions),
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Storage of queue and state: cluster (RabbitMQ and etcd) or embedded (one local file)
    #[arg(long, value_name = "MODE")]
    pub(super) mode: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Pipeline {
    /// Pipeline, as GROUP/NAME
    #[arg(value_name = "GROUP/NAME", value_parser = PipelineId::from_path)]
    pub(super) pipeline: PipelineId,
}

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// Id of the run, as printed by `submit` or `ps`
    pub(super) run: RunId,
    /// Keep printing new output until the run ends
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Print only the output of this step
    #[arg(long, value_name = "NAME")]
    pub(super) step: Option<StepName>,
    /// Print the standard error of steps to standard error instead of standard output
    #[arg(long)]
    pub(super) stderr: bool,
}

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Keep printing new events as they are published
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Print only the events of this run
    #[arg(long)]
    pub(super) run: Option<RunId>,
    /// Print only events published within this time span, such as 90s, 10m or 2d
    #[arg(long, value_name = "SPAN", conflicts_with = "run")]
    pub(super) since: Option<Span>,
    /// Print only events published from now on
    #[arg(long, requires = "follow", conflicts_with_all = ["since", "run"])]
    pub(super) new: bool,
}

#[derive(Debug, Args)]
pub(super) struct Ps {
    /// List ended runs too
    #[arg(short, long)]
    pub(super) all: bool,
    /// List only runs of this pipeline
    #[arg(long, value_name = "GROUP/NAME", value_parser = PipelineId::from_path)]
    pub(super) pipeline: Option<PipelineId>,
    /// List only runs with this status, such as pending, running, passed, failed or stopped
    #[arg(long, value_parser = status)]
    pub(super) status: Option<Status>,
    /// List at most this number of runs, newest first
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub(super) limit: Option<usize>,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Id of the run
    pub(super) run: RunId,
}

#[derive(Debug, Subcommand)]
pub(super) enum Pipelines {
    /// Store the pipelines in files under their names; a paused pipeline stays paused
    #[command(after_help = "Example:\n  bob-runner pipeline apply pipelines/*.yaml")]
    Apply(Files),
    /// List the stored pipelines
    List,
    /// Delete a pipeline, unless it has open runs
    Delete(Pipeline),
}

#[derive(Debug, Subcommand)]
pub(super) enum Registered {
    /// Register a service from files with `name` and `url`, or from --name and --url
    #[command(after_help = "\
Examples:
  bob-runner logger apply --name logs --url http://logs.local:8002
  bob-runner logger apply logs.yaml")]
    Apply(Register),
    /// List the registered services
    List,
    /// Delete a registration
    Delete(Unregister),
}

#[derive(Debug, Args)]
pub(super) struct Files {
    /// Pipeline files in JSON or YAML, or `-` for standard input
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) files: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Register {
    /// Files with `name` and `url` in JSON or YAML, or `-` for standard input
    #[arg(
        required_unless_present = "name",
        conflicts_with_all = ["name", "url"],
        value_name = "FILE",
        value_hint = ValueHint::FilePath
    )]
    pub(super) files: Vec<String>,
    /// Name under which the service is registered
    #[arg(long, requires = "url")]
    pub(super) name: Option<String>,
    /// Base URL of the service: http:// or https://
    #[arg(long, requires = "name", value_hint = ValueHint::Url)]
    pub(super) url: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Unregister {
    /// Name of the registration
    pub(super) name: RegisteredName,
}

#[derive(Debug, Args)]
pub(super) struct Validate {
    #[command(flatten)]
    pub(super) files: Files,
    /// Format of the files: bob, prunner, job or ci [default: detected for each file]
    #[arg(long, value_name = "DIALECT", value_parser = dialect)]
    pub(super) dialect: Option<Dialect>,
    #[command(flatten)]
    pub(super) pattern: Pattern,
    /// Also check whether this host and its container engine support the pipelines
    #[arg(long)]
    pub(super) here: bool,
}

#[derive(Debug, Args)]
pub(super) struct Plan {
    /// Pipeline file in JSON or YAML, a directory of prunner files, or `-` for standard input
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(super) file: String,
    /// Format of the file: bob, prunner, job or ci [default: detected]
    #[arg(long, value_name = "DIALECT", value_parser = dialect)]
    pub(super) dialect: Option<Dialect>,
    #[command(flatten)]
    pub(super) pattern: Pattern,
}

#[derive(Debug, Args)]
pub(super) struct Schema {
    /// Name of the schema
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
    // The error contains the position, but none of the input.
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
