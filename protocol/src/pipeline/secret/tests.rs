use serde_json::json;

use super::*;

fn definition() -> Value {
    json!({
        "group": "g", "name": "n",
        "vars": { "DB_PASSWORD": "s3cret", "USER": "bob", "TOKEN": "${login.token}" },
        "resources": [{
            "name": "src", "type": "external", "provider": "git",
            "params": { "repo": "r", "access_token": "s3cret", "token": "${s}" },
        }],
        "steps": [{
            "name": "a",
            "executor": "http",
            "vars": { "api-token": "s3cret" },
            "with": {
                "token_secret": "s3cret",
                "api-key": "${login.data.key}",
                "params": [{ "password": "s3cret" }, { "password": "" }, { "password": 12_345_678 }],
                "api_token": { "secret-name": "pve" },
                "headers": {
                    "Authorization": "Bearer s3cret",
                    "X-Api-Key": "s3cret",
                    "Cookie": "${login.data.cookie}",
                    "Proxy-Authorization": "Bearer ${login.data.token}",
                    "Idempotency-Key": "order-7",
                    "Author": "bob",
                },
                "url": "https://h/x?apiKey=s3cret&page=7",
                "body": "client_id=bob&client_secret=s3cret",
                "text": r#"{"n":[{"accessToken":"s3cret"}],"page":7}"#,
                "json": { "tokens": ["shown"], "secret": ["s3cret"], "client-secret": { "of": "s3cret" } },
            },
            "callback": { "url": "http://h?token=s3cret", "secret": "s3cret" },
        }],
        "on-error": { "name": "b", "with": { "password": "s3cret" } },
    })
}

const PATHS: [&str; 14] = [
    "resources[0].params.access_token",
    "steps[0].with.token_secret",
    "steps[0].with.params[0].password",
    "steps[0].with.params[2].password",
    "steps[0].with.headers.Authorization",
    "steps[0].with.headers.X-Api-Key",
    "steps[0].with.url",
    "steps[0].with.body",
    "steps[0].with.text",
    "steps[0].with.json.secret[0]",
    "steps[0].with.json.client-secret.of",
    "steps[0].callback.url",
    "steps[0].callback.secret",
    "on-error.with.password",
];

#[test]
fn literal_secrets_are_masked_and_references_are_not() {
    let pipeline: Pipeline = serde_json::from_value(definition()).unwrap();
    assert_eq!(pipeline.literal_secrets(), PATHS);
    let masked = serde_json::to_string(&pipeline.masked()).unwrap();
    assert!(!masked.contains("s3cret") && !masked.contains("12345678"), "{masked}");
    for shown in [
        "page=7",
        "client_id=bob",
        r#"\"page\":7"#,
        "login.data.key",
        "pve",
        "order-7",
        "shown",
        "login.token",
        "bob",
    ] {
        assert!(masked.contains(shown), "{shown}: {masked}");
    }
    let callback = pipeline.steps[0].callback.as_ref().unwrap();
    assert!(!format!("{:?}", callback.secret).contains("s3cret"));
    assert!(pipeline.masked().literal_secrets().is_empty());
}

#[test]
fn variables_are_kept_when_literal_secrets_are_removed() {
    let pipeline: Pipeline = serde_json::from_value(definition()).unwrap();
    let without = pipeline.without_literal_secrets();
    assert_eq!(without.vars, pipeline.vars);
    assert!(without.literal_secrets().is_empty());
}

#[test]
fn stored_records_are_masked_and_keep_unknown_keys() {
    let mut record = json!({
        "run-id": "r-1", "later": { "kept": true },
        "vars": { "GITHUB_TOKEN": "s3cret", "BRANCH": "main" },
        "params": { "password": ["s3cret"], "count": 3 },
        "pipeline": definition(),
    });
    record["pipeline"]["later"] = json!("kept");
    mask_stored_run(&mut record);
    let shown = record.to_string();
    assert!(!shown.contains("s3cret") && !shown.contains("12345678"), "{shown}");
    assert_eq!(record["later"], json!({ "kept": true }));
    assert_eq!(record["pipeline"]["later"], json!("kept"));
    assert_eq!(record["vars"], json!({ "GITHUB_TOKEN": MASK, "BRANCH": "main" }));
    assert_eq!(record["params"], json!({ "password": [MASK], "count": 3 }));
    assert_eq!(record["pipeline"]["steps"][0]["with"]["headers"]["Author"], json!("bob"));
}

#[test]
fn a_map_of_credentials_is_searched_key_by_key() {
    let mut pipeline: Pipeline = serde_json::from_value(definition()).unwrap();
    pipeline.steps.truncate(1);
    pipeline.resources.clear();
    pipeline.on_error = None;
    pipeline.steps[0].callback = None;
    let with = json!({ "json": {
        "credentials": { "user": "bob", "password": { "secret-name": "pw" }, "pwd": "s3cret" },
        "authorization": { "type": "none" },
        "dbCredential": "s3cret",
    } });
    pipeline.steps[0].with = serde_json::from_value(with).unwrap();
    let paths = ["steps[0].with.json.credentials.pwd", "steps[0].with.json.dbCredential"];
    assert_eq!(pipeline.literal_secrets(), paths);
}

#[test]
fn the_reported_paths_are_bounded() {
    let mut pipeline: Pipeline = serde_json::from_value(definition()).unwrap();
    let key = "k".repeat(100_000);
    let with = json!({ key: { "password": vec!["s3cret"; 2000] } });
    pipeline.steps[0].with = serde_json::from_value(with).unwrap();
    let paths = pipeline.literal_secrets();
    assert_eq!(paths.len(), MAX_PATHS);
    assert_eq!(paths[1], format!("steps[0].with.{}….password[0]", "k".repeat(MAX_KEY)));
    let masked = serde_json::to_string(&pipeline.masked()).unwrap();
    assert!(!masked.contains("s3cret"));
}

#[test]
fn a_secret_reference_can_replace_a_whole_value() {
    for path in ["steps[0].with.headers.Authorization", "steps[0].with.params.password"] {
        assert!(can_name_secret(path), "{path}");
    }
    for path in ["steps[0].with.url", "steps[0].with.body", "resources[0].params.token"] {
        assert!(!can_name_secret(path), "{path}");
    }
}
