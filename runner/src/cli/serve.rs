//! `serve`: runs the worker as a service.

use futures::FutureExt as _;

use super::args::Serve;
use super::context::{Context, DefaultVerbosity, log_form};
use super::exit::{Exit, Failure};
use super::output::message;
use super::signals::Signals;
use crate::app;
use crate::telemetry;

pub(super) async fn serve(context: &Context, typed: Serve) -> Result<Exit, Failure> {
    let mut flags = context.flags.clone();
    flags.set.extend(typed.mode.map(|mode| format!("mode={mode}")));
    let context = Context { flags, style: context.style, environment: context.environment.clone() };
    let config = context.config(DefaultVerbosity::Much)?;
    let mut signals = Signals::listen()?;
    let form = telemetry::effective_form(log_form(&config));
    let shutdown = app::Shutdown::default();
    let serving = app::serve(&config, shutdown.clone());
    tokio::pin!(serving);
    for asked in 1_u32.. {
        let signal = tokio::select! {
            served = &mut serving => {
                served?;
                return Ok(Exit::Ok);
            }
            signal = signals.next() => signal,
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
