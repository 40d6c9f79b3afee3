//! A publisher receives a secret of the worker only if the operator allows it.

use serde_json::json;

use crate::place::Place;

const SECRET: (&str, &str) = ("BOB_SECRET_DEPLOY_KEY", "s3cret-of-the-worker");
const LOCAL: (&str, &str) = ("BOB_EXECUTORS", "podman,http");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_given_to_the_pipelines_and_hosts_of_its_scope_alone() {
    let Some(place) = Place::new().await else { return };
    let mine = format!("deploy-*={}:deploy", place.tag);
    let to_host = format!("deploy-key={}:call@hooks.example.org", place.tag);
    // The setting, the group, the steps, and whether they receive the secret.
    let takes = json!([{ "cmd": "true", "secrets": ["deploy-key"] }]);
    let sends = json!([{ "executor": "http", "secrets": ["deploy-key"],
        "with": { "url": "http://127.0.0.1:9/x", "headers": { "A": { "secret-name": "deploy-key" } } } }]);
    let cases = [
        ("", "deploy", &takes, false),
        (mine.as_str(), "deploy", &takes, true),
        (&mine, "other", &takes, false),
        // A container could send it anywhere.
        (&to_host, "call", &takes, false),
        (&to_host, "call", &sends, false),
        ("*=*", "other", &takes, true),
    ];
    for (number, (scopes, name, steps, is_given)) in cases.into_iter().enumerate() {
        let server = place.serve(&[SECRET, LOCAL, ("BOB_SECRETS_SCOPES", scopes)]).await;
        let run = place.run(&format!("scope-{number}"));
        place.start(&run, &place.pipeline(name, steps)).await;
        let record = place.keys.settled(&run).await;
        let said = record.to_string();
        if is_given {
            assert_eq!(record["status"], "passed", "{scopes}: {record:#}");
        } else {
            assert_eq!(record["status"], "failed", "{scopes}: {record:#}");
            assert!(said.contains("BOB_SECRETS_SCOPES"), "{scopes}: {record:#}");
        }
        assert!(!said.contains(SECRET.1), "{record:#}");
        server.end().await;
    }
}
