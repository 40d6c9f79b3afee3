//! Brokers in a wrong state: objects of another type, users without permissions, commands that are
//! requeued repeatedly.

use std::process::Output;

use lapin::options::{BasicGetOptions, BasicNackOptions};
use rustix::process::Signal;
use serde_json::{Value, json};
use test_support::raw;

use crate::leaving::assert_no_wait_ran_out;
use crate::place::{TestEnv, in_time};
use crate::reader::Reader;

async fn said(place: &TestEnv, typed: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = place.program(typed, settings).output();
    let Output { status, stdout, stderr } = in_time("the program ends", output).await.unwrap();
    let text = [stdout, stderr].concat();
    (status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_object_of_another_kind_is_refused_with_the_name_to_delete() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let stream = r#"{"durable":true,"arguments":{"x-queue-type":"stream"}}"#;
    let classic = r#"{"durable":true}"#;
    let with_dead_letters =
        r#"{"durable":true,"arguments":{"x-dead-letter-exchange":"elsewhere","x-max-length":5}}"#;
    let cases = [
        ("exchanges", "bob.direct", r#"{"type":"fanout","durable":true}"#, "type fanout", false),
        ("queues", "bob.jobs", stream, "a stream", false),
        ("queues", "bob.control", with_dead_letters, "type classic", false),
        ("queues", "bob.event-stream", classic, "type classic", false),
        ("queues", "bob.dlq", r#"{"durable":false}"#, "not durable", true),
    ];
    for (kind, name, body, named, seen) in cases {
        let path = format!("{kind}/{}/{name}", place.vhost.name);
        let management = &place.vhost.management;
        if seen {
            // An earlier worker has declared it correctly.
            management.send(reqwest::Method::DELETE, &path, None).await;
        }
        management.send(reqwest::Method::PUT, &path, Some(body)).await;
        let (code, text) = said(&place, &["serve"], &[("BOB_EXECUTORS", "local")]).await;
        assert_eq!(code, Some(78), "{name}: {text}");
        assert!(text.contains(name) && text.contains(named), "{name}: {text}");
        assert!(text.contains("delete"), "{name}: {text}");
        management.send(reqwest::Method::DELETE, &path, None).await;
    }
    place.serve(&[("BOB_EXECUTORS", "local")]).await.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_existing_queue_with_other_arguments_is_used() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let path = format!("queues/{}/bob.jobs", place.vhost.name);
    let body = r#"{"durable":true,"arguments":{"x-queue-type":"quorum","x-delivery-limit":3}}"#;
    place.vhost.management.send(reqwest::Method::PUT, &path, Some(body)).await;
    let server = place.serve(&[("BOB_EXECUTORS", "local")]).await;
    assert!(server.log().contains("queue bob.jobs is used as it stands"), "{}", server.log());
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_cannot_publish_claims_no_runs_until_it_can() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    // A separate user, because all tests share the default one.
    let user = format!("u-{}", place.tag);
    let management = &place.vhost.management;
    let put = |path: String, body: &'static str| async move {
        management.send(reqwest::Method::PUT, &path, Some(body)).await;
    };
    put(format!("users/{user}"), r#"{"password":"p","tags":""}"#).await;
    let rights = format!("permissions/{}/{user}", place.vhost.name);
    put(rights.clone(), r#"{"configure":".*","write":"^bob\\.(?!event).*","read":".*"}"#).await;
    let settings =
        [("BOB_QUEUE_USER", &*user), ("BOB_QUEUE_PASSWORD", "p"), ("BOB_EXECUTORS", "local")];
    let (code, text) = said(&place, &["doctor"], &settings).await;
    assert_ne!(code, Some(0), "{text}");
    assert!(text.contains("set_permissions"), "{text}");

    let server = place.serve(&settings).await;
    let mut keys = place.keys.clone();
    let paused = keys.below("bob.node/", |node: &Value| node["paused"].is_string()).await;
    assert!(paused.to_string().contains("events cannot be published"), "{paused}");
    assert!(!server.log().contains("is ready"), "{}", server.log());
    let run = place.run("waits");
    let steps = json!([{ "cmd": "true", "executor": "local" }]);
    let pipeline = json!({ "group": place.tag, "name": "waits", "steps": steps });
    place.start(&run, &pipeline).await;
    assert_eq!(place.keys.get(&format!("bob.pipeline.run/{run}")).await, None);
    put(rights, r#"{"configure":".*","write":".*","read":".*"}"#).await;
    assert_eq!(place.keys.settled(&run).await["status"], "passed");
    assert!(server.log().contains("is ready"), "{}", server.log());
    server.end().await;
    management.send(reqwest::Method::DELETE, &format!("users/{user}"), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_claims_no_runs_during_a_broker_alarm_and_still_exits_in_time() {
    let Some((place, broker)) = TestEnv::with_its_own_broker().await else { return };
    let settings =
        [("BOB_EXECUTORS", "local"), ("BOB_DRAIN_SECONDS", "1"), ("BOB_KILL_GRACE_SECONDS", "1")];
    // Makes the queues, and takes nothing.
    let (_, text) = said(&place, &["doctor"], &settings).await;
    assert!(!text.contains("low on memory"), "{text}");
    let run = place.run("waits");
    let steps = json!([{ "cmd": "true", "executor": "local" }]);
    let pipeline = json!({ "group": place.tag, "name": "waits", "steps": steps });
    place.start(&run, &pipeline).await;

    broker.control("alarm", "rabbitmq").await;
    let (code, text) = said(&place, &["doctor"], &settings).await;
    assert_ne!(code, Some(0), "{text}");
    assert!(text.contains("takes no messages") && text.contains("low on memory"), "{text}");
    let is_paused = |pid: u32| move |node: &Value| node["pid"] == pid && node["paused"].is_string();
    let mut leaving = place.serve(&settings).await;
    let mut keys = place.keys.clone();
    let paused = keys.below("bob.node/", is_paused(leaving.pid())).await;
    assert!(paused.to_string().contains("events cannot be published"), "{paused}");
    leaving.signal(Signal::TERM);
    assert_eq!(leaving.ended().await, Some(0), "{}", leaving.log());
    assert_no_wait_ran_out(&leaving);
    assert_eq!(place.keys.get(&format!("bob.pipeline.run/{run}")).await, None);

    let staying = place.serve(&settings).await;
    keys.below("bob.node/", is_paused(staying.pid())).await;
    assert_eq!(place.keys.get(&format!("bob.pipeline.run/{run}")).await, None);
    broker.control("unalarm", "rabbitmq").await;
    assert_eq!(place.keys.settled(&run).await["status"], "passed");
    staying.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_requeued_repeatedly_is_reported() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    // Declares the queues without consuming.
    let settings = [("BOB_EXECUTORS", "local")];
    said(&place, &["doctor"], &settings).await;
    let run = place.run("returned");
    let steps = json!([{ "cmd": "true", "executor": "local" }]);
    place.start(&run, &json!({ "group": place.tag, "name": "x", "steps": steps })).await;
    let channel = raw::channel(&place.services.amqp(&place.vhost)).await;
    for _ in 0..3 {
        let got = in_time("the start", async {
            loop {
                let get = channel.basic_get("bob.jobs".into(), BasicGetOptions { no_ack: false });
                if let Some(got) = get.await.unwrap() {
                    return got;
                }
            }
        });
        let back = BasicNackOptions { requeue: true, multiple: false };
        got.await.delivery.acker.nack(back).await.unwrap();
    }
    let server = place.serve(&settings).await;
    let returned = |event: &Value| event["reason"] == "CommandReturned" && event["run-id"] == run;
    let event = Reader::new(&place).await.find(returned).await;
    assert_eq!((&event["returns"], &event["type"]), (&json!(3), &json!("Warning")));
    assert!(server.log().contains("was returned to its queue 3 times"), "{}", server.log());
    assert_eq!(place.keys.settled(&run).await["status"], "passed");

    place.publish("bob.jobs", "pipeline/start", &json!({ "run-id": 7 })).await;
    let rejected = |event: &Value| event["reason"] == "CommandRejected";
    Reader::new(&place).await.find(rejected).await;
    in_time("the message is in the queue", async {
        while !said(&place, &["doctor"], &settings).await.1.contains("bob.dlq has 1 messages") {}
    })
    .await;
    assert!(server.log().contains("cannot be understood"), "{}", server.log());
    server.end().await;
}
