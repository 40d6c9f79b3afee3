//! A publisher cannot make the worker connect to its own host, or to the services that only the
//! worker itself uses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::place::TestEnv;

/// A service on the worker's host, and the number of connections it has accepted.
async fn listener() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, count)
}

/// The ways to write an address of the worker's own host.
const HOSTS: [&str; 4] = ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[64:ff9b::127.0.0.1]"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_address_in_a_message_reaches_the_workers_own_host() {
    let Some(place) = TestEnv::new().await else { return };
    let (port, connections) = listener().await;
    let server = place
        .serve(&[("BOB_ALLOWED_ADDRESSES", ""), ("BOB_EXECUTORS", "podman,http,ssh,local")])
        .await;
    for (number, host) in HOSTS.iter().enumerate() {
        let url = format!("http://{host}:{port}");
        let name = format!("{}-{number}", place.tag);
        for kind in ["resource-provider", "artifact-store", "logger"] {
            let value = json!({ "name": name, "url": url });
            place.keys.put(&format!("bob.{kind}/{name}"), &value).await;
        }
        let artifact = json!({ "name": "out", "path": "made", "store": name });
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let cases = [
            ("http", json!([{ "executor": "http", "with": { "url": url } }])),
            (
                "ssh",
                json!([{ "executor": "ssh", "cmd": "true",
                "with": { "host": bare, "port": port, "known_hosts": "off" } }]),
            ),
            ("resource", json!([{ "cmd": "true", "needs_resource": "src" }])),
            ("artifact", json!([{ "cmd": "touch made", "produces_artifact": artifact }])),
        ];
        for (case, steps) in cases {
            let mut pipeline = place.pipeline(case, &steps);
            if case == "resource" {
                pipeline["resources"] =
                    json!([{ "name": "src", "type": "external", "provider": name }]);
            }
            let run = place.run(&format!("{case}-{number}"));
            place.start(&run, &pipeline).await;
            let record = place.keys.settled(&run).await;
            assert_eq!(record["status"], "failed", "{case} {host}: {record:#}");
            let said = record.to_string();
            assert!(said.contains("BOB_ALLOWED_ADDRESSES"), "{case} {host}: {record:#}");
        }
        let mut pipeline =
            place.pipeline("callback", &json!([{ "executor": "local", "cmd": "true" }]));
        pipeline["steps"][0]["callback"] = json!({ "url": format!("{url}/hook-{number}") });
        let run = place.run(&format!("callback-{number}"));
        let body = json!({ "run-id": run, "pipeline": pipeline, "logger": name });
        place.publish("bob.jobs", "pipeline/start", &body).await;
        assert_eq!(place.keys.settled(&run).await["status"], "passed");
        let is_refusal = |line: &str| line.contains(&run) && line.contains("BOB_ALLOWED_ADDRESSES");
        server.logged("the callback is refused", is_refusal).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0, "the service of the host was reached");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_workers_own_services_stay_closed_even_if_their_network_is_opened() {
    let Some(place) = TestEnv::new().await else { return };
    let variables = place.variables();
    let value = |name: &str| {
        let found = variables.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| value.clone()).unwrap()
    };
    let server = place
        .serve(&[("BOB_ALLOWED_ADDRESSES", "127.0.0.0/8,::1"), ("BOB_EXECUTORS", "http")])
        .await;
    let etcd = value("BOB_STORAGE_URLS").split(',').next().unwrap().to_owned();
    let broker = value("BOB_QUEUE_URL").replace("amqp://", "http://");
    for (case, url, own) in [("etcd", etcd, "own etcd"), ("broker", broker, "own RabbitMQ")] {
        let call = json!({ "executor": "http", "with": { "url": url } });
        let run = place.run(case);
        place.start(&run, &place.pipeline(case, &Value::Array(vec![call]))).await;
        let record = place.keys.settled(&run).await;
        assert_eq!(record["status"], "failed", "{record:#}");
        assert!(record.to_string().contains(own), "{record:#}");
    }
    server.end().await;
}
