//! A publisher receives a secret of the worker only if the operator allows it.

use serde_json::{Value, json};

use crate::place::TestEnv;

const SECRET: (&str, &str) = ("BOB_SECRET_DEPLOY_KEY", "s3cret-of-the-worker");
const EXECUTORS: (&str, &str) = ("BOB_EXECUTORS", "podman,http");

/// How the definition reaches the worker.
#[derive(Debug, Clone, Copy)]
enum Sent {
    /// The message contains it, and so claims its group and name.
    Inline,
    /// The message names a stored one.
    Stored,
    /// The message names a stored one, and sets a variable that it does not declare.
    StoredWithVariable,
}

async fn record_of(place: &TestEnv, number: usize, sent: Sent, name: &str, steps: &Value) -> Value {
    let run = place.run(&format!("scope-{number}"));
    let pipeline = place.pipeline(name, steps);
    let by_name = json!({ "run-id": run, "group": place.tag, "name": name });
    let mut body = match sent {
        Sent::Inline => json!({ "run-id": run, "pipeline": pipeline }),
        Sent::Stored | Sent::StoredWithVariable => {
            let key = format!("bob.pipeline/{}:{name}", place.tag);
            place.keys.put(&key, &pipeline).await;
            by_name
        }
    };
    if matches!(sent, Sent::StoredWithVariable) {
        body["vars"] = json!({ "LD_PRELOAD": "/tmp/x" });
    }
    place.publish("bob.jobs", "pipeline/start", &body).await;
    place.keys.settled(&run).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_only_given_to_pipelines_and_hosts_in_its_scope() {
    let Some(place) = TestEnv::new().await else { return };
    let mine = format!("deploy-*={}:deploy", place.tag);
    let to_host = format!("deploy-key={}:call@hooks.example.org", place.tag);
    // The setting, the definition, the group, the steps, and whether they receive the secret.
    let takes = json!([{ "cmd": "true", "secrets": ["deploy-key"] }]);
    let sends = json!([{ "executor": "http", "secrets": ["deploy-key"],
        "with": { "url": "http://127.0.0.1:9/x", "headers": { "A": { "secret-name": "deploy-key" } } } }]);
    let cases = [
        ("", Sent::Stored, "deploy", &takes, false),
        (mine.as_str(), Sent::Stored, "deploy", &takes, true),
        (&mine, Sent::Inline, "deploy", &takes, false),
        (&mine, Sent::StoredWithVariable, "deploy", &takes, false),
        (&mine, Sent::Stored, "other", &takes, false),
        // A container could send it anywhere.
        (&to_host, Sent::Stored, "call", &takes, false),
        (&to_host, Sent::Stored, "call", &sends, false),
        ("*=*", Sent::Inline, "other", &takes, true),
    ];
    for (number, (scopes, sent, name, steps, is_given)) in cases.into_iter().enumerate() {
        let server = place.serve(&[SECRET, EXECUTORS, ("BOB_SECRETS_SCOPES", scopes)]).await;
        let record = record_of(&place, number, sent, name, steps).await;
        let said = record.to_string();
        if is_given {
            assert_eq!(record["status"], "passed", "{scopes}, {sent:?}: {record:#}");
        } else {
            assert_eq!(record["status"], "failed", "{scopes}, {sent:?}: {record:#}");
            assert!(said.contains("BOB_SECRETS_SCOPES"), "{scopes}, {sent:?}: {record:#}");
        }
        assert!(!said.contains(SECRET.1), "{record:#}");
        server.end().await;
    }
}
