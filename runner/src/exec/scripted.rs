//! An executor whose steps do what their words say, in this process: for tests, simulations, and to
//! measure what everything but the engine costs.
//!
//! | words | what the step does |
//! |---|---|
//! | `exit N` | ends with that code |
//! | `print TEXT...` | writes the text and a newline to standard output |
//! | `error TEXT...` | the same to standard error |
//! | `write BYTES LINES` | writes so many lines of so many bytes |
//! | `hang` | runs until it is stopped; ends with 143, or with 137 where it was killed |
//! | `stubborn` | runs until it is killed |
//! | `break` | cannot be run: the engine's own failure |

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use protocol::event::LogStream;
use protocol::id::RunId;

use crate::ports::{
    ByteStream, EngineInfo, ExecError, Executor, Exit, Gate, LogSink, Ran, RunScope, StepSpec,
    StopLevel, StopSignal, Workspace,
};

/// The executor. It remembers what it made for which run, as an engine does by labels.
#[derive(Debug, Default)]
pub struct Scripted {
    made: Mutex<HashMap<RunId, u64>>,
    running: Mutex<HashMap<String, u32>>,
}

impl Scripted {
    /// How many steps of a name ran at the same time at most; 0 where none did.
    #[must_use]
    pub fn ran(&self, run: &RunId, step: &str) -> u32 {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(&format!("{run}/{step}")).copied().unwrap_or(0)
    }

    fn make(&self, run: &RunId) -> Workspace {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let count = made.entry(run.clone()).or_default();
        *count += 1;
        Workspace::Image { id: format!("scripted:{run}:{count}"), depth: 0 }
    }
}

fn ended(code: i32) -> Ran {
    Ran { exit: Exit { code, oom: false }, left: Workspace::None }
}

async fn line(out: &dyn LogSink, stream: LogStream, words: &[String]) {
    out.write(stream, Bytes::from(format!("{}\n", words.join(" ")))).await;
}

async fn stopped(stop: &StopSignal, above: StopLevel) -> Ran {
    match stop.above(above).await {
        StopLevel::Kill => ended(137),
        StopLevel::Run | StopLevel::Stop { .. } => ended(143),
    }
}

#[async_trait]
impl Executor for Scripted {
    async fn info(&self) -> Result<EngineInfo, ExecError> {
        Ok(EngineInfo { id: "scripted".into(), executor: "scripted", limits_refused: None })
    }

    async fn prepare(&self, run: &RunScope, _stop: &StopSignal) -> Result<Workspace, ExecError> {
        if run.image == "missing" {
            return Err(ExecError::Image {
                image: run.image.clone(),
                cause: "no such image".into(),
            });
        }
        Ok(self.make(&run.run))
    }

    async fn run_step(
        &self,
        run: &RunScope,
        _on: &Workspace,
        step: &StepSpec,
        gate: Gate,
        out: Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<Ran, ExecError> {
        if !gate.await {
            return Err(ExecError::NotStarted);
        }
        {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            *running.entry(format!("{}/{}", run.run, step.name)).or_default() += 1;
        }
        let words = &step.words;
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
        match words.first().map(String::as_str) {
            Some("exit") => Ok(ended(number(1))),
            Some("print") => {
                line(&*out, LogStream::Stdout, words.get(1..).unwrap_or_default()).await;
                Ok(ended(0))
            }
            Some("error") => {
                line(&*out, LogStream::Stderr, words.get(1..).unwrap_or_default()).await;
                Ok(ended(0))
            }
            Some("write") => {
                let (bytes, lines) = (number(1), number(2));
                let text = format!("{}\n", "x".repeat(usize::try_from(bytes).unwrap_or(0)));
                for _ in 0..lines {
                    out.write(LogStream::Stdout, Bytes::from(text.clone())).await;
                }
                Ok(ended(0))
            }
            Some("hang") => Ok(stopped(stop, StopLevel::Run).await),
            Some("stubborn") => {
                let grace = match stop.above(StopLevel::Run).await {
                    StopLevel::Stop { grace } => grace,
                    StopLevel::Run | StopLevel::Kill => std::time::Duration::ZERO,
                };
                let level = stop.level();
                let killed = tokio::time::timeout(grace, stopped(stop, level)).await;
                Ok(killed.unwrap_or_else(|_| ended(137)))
            }
            Some("break") => {
                Err(ExecError::Engine { doing: "break".into(), cause: "as it was told".into() })
            }
            Some(_) | None => Err(ExecError::Start {
                step: step.name.clone(),
                cause: format!("there is no program {:?}", words.first()),
                code: 127,
            }),
        }
    }

    async fn checkpoint(
        &self,
        run: &RunScope,
        _left: Workspace,
        _step: &StepSpec,
    ) -> Result<Workspace, ExecError> {
        Ok(self.make(&run.run))
    }

    async fn discard(&self, _run: &RunScope, _left: Workspace) {}

    async fn import(
        &self,
        run: &RunScope,
        _on: &Workspace,
        _at: &str,
        mut tar: ByteStream,
    ) -> Result<Workspace, ExecError> {
        while let Some(bytes) = tar.next().await {
            bytes.map_err(|cause| ExecError::Input(cause.to_string()))?;
        }
        Ok(self.make(&run.run))
    }

    async fn export(
        &self,
        _run: &RunScope,
        _left: &Workspace,
        path: &str,
    ) -> Result<ByteStream, ExecError> {
        Err(ExecError::NoSuchPath { path: path.to_owned() })
    }

    async fn destroy(&self, run: &RunId) -> Result<(), ExecError> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).remove(run);
        Ok(())
    }

    async fn leftovers(&self) -> Result<Vec<RunId>, ExecError> {
        Ok(self.made.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect())
    }
}
