//! The command-line arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use protocol::dialect::Dialect;
use protocol::id::{PipelineId, RegisteredName, RunId, StepName};
use protocol::quantity::Span;
use protocol::run::Status;

use super::output::{Color, Output};
use super::typed::{
    Add, Completions, Diff, OpenShell, Pattern, Rerun, Run, Serve, Stop, Submit, Token,
};
use super::values::{Document, dialect, document_names, status};
use crate::config::table;

/// Run pipelines of container steps: each step is committed, and its output published to a stream
#[derive(Debug, Parser)]
#[command(
    name = "bob-runner",
    version = super::version::title(),
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
  bob-runner run hello.yaml             run a file on this machine, without a server
  bob-runner validate *.yaml            report all errors in these files
  bob-runner serve                      run a worker of a cluster (RabbitMQ, etcd)
  bob-runner submit hello.yaml -f       submit a run to the cluster and follow it
  bob-runner ps                         list the open runs
  bob-runner doctor                     check this machine and the services

Exit codes: 0 passed, 1 failed, 2 wrong usage, 3 stopped, 65 invalid file, 69 service unavailable,
78 invalid settings, 130 and 143 ended by a signal.
`bob-runner settings` shows the current settings. docs/settings.md describes all settings.";

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

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a pipeline file on this machine, without a server
    #[command(after_help = "\
Runs FILE in rootless containers on this machine, prints its output as it is written, and exits with
the run's result. Ctrl-C stops the run. A second Ctrl-C ends the program at once.

The standard output and standard error of the steps are written to those of this program, unchanged.
Messages about the run go to standard error. On a terminal, a list of the steps is shown below the
output.

Examples:
  bob-runner run hello.yaml
  bob-runner run hello.yaml --var NAME=world -o json
  generate-pipeline | bob-runner run -")]
    Run(Run),
    /// Run a job file like `run`, but without sharing results between its jobs
    #[command(
        hide = true,
        after_help = "\
Runs a job file like `run FILE`, with two differences. References such as ${build.version} are not
resolved, so a job cannot use the results of earlier jobs. Each job is preceded by a line with its
number and executor. This command exists for compatibility; use `run` for new job files.

Example:
  bob-runner run-multi jobs.yml --workdir /srv/jobs"
    )]
    RunMulti(Run),
    /// Run a worker that takes commands from the cluster, runs pipelines and publishes events
    #[command(after_help = format!("\
The first SIGTERM or Ctrl-C drains the worker: it accepts no new runs, and runs in progress have
{drain_seconds} to finish. The remaining runs are handed over to other workers, which resume each
after its last committed step. The second signal hands over at once. The third ends the program at
once.

SIGUSR1 loads the definitions of --path again, and so does SIGHUP if no terminal is attached.

Examples:
  bob-runner serve
  bob-runner serve --set {max_parallel_runs}=8
  bob-runner serve --mode embedded --path . --watch",
        drain_seconds = table::WORKER_DRAIN_SECONDS.variable(),
        max_parallel_runs = table::WORKER_MAX_PARALLEL_RUNS.name()))]
    Serve(Serve),
    /// Kill the steps of a worker that cannot do so itself
    #[command(hide = true)]
    Guard(Guard),
    /// Submit a run to the cluster and print its id
    #[command(after_help = "\
A run id is accepted only once, so a submit with --run-id can safely be repeated.

Examples:
  bob-runner submit hello.yaml                    run a file; its definition is in the message
  bob-runner submit dev/hello --var NAME=world    run a stored pipeline
  bob-runner submit dev/hello --follow            print the log, exit with the result")]
    Submit(Submit),
    /// Queue a shell command as a job, first in, first out
    Add(Add),
    /// Start a new run from a committed step of an ended run
    #[command(after_help = "\
The new run has the definition and the variables of RUN. It starts after the last committed step of
RUN, or with the step that --from names. Earlier steps do not run again. This needs the images of
RUN, so its pipeline must have a `retention`.

Examples:
  bob-runner rerun r-0198c1d2 --follow             start from the step that failed
  bob-runner rerun r-0198c1d2 --from test          start from the step `test`")]
    Rerun(Rerun),
    /// List the files that a step changed in its image
    #[command(after_help = "\
Compares the images that the steps of the run committed on this machine's engine. To keep these
images after the run, give the pipeline a `retention`. Each file is preceded by A (added), C
(changed) or D (deleted).

Example:
  bob-runner diff r-0198c1d2 build")]
    Diff(Diff),
    /// Open a shell in the image that a step committed
    #[command(after_help = "\
The shell runs in a new podman container on this machine's engine. The container and all changes in
it are removed when the shell exits.

Examples:
  bob-runner shell r-0198c1d2                      in the image of the last committed step
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
The output of the steps is written to standard output, unchanged and in the order of the stream.
With --stderr, their standard error is written to standard error instead. Messages of bob-runner go
to standard error.

Examples:
  bob-runner logs r-0198c1d2
  bob-runner logs -f r-0198c1d2 --step build
  bob-runner logs -o json r-0198c1d2        print every event of the run, one per line")]
    Logs(Logs),
    /// Print the event stream
    #[command(after_help = "\
Prints the events that the stream holds. With -f, also prints new events as they are published.
With --run, prints the events of one run without duplicates, and takes its state only from its last
owner.

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
  bob-runner validate --here hello.yaml      also check whether this host supports the file
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
Exits with 69 if something that is required is missing or unavailable. In embedded mode, RabbitMQ
and etcd are not required.

Example:
  bob-runner doctor -o json")]
    Doctor,
    /// Print a token of the HTTP API for development
    #[command(after_help = "\
The token is signed with the shared secret (BOB_HTTP_JWT_SECRET), which must be that of the server.
Without it, it is signed with the secret that a `serve` of the same user has made in BOB_DATA_DIR.

Example:
  curl -H \"Authorization: Bearer $(bob-runner token)\" http://localhost:9009/api/v1/runs")]
    Token(Token),
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

/// Arguments that a worker passes to its guard.
#[derive(Debug, Args)]
pub(super) struct Guard {
    /// Node id of the worker
    pub(super) worker: String,
    /// Lowest level to log
    #[arg(long)]
    pub(super) level: String,
    /// Log format
    #[arg(long, value_enum)]
    pub(super) form: GuardFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum GuardFormat {
    Text,
    Json,
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
    /// Of the existing output, print only the last N lines
    #[arg(long, value_name = "N")]
    pub(super) tail: Option<usize>,
    /// Print only output published within this time span, such as 90s, 10m or 2d
    #[arg(long, value_name = "SPAN")]
    pub(super) since: Option<Span>,
    /// Begin each line with the time of its output
    #[arg(long)]
    pub(super) timestamps: bool,
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
    #[arg(value_parser = document_names())]
    pub(super) what: Document,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Typed::command().debug_assert();
    }
}
