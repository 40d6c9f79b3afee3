//! The engine's bare REST calls over its socket: the floor of a step.
//!
//! All calls of a chain share one connection, and each attach has its own. A container has the
//! minimal settings of a step: image, command, no network, and the engine's init, without which a
//! command would not receive SIGTERM.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio_util::task::TaskTracker;

const PREFIX: &str = "/v4.0.0/libpod";

/// A connection to the engine.
pub(crate) struct EngineClient {
    socket: PathBuf,
    sender: SendRequest<Full<Bytes>>,
}

/// The header of an output frame: stream, zeros, length.
const FRAME_HEAD: usize = 8;

impl EngineClient {
    pub(crate) async fn connect(url: &str) -> anyhow::Result<Self> {
        let socket = url.strip_prefix("unix://").context("the bench needs the engine's socket")?;
        let stream = UnixStream::connect(socket).await.with_context(|| socket.to_owned())?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        drop(TaskTracker::new().spawn(connection));
        Ok(Self { socket: socket.into(), sender })
    }

    /// Makes one call and returns the response.
    pub(crate) async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header(hyper::header::HOST, "engine");
        if body.is_some() {
            request = request.header(hyper::header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body)))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&bytes));
        Ok(serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// Creates a container and returns its id.
    pub(crate) async fn create(&mut self, image: &str, words: &[&str]) -> anyhow::Result<String> {
        let body = json!({
            "image": image, "command": words, "netns": { "nsmode": "none" }, "init": true,
        });
        let made = self.call(Method::POST, "/containers/create", Some(&body)).await?;
        id_of(&made)
    }

    /// Attaches to a container that is not started.
    pub(crate) async fn attach(&self, id: &str) -> anyhow::Result<BufReader<UnixStream>> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        let head = format!(
            "POST {PREFIX}/containers/{id}/attach?stream=true&stdout=true&stderr=true&stdin=false \
             HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
             Content-Length: 0\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.context("the answer to an attach")?);
        }
        let answer = String::from_utf8_lossy(&answer);
        ensure!(answer.starts_with("HTTP/1.1 101"), "attach: {answer}");
        Ok(BufReader::with_capacity(64 * 1024, stream))
    }

    pub(crate) async fn start(&mut self, id: &str) -> anyhow::Result<()> {
        self.call(Method::POST, &format!("/containers/{id}/start"), None).await.map(drop)
    }

    /// Polls a container until it has ended. Returns its exit code.
    pub(crate) async fn ended(&mut self, id: &str) -> anyhow::Result<i64> {
        loop {
            let looked = self.call(Method::GET, &format!("/containers/{id}/json"), None).await?;
            let state = &looked["State"];
            match state["Status"].as_str() {
                Some("exited" | "stopped") => {
                    return state["ExitCode"].as_i64().context("an exit code");
                }
                Some("running" | "stopping") => tokio::time::sleep(Duration::from_millis(1)).await,
                other => bail!("container {id} is {other:?}"),
            }
        }
    }

    /// Commits a container and returns the image id.
    pub(crate) async fn commit(
        &mut self,
        container: &str,
        name: Option<&str>,
        squash: bool,
    ) -> anyhow::Result<String> {
        let name = name.map(|name| format!("&repo={name}")).unwrap_or_default();
        let path = format!("/commit?container={container}&pause=false&squash={squash}{name}");
        let made = self.call(Method::POST, &path, None).await?;
        id_of(&made)
    }

    /// Runs a minimal step. Returns its committed image and its container.
    pub(crate) async fn step(
        &mut self,
        image: &str,
        words: &[&str],
        squash: bool,
    ) -> anyhow::Result<(String, String)> {
        let id = self.create(image, words).await?;
        let mut attached = self.attach(&id).await?;
        self.start(&id).await?;
        while frame(&mut attached).await?.is_some() {}
        let code = self.ended(&id).await?;
        ensure!(code == 0, "a step of the floor ended with {code}");
        Ok((self.commit(&id, None, squash).await?, id))
    }

    /// Removes a container if it exists.
    pub(crate) async fn remove_container(&mut self, id: &str) -> anyhow::Result<()> {
        let path = format!("/containers/{id}?force=true&timeout=0&ignore=true");
        self.call(Method::DELETE, &path, None).await.map(drop)
    }

    /// Removes an image and its unnamed parents.
    pub(crate) async fn remove_image(&mut self, id: &str) -> anyhow::Result<()> {
        self.call(Method::DELETE, &format!("/images/{id}?force=true"), None).await.map(drop)
    }
}

/// The next frame of a container's output.
pub(crate) async fn frame(from: &mut BufReader<UnixStream>) -> anyhow::Result<Option<Bytes>> {
    let mut head = [0; FRAME_HEAD];
    match from.read_exact(&mut head).await {
        Ok(_) => {}
        Err(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(cause) => return Err(cause.into()),
    }
    let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let mut piece = vec![0; length as usize];
    from.read_exact(&mut piece).await?;
    Ok(Some(piece.into()))
}

fn id_of(made: &Value) -> anyhow::Result<String> {
    let id = made["Id"].as_str().or_else(|| made["id"].as_str()).context("an id")?;
    Ok(id.trim_start_matches("sha256:").to_owned())
}
