//! Runs one step through its supervisor, from its gate to its end.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::BytesMut;
use protocol::event::LogStream;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;

use super::fault::failed;
use super::orphans;
use super::word::{CommandOutcome, JOB_VARIABLE, Job, Request};
use crate::ports::{
    ExecError, Exit, Gate, LogSink, StepEnd, StepOutcome, StepSpec, StopLevel, StopSignal,
    Workspace,
};

/// The maximum number of bytes in one read.
const PIECE: usize = 64 * 1024;

/// Passes a stream on until it ends.
async fn pump(from: Option<impl AsyncRead + Unpin>, stream: LogStream, out: Arc<dyn LogSink>) {
    let Some(mut from) = from else { return };
    let mut buffer = BytesMut::with_capacity(PIECE);
    // A broken pipe counts as the end.
    while let Ok(1..) = from.read_buf(&mut buffer).await {
        out.write(stream, buffer.split().freeze()).await;
        buffer.reserve(PIECE);
    }
}

/// The supervisor's next report. `None` if it is gone.
async fn heard(told: &mut BufReader<OwnedReadHalf>) -> Option<CommandOutcome> {
    let mut line = Vec::new();
    told.read_until(b'\n', &mut line).await.ok()?;
    serde_json::from_slice(&line).ok()
}

async fn ask(asks: &mut OwnedWriteHalf, asked: &Request) {
    let Ok(mut line) = serde_json::to_vec(asked) else { return };
    line.push(b'\n');
    // A supervisor that is gone has already ended its command.
    asks.write_all(&line).await.ok();
}

/// Carries out stop requests. Never resolves.
async fn obey(asks: &mut OwnedWriteHalf, end: StepEnd, stop: &StopSignal) {
    let mut level = stop.above(StopLevel::Run).await;
    if let StopLevel::Stop { grace } = level {
        let grace = end.grace_or(grace);
        ask(asks, &Request::End(end.signal)).await;
        level = tokio::time::timeout(grace, stop.above(level)).await.unwrap_or(StopLevel::Kill);
    }
    if level == StopLevel::Kill {
        ask(asks, &Request::Kill).await;
    }
    std::future::pending().await
}

/// Runs one step, from its gate to its end.
pub(super) async fn run(
    (mut child, socket): (Child, UnixStream),
    (job, left): (Job, PathBuf),
    step: &StepSpec,
    mut gate: Gate,
    out: Arc<dyn LogSink>,
    stop: &StopSignal,
) -> Result<StepOutcome, ExecError> {
    let open = tokio::select! {
        biased;
        _ = stop.above(StopLevel::Run) => false,
        open = gate.opened() => open,
    };
    if !open || !gate.is_owned() {
        return Err(ExecError::NotStarted);
    }
    let (told, mut asks) = socket.into_split();
    let mut told = BufReader::new(told);
    ask(&mut asks, &Request::Run(job)).await;
    let output = async {
        tokio::join!(
            pump(child.stdout.take(), LogStream::Stdout, Arc::clone(&out)),
            pump(child.stderr.take(), LogStream::Stderr, Arc::clone(&out)),
        )
    };
    let ended = async {
        let ended = tokio::select! {
            biased;
            ended = heard(&mut told) => ended,
            () = obey(&mut asks, step.end, stop) => None,
        };
        if ended.is_none() {
            // The supervisor is gone, and its leftover processes would keep the output open.
            orphans::end(JOB_VARIABLE, &left).await;
        }
        ended
    };
    let (ended, _) = tokio::join!(ended, output);
    drop(asks);
    let waited = child.wait().await;
    match ended {
        Some(CommandOutcome::Ended { code, oom }) => {
            Ok(StepOutcome::new(Exit { code, oom }, Workspace::Dir(left)))
        }
        Some(CommandOutcome::NotStarted { code, cause }) => {
            Err(ExecError::Start { step: step.name.clone(), cause, code })
        }
        Some(CommandOutcome::NotLimited(cause)) => Err(failed("limiting a step", cause)),
        None => match waited.as_ref().ok().and_then(ExitStatusExt::signal) {
            // Only the step itself would kill its supervisor.
            Some(signal) => Err(ExecError::Killed { signal }),
            None => Err(failed("supervising a step", format!("its supervisor ended: {waited:?}"))),
        },
    }
}
