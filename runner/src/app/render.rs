//! Renders templates in a separate process of this program, with a memory limit. The process is
//! killed at its deadline.
//!
//! A hostile program can loop or allocate without end, and a thread cannot be stopped from outside.
//! On the worker's own threads, two such programs would stop all renewals of its lease.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use protocol::pipeline::Params;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use crate::ports::{RenderError, Renderer, Rendering};
use crate::rules::template;

/// The argument that makes this program a renderer.
pub const RENDER: &str = "render";

/// The timeout for rendering the programs of one step.
const DEADLINE: Duration = Duration::from_secs(10);
/// The address space of a renderer, in bytes.
const MEMORY: u64 = 1 << 30;
/// The maximum size of a response, in bytes. Rendered programs are limited to 4 MiB, and JSON can
/// escape each byte as six.
const ANSWER: u64 = 32 << 20;

/// The request sent to a renderer's standard input.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    programs: Vec<String>,
    values: Params,
    run: String,
}

/// Starts a renderer process for each step with templates.
#[derive(Debug)]
pub struct RenderProcess {
    program: (PathBuf, Vec<OsString>),
    deadline: Duration,
    /// Limits concurrent renderers, so that the worker keeps a processor for itself.
    at_once: Semaphore,
}

impl RenderProcess {
    /// Renderers are started with `program` and its arguments.
    #[must_use]
    pub fn new(program: PathBuf, words: Vec<OsString>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let at_once = Semaphore::new((processors / 2).max(1));
        Self { program: (program, words), deadline: DEADLINE, at_once }
    }

    /// Renderers are this program.
    #[must_use]
    pub fn of_this_program() -> Self {
        Self::new("/proc/self/exe".into(), vec![RENDER.into()])
    }

    /// With another deadline.
    #[must_use]
    pub fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    fn start(&self) -> std::io::Result<Child> {
        let (program, words) = &self.program;
        Command::new(program)
            .args(words)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal is meant for the worker.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

fn unavailable(cause: impl std::fmt::Display) -> RenderError {
    RenderError::Unavailable(cause.to_string())
}

/// Sends a request and reads the response. It is empty if the renderer dies.
async fn converse(child: &mut Child, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let send = async {
        if let Some(mut stdin) = stdin {
            // If the renderer died, its missing response is the error.
            stdin.write_all(request).await.ok();
        }
    };
    let mut answer = Vec::new();
    let read = async {
        match stdout {
            Some(stdout) => stdout.take(ANSWER).read_to_end(&mut answer).await,
            None => Ok(0),
        }
    };
    let ((), read) = tokio::join!(send, read);
    read.map(|_| answer)
}

#[async_trait]
impl Renderer for RenderProcess {
    async fn render(&self, rendering: Rendering) -> Result<Vec<String>, RenderError> {
        let Rendering { programs, values, run } = rendering;
        let request = Request { programs, values, run: run.to_string() };
        let request = serde_json::to_vec(&request).map_err(unavailable)?;
        let _permit = self.at_once.acquire().await.map_err(unavailable)?;
        let mut child = self.start().map_err(unavailable)?;
        let answer = tokio::time::timeout(self.deadline, converse(&mut child, &request)).await;
        let exhausted = || {
            RenderError::Template(format!(
                "the scripts of the step were not rendered within {} s and {} MiB of memory; make \
                 their loops and variables smaller",
                self.deadline.as_secs_f32(),
                MEMORY >> 20
            ))
        };
        let Ok(answer) = answer else {
            // Wait for its death before the next one starts.
            child.kill().await.map_err(unavailable)?;
            return Err(exhausted());
        };
        let (answer, status) = (answer.map_err(unavailable)?, child.wait().await);
        let status = status.map_err(unavailable)?;
        if !status.success() {
            // Killed by a signal: it exceeded its memory or its processor time.
            return Err(match status.code() {
                None => exhausted(),
                Some(_) => unavailable(format_args!("the renderer ended with {status}")),
            });
        }
        let answer: Result<Vec<String>, String> =
            serde_json::from_slice(&answer).map_err(unavailable)?;
        answer.map_err(RenderError::Template)
    }
}

/// Renders the request on standard input and writes the result to standard output.
///
/// # Errors
/// If the limits cannot be set, or the request cannot be read.
pub fn render() -> std::io::Result<()> {
    limit(Resource::As, MEMORY)?;
    limit(Resource::Core, 0)?;
    // Ends the renderer if its worker has died.
    limit(Resource::Cpu, DEADLINE.as_secs() + 1)?;
    let mut request = Vec::new();
    std::io::stdin().lock().read_to_end(&mut request)?;
    let Request { programs, values, run } = serde_json::from_slice(&request)?;
    let rendered = template::render_go(&programs, &values, &run);
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, &rendered)?;
    stdout.flush()
}

fn limit(resource: Resource, most: u64) -> std::io::Result<()> {
    let most = getrlimit(resource).maximum.map_or(most, |hard| most.min(hard));
    Ok(setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}
