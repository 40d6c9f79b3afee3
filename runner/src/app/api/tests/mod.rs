//! The API over embedded services: requests go to the router, without a socket.

mod definitions;
mod document;
mod faults;
mod logs;
mod projection;
mod runs;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::response::Response;
use axum::{Extension, Router};
use protocol::id::NodeId;
use protocol::names;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::*;
use crate::app::this_host;
use crate::embedded::{self, Embedded};
use crate::http::access::Principal;
use crate::http::logs::Logs;
use crate::ports::{Consumer, Source, Store, Txn};

/// A node with an API, and no worker.
struct Fleet {
    router: Router,
    embedded: Embedded,
    projection: Projection,
    /// Ends what the node runs.
    _stop: [DropGuard; 2],
}

/// An answer of the API.
struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

async fn embedded() -> Embedded {
    let event_retention = Duration::from_secs(86_400);
    let options = embedded::Options { dir: None, event_retention, host: this_host() };
    Embedded::open(options).await.unwrap()
}

fn services(embedded: &Embedded) -> OwnServices {
    let node = NodeId::from_stored("bob/runner-test");
    OwnServices {
        store: embedded.store(),
        queue: embedded.queue(&node),
        events: embedded.events(),
        node,
    }
}

/// A router that authenticates nobody.
async fn unprotected(services: OwnServices, projection: &Projection) -> (Router, DropGuard) {
    let stop = CancellationToken::new();
    let client = Client::new(Arc::new(services));
    let no_cache = http::logs::Options { dir: "/nowhere".into(), bytes: 0 };
    let api = Api {
        client: client.clone(),
        hub: Hub::new(client.clone(), stop.clone()),
        projection: projection.clone(),
        logs: Logs::open(no_cache, client, None, stop.clone()).await,
        literal_secrets: false,
        build: Build { version: "1.2.3", commit: None },
        draining: CancellationToken::new(),
        stop: stop.clone(),
    };
    (http::router(api, http::routes()), stop.drop_guard())
}

impl Fleet {
    async fn open() -> Self {
        Self::over(embedded().await).await
    }

    /// Another node of the same fleet.
    async fn over(embedded: Embedded) -> Self {
        let store = embedded.store();
        let fleet = Self::start(embedded, store).await;
        fleet.projection.ready().await;
        fleet
    }

    /// A node whose projection reads this store.
    async fn start(embedded: Embedded, store: Arc<dyn Store>) -> Self {
        let projection = Projection::new();
        let (router, stop) = unprotected(services(&embedded), &projection).await;
        let (ends, followed) = (CancellationToken::new(), projection.clone());
        let until = ends.clone();
        TaskTracker::new().spawn(async move { followed.follow(&*store, &until).await });
        let router = router.layer(Extension(Principal::anyone()));
        Self { router, embedded, projection, _stop: [stop, ends.drop_guard()] }
    }

    async fn send(&self, request: Request<Body>) -> Answered {
        answered(self.router.clone().oneshot(request).await.unwrap()).await
    }

    async fn get(&self, path: &str) -> Answered {
        self.send(request(Method::GET, path, None)).await
    }

    async fn post(&self, path: &str, body: Value) -> Answered {
        self.send(request(Method::POST, path, Some(body))).await
    }

    async fn put(&self, path: &str, body: Value) -> Answered {
        self.send(request(Method::PUT, path, Some(body))).await
    }

    async fn delete(&self, path: &str) -> Answered {
        self.send(request(Method::DELETE, path, None)).await
    }

    /// Stores a run, and waits until the projection has it.
    async fn add_run(&self, record: &Value) {
        let run: protocol::id::RunId = record["run-id"].as_str().unwrap().parse().unwrap();
        let definition =
            json!({ "pipeline": pipeline("true"), "vars": { "API_TOKEN": "hunter2" } });
        let mut txn = Txn::new()
            .put(names::run_key(&run), record.to_string().into_bytes())
            .put(names::definition_key(&run), definition.to_string().into_bytes());
        if !["passed", "failed", "stopped"].contains(&record["status"].as_str().unwrap()) {
            txn = txn.put(names::open_key(&run), b"{}".to_vec());
        }
        assert!(self.embedded.store().txn(txn).await.unwrap().committed);
        self.projection.run_until(&run, |known| known.is_some()).await;
    }

    /// The starts in the queue.
    async fn jobs(&self) -> Box<dyn Consumer> {
        let queue = self.embedded.queue(&NodeId::from_stored("bob/runner-test"));
        queue.open(Source::Jobs).await.unwrap()
    }
}

impl Answered {
    /// Checks that the answer is a problem, and returns its detail.
    #[track_caller]
    fn problem(&self, status: u16) -> &str {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        assert_eq!(self.headers[header::CONTENT_TYPE], http::PROBLEM_JSON);
        assert_eq!(self.body["status"], status, "{}", self.body);
        assert!(self.body["type"].is_string() && self.body["title"].is_string());
        self.body["detail"].as_str().unwrap()
    }

    #[track_caller]
    fn is(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        self.body
    }
}

async fn answered(response: Response) -> Answered {
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
    Answered { status, headers, body }
}

fn request(method: Method, path: &str, body: Option<Value>) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    match body {
        None => request.body(Body::empty()),
        Some(body) => {
            let request = request.header(header::CONTENT_TYPE, "application/json");
            request.body(Body::from(body.to_string()))
        }
    }
    .unwrap()
}

fn pipeline(cmd: &str) -> Value {
    json!({
        "group": "dev",
        "name": "x",
        "image": "localhost/i",
        "steps": [{ "name": "build", "cmd": cmd }, { "name": "test", "cmd": cmd }],
    })
}

/// The record of a run, accepted at this second.
fn record(run: &str, status: &str, second: u32) -> Value {
    json!({
        "group": "dev",
        "name": "x",
        "run-id": run,
        "status": status,
        "attempt": 1,
        "losses": 0,
        "scheduled-at": format!("2026-01-01T00:00:{second:02}.000Z"),
        "steps": [
            { "name": "build", "status": "failed", "attempt": 1, "exit-code": 3 },
            { "name": "test", "status": "stopped", "attempt": 1 },
        ],
    })
}

fn run_ids(list: &Value) -> Vec<&str> {
    list["runs"].as_array().unwrap().iter().map(|run| run["run-id"].as_str().unwrap()).collect()
}
