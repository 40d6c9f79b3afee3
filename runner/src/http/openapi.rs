//! Describes a table of routes as `OpenAPI` 3.1. The schemas are generated from the types.

use protocol::id::{RegisteredName, RunId};
use protocol::schema::{self, SchemaName};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::problem::PROBLEM_JSON;
use super::route::{Answer, Form, RequestHeader, Route, SchemaOf};

/// Where schemas are in the document.
const SCHEMAS: &str = "#/components/schemas/";
/// Where they are in the published JSON Schemas.
const DEFINITIONS: &str = "#/$defs/";

/// Problems that every route with a scope can answer with.
const COMMON_PROBLEMS: [u16; 4] = [401, 403, 429, 503];
/// Problems of routes without a scope.
const OPEN_PROBLEMS: [u16; 2] = [429, 503];

/// The `OpenAPI` document of these routes.
#[must_use]
pub fn document(routes: &[Route]) -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for route in routes {
        let operation = operation(route, &mut generator);
        let path = paths.entry(route.path).or_insert_with(|| Value::Object(Map::new()));
        if let Some(path) = path.as_object_mut() {
            path.insert(route.method.as_str().to_ascii_lowercase(), operation);
        }
    }
    let mut schemas = generator.take_definitions(true);
    // Parameters of queries are described by their operations.
    let queries = routes.iter().filter_map(|route| route.query);
    queries.for_each(|query| drop(schemas.remove(&definition_of(query).0)));
    schemas.extend(written_schemas());
    schemas.insert("Problem".to_owned(), problem_schema());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "bob-runner",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Any node answers for the whole fleet. Lists can lag a moment behind.",
            "license": { "name": "MIT", "identifier": "MIT" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
            },
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut operation = json!({
        "operationId": route.operation,
        "summary": route.summary,
        "tags": [tag(route.path)],
        "security": match route.scope {
            Some(scope) => json!([{ "token": [scope.to_string()] }]),
            None => json!([]),
        },
    });
    let mut parameters = path_parameters(route.path, generator);
    if let Some(query) = route.query {
        parameters.extend(query_parameters(query, generator));
    }
    parameters.extend(route.headers.iter().map(header_parameter));
    let Some(fields) = operation.as_object_mut() else { return operation };
    if !parameters.is_empty() {
        fields.insert("parameters".to_owned(), parameters.into());
    }
    if let Some(form) = route.body {
        let body = json!({ "required": is_required(form), "content": content(form, generator) });
        fields.insert("requestBody".to_owned(), body);
    }
    let mut responses = Map::new();
    for Answer { status, about, form } in &route.answers {
        let mut response = json!({ "description": about });
        if let (Some(form), Some(response)) = (form, response.as_object_mut()) {
            response.insert("content".to_owned(), content(*form, generator));
        }
        responses.insert(status.as_str().to_owned(), response);
    }
    let common: &[u16] = if route.scope.is_some() { &COMMON_PROBLEMS } else { &OPEN_PROBLEMS };
    for status in route.problems.iter().chain(common) {
        responses.insert(status.to_string(), problem_response());
    }
    fields.insert("responses".to_owned(), responses.into());
    operation
}

/// The resource of a path, by which tools group operations.
fn tag(path: &str) -> &str {
    let path = path.strip_prefix("/api/v1/").unwrap_or("health");
    path.split(['/', '.']).next().unwrap_or(path)
}

/// Bodies of which every field is optional can be left out.
fn is_required(form: Form) -> bool {
    match form {
        Form::Pipeline | Form::Start | Form::Text(_) | Form::Bytes => true,
        Form::Json(schema) | Form::Events(schema) => {
            let (_, definition) = definition_of(schema);
            definition.is_none_or(|definition| definition.get("required").is_some())
        }
    }
}

fn content(form: Form, generator: &mut SchemaGenerator) -> Value {
    let json_of = |schema: Value| json!({ "application/json": { "schema": schema } });
    match form {
        Form::Json(schema) => json_of(schema(generator).to_value()),
        Form::Start => json_of(reference("Start")),
        Form::Pipeline => json!({
            "application/json": { "schema": reference("Pipeline") },
            "application/yaml": { "schema": reference("Pipeline") },
        }),
        Form::Events(schema) => {
            let data = schema(generator).to_value();
            let described = json!({
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": data,
                "description": "Server-sent events. The schema is that of their data.",
            });
            json!({ "text/event-stream": { "schema": described } })
        }
        Form::Text(media_type) => json!({ media_type: { "schema": { "type": "string" } } }),
        Form::Bytes => json!({ "application/octet-stream": {} }),
    }
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("{SCHEMAS}{name}") })
}

/// The name of a type's schema, and the schema. Empty if it has no name.
fn definition_of(schema: SchemaOf) -> (String, Option<Value>) {
    let mut alone = SchemaSettings::draft2020_12().into_generator();
    let generated = schema(&mut alone).to_value();
    let reference = generated.get("$ref").and_then(Value::as_str).unwrap_or_default();
    let name = reference.strip_prefix(DEFINITIONS).unwrap_or_default().to_owned();
    let definition = alone.definitions().get(&name).cloned();
    (name, definition)
}

/// The parameters that the placeholders of a path stand for.
fn path_parameters(path: &str, generator: &mut SchemaGenerator) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let names: Vec<&str> = names.collect();
    let of_pipeline = |about: &str| {
        (about.to_owned(), json!({ "type": "string", "minLength": 1, "maxLength": 128 }))
    };
    let parameters = names.into_iter().map(|name| {
        let (about, schema) = match name {
            "run" => ("The run".to_owned(), generator.subschema_for::<RunId>().to_value()),
            "service" => {
                let schema = generator.subschema_for::<RegisteredName>().to_value();
                ("The registered name".to_owned(), schema)
            }
            "group" => of_pipeline("The pipeline's group"),
            "name" => of_pipeline("The pipeline's name"),
            other => (format!("The {other}"), json!({ "type": "string" })),
        };
        json!({
            "name": name,
            "in": "path",
            "required": true,
            "description": about,
            "schema": schema,
        })
    });
    parameters.collect()
}

/// The fields of a type as parameters of a query.
fn query_parameters(query: SchemaOf, generator: &mut SchemaGenerator) -> Vec<Value> {
    // So that the document has the schemas that the parameters refer to.
    let reference = query(generator).to_value();
    let name = reference.get("$ref").and_then(Value::as_str).unwrap_or_default();
    let name = name.strip_prefix(SCHEMAS).unwrap_or_default();
    let definition = generator.definitions().get(name).cloned().unwrap_or_default();
    let required = definition.get("required").and_then(Value::as_array).cloned();
    let required = required.unwrap_or_default();
    let properties = definition.get("properties").and_then(Value::as_object).cloned();
    let parameters = properties.unwrap_or_default().into_iter().map(|(field, schema)| {
        let (about, schema) = parameter_schema(schema);
        let mut parameter = json!({
            "name": field,
            "in": "query",
            "required": required.iter().any(|one| one == field.as_str()),
            "description": about,
        });
        let is_list = schema.get("type").and_then(Value::as_str) == Some("array");
        if let Some(fields) = parameter.as_object_mut() {
            fields.insert("schema".to_owned(), schema);
            if is_list {
                // `a,b` rather than `x=a&x=b`.
                fields.insert("style".to_owned(), "form".into());
                fields.insert("explode".to_owned(), false.into());
            }
        }
        parameter
    });
    parameters.collect()
}

/// The description and the schema of a parameter. A parameter that is absent is not `null`.
fn parameter_schema(mut schema: Value) -> (Value, Value) {
    let Some(fields) = schema.as_object_mut() else { return (Value::Null, schema) };
    let about = fields.remove("description").unwrap_or_default();
    fields.remove("default");
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|one| one != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            fields.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(choices)) = fields.get_mut("anyOf") {
        choices.retain(|one| one.get("type").and_then(Value::as_str) != Some("null"));
        if let [only] = choices.as_slice() {
            return (about, only.clone());
        }
    }
    (about, schema)
}

fn header_parameter(header: &RequestHeader) -> Value {
    json!({
        "name": header.name,
        "in": "header",
        "required": false,
        "description": header.about,
        "schema": { "type": "string" },
    })
}

fn problem_response() -> Value {
    json!({
        "description": "A problem",
        "content": { PROBLEM_JSON: { "schema": reference("Problem") } },
    })
}

/// RFC 9457.
fn problem_schema() -> Value {
    json!({
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {
                "type": "string",
                "description": "The kind of the problem, for programs",
            },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string", "description": "What happened, and what to do" },
            "instance": { "type": "string" },
            "errors": {
                "type": "array",
                "description": "Each fault of a request that has several",
                "items": {
                    "type": "object",
                    "required": ["detail"],
                    "properties": {
                        "field": {
                            "type": "string",
                            "description": "The parameter, or the path of the field at fault",
                        },
                        "detail": { "type": "string" },
                    },
                },
            },
        },
    })
}

/// The schemas of what people write, which are stricter and more lenient than those of the types:
/// the pipeline, and the body of a start.
fn written_schemas() -> Map<String, Value> {
    let mut commands = schema::schema(SchemaName::Command);
    let definitions = commands.get_mut("$defs").map(Value::take);
    let Some(Value::Object(definitions)) = definitions else { return Map::new() };
    let mut schemas = Map::new();
    for (name, mut definition) in definitions {
        move_references(&mut definition);
        match name.as_str() {
            "pipeline-start" => schemas.insert("Start".to_owned(), definition),
            "pipeline-stop" | "pipeline-pause" | "pipeline-unpause" => None,
            _ => schemas.insert(name, definition),
        };
    }
    schemas
}

/// Rewrites references to definitions of a JSON Schema to their place in this document.
fn move_references(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                let target = value.as_str().filter(|_| key == "$ref");
                let moved = target.and_then(|target| target.strip_prefix(DEFINITIONS));
                match moved.map(|name| format!("{SCHEMAS}{name}")) {
                    Some(moved) => *value = moved.into(),
                    None => move_references(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(move_references),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
