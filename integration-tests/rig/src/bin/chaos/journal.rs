//! HTTP server that records the starts and ends of steps. A step holds a connection open until it
//! ends. However the step ends, the kernel closes the connection when its last process exits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::{Mutex, MutexGuard};
use protocol::id::RunId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::task::TaskTracker;

use crate::facts::{Execution, now};
use crate::history::Records;

/// The maximum time that a step's other requests wait for its `hold` request.
const HOLD_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum size of a request's head.
const MAX_HEAD_BYTES: usize = 4096;

#[derive(Default)]
struct State {
    /// The number of the latest start or end. Numbers begin at 1.
    next: u64,
    executions: Vec<Execution>,
    /// A second handle of each open connection, by index in `executions`.
    open: BTreeMap<usize, std::net::TcpStream>,
    tokens: BTreeSet<String>,
    /// Flaky steps that have failed once.
    failed: BTreeSet<(RunId, usize)>,
}

impl State {
    fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn end(&mut self, index: usize) {
        if self.open.remove(&index).is_some() {
            let number = self.next_number();
            self.executions[index].ended = Some(number);
        }
    }

    /// Records the start of a step. First records the end of earlier executions whose connections
    /// the kernel has closed, even if their tasks have not noticed yet.
    fn begin(&mut self, caller: &Caller, stream: std::net::TcpStream) -> usize {
        let is_same_step = |index: &usize| {
            let execution = &self.executions[*index];
            execution.run == caller.run && execution.step == caller.step
        };
        let earlier: Vec<usize> = self.open.keys().copied().filter(is_same_step).collect();
        for execution in earlier {
            if is_closed(&self.open[&execution]) {
                self.end(execution);
            }
        }
        let number = self.next_number();
        let (run, step, engine) = (caller.run.clone(), caller.step, caller.engine.clone());
        self.executions.push(Execution {
            run,
            step,
            engine,
            at: now(),
            began: number,
            ended: None,
            found: None,
        });
        let index = self.executions.len() - 1;
        self.open.insert(index, stream);
        index
    }
}

/// Whether the peer of a non-blocking connection has closed it.
fn is_closed(stream: &std::net::TcpStream) -> bool {
    let mut byte = [0];
    match stream.peek(&mut byte) {
        Ok(count) => count == 0,
        Err(cause) => cause.kind() != std::io::ErrorKind::WouldBlock,
    }
}

struct Inner {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    records: Records,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// A running journal. Dropping it stops the server.
pub(crate) struct Journal {
    at: SocketAddr,
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

impl Journal {
    pub(crate) async fn start(records: Records) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let at = listener.local_addr()?;
        let inner =
            Arc::new(Inner { state: Mutex::default(), changed: watch::Sender::new(()), records });
        let serving = Arc::clone(&inner);
        let task = TaskTracker::new().spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    biased;
                    Some(_closed) = connections.join_next() => {}
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        let inner = Arc::clone(&serving);
                        connections.spawn(async move {
                            // Invalid or aborted requests get no response.
                            drop(inner.serve(stream).await);
                        });
                    }
                }
            }
        });
        Ok(Self { at, inner, task })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.at)
    }

    /// Every step execution so far.
    pub(crate) fn executions(&self) -> Vec<Execution> {
        self.inner.lock().executions.clone()
    }

    /// The number of running steps.
    pub(crate) fn running(&self) -> usize {
        self.inner.lock().open.len()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The step execution that sends a request.
struct Caller {
    run: RunId,
    step: usize,
    token: String,
    engine: String,
}

impl Inner {
    async fn serve(self: Arc<Self>, mut stream: TcpStream) -> anyhow::Result<()> {
        let (command, caller) = request(&mut stream).await?;
        match command.as_str() {
            "hold" => self.hold(caller, stream).await,
            "begin" => {
                self.wait_until_held(&caller.token).await?;
                respond(&mut stream, "200 OK").await
            }
            "flaky" => {
                self.wait_until_held(&caller.token).await?;
                let first = self.lock().failed.insert((caller.run, caller.step));
                let status = if first { "503 Service Unavailable" } else { "200 OK" };
                respond(&mut stream, status).await
            }
            _ => respond(&mut stream, "404 Not Found").await,
        }
    }

    async fn hold(&self, caller: Caller, mut stream: TcpStream) -> anyhow::Result<()> {
        let handle = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
        let index = {
            let mut state = self.lock();
            let index = state.begin(&caller, handle);
            state.tokens.insert(caller.token);
            index
        };
        self.changed.send_replace(());
        let read_record = async {
            let record = self.records.of(&caller.run).await;
            self.lock().executions[index].found = record;
        };
        let wait_for_end = async {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await);
            let mut rest = [0; 64];
            // The step sends nothing more, so the read returns when the connection closes.
            while let Ok(1..) = stream.read(&mut rest).await {}
            self.lock().end(index);
        };
        tokio::join!(read_record, wait_for_end);
        Ok(())
    }

    async fn wait_until_held(&self, token: &str) -> anyhow::Result<()> {
        let mut changed = self.changed.subscribe();
        let held = changed.wait_for(|()| self.lock().tokens.contains(token));
        tokio::time::timeout(HOLD_TIMEOUT, held).await??;
        Ok(())
    }
}

/// Reads a request and parses its path, `GET /<command>/<run>/<step>/<token>/<engine>`.
async fn request(stream: &mut TcpStream) -> anyhow::Result<(String, Caller)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        anyhow::ensure!(
            head.len() < MAX_HEAD_BYTES && stream.read_buf(&mut head).await? > 0,
            "incomplete or too long request head"
        );
    }
    let head = String::from_utf8(head)?;
    let path = head.split(' ').nth(1).context("no path in the request")?;
    let segments: Vec<&str> = path.split('/').collect();
    let ["", command, run, step, token, engine] = segments[..] else {
        anyhow::bail!("unexpected path: {path}")
    };
    let caller = Caller {
        run: run.parse()?,
        step: step.parse()?,
        token: token.into(),
        engine: engine.into(),
    };
    Ok((command.to_owned(), caller))
}

async fn respond(stream: &mut TcpStream, status: &str) -> anyhow::Result<()> {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}
