//! A small TCP proxy on loopback that simulates network faults between a worker and a service.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::task::TaskTracker;

/// The size of a read, and the maximum number of delayed bytes.
const PIECE: usize = 16 * 1024;

/// How the proxy treats traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Forwards everything.
    Open,
    /// Forwards each piece after a delay.
    Delayed(Duration),
    /// Keeps connections open and forwards nothing until the mode changes.
    Silent,
    /// Closes new connections at once.
    Refusing,
}

#[derive(Debug, Clone, Copy)]
struct State {
    mode: Mode,
    /// The number of cuts. A connection ends when it changes.
    cuts: u64,
}

/// A listening proxy. Dropping it closes its connections.
#[derive(Debug)]
pub struct Proxy {
    at: SocketAddr,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free loopback port and forwards each connection to `target`.
    ///
    /// # Errors
    /// If no port is available.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let at = listener.local_addr()?;
        let state = watch::Sender::new(State { mode: Mode::Open, cuts: 0 });
        let task = TaskTracker::new().spawn(accept(listener, target, state.clone()));
        Ok(Self { at, state, task })
    }

    /// The address it listens on.
    #[must_use]
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// Closes all current connections. Does not affect new ones.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Closes all current and new connections.
    pub fn refuse(&self) {
        self.state.send_modify(|state| {
            state.cuts += 1;
            state.mode = Mode::Refusing;
        });
    }

    /// Keeps connections open and forwards nothing, like a network that drops all packets.
    pub fn silence(&self) {
        self.set(Mode::Silent);
    }

    /// Delays each piece in both directions.
    pub fn delay(&self, by: Duration) {
        self.set(Mode::Delayed(by));
    }

    /// Forwards everything again, including what was held back.
    pub fn heal(&self) {
        self.set(Mode::Open);
    }

    fn set(&self, mode: Mode) {
        self.state.send_modify(|state| state.mode = mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, state: watch::Sender<State>) {
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            Some(_ended) = open.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        // A connection that broke before it was accepted does not matter.
        let Ok((client, _)) = accepted else { continue };
        let state = state.subscribe();
        if state.borrow().mode == Mode::Refusing {
            continue;
        }
        open.spawn(forward(client, target, state));
    }
}

async fn forward(client: TcpStream, target: SocketAddr, state: watch::Receiver<State>) {
    let cuts = state.borrow().cuts;
    let Ok(server) = TcpStream::connect(target).await else { return };
    // Only the proxy's own delay must add latency, not a kernel timer.
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let there = Pump { from: from_client, to: to_server, state: state.clone(), cuts };
    let back = Pump { from: from_server, to: to_client, state, cuts };
    // The end of one direction is passed on while the other continues. A cut ends both.
    tokio::join!(there.run(), back.run());
}

/// One direction of a connection.
struct Pump {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    state: watch::Receiver<State>,
    cuts: u64,
}

impl Pump {
    /// Runs until its source ends or is cut.
    async fn run(mut self) {
        let mut piece = vec![0; PIECE];
        let mut cut = self.state.clone();
        let cuts = self.cuts;
        tokio::select! {
            biased;
            // Dropping the proxy is a cut too.
            _ = cut.wait_for(|state| state.cuts != cuts) => {}
            () = self.pass_on(&mut piece) => {}
        }
    }

    async fn pass_on(&mut self, piece: &mut [u8]) {
        while let Ok(count) = self.from.read(piece).await
            && count > 0
        {
            let passing = self.state.wait_for(|state| state.mode != Mode::Silent).await;
            let Ok(mode) = passing.map(|state| state.mode) else { return };
            if let Mode::Delayed(by) = mode {
                tokio::time::sleep(by).await;
            }
            if self.to.write_all(&piece[..count]).await.is_err() {
                return;
            }
        }
        // The peer might already be gone.
        drop(self.to.shutdown().await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An echo server behind a proxy.
    async fn echo() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        drop(TaskTracker::new().spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                open.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    drop(tokio::io::copy(&mut from, &mut to).await);
                });
            }
        }));
        Proxy::start(at).await.unwrap()
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(proxy.at()).await.unwrap()
    }

    async fn says_back(stream: &mut TcpStream, text: &[u8]) {
        stream.write_all(text).await.unwrap();
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, text);
    }

    /// Whether a connection is closed or reset.
    async fn is_closed(stream: &mut TcpStream) -> bool {
        let mut byte = [0];
        matches!(stream.read(&mut byte).await, Ok(0) | Err(_))
    }

    #[tokio::test]
    async fn data_is_forwarded_both_ways_and_so_is_the_end_of_a_side() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        says_back(&mut stream, &[7; 3 * PIECE]).await;
        stream.write_all(b"last").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"last", "data sent before the end is still echoed");
    }

    #[tokio::test]
    async fn a_cut_closes_open_connections_and_new_ones_are_accepted() {
        let proxy = echo().await;
        let (mut one, mut other) = (connect(&proxy).await, connect(&proxy).await);
        says_back(&mut one, b"one").await;
        says_back(&mut other, b"other").await;
        proxy.cut();
        assert!(is_closed(&mut one).await && is_closed(&mut other).await);
        says_back(&mut connect(&proxy).await, b"again").await;
    }

    #[tokio::test]
    async fn no_connection_gets_through_while_the_proxy_refuses() {
        let proxy = echo().await;
        let mut before = connect(&proxy).await;
        says_back(&mut before, b"before").await;
        proxy.refuse();
        assert!(is_closed(&mut before).await);
        assert!(is_closed(&mut connect(&proxy).await).await);
        proxy.heal();
        says_back(&mut connect(&proxy).await, b"healed").await;
    }

    #[tokio::test]
    async fn a_silence_holds_back_data_until_it_is_over() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        says_back(&mut stream, b"before").await;
        proxy.silence();
        stream.write_all(b"held").await.unwrap();
        let mut back = [0; 4];
        let early = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut back)).await;
        assert!(early.is_err(), "no data arrives while it is silent");
        proxy.heal();
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"held");
    }

    #[tokio::test]
    async fn a_silent_connection_can_be_cut() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        says_back(&mut stream, b"before").await;
        proxy.silence();
        stream.write_all(b"held").await.unwrap();
        proxy.cut();
        assert!(is_closed(&mut stream).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_does_not_change_the_data() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        proxy.delay(Duration::from_secs(3600));
        // The paused clock advances when all tasks wait.
        says_back(&mut stream, &[3; 2 * PIECE]).await;
    }
}
