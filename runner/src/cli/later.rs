//! What the wire contract names and this version does not do: known, and refused with a sentence.

use clap::{Args, Subcommand};

use super::exit::{Exit, Failure};

#[derive(Debug, Subcommand)]
pub(super) enum Dlq {
    /// What was dead-lettered, and why
    List(Anything),
    /// Send it again
    Replay(Anything),
}

/// Whatever will be understood one day.
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

/// The schema that is not written yet.
pub(super) const OPENAPI: &str = "openapi";

/// The sentence for it.
pub(super) const NO_OPENAPI: &str =
    "`schema openapi` comes with a later version, together with the HTTP API";
