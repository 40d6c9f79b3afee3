//! Feeds to external loggers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use runner::egress::Policy;
use runner::ports::{LoggerFeed, Transfer};
use runner::transfer::{Http, Options, Timeouts};
use tokio::sync::Notify;

use crate::server::{Request, Server, nobody};

const PLENTY: Duration = Duration::from_secs(60);

struct Setup {
    http: Http,
    _dir: tempfile::TempDir,
}

fn setup(spill_bytes: u64) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        policy: Policy::unrestricted(),
        spill_dir: dir.path().join("spill"),
        spill_bytes,
    };
    let idle = Duration::from_secs(20);
    let timeouts = Timeouts { connect: Duration::from_secs(10), idle, progress_bytes: 1 };
    Setup { http: Http::with_timeouts(options, timeouts).unwrap(), _dir: dir }
}

fn feed(setup: &Setup, url: &str) -> Box<dyn LoggerFeed> {
    setup.http.logger(url, &"r-1".parse().unwrap()).unwrap()
}

/// The bodies that a logger received, one per request.
#[derive(Clone, Default)]
struct ReceivedBodies {
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
    more: Arc<Notify>,
}

impl ReceivedBodies {
    fn all(&self) -> Vec<u8> {
        self.bodies.lock().concat()
    }

    fn bodies(&self) -> Vec<Vec<u8>> {
        self.bodies.lock().clone()
    }

    fn keep(&self, body: Vec<u8>) {
        self.bodies.lock().push(body);
        self.more.notify_one();
    }

    /// A logger that stores what it receives.
    async fn serve(&self, at: Option<std::net::SocketAddr>) -> Server {
        let got = self.clone();
        let handle = move |mut request: Request| {
            let got = got.clone();
            async move {
                assert_eq!(request.line, "PUT /bob_logs/r-1");
                assert_eq!(request.header("content-type"), Some("text/plain"));
                let body = request.whole().await;
                got.keep(body);
                request.answer(200, b"Ok").await;
            }
        };
        match at {
            Some(at) => Server::start_at(at, handle).await,
            None => Server::start(handle).await,
        }
    }
}

/// Lines that are easily corrupted.
fn odd_lines() -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> =
        ["    indented", "--- x", "", "\ttab", "trailing  ", "ä\u{1F600}", "a\rb"]
            .map(|line| line.as_bytes().to_vec())
            .into();
    lines.extend([9, 10, 12, 13, 64, 65].map(|length| vec![b'A'; length]));
    lines.push((0..=255).filter(|byte| *byte != b'\n').collect());
    lines.push(vec![b'l'; 1 << 20]);
    lines.push(b"last".to_vec());
    lines
}

#[tokio::test]
async fn a_logger_receives_every_line_exactly_and_whole() {
    let (setup, got) = (setup(1 << 20), ReceivedBodies::default());
    let server = got.serve(None).await;
    let feed = feed(&setup, &server.url());
    let mut sent = Vec::new();
    for line in odd_lines() {
        let text = [line.as_slice(), b"\n"].concat();
        sent.extend_from_slice(&text);
        // Pieces do not have to be lines.
        for piece in text.chunks(100_000) {
            feed.push(Bytes::copy_from_slice(piece));
        }
    }
    feed.push(Bytes::from_static(b"without a newline"));
    sent.extend_from_slice(b"without a newline");
    assert_eq!(feed.finish(PLENTY).await, 0);
    assert!(got.all() == sent, "every byte is there, in order, once");
    let bodies = got.bodies();
    let (_, whole) = bodies.split_last().unwrap();
    assert!(whole.iter().all(|body| body.ends_with(b"\n")), "a line is in one batch");
}

#[tokio::test]
async fn lines_are_batched_without_a_long_delay() {
    let (setup, got) = (setup(1 << 20), ReceivedBodies::default());
    let server = got.serve(None).await;
    let feed = feed(&setup, &server.url());
    for count in 0..1000 {
        feed.push(format!("line {count}\n").into());
    }
    // The text arrives while the feed is open: a log can be followed during its run.
    while got.all().len() < 1000 * 6 {
        got.more.notified().await;
    }
    let requests = got.bodies().len();
    assert!(requests < 20, "{requests} requests for 1000 lines");
    for count in 0..40_000 {
        feed.push(format!("{count:031}\n").into());
    }
    assert_eq!(feed.finish(PLENTY).await, 0);
    assert!(got.bodies().iter().all(|body| body.len() <= 256 << 10), "a batch is bounded");
}

#[tokio::test]
async fn a_logger_receives_everything_after_an_outage() {
    let (setup, got) = (setup(100 << 20), ReceivedBodies::default());
    let at = nobody().await;
    let feed = feed(&setup, &format!("http://{at}"));
    let mut sent = Vec::new();
    for count in 0..300_000 {
        let line = format!("{count:08} {}\n", "x".repeat(count % 100));
        sent.extend_from_slice(line.as_bytes());
        feed.push(line.into());
        if count % 1000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert!(sent.len() > 10 << 20, "much more than the memory buffer holds");
    let server = got.serve(Some(at)).await;
    feed.push(Bytes::from_static(b"the end\n"));
    sent.extend_from_slice(b"the end\n");
    assert_eq!(feed.finish(PLENTY).await, 0);
    drop(server);
    assert!(got.all() == sent, "memory first, then disk, then later events");
}

#[tokio::test]
async fn lines_over_the_limit_are_dropped_and_counted() {
    let setup = setup(2 << 20);
    let at = nobody().await;
    let feed = feed(&setup, &format!("http://{at}"));
    let line = Bytes::from(vec![b'x'; 1024]);
    let began = std::time::Instant::now();
    for _ in 0..20 << 10 {
        feed.push(line.clone());
    }
    assert!(began.elapsed() < Duration::from_secs(10), "a logger must not delay the run");
    let got = ReceivedBodies::default();
    let server = got.serve(Some(at)).await;
    let lost = feed.finish(PLENTY).await;
    drop(server);
    let all = got.all().len() as u64;
    assert_eq!(all + lost, 20 << 20, "lost bytes are counted");
    assert!((3 << 20..8 << 20).contains(&all), "{all} bytes were kept");
    assert_eq!(feed.finish(Duration::ZERO).await, lost, "a second call of `finish` has no effect");
}

#[tokio::test]
async fn closing_a_feed_waits_no_longer_than_its_timeout() {
    let setup = setup(1 << 20);
    let hangs = Server::start(|request| async move {
        std::future::pending::<()>().await;
        drop(request);
    })
    .await;
    for url in [hangs.url(), format!("http://{}", nobody().await)] {
        let feed = feed(&setup, &url);
        feed.push(Bytes::from_static(b"12345\n"));
        assert_eq!(feed.finish(Duration::from_millis(300)).await, 6);
        feed.push(Bytes::from_static(b"late\n"));
        assert_eq!(feed.finish(Duration::ZERO).await, 11, "late lines are not accepted");
    }
}

#[tokio::test]
async fn a_failing_logger_is_retried_and_a_refused_text_is_dropped() {
    let (setup, got) = (setup(1 << 20), ReceivedBodies::default());
    let answers = Arc::new(Mutex::new(vec![200, 413, 200, 429, 503, 500]));
    let asked = Arc::new(Notify::new());
    let (seen, queue, told) = (got.clone(), Arc::clone(&answers), Arc::clone(&asked));
    let server = Server::start(move |mut request: Request| {
        let (seen, queue, told) = (seen.clone(), Arc::clone(&queue), Arc::clone(&told));
        async move {
            let body = request.whole().await;
            let status = queue.lock().pop().unwrap_or(200);
            if status == 200 {
                seen.keep(body);
            }
            told.notify_one();
            request.answer(status, b"why").await;
        }
    })
    .await;
    let feed = feed(&setup, &server.url());
    for text in ["first\n", "second\n", "third\n"] {
        feed.push(Bytes::from_static(text.as_bytes()));
        // Each retry is a separate request.
        let rounds = if text == "first\n" { 4 } else { 1 };
        for _ in 0..rounds {
            asked.notified().await;
        }
    }
    assert_eq!(feed.finish(PLENTY).await, 7);
    assert_eq!(got.all(), b"first\nthird\n");
}

#[tokio::test]
async fn a_redirect_of_a_logger_is_not_an_acceptance() {
    let (setup, got) = (setup(1 << 20), ReceivedBodies::default());
    let (seen, lines) = (got.clone(), Arc::new(Mutex::new(Vec::new())));
    let asked = Arc::clone(&lines);
    let server = Server::start(move |mut request: Request| {
        let (seen, asked) = (seen.clone(), Arc::clone(&asked));
        async move {
            let body = request.whole().await;
            let is_first = {
                let mut asked = asked.lock();
                asked.push(request.line.clone());
                asked.len() == 1
            };
            if is_first {
                let head = "HTTP/1.1 303 See Other\r\nlocation: /elsewhere\r\n\
                            content-length: 0\r\nconnection: close\r\n\r\n";
                request.send(head.as_bytes()).await;
            } else {
                seen.keep(body);
                request.answer(200, b"Ok").await;
            }
        }
    })
    .await;
    let feed = feed(&setup, &server.url());
    feed.push(Bytes::from_static(b"a line\n"));
    assert_eq!(feed.finish(PLENTY).await, 0);
    assert_eq!(got.all(), b"a line\n", "it is sent again to the right place");
    assert_eq!(*lines.lock(), ["PUT /bob_logs/r-1"; 2]);
}

#[tokio::test]
async fn a_dropped_feed_sends_nothing_more() {
    let (setup, got) = (setup(1 << 20), ReceivedBodies::default());
    let at = nobody().await;
    let feed = feed(&setup, &format!("http://{at}"));
    feed.push(Bytes::from_static(b"x\n"));
    drop(feed);
    let _server = got.serve(Some(at)).await;
    // Longer than the longest pause after that many failures.
    let late = tokio::time::timeout(Duration::from_millis(700), got.more.notified()).await;
    assert!(late.is_err(), "{:?}", got.all());
}
