//! The display of a run in this process: JSON, plain text or a live view.

use std::collections::HashMap;

use protocol::event::Reason;
use protocol::id::{RunId, StepName};
use protocol::pipeline::Pipeline;

use super::exit::Failure;
use super::output::Style;
use super::screen::{Screen, Size};
use super::view::{Piece, PlainView, StepErrors, json_line};
use super::writer::Writer;
use crate::client::{LogItem, Missing};

/// The display of a run. If standard output fails, the display stops but the run continues.
pub(super) struct RunView {
    form: ViewForm,
    /// A title to print once before a step.
    titles: HashMap<StepName, String>,
    pub(super) writer: Writer,
}

enum ViewForm {
    /// One event per line.
    Json,
    /// Plain text.
    Plain(PlainView),
    /// A live view on a terminal.
    Screen(Screen),
}

impl RunView {
    pub(super) fn new(
        style: Style,
        pipeline: &Pipeline,
        run: &RunId,
        titles: HashMap<StepName, String>,
    ) -> Result<Self, Failure> {
        let writer = Writer::start(style)?;
        let form = if style.json {
            ViewForm::Json
        } else if style.terminal {
            ViewForm::Screen(Screen::new(pipeline, style.colour, size(), now()))
        } else {
            let text = format!("[bob] run {run} of {}/{}\n", pipeline.group, pipeline.name);
            writer.send(Piece::Err(text.into_bytes()));
            ViewForm::Plain(PlainView::new(StepErrors::Apart, None, style))
        };
        Ok(Self { form, titles, writer })
    }

    pub(super) fn show(&mut self, item: &LogItem) {
        if let LogItem::State(event) = item
            && matches!(event.reason, Reason::StepStarted { .. })
            && let Some(title) = event.step.as_ref().and_then(|step| self.titles.remove(step))
        {
            self.report(&title);
        }
        let pieces = match &mut self.form {
            ViewForm::Json => vec![json_line(item)],
            ViewForm::Plain(plain) => plain.on(item),
            ViewForm::Screen(screen) => vec![Piece::Out(screen.on(item, now()))],
        };
        self.write(pieces);
    }

    /// Redraws the elapsed times on a terminal, unless output is blocked.
    pub(super) fn tick(&mut self) {
        if let ViewForm::Screen(screen) = &mut self.form
            && self.writer.has_room()
        {
            let bytes = screen.tick(size(), now());
            self.write(vec![Piece::Out(bytes)]);
        }
    }

    pub(super) fn report(&mut self, text: &str) {
        let piece = match &mut self.form {
            ViewForm::Plain(plain) => plain.note(text),
            // The live view must not be overwritten.
            ViewForm::Screen(screen) if self.writer.unwritten().is_none() => {
                Piece::Out(screen.print(text, now()))
            }
            ViewForm::Json | ViewForm::Screen(_) => {
                Piece::Err(format!("[bob] {text}\n").into_bytes())
            }
        };
        self.write(vec![piece]);
    }

    fn write(&mut self, pieces: Vec<Piece>) {
        pieces.into_iter().for_each(|piece| self.writer.send(piece));
    }

    pub(super) fn end(&mut self, missing: &[Missing]) {
        self.tick();
        for missing in missing {
            self.report(&format!("missing: {missing}"));
        }
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn size() -> Size {
    // Some terminals report a size of 0.
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            Size { columns: usize::from(size.ws_col), rows: usize::from(size.ws_row) }
        }
        Ok(_) | Err(_) => Size { columns: 80, rows: 24 },
    }
}
