//! Formats events as lines for people, and passes step output through byte for byte. Pure.

use protocol::event::{Event, LogStream, Reason, Severity};
use protocol::id::StepName;

use super::output::{Style, TextStyle, brief, one_line, span};
use crate::client::{LogItem, Text};

/// Bytes to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// For standard output.
    Out(Vec<u8>),
    /// For standard error.
    Err(Vec<u8>),
}

impl Piece {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Out(bytes) | Self::Err(bytes) => bytes.len(),
        }
    }
}

/// Width of the line that announces a step. Fixed, because a log is not always read on a terminal.
const WIDTH: usize = 100;

/// Destination of the standard error of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepErrors {
    /// To standard output, in the order of the stream.
    WithOutput,
    /// To standard error.
    Apart,
}

/// The view without a terminal: step output as written, and a line on standard error for each
/// event.
#[derive(Debug)]
pub(super) struct PlainView {
    step_errors: StepErrors,
    /// Display only this step.
    only: Option<StepName>,
    style: Style,
    /// The last output on standard error did not end with a newline.
    within_line: bool,
    /// A stop of the run was requested.
    stopping: bool,
}

impl PlainView {
    pub(super) fn new(step_errors: StepErrors, only: Option<StepName>, style: Style) -> Self {
        Self { step_errors, only, style, within_line: false, stopping: false }
    }

    pub(super) fn on(&mut self, item: &LogItem) -> Vec<Piece> {
        match item {
            LogItem::Text(text) => self.text(text).into_iter().collect(),
            LogItem::State(event) => self.state(event).into_iter().collect(),
            LogItem::Missing(missing) => {
                vec![self.message(&format!("missing: {missing}"), TextStyle::Yellow)]
            }
        }
    }

    fn is_wanted(&self, step: Option<&StepName>) -> bool {
        self.only.is_none() || self.only.as_ref() == step
    }

    fn text(&mut self, text: &Text) -> Option<Piece> {
        if !self.is_wanted(text.event.step.as_ref()) {
            return None;
        }
        let apart = match text.stream {
            LogStream::Stdout => false,
            LogStream::Stderr => self.step_errors == StepErrors::Apart,
            LogStream::Bob => {
                let line = String::from_utf8_lossy(&text.bytes);
                let line = line.trim_end_matches('\n');
                return Some(
                    self.message(line.strip_prefix("[bob] ").unwrap_or(line), TextStyle::Dim),
                );
            }
        };
        if apart || self.style.together {
            self.within_line = text.bytes.last().is_some_and(|last| *last != b'\n');
        }
        let bytes = text.bytes.clone();
        Some(if apart { Piece::Err(bytes) } else { Piece::Out(bytes) })
    }

    fn state(&mut self, event: &Event) -> Option<Piece> {
        if event.step.is_some() && !self.is_wanted(event.step.as_ref()) {
            return None;
        }
        self.stopping |= event.reason == Reason::PipelineStopping;
        let (line, ink) = event_line(event, self.stopping)?;
        Some(self.message(&line, ink))
    }

    /// Formats a message that belongs to no event.
    pub(super) fn note(&mut self, line: &str) -> Piece {
        self.message(line, TextStyle::Plain)
    }

    /// Formats a message for standard error. The newline that ends a step's unfinished line also
    /// goes there, so that standard output contains only step output.
    fn message(&mut self, line: &str, ink: TextStyle) -> Piece {
        let mut bytes = Vec::new();
        if std::mem::take(&mut self.within_line) {
            bytes.push(b'\n');
        }
        bytes
            .extend(ink.paint(&format!("[bob] {}", one_line(line)), self.style.colour_err).bytes());
        bytes.push(b'\n');
        Piece::Err(bytes)
    }
}

/// The outcome of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepEnd {
    Passed,
    Failed,
    Stopped,
}

impl StepEnd {
    /// Derives the outcome from a `StepCompleted` event. With exit code 0, the step can still fail,
    /// for example at its artifact. A step that ends while the run is stopping counts as stopped. So
    /// does a step that is stopped because another one failed, which only the message shows.
    pub(super) fn of(event: &Event, exit_code: Option<i32>, stopping: bool) -> Self {
        match exit_code {
            Some(0) if event.severity == Severity::Normal => Self::Passed,
            Some(_) | None if stopping || event.message.ends_with(" was stopped") => Self::Stopped,
            Some(_) | None => Self::Failed,
        }
    }
}

/// The line about the end of a step.
fn step_end_line(
    event: &Event,
    exit_code: Option<i32>,
    time: &str,
    stopping: bool,
) -> (String, TextStyle) {
    let step = event.step.as_ref().map_or("", StepName::as_str);
    match (StepEnd::of(event, exit_code, stopping), exit_code) {
        (StepEnd::Passed, _) => (format!("step {step} passed after {time}"), TextStyle::Green),
        (StepEnd::Stopped, _) => {
            (format!("step {step} was stopped after {time}"), TextStyle::Yellow)
        }
        (StepEnd::Failed, Some(0)) => (format!("step {step} failed after {time}"), TextStyle::Red),
        (StepEnd::Failed, Some(code)) => {
            (format!("step {step} failed after {time}: exit code {code}"), TextStyle::Red)
        }
        (StepEnd::Failed, None) => {
            // The command did not end, so the event's message says what happened.
            let of_run = event.run_id.as_ref().map(|run| format!(" of run {run}"));
            let said = event.message.replacen(&of_run.unwrap_or_default(), "", 1);
            let said = if said.starts_with(&format!("step {step} ")) {
                said
            } else {
                format!("step {step} failed")
            };
            (format!("{said} after {time}"), TextStyle::Red)
        }
    }
}

/// The line about an event of a run. `None` if other output already shows it.
pub(super) fn event_line(event: &Event, stopping: bool) -> Option<(String, TextStyle)> {
    let step = event.step.as_ref().map_or("", StepName::as_str);
    Some(match &event.reason {
        Reason::StartPipelineRun
        | Reason::PipelineRunning
        | Reason::PipelineRunScheduled { waiting: false }
        | Reason::Log { .. }
        | Reason::StepCompleted { repeated: true, .. } => return None,
        Reason::PipelineRunScheduled { waiting: true } => {
            ("the run waits for a place of its pipeline".to_owned(), TextStyle::Plain)
        }
        Reason::ImagePull { image } => (format!("image {image}"), TextStyle::Dim),
        Reason::ResourceFetch { resource } => {
            (format!("fetching resource {resource}"), TextStyle::Dim)
        }
        Reason::ArtifactUpload { artifact, store } => {
            (format!("sending artifact {artifact} to {store}"), TextStyle::Dim)
        }
        Reason::StepStarted { command, .. } => {
            let begin = format!("step {step}: ");
            let width = WIDTH.saturating_sub(begin.chars().count());
            (format!("{begin}{}", brief(command, width)), TextStyle::Cyan)
        }
        Reason::StepCompleted { exit_code, duration_ms, .. } => {
            let time = span(i64::try_from(*duration_ms).unwrap_or(i64::MAX));
            step_end_line(event, *exit_code, &time, stopping)
        }
        Reason::PipelineSuccessful => ("passed".to_owned(), TextStyle::Green),
        Reason::PipelineFailed { .. } => (event.message.clone(), TextStyle::Red),
        Reason::PipelineStopped { .. } => (event.message.clone(), TextStyle::Yellow),
        Reason::StepRetry { .. }
        | Reason::PipelineRunResumed { .. }
        | Reason::PipelineRunRejected { .. }
        | Reason::LoggerDropped { .. }
        | Reason::CommandReturned { .. }
        | Reason::CommandRejected { .. } => (event.message.clone(), TextStyle::Yellow),
        Reason::PipelineStopping
        | Reason::CommandIgnored
        | Reason::PipelineCreate
        | Reason::PipelineDelete
        | Reason::PipelinePaused
        | Reason::PipelineUnpaused
        | Reason::ResourceProviderCreate
        | Reason::ResourceProviderDelete
        | Reason::ArtifactStoreCreate
        | Reason::ArtifactStoreDelete
        | Reason::LoggerCreate
        | Reason::LoggerDelete
        | Reason::RunnerReady
        | Reason::RunnerDraining
        | Reason::CallbackDropped
        | Reason::RunnerStopped => (event.message.clone(), TextStyle::Plain),
    })
}

/// An event as published on the stream, on one line.
pub(super) fn json_line(item: &LogItem) -> Piece {
    let mut bytes = match item {
        LogItem::State(event) => event.to_json(),
        LogItem::Text(text) => text.event.to_json(),
        LogItem::Missing(missing) => {
            return Piece::Err(format!("[bob] missing: {missing}\n").into_bytes());
        }
    };
    bytes.push(b'\n');
    Piece::Out(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use protocol::id::Epoch;
    use protocol::run::Cause;
    use protocol::time::Millis;

    use super::*;
    use crate::client::Reader;

    /// The items that a reader makes of a run's events.
    pub(crate) fn items(events: Vec<Event>) -> Vec<LogItem> {
        let mut reader = Reader::new("r-1".parse().unwrap());
        let numbered = events.into_iter().zip(0..).map(|(mut event, seq)| {
            event.run_id = Some("r-1".parse().unwrap());
            event.epoch = Some(Epoch(3));
            event.seq = Some(seq);
            event
        });
        numbered.filter_map(|event| reader.on(event)).collect()
    }

    pub(crate) fn at(millis: i64, step: Option<&str>, reason: Reason) -> Event {
        let mut event = Event::new(Millis(millis), reason, "run r-1: what happened".to_owned());
        event.step = step.map(|step| step.parse().unwrap());
        event.attempt = step.map(|_| 1);
        event
    }

    pub(crate) fn log(millis: i64, step: &str, stream: LogStream, text: &str) -> Event {
        let partial = !text.ends_with('\n');
        let reason = Reason::Log { stream, offset: 0, partial, encoding: None };
        let message = text.strip_suffix('\n').unwrap_or(text).to_owned();
        Event { message, ..at(millis, Some(step), reason) }
    }

    pub(crate) fn started(millis: i64, step: &str, command: &str) -> Event {
        let (command, executor) = (command.to_owned(), "podman".to_owned());
        at(millis, Some(step), Reason::StepStarted { command, executor })
    }

    pub(crate) fn completed(millis: i64, step: &str, code: i32, duration_ms: u64) -> Event {
        let reason = Reason::StepCompleted {
            exit_code: Some(code),
            duration_ms,
            stdout_bytes: 0,
            stderr_bytes: 0,
            image: None,
            repeated: false,
        };
        at(millis, Some(step), reason)
    }

    /// A step that fails without an exit code, or in spite of exit code 0.
    pub(crate) fn broken(step: &str, code: Option<i32>, message: &str) -> Event {
        let mut event = completed(300, step, 0, 257);
        if let Reason::StepCompleted { exit_code, .. } = &mut event.reason {
            *exit_code = code;
        }
        Event { severity: Severity::Warning, message: message.to_owned(), ..event }
    }

    /// Standard output and standard error are separate.
    const APART: Style =
        Style { json: false, colour: false, colour_err: false, terminal: false, together: false };

    pub(crate) fn failed(millis: i64) -> Event {
        let reason = Reason::PipelineFailed { cause: Cause::ExitCode, exit_code: Some(3) };
        at(millis, None, reason)
    }

    fn a_run() -> Vec<LogItem> {
        items(vec![
            at(0, None, Reason::PipelineRunScheduled { waiting: false }),
            at(1, None, Reason::ImagePull { image: "busybox".into() }),
            started(10, "build", "make\n\u{1b}[2J"),
            log(20, "build", LogStream::Stdout, "one\n"),
            log(30, "build", LogStream::Stderr, "care"),
            completed(1_210, "build", 0, 1_200),
            started(1_220, "test", "make test"),
            log(1_230, "test", LogStream::Stdout, "no newline"),
            completed(1_300, "test", 3, 80),
            failed(1_310),
        ])
    }

    /// All output in order, as on a terminal.
    fn together(plain: &mut PlainView, run: &[LogItem]) -> String {
        let bytes = run.iter().flat_map(|item| plain.on(item)).flat_map(|piece| match piece {
            Piece::Out(bytes) | Piece::Err(bytes) => bytes,
        });
        String::from_utf8(bytes.collect()).unwrap()
    }

    #[test]
    fn an_unfinished_line_is_ended_if_both_outputs_are_the_same() {
        let one = Style { together: true, ..APART };
        for errors in [StepErrors::Apart, StepErrors::WithOutput] {
            let text = together(&mut PlainView::new(errors, None, one), &a_run());
            assert_eq!(
                text,
                "[bob] image busybox\n\
                 [bob] step build: make … (+1 line)\n\
                 one\n\
                 care\n\
                 [bob] step build passed after 1.2s\n\
                 [bob] step test: make test\n\
                 no newline\n\
                 [bob] step test failed after 80ms: exit code 3\n\
                 [bob] run r-1: what happened\n"
            );
        }
        let mut plain = PlainView::new(StepErrors::Apart, None, one);
        together(&mut plain, &items(vec![log(1, "build", LogStream::Stdout, "half")]));
        assert_eq!(plain.note("goes on"), Piece::Err(b"\n[bob] goes on\n".to_vec()));
        assert_eq!(plain.note("still"), Piece::Err(b"[bob] still\n".to_vec()));
    }

    #[test]
    fn a_broken_step_is_described_by_its_cause() {
        let told = |event: Event| {
            let run = items(vec![event]);
            together(&mut PlainView::new(StepErrors::Apart, None, APART), &run)
        };
        let artifact = broken("build", Some(0), "step build of run r-1 failed");
        assert_eq!(told(artifact), "[bob] step build failed after 257ms\n");
        let engine = broken("build", None, "step build of run r-1 failed");
        assert_eq!(told(engine), "[bob] step build failed after 257ms\n");
        let network = broken("build", None, "step build of run r-1 could not be started");
        assert_eq!(told(network), "[bob] step build could not be started after 257ms\n");
        let odd = broken("build", None, "something else");
        assert_eq!(told(odd), "[bob] step build failed after 257ms\n");
    }

    fn written(plain: &mut PlainView) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        for piece in a_run().iter().flat_map(|item| plain.on(item)) {
            match piece {
                Piece::Out(bytes) => out.extend(bytes),
                Piece::Err(bytes) => err.extend(bytes),
            }
        }
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn output_is_written_unchanged_and_events_go_to_standard_error() {
        let (out, err) = written(&mut PlainView::new(StepErrors::Apart, None, APART));
        assert_eq!(out, "one\nno newline");
        assert_eq!(
            err,
            "[bob] image busybox\n\
             [bob] step build: make … (+1 line)\n\
             care\n\
             [bob] step build passed after 1.2s\n\
             [bob] step test: make test\n\
             [bob] step test failed after 80ms: exit code 3\n\
             [bob] run r-1: what happened\n"
        );
    }

    #[test]
    fn a_step_that_is_stopped_has_not_failed() {
        let mut plain = PlainView::new(StepErrors::Apart, None, APART);
        let run =
            items(vec![at(1, None, Reason::PipelineStopping), completed(1_500, "build", 143, 900)]);
        let told: Vec<Piece> = run.iter().flat_map(|item| plain.on(item)).collect();
        let last = Piece::Err(b"[bob] step build was stopped after 900ms\n".to_vec());
        assert_eq!(told.last(), Some(&last));

        // Another step failed, and the run is not stopping.
        let mut stopped = completed(1_500, "build", 143, 900);
        stopped.message = "step build of run r-1 was stopped".to_owned();
        let mut plain = PlainView::new(StepErrors::Apart, None, APART);
        let told: Vec<Piece> = items(vec![stopped]).iter().flat_map(|it| plain.on(it)).collect();
        assert_eq!(told.last(), Some(&last));
    }

    #[test]
    fn a_log_shows_both_streams_in_order_or_a_single_step() {
        let (out, _) = written(&mut PlainView::new(StepErrors::WithOutput, None, APART));
        assert_eq!(out, "one\ncareno newline");
        let only = Some("test".parse().unwrap());
        let (out, err) = written(&mut PlainView::new(StepErrors::WithOutput, only, APART));
        assert_eq!(out, "no newline");
        assert!(!err.contains("build"), "{err}");
    }
}
