//! The program's own log: for people or machines on standard error, or in a CI service's format on
//! standard output. The output of steps is never part of it.

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

/// The log of this process.
static LINES: OnceLock<Lines> = OnceLock::new();

/// How long unwritten lines can delay the end of the process.
const FLUSHED_WITHIN: Duration = Duration::from_secs(1);

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
    /// `[YYYY-MM-DD HH:MM:SS] [LEVEL] text`, on standard output.
    Ci,
}

/// Options of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options<'a> {
    /// The lowest level: `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub level: &'a str,
    /// The format. If `None`, `Text` on a terminal, otherwise `Json`.
    pub form: Option<Form>,
    /// Whether text lines can have colours.
    pub colour: bool,
}

/// Verbose libraries, with the most detailed level that is logged for each.
const QUIET: [(&str, &str); 8] = [
    ("config", "warn"),
    ("h2", "info"),
    ("hyper", "info"),
    ("hyper_util", "info"),
    ("reqwest", "info"),
    ("rustls", "info"),
    ("tonic", "info"),
    ("tower", "info"),
];

/// Libraries whose errors the program reports itself. They are logged only at the debug levels.
const SILENT: [&str; 1] = ["lapin"];

/// The rank of a level. A higher rank logs more.
fn rank(level: &str) -> usize {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    levels.iter().position(|known| *known == level).unwrap_or(3)
}

fn filter(level: &str) -> EnvFilter {
    let level = if rank(level) == 3 { "info" } else { level };
    let mut directives = level.to_owned();
    for (target, most) in QUIET {
        let least = if rank(most) < rank(level) { most } else { level };
        directives.push_str(&format!(",{target}={least}"));
    }
    for target in SILENT {
        let least = if rank(level) > rank("info") { "warn" } else { "off" };
        directives.push_str(&format!(",{target}={least}"));
    }
    EnvFilter::new(directives)
}

/// The effective format: the given one, or the one that suits standard error.
#[must_use]
pub fn form_of(said: Option<Form>) -> Form {
    let on_terminal = std::io::stderr().is_terminal();
    said.unwrap_or(if on_terminal { Form::Text } else { Form::Json })
}

/// Initializes the log of this process.
///
/// # Errors
/// If the log is already initialized.
pub fn begin(options: Options<'_>) -> Result<(), TryInitError> {
    let colour = options.colour && io::stderr().is_terminal();
    let form = form_of(options.form);
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

/// Logs panics like other errors. The default hook writes to standard error and blocks if that is
/// not read, while the panicking thread holds locks.
fn log_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !tracing::enabled!(tracing::Level::ERROR) {
            return default(panic);
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
    let at = panic.location().map(|at| format!(" at {at}")).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    format!("thread {thread} panicked{at}: {}", message.unwrap_or("no message"))
}

/// Returns a writer that never blocks, or `blocking` if its thread cannot be started.
fn writer<W>(
    to: impl AsFd,
    name: &'static str,
    blocking: impl for<'a> MakeWriter<'a, Writer = W> + Send + Sync + 'static,
) -> BoxMakeWriter
where
    W: io::Write,
{
    if let Some(lines) = LINES.get() {
        return BoxMakeWriter::new(lines.clone());
    }
    // Duplicate the handle: a blocked thread must not hold the lock of the standard one.
    let started = to.as_fd().try_clone_to_owned().and_then(|own| {
        Lines::start(File::from(own), move |dropped| {
            warn!(dropped, "{dropped} log lines were dropped because {name} was not read");
        })
    });
    match started {
        Ok(lines) => BoxMakeWriter::new(LINES.get_or_init(|| lines).clone()),
        Err(_no_thread) => BoxMakeWriter::new(blocking),
    }
}

/// Adds a line for people to the log, in their order. Returns false if there is no log yet.
#[must_use]
pub fn print(line: &str) -> bool {
    let Some(lines) = LINES.get() else { return false };
    lines.push(format!("{line}\n").as_bytes());
    true
}

/// Waits until the log is written. Returns false if it is not read.
pub fn flush() -> bool {
    LINES.get().is_none_or(|lines| lines.flush(FLUSHED_WITHIN))
}

fn text<W>(level: &str, colour: bool, writer: W) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        // Writing such an error to a closed standard error would panic.
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
        // Writing such an error to a closed standard error would panic.
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

    fn told(log: impl tracing::Subscriber + Send + Sync) {
        tracing::subscriber::with_default(log, || {
            tracing::info!(run.id = "r-1", "a run was claimed");
            tracing::debug!("a detail");
            tracing::debug!(target: "config", "noise of a library");
        });
    }

    /// Runs this test again in a process of its own, because a panic hook is global.
    #[test]
    fn a_panic_is_one_line_of_the_log() {
        const CHILD: &str = "BOB_TEST_PANICS";
        if std::env::var_os(CHILD).is_some() {
            begin(Options { level: "info", form: Some(Form::Json), colour: false }).unwrap();
            panic!("a test of panics");
        }
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "telemetry::tests::a_panic_is_one_line_of_the_log", "--nocapture"])
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
        told(json("info", move || writer.clone()));
        let text = sink.text();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["message"], "a run was claimed");
        assert_eq!(line["run.id"], "r-1");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn the_debug_level_applies_to_this_program_and_not_to_libraries() {
        let sink = Sink::default();
        let writer = sink.clone();
        told(text("debug", false, move || writer.clone()));
        let text = sink.text();
        assert!(text.contains("a detail"), "{text}");
        assert!(!text.contains("noise"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn errors_of_libraries_are_logged_at_detailed_levels() {
        for (level, told) in [("error", 0), ("warn", 0), ("info", 0), ("debug", 1), ("trace", 1)] {
            let sink = Sink::default();
            let writer = sink.clone();
            tracing::subscriber::with_default(json(level, move || writer.clone()), || {
                tracing::error!(target: "lapin::io_loop", "aborting recovery");
            });
            assert_eq!(sink.text().lines().count(), told, "{level}: {}", sink.text());
        }
    }

    #[test]
    fn a_ci_log_has_a_time_a_level_and_a_text_per_line() {
        let sink = Sink::default();
        let writer = sink.clone();
        tracing::subscriber::with_default(ci("debug", move || writer.clone()), || {
            tracing::warn!(run.id = "r-1", cause = %"gone\naway", "a run\nwaits");
            tracing::trace!("less than was asked for");
        });
        let text = sink.text();
        let (time, rest) = text.split_at(22);
        assert!(jiff::fmt::strtime::parse("[%Y-%m-%d %H:%M:%S] ", time).is_ok(), "{text}");
        assert_eq!(rest, "[WARN] a run waits cause=gone away\n");
    }

    #[test]
    fn the_level_of_a_ci_log_hides_lower_levels() {
        for (level, told) in [("error", 1), ("warn", 2), ("info", 3), ("debug", 4)] {
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
            assert_eq!(levels, ["[ERROR]", "[WARN]", "[INFO]", "[DEBUG]"][..told], "{level}");
        }
    }

    #[test]
    fn foreign_control_characters_do_not_reach_a_terminal() {
        let (plain, lines) = (Sink::default(), Sink::default());
        let (one, other) = (plain.clone(), lines.clone());
        let logs: [Box<dyn Fn()>; 2] = [
            Box::new(|| {
                let one = one.clone();
                let log = text("info", true, move || one.clone());
                tracing::subscriber::with_default(log, said);
            }),
            Box::new(|| {
                let other = other.clone();
                tracing::subscriber::with_default(ci("info", move || other.clone()), said);
            }),
        ];
        fn said() {
            let cause = "\u{1b}[2J\u{7}gone\nERROR forged";
            tracing::warn!(run.id = "r-1", %cause, "the service says {cause}");
        }
        logs.iter().for_each(|log| log());
        for text in [plain.text(), lines.text()] {
            assert!(!text.contains("\u{1b}[2J") && !text.contains('\u{7}'), "{text:?}");
            assert_eq!(text.lines().count(), 1, "{text:?}");
            assert!(text.contains("gone"), "{text:?}");
        }
        assert!(plain.text().contains(r"\u{1b}[2J\u{7}gone\nERROR"), "{}", plain.text());
    }

    #[test]
    fn nothing_is_logged_if_logging_is_off() {
        let sink = Sink::default();
        let writer = sink.clone();
        told(text("off", false, move || writer.clone()));
        assert_eq!(sink.text(), "");
    }
}
