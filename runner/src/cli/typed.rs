//! What is typed after the commands that begin, end and look into runs.

use clap::{Args, ValueEnum, ValueHint};
use protocol::id::{RegisteredName, RunId, StepName};

use super::args::variable;

#[derive(Debug, Args)]
pub(super) struct Submit {
    /// A pipeline file (`-` is standard input), or GROUP/NAME of a stored pipeline
    #[arg(value_name = "FILE|GROUP/NAME", value_hint = ValueHint::FilePath)]
    pub(super) what: String,
    /// A variable, laid over the pipeline's
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = variable)]
    pub(super) vars: Vec<(String, String)>,
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
