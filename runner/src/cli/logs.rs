//! `logs` and `events`: read the stream by the reader's rules of docs/wire.md section 4.

use std::time::Duration;

use protocol::event::Event;
use protocol::id::RunId;
use protocol::names;
use protocol::time::{Millis, Timestamp};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::args::{Events, Logs};
use super::context::Context;
use super::display::{Display, Next};
use super::exit::{Exit, Failure};
use super::log_view::{LogView, Selection};
use super::output::{self, TextStyle, one_line};
use super::view::{Piece, PlainView, StepErrors};
use crate::app::Position;
use crate::client::{
    BeforeStart, Client, Ending, EventTail, LogItem, LogTail, Missing, Outcome, PastRetention,
    Progress,
};

pub(super) async fn logs(context: &Context, typed: &Logs) -> Result<Exit, Failure> {
    let client = context.client()?;
    let mut tail = client.log(&typed.run, typed.follow, None).await?;
    let checked = match (&typed.step, tail.record()) {
        (Some(step), Some(known)) => known.check_step(step).map(|()| true)?,
        (Some(_), None) | (None, _) => false,
    };
    if typed.follow && !tail.is_known() {
        report_unknown(&typed.run);
    }
    let errors = if typed.stderr { StepErrors::Apart } else { StepErrors::WithOutput };
    let plain = PlainView::new(errors, typed.step.clone(), context.style);
    let mut view = LogView::whole(plain, context.style).selected(Selection {
        since: typed.since.map(|span| client.ago(span.as_duration())),
        tail: typed.tail,
        step: typed.step.clone(),
    });
    if typed.timestamps {
        view = view.with_times();
    }
    let read = read(context, &mut tail, view, &typed.run).await?;
    if !tail.is_known() && !matches!(read, Read::Signal(_)) {
        return Err(crate::client::Error::UnknownRun(typed.run.clone()).into());
    }
    let exit = match read {
        Read::Signal(exit) => return Ok(exit),
        Read::Ended(_) | Read::CaughtUp => Exit::Ok,
        Read::Incomplete(_) | Read::Rejected(_) => Exit::Failed,
    };
    // The run was accepted only while its log was followed.
    if let (false, Some(step)) = (checked, &typed.step)
        && let Ok(known) = client.run(&typed.run).await
    {
        known.check_step(step)?;
    }
    Ok(exit)
}

fn report_unknown(run: &RunId) {
    output::message(&format!("[bob] run {run} is not known yet; waiting for it"));
}

/// Follows a run that was just submitted, and returns its result.
pub(super) async fn follow_submitted(
    context: &Context,
    client: &Client,
    run: &RunId,
    sent: BeforeStart,
) -> Result<Exit, Failure> {
    let mut tail = client.log(run, true, Some(sent)).await?;
    let plain = PlainView::new(StepErrors::WithOutput, None, context.style);
    let view = LogView::whole(plain, context.style);
    Ok(match read(context, &mut tail, view, run).await? {
        Read::Ended(ending) | Read::Incomplete(Some(ending)) => Exit::of_run(ending.status),
        // If the stream lacks the ending event, the record has the result.
        Read::CaughtUp | Read::Incomplete(None) => {
            Exit::of_run(client.run(run).await?.record.status)
        }
        Read::Signal(exit) => exit,
        Read::Rejected(why) => {
            return Err(Failure::new(Exit::Invalid, format!("run {run} was rejected: {why}")));
        }
    })
}

/// How long to wait for a worker to accept the run before a note is printed.
const PATIENCE: Duration = Duration::from_secs(5);
/// The interval between further notes.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// How reading a log ended.
enum Read {
    Ended(Ending),
    /// The run is still in progress, and the log is not followed.
    CaughtUp,
    /// A published event is missing.
    Incomplete(Option<Ending>),
    /// The start was rejected, with this message.
    Rejected(String),
    Signal(Exit),
}

/// Why a run may be unknown. A start that is dead-lettered by the broker causes no event.
fn not_taken(run: &RunId) -> String {
    format!(
        "no worker has taken run {run} yet; `bob-runner nodes` lists the workers, and a start that \
         was returned to its queue too often is in {}",
        names::DEAD_LETTER_QUEUE
    )
}

async fn read(
    context: &Context,
    tail: &mut LogTail,
    mut view: LogView,
    run: &RunId,
) -> Result<Read, Failure> {
    let mut display = Display::start(context)?;
    let shown = show(&mut display, tail, &mut view, run).await;
    if let Ok(Read::Signal(_)) = shown {
        let text = format!("run {run} continues; `bob-runner stop {run}` stops it");
        display.send(view.note(&text));
        display.end_soon().await;
        return shown;
    }
    // What came before an error is shown before it.
    match display.end().await? {
        Some(signal) => Ok(Read::Signal(signal)),
        None => shown,
    }
}

async fn show(
    display: &mut Display<'_>,
    tail: &mut LogTail,
    view: &mut LogView,
    run: &RunId,
) -> Result<Read, Failure> {
    let mut notes = tokio::time::interval_at(Instant::now() + PATIENCE, NOTE_EVERY);
    loop {
        let is_unknown = !tail.is_known();
        let next = async {
            tokio::select! {
                progress = tail.progress() => Some(progress),
                _ = notes.tick(), if is_unknown => None,
            }
        };
        let progress = match display.next(next).await? {
            Next::Item(Some(progress)) => progress?,
            Next::Item(None) => {
                if !tail.is_known() {
                    display.send(view.note(&not_taken(run)));
                }
                continue;
            }
            Next::Signal(signal) => return Ok(Read::Signal(signal)),
        };
        let pieces = match progress {
            Progress::Item(item) => view.on(item),
            Progress::CaughtUp => view.caught_up(),
            Progress::End => break,
        };
        pieces.into_iter().for_each(|piece| display.send(piece));
    }
    view.caught_up().into_iter().for_each(|piece| display.send(piece));
    let outcome = tail.outcome().cloned().unwrap_or(Outcome::CaughtUp);
    Ok(match outcome {
        Outcome::CaughtUp => Read::CaughtUp,
        Outcome::Ended(ending, missing) if missing.is_empty() => Read::Ended(ending),
        Outcome::Ended(ending, missing) => {
            warn_of_missing(display, tail, run, &missing).await?;
            Read::Incomplete(Some(ending))
        }
        Outcome::GaveUp(missing) => {
            warn_of_missing(display, tail, run, &missing).await?;
            Read::Incomplete(None)
        }
        Outcome::Rejected(why) => Read::Rejected(why),
    })
}

/// Reports missing parts of a log, and whether the stream has dropped them by retention.
async fn warn_of_missing(
    display: &mut Display<'_>,
    tail: &LogTail,
    run: &RunId,
    missing: &[Missing],
) -> Result<(), Failure> {
    if let Some(PastRetention { oldest }) = tail.past_retention().await? {
        let oldest = oldest.map_or_else(
            || "the stream is empty".to_owned(),
            |at| format!("its oldest event is from {}", Timestamp(at)),
        );
        display.warn(&format!("the log of run {run} is past the stream's retention: {oldest}"));
    }
    for missing in missing {
        display.warn(&format!("the log of run {run} lacks {missing}"));
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
    let mut display = Display::start(context)?;
    let shown = show_events(context, &mut display, &mut tail).await;
    ended(display, shown).await
}

/// Ends the output of `events`. What came before an error is shown before it.
async fn ended(display: Display<'_>, shown: Result<Next<Exit>, Failure>) -> Result<Exit, Failure> {
    if let Ok(Next::Signal(signal)) = shown {
        display.end_soon().await;
        return Ok(signal);
    }
    match (display.end().await?, shown?) {
        (Some(exit), _) | (None, Next::Item(exit) | Next::Signal(exit)) => Ok(exit),
    }
}

async fn show_events(
    context: &Context,
    display: &mut Display<'_>,
    tail: &mut EventTail,
) -> Result<Next<Exit>, Failure> {
    loop {
        let message = match display.next(tail.next()).await? {
            Next::Item(message) => message?,
            Next::Signal(signal) => return Ok(Next::Signal(signal)),
        };
        let Some(message) = message else { return Ok(Next::Item(Exit::Ok)) };
        // The body is printed as published, including fields unknown to this version.
        let is_line = !message.body.contains(&b'\n');
        if context.style.json
            && is_line
            && serde_json::from_slice::<IgnoredAny>(&message.body).is_ok()
        {
            display.send(Piece::Out([message.body.as_slice(), b"\n".as_slice()].concat()));
            continue;
        }
        match message.event() {
            Some(event) => display.send(event_line(context, &event)),
            None => match format_unknown(&message.body) {
                Some(line) => display.send(Piece::Out(format!("{line}\n").into_bytes())),
                None => display.warn(&format!(
                    "message {} of the stream is not an event ({} bytes)",
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
    // Before the note: whoever reads it can send a signal.
    let mut display = Display::start(context)?;
    if follow && !tail.is_known() {
        report_unknown(run);
    }
    let shown = show_events_of_run(context, &mut display, &mut tail, run).await;
    ended(display, shown).await
}

async fn show_events_of_run(
    context: &Context,
    display: &mut Display<'_>,
    tail: &mut LogTail,
    run: &RunId,
) -> Result<Next<Exit>, Failure> {
    loop {
        let item = match display.next(tail.next()).await? {
            Next::Item(item) => item?,
            Next::Signal(signal) => return Ok(Next::Signal(signal)),
        };
        match item {
            Some(LogItem::State(event)) => display.send(event_line(context, &event)),
            Some(LogItem::Text(text)) => display.send(event_line(context, &text.event)),
            Some(LogItem::Missing(missing)) => display.warn(&format!("{missing} is missing")),
            None => break,
        }
    }
    if !tail.is_known() {
        return Err(crate::client::Error::UnknownRun(run.clone()).into());
    }
    match tail.outcome() {
        Some(Outcome::GaveUp(missing) | Outcome::Ended(_, missing)) if !missing.is_empty() => {
            warn_of_missing(display, tail, run, missing).await?;
            Ok(Next::Item(Exit::Failed))
        }
        Some(_) | None => Ok(Next::Item(Exit::Ok)),
    }
}

/// Formats an event whose reason or kind is unknown to this version.
fn format_unknown(body: &[u8]) -> Option<String> {
    let all: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let text = |key: &str| all.get(key).and_then(Value::as_str);
    let at = Timestamp(Millis(all.get("at").and_then(Value::as_i64)?));
    let run = text("run-id").unwrap_or("-");
    let step = text("step").map(|step| format!(" step {step}:")).unwrap_or_default();
    let message = text("message").unwrap_or_default();
    Some(one_line(&format!("{at} {:<20} {run}{step} {message}", text("reason")?)))
}

fn event_line(context: &Context, event: &Event) -> Piece {
    if context.style.json {
        let mut bytes = event.to_json();
        bytes.push(b'\n');
        return Piece::Out(bytes);
    }
    use protocol::event::Severity;
    let ink = match event.severity {
        Severity::Normal => TextStyle::Plain,
        Severity::Warning => TextStyle::Yellow,
        Severity::Error => TextStyle::Red,
    };
    let reason = serde_json::to_value(&event.reason).ok();
    let reason = reason.as_ref().and_then(|value| value.get("reason")?.as_str()).unwrap_or("?");
    let run = event.run_id.as_ref().map_or("-", RunId::as_str);
    let step = event.step.as_ref().map(|step| format!(" step {step}:")).unwrap_or_default();
    let line =
        format!("{} {reason:<20} {run}{step} {}", Timestamp(event.at), one_line(&event.message));
    Piece::Out(format!("{}\n", ink.paint(&line, context.style.colour)).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_later_version_is_shown() {
        let body = br#"{"at":0,"type":"Normal","kind":"Moon","reason":"MoonRises","run-id":"r-1","message":"up\nit goes","new":[1]}"#;
        let line = format_unknown(body).unwrap();
        assert_eq!(line, "1970-01-01T00:00:00.000Z MoonRises            r-1 up it goes");
        for no_event in ["", "7", "{}", r#"{"reason":"X"}"#, r#"{"at":1}"#, "\u{0}"] {
            assert_eq!(format_unknown(no_event.as_bytes()), None, "{no_event}");
        }
    }
}
