//! Records reports of steps over HTTP. A step holds a connection until it ends. However it ends,
//! the kernel closes the connection when its last process is gone.

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

use crate::facts::{Begun, now};
use crate::history::Records;

/// The maximum time between a step's two requests.
const PATIENCE: Duration = Duration::from_secs(30);
/// The maximum size of a request's head, in bytes.
const HEAD: usize = 4096;

#[derive(Default)]
struct State {
    /// The number of the next start or end.
    next: u64,
    begun: Vec<Begun>,
    /// A second handle of each open connection, by index in `begun`.
    open: BTreeMap<usize, std::net::TcpStream>,
    tokens: BTreeSet<String>,
    /// Flaky steps that have failed once.
    failed: BTreeSet<(RunId, usize)>,
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn end(&mut self, place: usize) {
        if self.open.remove(&place).is_some() {
            let number = self.number();
            self.begun[place].ended = Some(number);
        }
    }

    /// Records the start of a step. First records the end of earlier executions whose connections
    /// the kernel has closed, even if their tasks have not noticed yet.
    fn begin(&mut self, of: &Hold, stream: std::net::TcpStream) -> usize {
        let same = |place: &usize| {
            let begun = &self.begun[*place];
            begun.run == of.run && begun.step == of.step
        };
        let others: Vec<usize> = self.open.keys().copied().filter(same).collect();
        for other in others {
            if is_closed(&self.open[&other]) {
                self.end(other);
            }
        }
        let began = self.number();
        let (run, step, engine) = (of.run.clone(), of.step, of.engine.clone());
        self.begun.push(Begun { run, step, engine, at: now(), began, ended: None, found: None });
        let place = self.begun.len() - 1;
        self.open.insert(place, stream);
        place
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

/// A running journal. Dropping it ends the server.
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
            let mut open = JoinSet::new();
            loop {
                tokio::select! {
                    biased;
                    Some(_ended) = open.join_next() => {}
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        let inner = Arc::clone(&serving);
                        open.spawn(async move {
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
    pub(crate) fn begun(&self) -> Vec<Begun> {
        self.inner.lock().begun.clone()
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

struct Hold {
    run: RunId,
    step: usize,
    token: String,
    engine: String,
}

impl Inner {
    async fn serve(self: Arc<Self>, mut stream: TcpStream) -> anyhow::Result<()> {
        let (what, of) = request(&mut stream).await?;
        match what.as_str() {
            "hold" => self.hold(of, stream).await,
            "begin" => {
                self.is_held(&of.token).await?;
                answer(&mut stream, "200 OK").await
            }
            "flaky" => {
                self.is_held(&of.token).await?;
                let first = self.lock().failed.insert((of.run, of.step));
                let status = if first { "503 Service Unavailable" } else { "200 OK" };
                answer(&mut stream, status).await
            }
            _ => answer(&mut stream, "404 Not Found").await,
        }
    }

    async fn hold(&self, of: Hold, mut stream: TcpStream) -> anyhow::Result<()> {
        let handle = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
        let place = {
            let mut state = self.lock();
            let place = state.begin(&of, handle);
            state.tokens.insert(of.token);
            place
        };
        self.changed.send_replace(());
        let reading = async {
            let found = self.records.of(&of.run).await;
            self.lock().begun[place].found = found;
        };
        let holding = async {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await);
            let mut rest = [0; 64];
            // The step sends nothing more, so reading waits for the end.
            while let Ok(1..) = stream.read(&mut rest).await {}
            self.lock().end(place);
        };
        tokio::join!(reading, holding);
        Ok(())
    }

    async fn is_held(&self, token: &str) -> anyhow::Result<()> {
        let mut changed = self.changed.subscribe();
        let held = changed.wait_for(|()| self.lock().tokens.contains(token));
        tokio::time::timeout(PATIENCE, held).await??;
        Ok(())
    }
}

/// Parses `GET /<what>/<run>/<step>/<token>/<engine>`.
async fn request(stream: &mut TcpStream) -> anyhow::Result<(String, Hold)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        anyhow::ensure!(head.len() < HEAD && stream.read_buf(&mut head).await? > 0, "no request");
    }
    let head = String::from_utf8(head)?;
    let path = head.split(' ').nth(1).context("a path")?;
    let words: Vec<&str> = path.split('/').collect();
    let ["", what, run, step, token, engine] = words[..] else {
        anyhow::bail!("another path: {path}")
    };
    let hold =
        Hold { run: run.parse()?, step: step.parse()?, token: token.into(), engine: engine.into() };
    Ok((what.to_owned(), hold))
}

async fn answer(stream: &mut TcpStream, status: &str) -> anyhow::Result<()> {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}
