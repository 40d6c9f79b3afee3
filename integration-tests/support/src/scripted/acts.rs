//! Carries out the words of a step.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::event::LogStream;

use runner::ports::{ExecError, Exit, LogSink, StepSpec, StopLevel, StopSignal};

/// The files of a workspace, by their paths as written.
pub(super) type Files = BTreeMap<String, String>;

fn ended(code: i32) -> Exit {
    Exit { code, oom: false }
}

async fn line(out: &dyn LogSink, stream: LogStream, words: &[String]) {
    out.write(stream, Bytes::from(format!("{}\n", words.join(" ")))).await;
}

async fn stopped(stop: &StopSignal, above: StopLevel) -> Exit {
    match stop.above(above).await {
        StopLevel::Kill => ended(137),
        StopLevel::Run | StopLevel::Stop { .. } => ended(143),
    }
}

/// Executes a step's words in a workspace.
pub(super) async fn perform(
    step: &StepSpec,
    files: &mut Arc<Files>,
    out: &dyn LogSink,
    stop: &StopSignal,
) -> Result<Exit, ExecError> {
    let words = &step.words;
    let rest = words.get(1..).unwrap_or_default();
    let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
    let first = rest.first().map_or("", String::as_str);
    match words.first().map(String::as_str) {
        Some("exit") => return Ok(ended(number(1))),
        Some("print") => line(out, LogStream::Stdout, rest).await,
        Some("result") => {}
        Some("error") => line(out, LogStream::Stderr, rest).await,
        Some("write") => {
            let text = format!("{}\n", "x".repeat(usize::try_from(number(1)).unwrap_or(0)));
            for _ in 0..number(2) {
                out.write(LogStream::Stdout, Bytes::from(text.clone())).await;
            }
        }
        Some("put") => {
            let text = format!("{}\n", rest.get(1..).unwrap_or_default().join(" "));
            Arc::make_mut(files).insert(first.to_owned(), text);
        }
        Some("show") => match files.get(first) {
            Some(text) => out.write(LogStream::Stdout, Bytes::from(text.clone())).await,
            None => return Ok(ended(1)),
        },
        Some("env") => {
            let value = step.env.get(first).map_or("unset", String::as_str);
            out.write(LogStream::Stdout, Bytes::from(format!("{value}\n"))).await;
        }
        Some("pwd") => {
            let dir = step.work_dir.as_deref().unwrap_or("/");
            out.write(LogStream::Stdout, Bytes::from(format!("{dir}\n"))).await;
        }
        Some("wait-for") => return Ok(wait_for_file(Path::new(first), stop).await),
        Some(how @ ("hang" | "stubborn")) => {
            if !rest.is_empty() {
                line(out, LogStream::Stdout, rest).await;
            }
            let hang = how == "hang";
            return Ok(if hang { stopped(stop, StopLevel::Run).await } else { killed(stop).await });
        }
        Some("lose") => {}
        Some("fill") => {
            return Err(ExecError::NoSpace { cause: "the words of the step ask for it".into() });
        }
        Some("break") => {
            let cause = "the words of the step ask for it".into();
            return Err(ExecError::Engine { doing: "break".into(), cause });
        }
        Some(_) | None => {
            return Err(ExecError::Start {
                step: step.name.clone(),
                cause: format!("there is no program {:?}", words.first()),
                code: 127,
            });
        }
    }
    Ok(ended(0))
}

/// The result of a step, if its words ask for one.
pub(super) fn result_of(words: &[String]) -> Option<serde_json::Value> {
    let [word, bytes] = words else { return None };
    let bytes: usize = bytes.parse().ok().filter(|_| word == "result")?;
    let empty = serde_json::json!({ "t": "" }).to_string().len();
    Some(serde_json::json!({ "t": "x".repeat(bytes.saturating_sub(empty)) }))
}

/// Waits until a file exists, or the step is stopped.
async fn wait_for_file(file: &Path, stop: &StopSignal) -> Exit {
    let there = async {
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ended(0)
    };
    tokio::select! {
        exit = there => exit,
        exit = stopped(stop, StopLevel::Run) => exit,
    }
}

/// Ignores SIGTERM and waits for SIGKILL.
async fn killed(stop: &StopSignal) -> Exit {
    let grace = match stop.above(StopLevel::Run).await {
        StopLevel::Stop { grace } => grace,
        StopLevel::Run | StopLevel::Kill => Duration::ZERO,
    };
    let level = stop.level();
    let killed = tokio::time::timeout(grace, stopped(stop, level)).await;
    killed.unwrap_or_else(|_| ended(137))
}
