//! `doctor`: checks this machine and the services it needs.

use super::context::{Context, DefaultVerbosity};
use super::exit::{Exit, Failure};
use super::output::{self, TextStyle, one_line};
use crate::app::doctor::{Level, examine};

pub(super) async fn doctor(context: &Context) -> Result<Exit, Failure> {
    let config = context.config(DefaultVerbosity::Little)?;
    let checks = Box::pin(examine(&config)).await;
    if context.style.json {
        output::document(&checks)?;
    } else {
        for check in &checks {
            let (word, ink) = match check.level {
                Level::Ok => ("OK  ", TextStyle::Green),
                Level::Warn => ("WARN", TextStyle::Yellow),
                Level::Fail => ("FAIL", TextStyle::Red),
            };
            let word = ink.paint(word, context.style.colour);
            output::line(&format!("{word} {:<15} {}", check.name, one_line(&check.found)))?;
            if let Some(advice) = &check.advice {
                output::line(&format!("{:21}to do: {}", "", one_line(advice)))?;
            }
        }
    }
    let fails = checks.iter().any(|check| check.level == Level::Fail);
    Ok(if fails { Exit::Unavailable } else { Exit::Ok })
}
