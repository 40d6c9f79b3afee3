//! Commands of docs/wire.md that this version recognizes but does not support.

use clap::{Args, Subcommand};

use super::exit::{Exit, Failure};

#[derive(Debug, Subcommand)]
pub(super) enum Dlq {
    /// List dead-lettered messages and why they were dead-lettered
    List(Anything),
    /// Send dead-lettered messages again
    Replay(Anything),
}

/// Accepts any arguments.
#[derive(Debug, Args)]
pub(super) struct Anything {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<String>,
}

pub(super) fn dlq(typed: &Dlq) -> Failure {
    let command = match typed {
        Dlq::List(_) => "dlq list",
        Dlq::Replay(_) => "dlq replay",
    };
    let queue = protocol::names::DEAD_LETTER_QUEUE;
    Failure::new(
        Exit::Usage,
        format!(
            "`{command}` comes with a later version; until then RabbitMQ's own tools show the queue {queue}"
        ),
    )
}
