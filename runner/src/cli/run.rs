//! `run`: one file, here and now, in this process.

use std::time::Duration;

use futures::StreamExt as _;
use protocol::id::RunId;
use protocol::pipeline::{Pipeline, Vars};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::args::Run;
use super::exit::{Exit, Failure};
use super::output::{self, Style};
use super::screen::{Screen, Size};
use super::signals::Signals;
use super::view::{Piece, Plain, StepErrors};
use super::{Context, Talk, files};
use crate::app;
use crate::app::client::{Client, Item, Outcome, Reader};

/// How often the times on a terminal are drawn anew.
const FRAME: Duration = Duration::from_millis(250);

pub(super) async fn run(context: &Context, typed: Run) -> Result<Exit, Failure> {
    let config = context.config(Talk::Hardly)?;
    let pipeline = files::the_one(context, &typed.file)?;
    let vars: Vars = typed.vars.into_iter().collect();
    let run = typed.run_id.unwrap_or_else(Client::new_run_id);
    let mut signals = Signals::listen()?;
    let mut view = View::new(context.style, &pipeline, &run);
    let mut here = tokio::select! {
        here = app::run_here(&config, &pipeline, &vars, &run, None) => here?,
        // Nothing of it runs yet.
        signal = signals.next() => return Ok(signal),
    };
    let mut reader = Reader::new(run.clone());
    let mut asked = None;
    let mut frames = frames();
    while reader.ending().is_none() {
        tokio::select! {
            message = here.events.next() => {
                let Some(message) = message else {
                    return Err(Failure::new(Exit::Failed, format!("the events of run {run} broke off")));
                };
                let message = message.map_err(|cause| Failure::new(Exit::Failed, cause.to_string()))?;
                if let Some(item) = message.event().and_then(|event| reader.on(event)) {
                    view.show(&item);
                }
            }
            signal = signals.next() => match asked.replace(signal) {
                None => {
                    view.say("stopping the run; once more ends the program at once, and may leave containers");
                    here.stop("interrupted").await?;
                }
                Some(_) => return Ok(signal),
            },
            _ = frames.tick() => view.tick(),
        }
    }
    let end = here.end();
    tokio::select! {
        () = end => {}
        signal = signals.next() => return Ok(signal),
    }
    if let Some(ending) = reader.ending() {
        view.end(&Outcome::Ended(ending, reader.missing()));
        return Ok(asked.unwrap_or_else(|| Exit::of_run(ending.status)));
    }
    Ok(Exit::Failed)
}

fn frames() -> Interval {
    let mut frames = interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
    frames
}

/// How a run is shown. Standard output that nobody reads any more ends the showing, not the run.
enum View {
    /// One event a line.
    Json,
    /// As it comes.
    Plain(Plain),
    /// On a terminal.
    Screen(Screen),
    /// Nobody looks.
    Gone,
}

impl View {
    fn new(style: Style, pipeline: &Pipeline, run: &RunId) -> Self {
        if style.json {
            return Self::Json;
        }
        if style.terminal {
            return Self::Screen(Screen::new(pipeline, style.colour, size(), now()));
        }
        output::message(&format!("[bob] run {run} of {}/{}", pipeline.group, pipeline.name));
        Self::Plain(Plain::new(StepErrors::Apart, None, style.colour_err))
    }

    fn show(&mut self, item: &Item) {
        let written = match self {
            Self::Json => json_line(item),
            Self::Plain(plain) => pieces(plain.on(item)),
            Self::Screen(screen) => output::data(&screen.on(item, now())),
            Self::Gone => Ok(()),
        };
        if written.is_err() {
            *self = Self::Gone;
        }
    }

    fn tick(&mut self) {
        if let Self::Screen(screen) = self
            && output::data(&screen.tick(size(), now())).is_err()
        {
            *self = Self::Gone;
        }
    }

    fn say(&mut self, text: &str) {
        match self {
            // What stands below the output on a terminal must not be written over.
            Self::Screen(screen) => {
                if output::data(&screen.say(text, now())).is_err() {
                    *self = Self::Gone;
                }
            }
            Self::Json | Self::Plain(_) | Self::Gone => output::message(&format!("[bob] {text}")),
        }
    }

    fn end(&mut self, outcome: &Outcome) {
        self.tick();
        if let Outcome::Ended(_, missing) = outcome {
            for missing in missing {
                self.say(&format!("missing: {missing}"));
            }
        }
    }
}

/// An event as it stands on the stream.
pub(super) fn json_line(item: &Item) -> Result<(), Failure> {
    let mut bytes = match item {
        Item::State(event) => event.to_json(),
        Item::Text(text) => text.event.to_json(),
        Item::Missing(missing) => {
            output::message(&format!("[bob] missing: {missing}"));
            return Ok(());
        }
    };
    bytes.push(b'\n');
    output::data(&bytes)
}

/// Writes what a view has made of an item.
pub(super) fn pieces(pieces: Vec<Piece>) -> Result<(), Failure> {
    for piece in pieces {
        match piece {
            Piece::Out(bytes) => output::data(&bytes)?,
            Piece::Err(bytes) => output::aside(&bytes),
        }
    }
    Ok(())
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn size() -> Size {
    // A terminal that does not know its size says 0.
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            Size { columns: usize::from(size.ws_col), rows: usize::from(size.ws_row) }
        }
        Ok(_) | Err(_) => Size { columns: 80, rows: 24 },
    }
}
