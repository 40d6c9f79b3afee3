//! The log of a CI service: `[YYYY-MM-DD HH:MM:SS] [LEVEL] text`, in the time of the host.

use std::fmt::{self, Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::escaped::escaped;

/// One line for each thing that is told.
pub(super) struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARN",
            Level::INFO => "INFO",
            // What is below has no word of its own in this log.
            Level::DEBUG | Level::TRACE => "DEBUG",
        };
        let mut told = Told::default();
        event.record(&mut told);
        // A line is one line, whatever a text of others holds.
        let text = format!("{}{}", told.message, told.rest).replace(['\n', '\r'], " ");
        let text = escaped(&text);
        let time = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
        writeln!(writer, "[{time}] [{level}] {text}")
    }
}

/// The text of an event, and what else is to be said. Dotted names are for machines: the text has
/// them.
#[derive(Default)]
struct Told {
    message: String,
    rest: String,
}

impl Visit for Told {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // A String takes whatever is written to it.
        match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name if name.contains('.') => Ok(()),
            name => write!(self.rest, " {name}={value:?}"),
        }
        .unwrap_or_default();
    }
}
