//! The log format of a CI service: `[YYYY-MM-DD HH:MM:SS] [LEVEL] text`, in local time.

use std::fmt::{self, Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::escaped::escaped;

/// Formats each event as one line.
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
            // This format has no lower level.
            Level::DEBUG | Level::TRACE => "DEBUG",
        };
        let mut told = EventFields::default();
        event.record(&mut told);
        // Line breaks in external text must not produce more lines.
        let text = format!("{}{}", told.message, told.rest).replace(['\n', '\r'], " ");
        let text = escaped(&text);
        let time = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
        writeln!(writer, "[{time}] [{level}] {text}")
    }
}

/// The message of an event, and its other fields. Dotted names are for machines; the message
/// already contains their values.
#[derive(Default)]
struct EventFields {
    message: String,
    rest: String,
}

impl Visit for EventFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a String cannot fail.
        match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name if name.contains('.') => Ok(()),
            name => write!(self.rest, " {name}={value:?}"),
        }
        .unwrap_or_default();
    }
}
