//! A server that records requests and sends the responses of a test.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufStream};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// A complete request.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedRequest {
    pub(crate) method: String,
    /// As sent, without the query.
    pub(crate) path: String,
    /// As sent. Empty if there is none.
    pub(crate) query: String,
    /// Names are in lower case.
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl ReceivedRequest {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// `METHOD /path`.
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// The body as JSON. Null if it is empty.
    pub(crate) fn json(&self) -> Value {
        if self.body.is_empty() {
            return Value::Null;
        }
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A response.
pub(crate) enum Reply {
    /// A status, headers, and a body.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Only a custom status line.
    Reason(&'static str),
    /// Closes the connection without a response.
    HangUp,
    /// Never responds.
    Never,
}

impl Reply {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        let kind = ("content-type", "application/json".to_owned());
        Self::Answer(status, vec![kind], body.to_string().into_bytes())
    }

    fn bytes(&self) -> Option<Vec<u8>> {
        let (status, headers, body) = match self {
            Self::Answer(status, headers, body) => (format!("{status} Whatever"), headers, body),
            Self::Reason(line) => ((*line).to_owned(), &Vec::new(), &Vec::new()),
            Self::HangUp | Self::Never => return None,
        };
        let headers: String =
            headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        let mut whole = format!(
            "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n"
        )
        .into_bytes();
        whole.extend(body);
        Some(whole)
    }
}

type Replies = dyn Fn(&ReceivedRequest, usize) -> Reply + Send + Sync;

/// A running server. Dropping it ends the server.
pub(crate) struct Server {
    at: SocketAddr,
    scheme: &'static str,
    seen: Arc<Mutex<Vec<ReceivedRequest>>>,
    count: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// `replies` receives the request and the number of earlier ones.
    pub(crate) async fn start(
        replies: impl Fn(&ReceivedRequest, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve(None, Arc::new(replies)).await
    }

    /// The same over TLS.
    pub(crate) async fn tls(
        acceptor: TlsAcceptor,
        replies: impl Fn(&ReceivedRequest, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve(Some(acceptor), Arc::new(replies)).await
    }

    async fn serve(acceptor: Option<TlsAcceptor>, replies: Arc<Replies>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let scheme = if acceptor.is_some() { "https" } else { "http" };
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (counts, count) = watch::channel(0);
        let (all, counts) = (Arc::clone(&seen), Arc::new(counts));
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (all, counts) = (Arc::clone(&all), Arc::clone(&counts));
                let (replies, acceptor) = (Arc::clone(&replies), acceptor.clone());
                open.spawn(async move {
                    match acceptor {
                        None => talk(stream, &all, &counts, &*replies).await,
                        // A client that does not trust the certificate closes the connection.
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                talk(stream, &all, &counts, &*replies).await;
                            }
                        }
                    }
                });
            }
        });
        Self { at, scheme, seen, count, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.at.port())
    }

    pub(crate) fn seen(&self) -> Vec<ReceivedRequest> {
        self.seen.lock().clone()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.seen().iter().map(ReceivedRequest::line).collect()
    }

    /// Waits until this many requests have arrived.
    pub(crate) async fn asked(&self, count: usize) {
        self.count.clone().wait_for(|seen| *seen >= count).await.unwrap();
    }
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    all: &Mutex<Vec<ReceivedRequest>>,
    counts: &watch::Sender<usize>,
    replies: &Replies,
) {
    let mut stream = BufStream::new(stream);
    let Ok(seen) = request(&mut stream).await else { return };
    let (reply, count) = {
        let mut all = all.lock();
        let reply = replies(&seen, all.len());
        all.push(seen);
        (reply, all.len())
    };
    counts.send_replace(count);
    match reply.bytes() {
        Some(bytes) => {
            // The client might already have closed the connection.
            stream.write_all(&bytes).await.ok();
            stream.flush().await.ok();
            stream.shutdown().await.ok();
        }
        None if matches!(reply, Reply::Never) => std::future::pending().await,
        None => {}
    }
}

async fn line<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufStream<S>,
) -> std::io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await?);
    }
    line.truncate(line.len() - 2);
    Ok(String::from_utf8(line).expect("a head is text"))
}

async fn request<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufStream<S>,
) -> std::io::Result<ReceivedRequest> {
    let first = line(stream).await?;
    let mut headers = Vec::new();
    loop {
        let line = line(stream).await?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.map_or(0, |(_, length)| length.parse().expect("a length"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(ReceivedRequest {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: String::from_utf8(body).expect("bodies are text here"),
    })
}
