//! A small HTTP server under full control of the test.

use std::future::Future;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request whose body was not read yet.
pub(crate) struct Request {
    /// `GET /path?query`.
    pub(crate) line: String,
    /// Names are in lower case.
    pub(crate) headers: Vec<(String, String)>,
    stream: BufStream<TcpStream>,
    body: Body,
}

enum Body {
    Left(u64),
    Chunked { left: u64, first: bool },
    Done,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The next bytes of the body. `None` at its end.
    ///
    /// # Panics
    /// If the connection breaks.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        self.try_chunk().await.expect("a whole body")
    }

    /// Like [`Self::chunk`], but returns an error if the connection breaks.
    pub(crate) async fn try_chunk(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        loop {
            let left = match &mut self.body {
                Body::Done => return Ok(None),
                Body::Left(left) => left,
                Body::Chunked { left: 0, first } => {
                    let first = std::mem::replace(first, false);
                    let size = chunk_size(&mut self.stream, first).await?;
                    self.body = if size == 0 {
                        Body::Done
                    } else {
                        Body::Chunked { left: size, first: false }
                    };
                    continue;
                }
                Body::Chunked { left, .. } => left,
            };
            if *left == 0 {
                self.body = Body::Done;
                continue;
            }
            let mut bytes = vec![0; usize::try_from((*left).min(1 << 18)).unwrap()];
            let count = self.stream.read(&mut bytes).await?;
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            *left -= count as u64;
            bytes.truncate(count);
            return Ok(Some(bytes));
        }
    }

    pub(crate) async fn whole(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await {
            body.extend(chunk);
        }
        body
    }

    /// Sends a response and closes the connection.
    pub(crate) async fn answer(mut self, status: u16, body: &[u8]) {
        let head = format!(
            "HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        self.send(head.as_bytes()).await;
        self.send(body).await;
        // The client might already have closed the connection.
        drop(self.stream.shutdown().await);
    }

    /// Sends raw bytes. `false` if the client is gone.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok() && self.stream.flush().await.is_ok()
    }
}

async fn line(stream: &mut BufStream<TcpStream>) -> std::io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await?);
    }
    line.truncate(line.len() - 2);
    Ok(String::from_utf8(line).expect("a head is text"))
}

async fn chunk_size(stream: &mut BufStream<TcpStream>, first: bool) -> std::io::Result<u64> {
    if !first {
        assert_eq!(line(stream).await?, "");
    }
    let size = u64::from_str_radix(&line(stream).await?, 16).expect("a size");
    if size == 0 {
        assert_eq!(line(stream).await?, "", "no trailers");
    }
    Ok(size)
}

async fn request(stream: TcpStream) -> std::io::Result<Request> {
    let mut stream = BufStream::with_capacity(1 << 16, 1 << 16, stream);
    let first = line(&mut stream).await?;
    let mut headers = Vec::new();
    loop {
        let line = line(&mut stream).await?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let body = match length {
        Some((_, length)) => Body::Left(length.parse().expect("a length")),
        None if headers.iter().any(|(name, _)| name == "transfer-encoding") => {
            Body::Chunked { left: 0, first: true }
        }
        None => Body::Left(0),
    };
    let line = first.trim_end_matches(" HTTP/1.1").to_owned();
    Ok(Request { line, headers, stream, body })
}

/// A running server. Dropping it ends the server.
pub(crate) struct Server {
    pub(crate) at: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.at)
    }

    /// Serves on a free port.
    pub(crate) async fn start<F, Done>(handle: F) -> Self
    where
        F: Fn(Request) -> Done + Send + Sync + 'static,
        Done: Future<Output = ()> + Send + 'static,
    {
        let free = "127.0.0.1:0".parse().unwrap();
        Self::start_at(free, handle).await
    }

    /// Serves at an address.
    pub(crate) async fn start_at<F, Done>(at: SocketAddr, handle: F) -> Self
    where
        F: Fn(Request) -> Done + Send + Sync + 'static,
        Done: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(at).await.unwrap();
        let at = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // A connection that ends without a request is not an error.
                if let Ok(request) = request(stream).await {
                    open.spawn(handle(request));
                }
            }
        });
        Self { at, task }
    }
}

/// An address without a listener.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
