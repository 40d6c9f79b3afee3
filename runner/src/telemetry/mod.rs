//! The program's own log. It goes to standard error, as text or JSON, or to standard output, in the
//! format of a CI service. The output of steps is never part of it.

mod ci;
mod escaped;
mod lines;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::{error, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use self::lines::Lines;

/// The queue of log lines of this process.
static LINES: OnceLock<Lines> = OnceLock::new();

/// The longest time for which unwritten lines delay the end of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Lines of text for people.
    Text,
    /// One JSON object per line.
    Json,
    /// `[YYYY-MM-DD HH:MM:SS] [LEVEL] text`, on standard output.
    Ci,
}

/// Options of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options<'a> {
    /// The most detailed level that is logged: `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub level: &'a str,
    /// The format. With `None`, it is chosen by [`effective_form`].
    pub form: Option<Form>,
    /// Whether text lines are coloured if standard error is a terminal.
    pub colour: bool,
}

/// Verbose libraries, each with the most detailed level that is logged for it.
const VERBOSE_LIBRARIES: [(&str, &str); 8] = [
    ("config", "warn"),
    ("h2", "info"),
    ("hyper", "info"),
    ("hyper_util", "info"),
    ("reqwest", "info"),
    ("rustls", "info"),
    ("tonic", "info"),
    ("tower", "info"),
];

/// Libraries whose errors the program reports itself. They are logged only at `debug` and `trace`.
const SILENCED_LIBRARIES: [&str; 1] = ["lapin"];

/// Returns the rank of a level. A higher rank logs more. An unknown level has the rank of `info`.
fn rank(level: &str) -> usize {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    levels.iter().position(|known| *known == level).unwrap_or(3)
}

fn filter(level: &str) -> EnvFilter {
    // Replaces an unknown level.
    let level = if rank(level) == rank("info") { "info" } else { level };
    let mut directives = level.to_owned();
    for (target, limit) in VERBOSE_LIBRARIES {
        let target_level = if rank(limit) < rank(level) { limit } else { level };
        directives.push_str(&format!(",{target}={target_level}"));
    }
    for target in SILENCED_LIBRARIES {
        let target_level = if rank(level) > rank("info") { "warn" } else { "off" };
        directives.push_str(&format!(",{target}={target_level}"));
    }
    EnvFilter::new(directives)
}

/// Returns the format that is used: `form` if it is set. Otherwise `Text` if standard error is a
/// terminal, and `Json` if it is not.
#[must_use]
pub fn effective_form(form: Option<Form>) -> Form {
    let is_terminal = io::stderr().is_terminal();
    form.unwrap_or(if is_terminal { Form::Text } else { Form::Json })
}

/// Initializes the log of this process.
///
/// # Errors
/// If the log is already initialized.
pub fn init(options: Options<'_>) -> Result<(), TryInitError> {
    let colour = options.colour && io::stderr().is_terminal();
    let form = effective_form(options.form);
    let writer = match form {
        Form::Text | Form::Json => writer(io::stderr(), "standard error", io::stderr),
        Form::Ci => writer(io::stdout(), "standard output", io::stdout),
    };
    match form {
        Form::Text => text(options.level, colour, writer).try_init(),
        Form::Json => json(options.level, writer).try_init(),
        Form::Ci => ci(options.level, writer).try_init(),
    }?;
    log_panics();
    Ok(())
}

/// Logs panics like other errors. The default hook writes to standard error. If that is a full pipe,
/// the write blocks while the panicking thread holds locks.
fn log_panics() {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !tracing::enabled!(tracing::Level::ERROR) {
            return default_hook(panic);
        }
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
        error!(backtrace = backtrace.map(display), "{}", describe_panic(panic));
        flush();
    }));
}

fn describe_panic(panic: &PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let message = payload.downcast_ref::<&str>().copied();
    let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let location = panic.location().map(|at| format!(" at {at}")).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    format!("thread {thread} panicked{location}: {}", message.unwrap_or("no message"))
}

/// Returns a writer that never blocks, or `fallback` if the thread that writes the log cannot be
/// started. `name` is the name of `to` in messages.
fn writer<W>(
    to: impl AsFd,
    name: &'static str,
    fallback: impl for<'a> MakeWriter<'a, Writer = W> + Send + Sync + 'static,
) -> BoxMakeWriter
where
    W: io::Write,
{
    if let Some(lines) = LINES.get() {
        return BoxMakeWriter::new(lines.clone());
    }
    // Write through a duplicate. A blocked write to `Stderr` or `Stdout` would hold its lock.
    let started = to.as_fd().try_clone_to_owned().and_then(|duplicate| {
        Lines::start(File::from(duplicate), move |dropped| {
            warn!(
                dropped,
                "{dropped} log lines were dropped because {name} did not accept them in time"
            );
        })
    });
    match started {
        Ok(lines) => BoxMakeWriter::new(LINES.get_or_init(|| lines).clone()),
        Err(_) => BoxMakeWriter::new(fallback),
    }
}

/// Queues a line as it is, after the log lines that are already queued. Returns `false` if the log has
/// no queue, for example because it is not initialized yet.
#[must_use]
pub fn print(line: &str) -> bool {
    let Some(lines) = LINES.get() else { return false };
    lines.push(format!("{line}\n").as_bytes());
    true
}

/// Waits until all queued lines are written, for at most [`FLUSH_TIMEOUT`]. Returns `false` if that is
/// not enough, for example if the log is a full pipe.
pub fn flush() -> bool {
    LINES.get().is_none_or(|lines| lines.flush(FLUSH_TIMEOUT))
}

fn text<W>(level: &str, colour: bool, writer: W) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        // `tracing-subscriber` would print these errors to standard error, and panic if that is closed.
        .log_internal_errors(false)
        .fmt_fields(escaped::fields())
        .with_ansi(colour)
        .with_writer(writer)
        .with_target(rank(level) > rank("info"))
        .finish()
}

fn json<W>(level: &str, writer: W) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_env_filter(filter(level))
        // `tracing-subscriber` would print these errors to standard error, and panic if that is closed.
        .log_internal_errors(false)
        .with_writer(writer)
        .finish()
}

fn ci<W>(level: &str, writer: W) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .log_internal_errors(false)
        .event_format(ci::Lines)
        .with_env_filter(filter(level))
        .with_writer(writer)
        .finish()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn log_examples(log: impl tracing::Subscriber + Send + Sync) {
        tracing::subscriber::with_default(log, || {
            tracing::info!(run.id = "r-1", "a run was claimed");
            tracing::debug!("a detail");
            tracing::debug!(target: "config", "noise of a library");
        });
    }

    /// Runs itself again in a child process, because a panic hook is global.
    #[test]
    fn a_panic_is_logged_as_one_line() {
        const CHILD: &str = "BOB_TEST_PANICS";
        if std::env::var_os(CHILD).is_some() {
            init(Options { level: "info", form: Some(Form::Json), colour: false }).unwrap();
            panic!("a test of panics");
        }
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "telemetry::tests::a_panic_is_logged_as_one_line", "--nocapture"])
            .env(CHILD, "1")
            .env_remove("RUST_BACKTRACE")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&child.stderr);
        let lines: Vec<&str> = stderr.lines().filter(|line| line.contains("panic")).collect();
        let [line] = lines[..] else { panic!("{stderr}") };
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let message = line["message"].as_str().unwrap();
        assert!(message.contains("panicked at runner/src/telemetry/mod.rs"), "{message}");
        assert!(message.ends_with(": a test of panics"), "{message}");
        assert_eq!(line.get("backtrace"), None);
    }

    #[test]
    fn a_json_log_has_one_object_per_line() {
        let sink = Sink::default();
        let writer = sink.clone();
        log_examples(json("info", move || writer.clone()));
        let text = sink.text();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["message"], "a run was claimed");
        assert_eq!(line["run.id"], "r-1");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn the_debug_level_does_not_apply_to_verbose_libraries() {
        let sink = Sink::default();
        let writer = sink.clone();
        log_examples(text("debug", false, move || writer.clone()));
        let text = sink.text();
        assert!(text.contains("a detail"), "{text}");
        assert!(!text.contains("noise"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn errors_of_silenced_libraries_are_logged_only_at_debug_and_trace() {
        for (level, lines) in [("error", 0), ("warn", 0), ("info", 0), ("debug", 1), ("trace", 1)] {
            let sink = Sink::default();
            let writer = sink.clone();
            tracing::subscriber::with_default(json(level, move || writer.clone()), || {
                tracing::error!(target: "lapin::io_loop", "aborting recovery");
            });
            assert_eq!(sink.text().lines().count(), lines, "{level}: {}", sink.text());
        }
    }

    #[test]
    fn each_line_of_a_ci_log_has_a_time_a_level_and_a_message() {
        let sink = Sink::default();
        let writer = sink.clone();
        tracing::subscriber::with_default(ci("debug", move || writer.clone()), || {
            tracing::warn!(run.id = "r-1", cause = %"gone\naway", "a run\nwaits");
            tracing::trace!("below the level of the log");
        });
        let text = sink.text();
        let (time, rest) = text.split_at(22);
        assert!(jiff::fmt::strtime::parse("[%Y-%m-%d %H:%M:%S] ", time).is_ok(), "{text}");
        assert_eq!(rest, "[WARN] a run waits cause=gone away\n");
    }

    #[test]
    fn a_ci_log_contains_only_lines_of_its_level_and_above() {
        for (level, count) in [("error", 1), ("warn", 2), ("info", 3), ("debug", 4)] {
            let sink = Sink::default();
            let writer = sink.clone();
            tracing::subscriber::with_default(ci(level, move || writer.clone()), || {
                tracing::error!("a");
                tracing::warn!("a");
                tracing::info!("a");
                tracing::debug!("a");
            });
            let text = sink.text();
            let levels: Vec<&str> = text.lines().map(|line| &line[22..line.len() - 2]).collect();
            assert_eq!(levels, ["[ERROR]", "[WARN]", "[INFO]", "[DEBUG]"][..count], "{level}");
        }
    }

    #[test]
    fn control_characters_from_services_do_not_reach_a_terminal() {
        fn log_control_characters() {
            let cause = "\u{1b}[2J\u{7}gone\nERROR forged";
            tracing::warn!(run.id = "r-1", %cause, "the service says {cause}");
        }
        let (text_sink, ci_sink) = (Sink::default(), Sink::default());
        let writer = text_sink.clone();
        let log = text("info", true, move || writer.clone());
        tracing::subscriber::with_default(log, log_control_characters);
        let writer = ci_sink.clone();
        let log = ci("info", move || writer.clone());
        tracing::subscriber::with_default(log, log_control_characters);
        for text in [text_sink.text(), ci_sink.text()] {
            assert!(!text.contains("\u{1b}[2J") && !text.contains('\u{7}'), "{text:?}");
            assert_eq!(text.lines().count(), 1, "{text:?}");
            assert!(text.contains("gone"), "{text:?}");
        }
        let text = text_sink.text();
        assert!(text.contains(r"\u{1b}[2J\u{7}gone\nERROR"), "{text}");
    }

    #[test]
    fn nothing_is_logged_at_the_level_off() {
        let sink = Sink::default();
        let writer = sink.clone();
        log_examples(text("off", false, move || writer.clone()));
        assert_eq!(sink.text(), "");
    }
}
