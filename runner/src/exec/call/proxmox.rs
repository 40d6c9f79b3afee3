//! The executor `proxmox`: calls of the Proxmox VE API and the tasks that they start.

use std::time::Duration;

use async_trait::async_trait;
use protocol::event::LogStream;
use reqwest::Method;
use reqwest::header::AUTHORIZATION;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::access::{Access, Trust};
use super::address;
use super::api::Api;
use super::options::Options;
use super::request::{Body, Call, Halt, Repeat, Request};
use super::with::StepArguments;
use crate::ports::{ExecError, Pauses};

/// The prefix of every path.
const API: [&str; 2] = ["api2", "json"];
const METHODS: [Method; 4] = [Method::GET, Method::POST, Method::PUT, Method::DELETE];

/// The executor `proxmox`.
pub(super) struct Proxmox;

/// A call, ready to be sent.
pub(super) struct ProxmoxCall {
    node: String,
    method: Method,
    path: Vec<String>,
    params: Map<String, Value>,
    /// How long to wait for the task that the call starts. `None`: do not wait.
    wait: Option<Duration>,
}

#[async_trait]
impl Api for Proxmox {
    type Request = ProxmoxCall;

    fn read(
        &self,
        with: StepArguments<'_>,
        options: &Options,
    ) -> Result<(ProxmoxCall, Access), ExecError> {
        let service = address::service(with.must("host")?);
        let service = service.map_err(|why| with.bad(&format!("`host` {why}")))?;
        let node = with.must("node")?;
        let vmid = with.id("vmid")?;
        if vmid.as_ref().is_some_and(|vmid| !vmid.bytes().all(|c| c.is_ascii_digit())) {
            return Err(with.bad("`vmid` is not a number"));
        }
        let (kind, command) = (with.text("type")?, with.text("command")?);
        let path = path(with, node, vmid.as_deref())?;
        let agent = path.iter().any(|part| part == "agent") && kind == Some("lxc");
        if agent || command == Some("lxc_agent_exec") {
            let why = "containers have no agent: run the command with the ssh executor";
            return Err(with.bad(why));
        }
        let method = with.must("method")?;
        let method = METHODS.into_iter().find(|known| known.as_str() == method);
        let method = method.ok_or_else(|| with.bad("`method` is not GET, POST, PUT or DELETE"))?;
        let (id, secret) = (with.must("token_id")?, with.must("token_secret")?);
        let token = format!("PVEAPIToken={id}={secret}");
        let access = Access::new(service, Trust::read(with)?);
        let access = access.with_secret(AUTHORIZATION, &token, secret).ok_or_else(|| {
            with.bad("`token_id` or `token_secret` has a character that a header cannot have")
        })?;
        let wait = with.span("wait_timeout")?.unwrap_or(options.times.task);
        let asked = ProxmoxCall {
            node: node.to_owned(),
            method,
            path,
            params: with.map("params")?.cloned().unwrap_or_default(),
            wait: with.switch("wait")?.unwrap_or(true).then_some(wait),
        };
        Ok((asked, access))
    }

    async fn act(&self, mut asked: ProxmoxCall, call: &mut Call) -> Result<Value, Halt> {
        let last = asked.path.iter().rev().map(String::as_str).take(2).collect::<Vec<_>>();
        match (&asked.method, last.as_slice()) {
            (&Method::GET, ["vncwebsocket", ..]) => return websocket(&mut asked, call).await,
            (&Method::POST, ["exec", "agent"]) if asked.wait.is_some() => {
                return command(&asked, call).await;
            }
            (_, _) => {}
        }
        let data = ask(call, &asked.method, &asked.path, asked.params).await?;
        let task = data.as_str().filter(|text| text.starts_with("UPID:"));
        if let (Some(wait), Some(task)) = (asked.wait, task) {
            ended(&asked.node, task, wait, call).await?;
        }
        Ok(data)
    }
}

/// The path's segments with the placeholders filled in.
fn path(with: StepArguments<'_>, node: &str, vmid: Option<&str>) -> Result<Vec<String>, ExecError> {
    let text = with.must("path")?;
    let mut parts = Vec::new();
    for part in text.trim_start_matches('/').split('/') {
        let part = match (part, vmid) {
            ("{node}", _) => node,
            ("{vmid}", Some(vmid)) => vmid,
            ("{vmid}", None) => return Err(with.missing("vmid")),
            (part, _) => part,
        };
        if !address::is_part(part) || part.contains(['?', '#']) {
            return Err(with.bad("a part of the path of the call leads elsewhere"));
        }
        parts.push(part.to_owned());
    }
    if !parts.iter().take(2).eq(&API) {
        return Err(with.bad("`path` does not begin with /api2/json"));
    }
    Ok(parts)
}

/// Sends one call and returns the `data` of the response.
async fn ask(
    call: &mut Call,
    method: &Method,
    path: &[String],
    params: Map<String, Value>,
) -> Result<Value, Halt> {
    let request = request(call, method, path, params)?;
    Ok(data(&call.good(&request).await?.data()))
}

fn request(
    call: &Call,
    method: &Method,
    path: &[String],
    params: Map<String, Value>,
) -> Result<Request, Halt> {
    // Proxmox reads a body only for these methods.
    let in_body = [Method::POST, Method::PUT].contains(method);
    let (query, body) = match (in_body, params.is_empty()) {
        (_, true) => (Map::new(), Body::Nothing),
        (true, false) => (Map::new(), Body::Json(params.into())),
        (false, false) => (params, Body::Nothing),
    };
    // Retry only reads: growing a disk by 10G twice grows it by 20G.
    let repeat = if method.is_safe() { Repeat::Always } else { Repeat::Never };
    Ok(Request::new(method.clone(), call.url(path, &query)?, body, repeat))
}

fn data(answer: &Value) -> Value {
    answer.get("data").unwrap_or(answer).clone()
}

/// A path below a node.
fn below(node: &str, parts: &[&str]) -> Vec<String> {
    let all = API.iter().copied().chain(["nodes", node]).chain(parts.iter().copied());
    all.map(str::to_owned).collect()
}

/// Waits until a task has ended.
async fn ended(node: &str, task: &str, wait: Duration, call: &mut Call) -> Result<(), Halt> {
    let path = below(node, &["tasks", task, "status"]);
    let named = format!("task {task}");
    let seen =
        look(call, &path, Map::new(), &named, wait, |data| data["status"] == "stopped").await;
    let status = match seen? {
        Some(data) => data["exitstatus"].as_str().unwrap_or("no exit status").to_owned(),
        None => {
            let why = format!(
                "{named} continues after `wait_timeout`, and the step no longer waits for it"
            );
            return Err(Halt::Failed { why, data: task.into(), code: 1 });
        }
    };
    if status == "OK" || status.starts_with("WARNINGS") {
        call.tell(&format!("{named}: {status}")).await;
        return Ok(());
    }
    Err(Halt::Failed { why: format!("{named} failed: {status}"), data: task.into(), code: 1 })
}

/// Polls until `is_over` returns true. `None` after the timeout.
async fn look(
    call: &mut Call,
    path: &[String],
    query: Map<String, Value>,
    named: &str,
    wait: Duration,
    is_over: fn(&Value) -> bool,
) -> Result<Option<Value>, Halt> {
    let mut request = request(call, &Method::GET, path, query)?;
    let until = Instant::now() + wait;
    let (first, longest) = call.times().looks;
    let mut pauses = Pauses::doubling(first, longest);
    let still = format!("{named} continues there");
    loop {
        let answer = call.good(&request).await.map_err(|halt| of(halt, &still))?;
        let found = data(&answer.data());
        if is_over(&found) {
            return Ok(Some(found));
        }
        let pause = pauses.take_next();
        if Instant::now() + pause > until {
            return Ok(None);
        }
        call.rest(pause, &still).await?;
        // Log only the first poll.
        request.quiet = true;
    }
}

/// Adds to an early end that the task continues on the node.
fn of(halt: Halt, still: &str) -> Halt {
    match halt {
        Halt::Stopped(_) => Halt::Stopped(still.to_owned()),
        Halt::Failed { why, data, code } => {
            Halt::Failed { why: format!("{why}; {still}, for all that is known"), data, code }
        }
        Halt::NotOurs { sent } => Halt::NotOurs { sent },
    }
}

/// Runs a command through the guest agent. Its output and exit code become those of the step.
async fn command(asked: &ProxmoxCall, call: &mut Call) -> Result<Value, Halt> {
    let begun = ask(call, &asked.method, &asked.path, asked.params.clone()).await?;
    let pid = begun["pid"].clone();
    let Some(wait) = asked.wait.filter(|_| pid.is_number() || pid.is_string()) else {
        return Ok(begun);
    };
    let mut path = asked.path.clone();
    path.pop();
    path.push("exec-status".to_owned());
    let query = Map::from_iter([("pid".to_owned(), pid.clone())]);
    let named = format!("process {pid}");
    let exited = |data: &Value| data["exited"] == true || data["exited"] == 1;
    let Some(mut data) = look(call, &path, query, &named, wait, exited).await? else {
        let why =
            format!("{named} continues after `wait_timeout`, and the step no longer waits for it");
        return Err(Halt::Failed { why, data: begun, code: 1 });
    };
    for (key, stream) in [("out-data", LogStream::Stdout), ("err-data", LogStream::Stderr)] {
        call.write(stream, data[key].as_str().unwrap_or_default()).await;
    }
    let code = match (data["exitcode"].as_i64(), data["signal"].as_i64()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 0,
    };
    if let Value::Object(data) = &mut data {
        data.insert("pid".to_owned(), pid);
    }
    if code == 0 {
        return Ok(data);
    }
    let why = format!("{named} ended with exit code {code}");
    Err(Halt::Failed { why, data, code: i32::try_from(code).unwrap_or(1) })
}

/// Opens a websocket. Requests a ticket and a port first if the step does not name them.
async fn websocket(asked: &mut ProxmoxCall, call: &mut Call) -> Result<Value, Halt> {
    let mut params = std::mem::take(&mut asked.params);
    let mut made = Value::Null;
    if !(params.contains_key("port") && params.contains_key("vncticket")) {
        let mut path = asked.path.clone();
        path.pop();
        path.push("vncproxy".to_owned());
        let wanted = Map::from_iter([("websocket".to_owned(), json!(1))]);
        made = ask(call, &Method::POST, &path, wanted).await?;
        for (ours, theirs) in [("port", "port"), ("vncticket", "ticket")] {
            let Some(value) = made.get(theirs) else {
                return Err(Halt::failed(format!("vncproxy answered without `{theirs}`")));
            };
            params.insert(ours.to_owned(), value.clone());
        }
    }
    let (port, ticket) = (params["port"].clone(), params["vncticket"].clone());
    let shown = ask(call, &asked.method, &asked.path, params).await?;
    // Merge both responses, and the ticket, which only the first one contains.
    let mut all = Map::from_iter([("port".to_owned(), port), ("ticket".to_owned(), ticket)]);
    for part in [made, shown] {
        if let Value::Object(part) = part {
            all.extend(part);
        }
    }
    Ok(all.into())
}
