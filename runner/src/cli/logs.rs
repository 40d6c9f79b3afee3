//! `logs` and `events`: read the stream by the reader's rules of docs/wire.md section 4.

use std::time::Duration;

use protocol::event::Event;
use protocol::id::RunId;
use protocol::time::{Millis, Stamp};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::Context;
use super::args::{Events, Logs};
use super::exit::{Exit, Failure};
use super::output::{self, Ink, one_line};
use super::run::{json_line, pieces};
use super::signals::Signals;
use super::view::{Plain, StepErrors};
use crate::app::Position;
use crate::app::client::{Client, Ending, Item, LogTail, Missing, Outcome, PastRetention};

pub(super) async fn logs(context: &Context, typed: &Logs) -> Result<Exit, Failure> {
    let client = context.client()?;
    let mut tail = client.log(&typed.run, typed.follow, None).await?;
    let checked = match (&typed.step, tail.record()) {
        (Some(step), Some(known)) => known.check_step(step).map(|()| true)?,
        (Some(_), None) | (None, _) => false,
    };
    if typed.follow && !tail.is_known() {
        say_unknown(&typed.run);
    }
    let errors = if typed.stderr { StepErrors::Apart } else { StepErrors::WithOutput };
    let plain = Plain::new(errors, typed.step.clone(), context.style);
    let read = read(context, &mut tail, plain, &typed.run).await?;
    if !tail.is_known() && !matches!(read, Read::Signal(_)) {
        return Err(crate::app::client::Error::UnknownRun(typed.run.clone()).into());
    }
    let exit = match read {
        Read::Signal(exit) => return Ok(exit),
        Read::Ended(_) | Read::CaughtUp => Exit::Ok,
        Read::Incomplete(_) => Exit::Failed,
    };
    // The run was accepted only while its log was followed.
    if let (false, Some(step)) = (checked, &typed.step)
        && let Ok(known) = client.run(&typed.run).await
    {
        known.check_step(step)?;
    }
    Ok(exit)
}

fn say_unknown(run: &RunId) {
    output::message(&format!("[bob] run {run} is not known yet; waiting for it"));
}

/// Follows a run that was just submitted, and returns its result.
pub(super) async fn follow_submitted(
    context: &Context,
    client: &Client,
    run: &RunId,
    sent: Millis,
) -> Result<Exit, Failure> {
    let mut tail = client.log(run, true, Some(sent)).await?;
    let plain = Plain::new(StepErrors::WithOutput, None, context.style);
    Ok(match read(context, &mut tail, plain, run).await? {
        Read::Ended(ending) | Read::Incomplete(Some(ending)) => Exit::of_run(ending.status),
        // If the stream lacks the ending event, the record has the result.
        Read::CaughtUp | Read::Incomplete(None) => {
            Exit::of_run(client.run(run).await?.record.status)
        }
        Read::Signal(exit) => exit,
    })
}

/// How long to wait for a worker to accept the run before a note is printed.
const PATIENCE: Duration = Duration::from_secs(5);

/// How reading a log ended.
enum Read {
    Ended(Ending),
    /// The run is still in progress, and the log is not followed.
    CaughtUp,
    /// A published event is missing.
    Incomplete(Option<Ending>),
    Signal(Exit),
}

async fn read(
    context: &Context,
    tail: &mut LogTail,
    mut plain: Plain,
    run: &RunId,
) -> Result<Read, Failure> {
    let mut signals = Signals::listen()?;
    let patience = tokio::time::sleep(PATIENCE);
    tokio::pin!(patience);
    let mut is_patient = true;
    loop {
        let item = tokio::select! {
            item = tail.next() => item?,
            signal = signals.next() => {
                let text = format!("run {run} goes on; `bob-runner stop {run}` ends it");
                pieces(vec![plain.note(&text)])?;
                return Ok(Read::Signal(signal));
            }
            () = &mut patience, if is_patient => {
                is_patient = false;
                if !tail.is_known() {
                    let text = format!(
                        "no worker has taken run {run} yet; `bob-runner nodes` lists them"
                    );
                    pieces(vec![plain.note(&text)])?;
                }
                continue;
            }
        };
        let Some(item) = item else { break };
        pieces(if context.style.json { vec![json_line(&item)] } else { plain.on(&item) })?;
    }
    let outcome = tail.outcome().cloned().unwrap_or(Outcome::CaughtUp);
    Ok(match outcome {
        Outcome::CaughtUp => Read::CaughtUp,
        Outcome::Ended(ending, missing) if missing.is_empty() => Read::Ended(ending),
        Outcome::Ended(ending, missing) => {
            warn_of_missing(context, tail, run, &missing).await?;
            Read::Incomplete(Some(ending))
        }
        Outcome::GaveUp(missing) => {
            warn_of_missing(context, tail, run, &missing).await?;
            Read::Incomplete(None)
        }
    })
}

/// Reports missing parts of a log, and whether the stream has dropped them by retention.
async fn warn_of_missing(
    context: &Context,
    tail: &LogTail,
    run: &RunId,
    missing: &[Missing],
) -> Result<(), Failure> {
    if let Some(PastRetention { oldest }) = tail.past_retention().await? {
        let oldest = oldest.map_or_else(
            || "the stream is empty".to_owned(),
            |at| format!("its oldest event is from {}", Stamp(at)),
        );
        context.warn(&format!("the log of run {run} is past the stream's retention: {oldest}"));
    }
    for missing in missing {
        context.warn(&format!("the log of run {run} lacks {missing}"));
    }
    Ok(())
}

pub(super) async fn events(context: &Context, typed: &Events) -> Result<Exit, Failure> {
    let client = context.client()?;
    if let Some(run) = &typed.run {
        return events_of_run(context, &client, run, typed.follow).await;
    }
    let from = match typed.since {
        Some(span) => Position::Since(client.ago(span.as_duration())),
        None if typed.new => Position::Next,
        None => Position::First,
    };
    let mut tail = client.events(from, typed.follow).await?;
    let mut signals = Signals::listen()?;
    loop {
        let message = tokio::select! {
            message = tail.next() => message?,
            signal = signals.next() => return Ok(signal),
        };
        let Some(message) = message else { return Ok(Exit::Ok) };
        // The body is printed as published, including fields unknown to this version.
        let is_line = !message.body.contains(&b'\n');
        if context.style.json
            && is_line
            && serde_json::from_slice::<IgnoredAny>(&message.body).is_ok()
        {
            output::data(&[message.body.as_slice(), b"\n".as_slice()].concat())?;
            continue;
        }
        match message.event() {
            Some(event) => event_line(context, &event)?,
            None => match strange(&message.body) {
                Some(line) => output::line(&line)?,
                None => context.warn(&format!(
                    "message {} of the stream is no event ({} bytes)",
                    message.offset,
                    message.body.len()
                )),
            },
        }
    }
}

async fn events_of_run(
    context: &Context,
    client: &Client,
    run: &RunId,
    follow: bool,
) -> Result<Exit, Failure> {
    let mut tail = client.log(run, follow, None).await?;
    if follow && !tail.is_known() {
        say_unknown(run);
    }
    let mut signals = Signals::listen()?;
    loop {
        let item = tokio::select! {
            item = tail.next() => item?,
            signal = signals.next() => return Ok(signal),
        };
        match item {
            Some(Item::State(event)) => event_line(context, &event)?,
            Some(Item::Text(text)) => event_line(context, &text.event)?,
            Some(Item::Missing(missing)) => context.warn(&format!("{missing} is missing")),
            None => break,
        }
    }
    if !tail.is_known() {
        return Err(crate::app::client::Error::UnknownRun(run.clone()).into());
    }
    match tail.outcome() {
        Some(Outcome::GaveUp(missing) | Outcome::Ended(_, missing)) if !missing.is_empty() => {
            warn_of_missing(context, &tail, run, missing).await?;
            Ok(Exit::Failed)
        }
        Some(_) | None => Ok(Exit::Ok),
    }
}

/// Formats an event whose reason or kind is unknown to this version.
fn strange(body: &[u8]) -> Option<String> {
    let all: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let text = |key: &str| all.get(key).and_then(Value::as_str);
    let at = Stamp(Millis(all.get("at").and_then(Value::as_i64)?));
    let run = text("run-id").unwrap_or("-");
    let step = text("step").map(|step| format!(" step {step}:")).unwrap_or_default();
    let message = text("message").unwrap_or_default();
    Some(one_line(&format!("{at} {:<20} {run}{step} {message}", text("reason")?)))
}

fn event_line(context: &Context, event: &Event) -> Result<(), Failure> {
    if context.style.json {
        let mut bytes = event.to_json();
        bytes.push(b'\n');
        return output::data(&bytes);
    }
    use protocol::event::Severity;
    let ink = match event.severity {
        Severity::Normal => Ink::Plain,
        Severity::Warning => Ink::Yellow,
        Severity::Error => Ink::Red,
    };
    let reason = serde_json::to_value(&event.reason).ok();
    let reason = reason.as_ref().and_then(|value| value.get("reason")?.as_str()).unwrap_or("?");
    let run = event.run_id.as_ref().map_or("-", RunId::as_str);
    let step = event.step.as_ref().map(|step| format!(" step {step}:")).unwrap_or_default();
    let line = format!("{} {reason:<20} {run}{step} {}", Stamp(event.at), one_line(&event.message));
    output::line(&ink.paint(&line, context.style.colour))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_later_version_has_a_line_too() {
        let body = br#"{"at":0,"type":"Normal","kind":"Moon","reason":"MoonRises","run-id":"r-1","message":"up\nit goes","new":[1]}"#;
        let line = strange(body).unwrap();
        assert_eq!(line, "1970-01-01T00:00:00.000Z MoonRises            r-1 up it goes");
        for no_event in ["", "7", "{}", r#"{"reason":"X"}"#, r#"{"at":1}"#, "\u{0}"] {
            assert_eq!(strange(no_event.as_bytes()), None, "{no_event}");
        }
    }
}
