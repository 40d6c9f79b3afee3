use std::collections::BTreeSet;

use super::*;

#[test]
fn only_the_health_checks_are_open_to_everyone() {
    let open = http::routes().into_iter().filter(|route| route.scope.is_none());
    let open: Vec<&str> = open.map(|route| route.path).collect();
    assert_eq!(open, PUBLIC_PATHS);
}

#[test]
fn every_operation_has_a_name_of_its_own_and_an_answer() {
    let mut names = BTreeSet::new();
    for route in http::routes() {
        assert!(names.insert(route.operation), "{} is not unique", route.operation);
        assert!(!route.summary.is_empty() && !route.answers.is_empty(), "{route:?}");
    }
}

/// Every reference in a value.
fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(target)) = fields.get("$ref") {
                found.insert(target);
            }
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_reference_of_the_document_has_a_target() {
    let document = openapi();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 10, "{found:?}");
    for target in found {
        let pointer = target.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{target} is missing");
    }
}

#[test]
fn the_parameters_of_a_list_are_described() {
    let document = openapi();
    let list = &document["paths"]["/api/v1/runs"]["get"];
    let parameters = list["parameters"].as_array().unwrap();
    let named = |name: &str| parameters.iter().find(|one| one["name"] == name).unwrap();
    assert_eq!(named("status")["schema"]["type"], "array");
    assert_eq!(named("status")["explode"], false);
    assert_eq!(named("limit")["schema"]["type"], "integer");
    assert_eq!(named("limit")["schema"]["maximum"], 1000);
    assert_eq!(named("since")["schema"]["$ref"], "#/components/schemas/Stamp");
    assert_eq!(list["security"], json!([{ "token": ["read"] }]));
    let health = &document["paths"]["/healthz"]["get"];
    assert_eq!(health["security"], json!([]));
    let start = &document["paths"]["/api/v1/runs"]["post"]["requestBody"];
    let schema = &start["content"]["application/json"]["schema"]["$ref"];
    assert_eq!(schema, "#/components/schemas/Start");
}

/// Checks an answer against a schema of the document.
#[track_caller]
fn check(document: &Value, name: &str, answer: &Value) {
    let schema = json!({
        "$ref": format!("#/components/schemas/{name}"),
        "components": document["components"],
    });
    let validator = jsonschema::validator_for(&schema).unwrap();
    let faults: Vec<String> =
        validator.iter_errors(answer).map(|fault| fault.to_string()).collect();
    assert!(faults.is_empty(), "{name}: {faults:?} in {answer}");
}

#[tokio::test]
async fn answers_match_the_document() {
    let fleet = Fleet::open().await;
    fleet.add_run(&record("r-1", "failed", 1)).await;
    fleet.put("/api/v1/pipelines/dev/x", pipeline("true")).await.is(201);
    fleet.put("/api/v1/loggers/logs", json!({ "url": "http://h" })).await.is(201);
    let served = fleet.get("/api/v1/openapi.json").await.is(200);
    assert_eq!(served, openapi());
    for (path, name) in [
        ("/api/v1/runs", "RunList"),
        ("/api/v1/runs/r-1", "RunRecord"),
        ("/api/v1/runs/r-1/failed-steps", "FailedSteps"),
        ("/api/v1/pipelines", "PipelineList"),
        ("/api/v1/pipelines/dev/x", "StoredPipeline"),
        ("/api/v1/loggers", "ServiceList"),
        ("/api/v1/nodes", "NodeList"),
        ("/api/v1/version", "Version"),
        ("/readyz", "Health"),
    ] {
        check(&served, name, &fleet.get(path).await.is(200));
    }
    check(&served, "Problem", &fleet.get("/api/v1/runs?limit=x").await.body);
}
