//! What is typed after the commands that begin, end and look into runs.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use protocol::dialect::{Dialect, MAX_ATTEMPTS};
use protocol::id::{RegisteredName, RunId, StepName};
use protocol::quantity::Span;

use super::args::{dialect, param, variable};

#[derive(Debug, Args)]
pub(super) struct Pattern {
    /// Of a directory: the files that are read, links followed [default: `PRUNNER_PATTERN`, else
    /// **/pipelines.{yml,yaml}]
    #[arg(long, value_name = "GLOB")]
    pub(super) pattern: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// The pipeline file, JSON or YAML; `-` is standard input; a directory of prunner files
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(super) file: String,
    /// The pipeline's name, of a file that holds several
    #[arg(long, value_name = "NAME")]
    pub(super) pipeline: Option<String>,
    #[command(flatten)]
    pub(super) pattern: Pattern,
    /// How the file is written: bob, prunner, job or ci [default: told from the file]
    #[arg(long, value_name = "DIALECT", value_parser = dialect)]
    pub(super) dialect: Option<Dialect>,
    /// A variable, laid over the pipeline's
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = variable)]
    pub(super) vars: Vec<(String, String)>,
    /// A value of any form for the templates of scripts, such as `files=["a", "b"]`
    #[arg(long = "param", value_name = "NAME=JSON", value_parser = param)]
    pub(super) params: Vec<(String, serde_json::Value)>,
    /// The run's id [default: a new one]
    #[arg(long, value_name = "RUN")]
    pub(super) run_id: Option<RunId>,
    /// Of a prunner file: a file of variables for its tasks; may be repeated, empty for none
    /// [default: `PRUNNER_ENV_FILES`, else .env and .env.local]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) env_files: Vec<String>,
    /// Of a job file: where each job's status and files are put [default: ./workdir]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) workdir: Option<PathBuf>,
    /// Of a job file: where each job's log is put [default: ./logs]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) log_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Submit {
    /// A pipeline file (`-` is standard input), a directory of prunner files, such as `.`, or
    /// GROUP/NAME of a stored pipeline
    #[arg(value_name = "FILE|GROUP/NAME", value_hint = ValueHint::AnyPath)]
    pub(super) what: String,
    /// How the file is written: bob, prunner, job or ci [default: told from the file]
    #[arg(long, value_name = "DIALECT", value_parser = dialect)]
    pub(super) dialect: Option<Dialect>,
    /// The pipeline's name, of a file that holds several
    #[arg(long, value_name = "NAME")]
    pub(super) pipeline: Option<String>,
    #[command(flatten)]
    pub(super) pattern: Pattern,
    /// Of a file: send it as a run by itself, however many go on of its pipeline: without `admission`
    /// and `retention-count`
    #[arg(long)]
    pub(super) alone: bool,
    /// A variable, laid over the pipeline's
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = variable)]
    pub(super) vars: Vec<(String, String)>,
    /// A value of any form for the templates of scripts, such as `files=["a", "b"]`
    #[arg(long = "param", value_name = "NAME=JSON", value_parser = param)]
    pub(super) params: Vec<(String, serde_json::Value)>,
    /// The run's id [default: a new one]
    #[arg(long, value_name = "RUN")]
    pub(super) run_id: Option<RunId>,
    /// The registered logger that gets the run's text
    #[arg(long, value_name = "NAME")]
    pub(super) logger: Option<RegisteredName>,
    /// Show the log as it comes, and exit with the run's result
    #[arg(short, long)]
    pub(super) follow: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Prints the id of the run that the job will be. The job goes to the queue file of a `serve` in embedded
mode where --queue or BOB_CI_QUEUE names one or the mode is embedded, else to the cluster. Called as
`add_job`, by a link of that name, the program does the same.

Examples:
  bob-runner add 'make test'
  bob-runner add --attempts 5 --delay 10s --timeout 30m -- make -j4 all
  add_job 'make build
  make test'
  bob-runner add --list                     what nobody has taken yet")]
pub(super) struct Add {
    /// The command, for a shell; several words are put together with blanks between them
    #[arg(required_unless_present = "list", trailing_var_arg = true)]
    pub(super) command: Vec<String>,
    /// The queue file [default: `BOB_CI_QUEUE`]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) queue: Option<PathBuf>,
    /// How long one attempt may take, such as 90s or 10m [default: `BOB_CI_TIMEOUT`]
    #[arg(long, value_name = "SPAN")]
    pub(super) timeout: Option<Span>,
    /// How often it is tried in all; 0 and 1 both mean once [default: `BOB_CI_ATTEMPTS`]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_ATTEMPTS)))]
    pub(super) attempts: Option<u32>,
    /// The time between two attempts [default: `BOB_CI_DELAY`]
    #[arg(long, value_name = "SPAN")]
    pub(super) delay: Option<Span>,
    /// List the commands that wait in the queue file, one a line, instead
    #[arg(long, conflicts_with_all = ["command", "timeout", "attempts", "delay"])]
    pub(super) list: bool,
}

#[derive(Debug, Args)]
pub(super) struct Rerun {
    /// The ended run
    pub(super) run: RunId,
    /// The step to begin with [default: the first that RUN has not committed]
    #[arg(long, value_name = "STEP")]
    pub(super) from: Option<StepName>,
    /// The new run's id [default: a new one]
    #[arg(long, value_name = "RUN")]
    pub(super) run_id: Option<RunId>,
    /// Show the log as it comes, and exit with the run's result
    #[arg(short, long)]
    pub(super) follow: bool,
}

#[derive(Debug, Args)]
pub(super) struct Diff {
    /// The run
    pub(super) run: RunId,
    /// The step
    pub(super) step: StepName,
}

#[derive(Debug, Args)]
pub(super) struct OpenShell {
    /// The run
    pub(super) run: RunId,
    /// The step [default: the last that was committed]
    #[arg(long, value_name = "STEP")]
    pub(super) after: Option<StepName>,
    /// What to run instead of `sh`
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) words: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Stop {
    /// The run
    pub(super) run: RunId,
    /// Why, for those who read the log
    #[arg(long)]
    pub(super) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    pub(super) shell: Shell,
}

/// Shells that completions are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shell {
    /// GNU bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}
