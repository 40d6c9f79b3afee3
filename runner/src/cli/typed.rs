//! Arguments of the commands that start, stop and inspect runs, and of the worker.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use protocol::dialect::{Dialect, MAX_ATTEMPTS};
use protocol::id::{RegisteredName, RunId, StepName};
use protocol::quantity::Span;

use super::values::{dialect, help_of, help_with_default, param, variable};
use crate::app::Scope;
use crate::config::table;

#[derive(Debug, Args)]
pub(super) struct Pattern {
    /// Glob for the files to read if FILE is a directory; links are followed [default:
    /// `PRUNNER_PATTERN`, else **/pipelines.{yml,yaml}]
    #[arg(long, value_name = "GLOB")]
    pub(super) pattern: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Pipeline file in JSON or YAML, a directory of prunner files, or `-` for standard input
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(super) file: String,
    /// Name of the pipeline to run, if the file contains several
    #[arg(long, value_name = "NAME")]
    pub(super) pipeline: Option<String>,
    #[command(flatten)]
    pub(super) pattern: Pattern,
    /// Format of the file: bob, prunner, job or ci [default: detected]
    #[arg(long, value_name = "DIALECT", value_parser = dialect)]
    pub(super) dialect: Option<Dialect>,
    /// Set a variable, overriding the pipeline's; can be repeated
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = variable)]
    pub(super) vars: Vec<(String, String)>,
    /// Set a JSON value for script templates, such as `files=["a", "b"]`; can be repeated
    #[arg(long = "param", value_name = "NAME=JSON", value_parser = param)]
    pub(super) params: Vec<(String, serde_json::Value)>,
    /// Id of the new run [default: generated]
    #[arg(long, value_name = "RUN")]
    pub(super) run_id: Option<RunId>,
    /// Variables file for the tasks of a prunner file; can be repeated; empty for none [default:
    /// `PRUNNER_ENV_FILES`, else .env and .env.local]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) env_files: Vec<String>,
    /// Directory for the status and files of each job of a job file [default: ./workdir]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) workdir: Option<PathBuf>,
    /// Directory for the logs of the jobs of a job file [default: ./logs]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) log_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    #[arg(long, value_name = "MODE", help = help_of(&table::MODE))]
    pub(super) mode: Option<String>,
    /// Directory from whose files definitions of pipelines are loaded [default: `PRUNNER_PATH`, else
    /// the working directory in embedded mode]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) path: Option<String>,
    /// Glob for the files below that directory; links are followed [default: `PRUNNER_PATTERN`,
    /// else **/pipelines.{yml,yaml}]
    #[arg(long, value_name = "GLOB")]
    pub(super) pattern: Option<String>,
    /// Check these files for changes every 30 s; SIGUSR1 always reloads them
    #[arg(long)]
    pub(super) watch: bool,
    /// Time between two checks with --watch [default: `PRUNNER_POLL_INTERVAL`, else 30s]
    #[arg(long, value_name = "SPAN")]
    pub(super) poll_interval: Option<Span>,
}

#[derive(Debug, Args)]
pub(super) struct Submit {
    /// Pipeline file (`-` for standard input), a directory of prunner files such as `.`, or the
    /// GROUP/NAME of a stored pipeline
    #[arg(value_name = "FILE|GROUP/NAME", value_hint = ValueHint::AnyPath)]
    pub(super) what: String,
    /// Format of the file: bob, prunner, job or ci [default: detected]
    #[arg(long, value_name = "DIALECT", value_parser = dialect)]
    pub(super) dialect: Option<Dialect>,
    /// Name of the pipeline to run, if the file contains several
    #[arg(long, value_name = "NAME")]
    pub(super) pipeline: Option<String>,
    #[command(flatten)]
    pub(super) pattern: Pattern,
    /// Ignore `admission` and `retention-count` of the file: start the run at once, and remove no
    /// other run for it
    #[arg(long)]
    pub(super) alone: bool,
    /// Set a variable, overriding the pipeline's; can be repeated
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = variable)]
    pub(super) vars: Vec<(String, String)>,
    /// Set a JSON value for script templates, such as `files=["a", "b"]`; can be repeated
    #[arg(long = "param", value_name = "NAME=JSON", value_parser = param)]
    pub(super) params: Vec<(String, serde_json::Value)>,
    /// Id of the new run; submitting the same id twice starts one run [default: generated]
    #[arg(long, value_name = "RUN")]
    pub(super) run_id: Option<RunId>,
    /// Registered logger that receives the run's output
    #[arg(long, value_name = "NAME")]
    pub(super) logger: Option<RegisteredName>,
    /// Partition of the wait list, if the pipeline's strategy is `partitioned-replace`
    #[arg(long, value_name = "NAME")]
    pub(super) partition: Option<String>,
    /// Print the log until the run ends, and exit with the run's result
    #[arg(short, long)]
    pub(super) follow: bool,
}

#[derive(Debug, Args)]
#[command(after_help = format!("\
Prints the id of the future run of the job. If --queue or {ci_queue} names a queue file, or the
mode is embedded, the job is added to that file for a `serve` in embedded mode. Otherwise it is
submitted to the cluster. A link to this program with the name `add_job` does the same.

Examples:
  bob-runner add 'make test'
  bob-runner add --attempts 5 --delay 10s --timeout 30m -- make -j4 all
  add_job 'make build
  make test'
  bob-runner add --list                     list the jobs that are still waiting",
    ci_queue = table::CI_QUEUE.variable()))]
pub(super) struct Add {
    /// Shell command; several words are joined with blanks
    #[arg(required_unless_present = "list", trailing_var_arg = true)]
    pub(super) command: Vec<String>,
    #[arg(
        long, value_name = "FILE", value_hint = ValueHint::FilePath,
        help = help_with_default("Queue file", &table::CI_QUEUE)
    )]
    pub(super) queue: Option<PathBuf>,
    #[arg(
        long, value_name = "SPAN",
        help = help_with_default("Time limit of one attempt, such as 90s or 10m", &table::CI_TIMEOUT)
    )]
    pub(super) timeout: Option<Span>,
    #[arg(
        long, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_ATTEMPTS)),
        help = help_with_default("Maximum number of attempts; 0 and 1 both mean one", &table::CI_ATTEMPTS)
    )]
    pub(super) attempts: Option<u32>,
    #[arg(
        long, value_name = "SPAN",
        help = help_with_default("Delay between two attempts, such as 10s", &table::CI_DELAY)
    )]
    pub(super) delay: Option<Span>,
    /// List the commands waiting in the queue file, one per line, instead of adding one
    #[arg(long, conflicts_with_all = ["command", "timeout", "attempts", "delay"])]
    pub(super) list: bool,
}

#[derive(Debug, Args)]
pub(super) struct Rerun {
    /// Id of the ended run
    pub(super) run: RunId,
    /// Step to start from [default: the first step that RUN has not committed]
    #[arg(long, value_name = "STEP")]
    pub(super) from: Option<StepName>,
    /// Id of the new run [default: generated]
    #[arg(long, value_name = "RUN")]
    pub(super) run_id: Option<RunId>,
    /// Print the log until the run ends, and exit with the run's result
    #[arg(short, long)]
    pub(super) follow: bool,
}

#[derive(Debug, Args)]
pub(super) struct Diff {
    /// Id of the run
    pub(super) run: RunId,
    /// Name of the step
    pub(super) step: StepName,
}

#[derive(Debug, Args)]
pub(super) struct OpenShell {
    /// Id of the run
    pub(super) run: RunId,
    /// Step whose image the shell starts in [default: the last committed step]
    #[arg(long, value_name = "STEP")]
    pub(super) after: Option<StepName>,
    /// Command to run instead of `sh`
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) words: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Stop {
    /// Id of the run
    pub(super) run: RunId,
    /// Reason, shown in the log
    #[arg(long)]
    pub(super) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Token {
    /// User that the token names
    #[arg(long, value_name = "NAME")]
    pub(super) sub: Option<String>,
    /// What the token allows: read, run or admin, each of which includes those before it
    #[arg(long, value_name = "SCOPE", default_value = "admin")]
    pub(super) scope: Scope,
    /// Time span for which the token is valid
    #[arg(long, value_name = "SPAN", default_value = "12h")]
    pub(super) ttl: Span,
}

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Shell to generate the script for
    pub(super) shell: Shell,
}

/// Shells with completion support.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shell {
    /// GNU bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}
