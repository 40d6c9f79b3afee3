//! A connection that is restored automatically. Its users wait while it is down.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::faults::Fault;
use super::live::Live;
use super::target::Target;
use super::topology::{self, Object};
use crate::cluster::retry::reconnect_pauses;

/// After a connection that lasted this long, the first attempt to reconnect is made at once.
const GOOD: Duration = Duration::from_secs(10);
/// The interval between declarations of the shared objects.
const DECLARE_EVERY: Duration = Duration::from_secs(5);
/// The timeout of declaring all objects, or one more. A broker that is cut off from the others of
/// its cluster sends heartbeats and answers no declaration.
const DECLARE_WITHIN: Duration = Duration::from_secs(15);
/// The timeout of closing a connection.
const FAREWELL: Duration = Duration::from_secs(2);

#[derive(Clone)]
enum State {
    Up(Arc<Live>),
    Down(Fault),
    Closed,
}

/// The connection over time. Clones share it. It is closed when the last one is dropped.
#[derive(Clone)]
pub(in crate::cluster) struct Link(Arc<Shared>);

struct Shared {
    target: Target,
    plan: Arc<Plan>,
    state: watch::Sender<State>,
    /// The tasks that restore the connection. Aborted on drop.
    tasks: Mutex<JoinSet<()>>,
}

/// The objects declared on every new connection.
struct Plan {
    objects: Vec<Object>,
    /// The objects that have been warned about.
    warned: Mutex<HashSet<String>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("target", &self.0.target).finish_non_exhaustive()
    }
}

impl Link {
    /// Connects, retrying up to `attempts` times. Later reconnects are automatic.
    pub(in crate::cluster) async fn open(
        target: Target,
        objects: Vec<Object>,
        attempts: u32,
        delay: Duration,
    ) -> Result<Self, Fault> {
        let plan = Arc::new(Plan { objects, warned: Mutex::default() });
        let mut left = attempts.max(1);
        let live = loop {
            match plan.connect(&target, 1).await {
                Ok(live) => break live,
                Err(fault) => {
                    left -= 1;
                    if left == 0 || matches!(fault, Fault::Denied(_) | Fault::WrongKind(_)) {
                        return Err(fault);
                    }
                    let (cause, broker) = (fault.cause(), target.at());
                    warn!(%broker, cause, attempts_left = left, "the broker is tried again");
                }
            }
            tokio::time::sleep(delay).await;
        };
        let (state, _) = watch::channel(State::Up(Arc::clone(&live)));
        let mut tasks = JoinSet::new();
        tasks.spawn(supervise(target.clone(), Arc::clone(&plan), state.clone(), live));
        Ok(Self(Arc::new(Shared { target, plan, state, tasks: Mutex::new(tasks) })))
    }

    /// Returns the broker's address.
    pub(in crate::cluster) fn at(&self) -> &str {
        self.0.target.at()
    }

    /// Waits for an established connection and returns it.
    pub(in crate::cluster) async fn live(&self) -> Result<Arc<Live>, Fault> {
        let mut state = self.0.state.subscribe();
        loop {
            match &*state.borrow_and_update() {
                State::Up(live) if live.is_open() => return Ok(Arc::clone(live)),
                State::Closed => return Err(Fault::Unreachable("we have closed it".to_owned())),
                State::Up(_) | State::Down(_) => {}
            }
            // If the connection is dead but still marked as up, `supervise` updates the state soon.
            if state.changed().await.is_err() {
                return Err(Fault::Unreachable("we have closed it".to_owned()));
            }
        }
    }

    /// Returns why nothing can be sent at present, or `None` if it can.
    pub(in crate::cluster) fn fault(&self) -> Option<Fault> {
        match &*self.0.state.borrow() {
            State::Up(live) if live.connection.status().blocked() => Some(Fault::Unreachable(
                "it takes no messages for now, being low on memory or disk".to_owned(),
            )),
            State::Up(_) => None,
            State::Down(fault) => Some(fault.clone()),
            State::Closed => Some(Fault::Unreachable("we have closed it".to_owned())),
        }
    }

    /// Declares all objects again, because one of them is missing.
    pub(in crate::cluster) async fn declare_again(&self, live: &Live) -> Result<(), Fault> {
        self.0.plan.declare(live).await
    }

    /// Declares an additional object on a connection.
    pub(in crate::cluster) async fn declare(&self, live: &Live, one: &Object) -> Result<(), Fault> {
        in_time(topology::declare(live, one, &self.0.plan.warned)).await
    }

    /// Closes the connection.
    pub(in crate::cluster) async fn close(&self) {
        self.0.tasks.lock().abort_all();
        if let State::Up(live) = self.0.state.send_replace(State::Closed) {
            let closing = live.connection.close(200, "goodbye".into());
            // It may be closed already.
            drop(tokio::time::timeout(FAREWELL, closing).await);
        }
    }
}

impl Plan {
    async fn connect(&self, target: &Target, number: u64) -> Result<Arc<Live>, Fault> {
        let (connection, line) = target.connect().await?;
        let live = Live { connection, number, since: tokio::time::Instant::now() };
        if let Err(fault) = self.declare(&live).await {
            if matches!(fault, Fault::Unreachable(_)) {
                // It would not confirm the end of the connection either, whose thread would wait.
                line.cut();
            }
            return Err(fault);
        }
        Ok(Arc::new(live))
    }

    /// Declares all objects at intervals. An object may have been deleted, and its publishers might
    /// not be allowed to declare it.
    async fn keep(&self, live: &Live, broker: &str) -> std::convert::Infallible {
        let mut told = String::new();
        loop {
            tokio::time::sleep(DECLARE_EVERY).await;
            match self.declare(live).await {
                Ok(()) => told.clear(),
                // `supervise` reports a lost connection.
                Err(fault) if live.is_open() && told != fault.cause() => {
                    told = fault.cause().to_owned();
                    warn!(
                        broker,
                        cause = told,
                        "the queues of this cluster cannot be declared again"
                    );
                }
                Err(_) => {}
            }
        }
    }

    async fn declare(&self, live: &Live) -> Result<(), Fault> {
        in_time(async {
            for object in &self.objects {
                topology::declare(live, object, &self.warned).await?;
            }
            Ok(())
        })
        .await
    }
}

async fn in_time(declaring: impl Future<Output = Result<(), Fault>>) -> Result<(), Fault> {
    tokio::time::timeout(DECLARE_WITHIN, declaring).await.unwrap_or_else(|_elapsed| {
        let seconds = DECLARE_WITHIN.as_secs();
        Err(Fault::Unreachable(format!("it did not answer a declaration within {seconds} s")))
    })
}

async fn supervise(
    target: Target,
    plan: Arc<Plan>,
    state: watch::Sender<State>,
    mut live: Arc<Live>,
) {
    let broker = target.at();
    let mut pauses = reconnect_pauses();
    loop {
        let fault = tokio::select! {
            biased;
            fault = live.ended(broker) => fault,
            never = plan.keep(&live, broker) => match never {},
        };
        let number = live.number + 1;
        if live.since.elapsed() >= GOOD {
            pauses.reset();
        }
        drop(live);
        warn!(%broker, cause = fault.cause(), "the connection to the broker is lost");
        let mut told = fault.cause().to_owned();
        state.send_replace(State::Down(fault));
        live = loop {
            pauses.wait().await;
            match plan.connect(&target, number).await {
                Ok(live) => break live,
                Err(fault) => {
                    // Once for each reason, not for each attempt.
                    if told != fault.cause() {
                        told = fault.cause().to_owned();
                        warn!(%broker, cause = told, "the broker cannot be reached yet");
                    }
                    state.send_replace(State::Down(fault));
                }
            }
        };
        info!(%broker, "the connection to the broker stands again");
        state.send_replace(State::Up(Arc::clone(&live)));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use protocol::id::NodeId;

    use super::*;
    use crate::cluster::amqp::AmqpOptions;
    use crate::cluster::tls::TlsFiles;

    const METHOD: u8 = 1;
    const FRAME_END: u8 = 0xce;

    fn send(stream: &mut TcpStream, channel: u16, method: [u16; 2], arguments: &[u8]) {
        let mut payload: Vec<u8> = method.iter().flat_map(|half| half.to_be_bytes()).collect();
        payload.extend(arguments);
        let mut frame = vec![METHOD];
        frame.extend(channel.to_be_bytes());
        frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend(payload);
        frame.push(FRAME_END);
        stream.write_all(&frame).unwrap();
    }

    /// Reads the next method frame and returns its class and method.
    fn receive(stream: &mut TcpStream) -> std::io::Result<[u8; 4]> {
        loop {
            let mut head = [0; 7];
            stream.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
            let mut rest = vec![0; usize::try_from(length).unwrap() + 1];
            stream.read_exact(&mut rest)?;
            if head[0] == METHOD {
                return Ok([rest[0], rest[1], rest[2], rest[3]]);
            }
        }
    }

    /// Accepts a connection, opens each channel and answers nothing else. Returns when the client
    /// has ended the connection.
    fn answers_no_declaration(listener: &TcpListener) {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 8]).unwrap();
        // No properties, one mechanism, one locale.
        let start = b"\0\x09\0\0\0\0\0\0\0\x05PLAIN\0\0\0\x05en_US";
        send(&mut stream, 0, [10, 10], start);
        receive(&mut stream).unwrap();
        // 2047 channels, frames of 128 KiB, no heartbeats.
        send(&mut stream, 0, [10, 30], &[0x07, 0xff, 0, 2, 0, 0, 0, 0]);
        receive(&mut stream).unwrap();
        receive(&mut stream).unwrap();
        send(&mut stream, 0, [10, 41], &[0]);
        let mut channel = 0;
        while let Ok(method) = receive(&mut stream) {
            if method == [0, 20, 0, 10] {
                channel += 1;
                send(&mut stream, channel, [20, 11], &[0; 4]);
            }
        }
    }

    /// Accepts a connection and answers nothing. Returns when the client has ended it.
    fn answers_nothing(listener: &TcpListener) {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_to_end(&mut Vec::new()).ok();
    }

    async fn refusal_of(broker: fn(&TcpListener)) -> Fault {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("amqp://{}", listener.local_addr().unwrap());
        let options = AmqpOptions {
            url: url.clone(),
            user: "bob".to_owned(),
            password: "x".to_owned(),
            tls: TlsFiles::default(),
            node: NodeId::from_stored("bob/runner-1"),
            retry_attempts: 1,
            retry_delay: Duration::ZERO,
            stream_name: "s".to_owned(),
            stream_retention_days: 1,
            stream_max_bytes: None,
            stream_url: None,
            spill_dir: "spill".into(),
            spill_bytes: 0,
            spill_cluster: None,
        };
        let broker = std::thread::spawn(move || broker(&listener));
        let target = Target::new(&options, &url, "test".to_owned()).unwrap();
        let opening = Link::open(target, topology::shared(), 1, Duration::ZERO);
        let opened = tokio::time::timeout(Duration::from_secs(60), opening).await;
        let fault = opened.expect("a deadline of its own").unwrap_err();
        let ended = tokio::task::spawn_blocking(move || broker.join());
        let ended = tokio::time::timeout(Duration::from_secs(60), ended).await;
        ended.expect("the socket is closed").unwrap().unwrap();
        fault
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_broker_that_does_not_answer_is_unreachable() {
        let (silent, partitioned) =
            tokio::join!(refusal_of(answers_nothing), refusal_of(answers_no_declaration));
        assert!(matches!(&silent, Fault::Unreachable(said) if said.contains("did not answer")));
        let said = partitioned.cause();
        assert_eq!(said, "it did not answer a declaration within 15 s", "{partitioned:?}");
    }
}
