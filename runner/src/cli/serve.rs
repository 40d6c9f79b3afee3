//! `serve`: runs the worker as a service.

use std::io::IsTerminal as _;
use std::sync::Arc;

use futures::FutureExt as _;
use tokio::sync::Notify;

use super::context::{Context, DefaultVerbosity, log_form};
use super::exit::{Exit, Failure};
use super::folder::PATTERN_VARIABLE;
use super::output::message;
use super::signals::{Hangup, Signals};
use super::typed::Serve;
use crate::app;
use crate::config::{Config, Environment, Mode, table};
use crate::telemetry;

pub(super) async fn serve(context: &Context, typed: Serve) -> Result<Exit, Failure> {
    let mut flags = context.flags.clone();
    flags.set.extend(definition_settings(&typed, &context.environment));
    flags.set.extend(typed.mode.map(|mode| format!("mode={mode}")));
    let context = Context { flags, style: context.style, environment: context.environment.clone() };
    let config = context.config(DefaultVerbosity::Much)?;
    let (mut signals, mut reloads) = Signals::listen_to_all(hangup_meaning(&config))?;
    let form = telemetry::effective_form(log_form(&config));
    let (shutdown, reload) = (app::Shutdown::default(), Arc::new(Notify::new()));
    let serving = app::serve(&config, shutdown.clone(), Arc::clone(&reload));
    tokio::pin!(serving);
    for asked in 1_u32.. {
        let signal = loop {
            tokio::select! {
                served = &mut serving => {
                    served?;
                    return Ok(Exit::Ok);
                }
                signal = signals.next() => break signal,
                () = reloads.next() => if loads_definitions(&config) {
                    reload.notify_one();
                } else {
                    report(form, NOTHING_TO_RELOAD);
                },
            }
        };
        match asked {
            1 => {
                shutdown.intake.cancel();
                // An idle worker stops at once, without a message.
                if let Some(served) = (&mut serving).now_or_never() {
                    served?;
                    return Ok(Exit::Ok);
                }
                report(
                    form,
                    &format!(
                        "draining: nothing new is taken, what runs has {} s and is handed over then; the next signal hands it over now",
                        config.worker.drain.as_secs()
                    ),
                );
            }
            2 => {
                report(form, "handing over what runs; the next signal ends the program at once");
                shutdown.abort.cancel();
            }
            _ => return Ok(signal),
        }
    }
    Ok(Exit::Ok)
}

const NOTHING_TO_RELOAD: &str =
    "nothing to reload: this worker loads no definitions from files (BOB_DEFINITIONS, --path)";

/// The interval of `--watch`, which is prunner's.
const POLL_INTERVAL: &str = "30s";

/// The settings behind the flags about definitions, and behind prunner's variables for them.
fn definition_settings(typed: &Serve, environment: &Environment) -> Vec<String> {
    let variable = |name| environment.get(name).map(str::to_owned);
    let dir = typed.path.clone().or_else(|| variable("PRUNNER_PATH"));
    let pattern = typed.pattern.clone().or_else(|| variable(PATTERN_VARIABLE));
    let is_on = |value: &str| matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True");
    let watches = typed.watch || environment.get("PRUNNER_WATCH").is_some_and(is_on);
    let interval = typed.poll_interval.map(|interval| interval.to_string());
    let interval = interval
        .or_else(|| variable("PRUNNER_POLL_INTERVAL"))
        .unwrap_or_else(|| POLL_INTERVAL.to_owned());
    let settings = [
        (table::DEFINITIONS_DIR.name(), dir),
        (table::DEFINITIONS_PATTERN.name(), pattern),
        (table::DEFINITIONS_WATCH.name(), watches.then_some(interval)),
    ];
    let set = |(name, value): (&str, Option<String>)| Some(format!("{name}={}", value?));
    settings.into_iter().filter_map(set).collect()
}

/// Whether this process loads definitions from files.
fn loads_definitions(config: &Config) -> bool {
    config.definitions.dir.is_some() || config.mode == Mode::Embedded
}

/// SIGHUP reloads a service that has something to reload. If the service has a terminal, the signal
/// says that the terminal is gone.
fn hangup_meaning(config: &Config) -> Hangup {
    let has_terminal = std::io::stdin().is_terminal() || std::io::stderr().is_terminal();
    if loads_definitions(config) && !has_terminal { Hangup::Reloads } else { Hangup::Stops }
}

/// Reports to the sender of a signal, in the format of the log.
fn report(form: telemetry::Form, text: &str) {
    match form {
        telemetry::Form::Text => {
            if !telemetry::print(text) {
                message(text);
            }
        }
        telemetry::Form::Json | telemetry::Form::Ci => tracing::warn!("{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings<const N: usize>(typed: &Serve, variables: [(&str, &str); N]) -> Vec<String> {
        definition_settings(typed, &Environment::from(variables))
    }

    fn nothing() -> Serve {
        Serve { mode: None, path: None, pattern: None, watch: false, poll_interval: None }
    }

    #[test]
    fn flags_about_definitions_take_precedence_over_the_variables_of_prunner() {
        assert_eq!(settings(&nothing(), []), [""; 0]);
        let variables = [
            ("PRUNNER_PATH", "/a"),
            ("PRUNNER_PATTERN", "*.yml"),
            ("PRUNNER_WATCH", "true"),
            ("PRUNNER_POLL_INTERVAL", "5s"),
        ];
        let expected = ["definitions.dir=/a", "definitions.pattern=*.yml", "definitions.watch=5s"];
        assert_eq!(settings(&nothing(), variables), expected);
        let typed = Serve {
            path: Some("/b".into()),
            pattern: Some("*.yaml".into()),
            watch: true,
            poll_interval: "1m".parse().ok(),
            ..nothing()
        };
        let expected = ["definitions.dir=/b", "definitions.pattern=*.yaml", "definitions.watch=1m"];
        assert_eq!(settings(&typed, variables), expected);
    }

    #[test]
    fn files_are_watched_every_30_seconds_only_on_request() {
        let watch = Serve { watch: true, ..nothing() };
        assert_eq!(settings(&watch, []), ["definitions.watch=30s"]);
        assert_eq!(settings(&nothing(), [("PRUNNER_WATCH", "false")]), [""; 0]);
        assert_eq!(settings(&nothing(), [("PRUNNER_POLL_INTERVAL", "5s")]), [""; 0]);
    }
}
