//! Fields of a log for people, without what would act on their terminal.

use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::debug_fn;

/// Writes the text, then `name=value` of each field. Control characters are escaped: a response of a
/// service could otherwise move the cursor, or forge a line of the log.
pub(super) fn fields() -> impl for<'a> FormatFields<'a> + Send + Sync + 'static {
    let one = debug_fn(|writer, field, value| {
        let value = escaped(&format!("{value:?}"));
        match field.name() {
            "message" => write!(writer, "{value}"),
            name => write!(writer, "{name}={value}"),
        }
    });
    one.delimited(" ")
}

/// The same text with its control characters as escapes.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            escaped.extend(c.escape_debug());
        } else {
            escaped.push(c);
        }
    }
    escaped
}
