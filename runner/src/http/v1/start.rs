//! Starts and reruns runs. A repeated request with the same `Idempotency-Key` is the same start, on
//! any node.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use protocol::command::{self, Command, Malformed, RunIdSource, Start, Target};
use protocol::id::{PipelineId, RunId, StepName};
use protocol::pipeline::{Pipeline, can_name_secret};
use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::client::{Client, StartOf, StartRequest};
use crate::http::api::Api;
use crate::http::extract::{JsonBody, JsonBytes, PathOf, Subject, faults};
use crate::http::problem::{Fault, Problem};
use crate::http::route::RequestHeader;

/// The header with the key of a request that can be repeated.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest key that is accepted.
const MAX_KEY: usize = 255;

/// The headers of requests that start a run.
pub(super) const START_HEADERS: &[RequestHeader] = &[RequestHeader {
    name: "Idempotency-Key",
    about: "The run id is derived from this key and the sender. A repeated request with the same \
            key is the same start, on any node. 1 to 255 visible ASCII characters. Not together \
            with `run-id`.",
}];

/// Keys of the body of a start. Others are a fault, so that a misspelt one does not go unnoticed.
const START_KEYS: [&str; 10] = [
    "run-id",
    "run_id",
    "group",
    "name",
    "pipeline",
    "vars",
    "params",
    "logger",
    "partition",
    "parent",
];

/// A start was sent.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Started {
    /// The run. It has a record as soon as a worker has accepted it.
    run_id: RunId,
}

/// The answer to a start, with the path of the run.
fn started(run: RunId) -> Response {
    let location = HeaderValue::try_from(format!("/api/v1/runs/{run}"));
    let mut response = (StatusCode::ACCEPTED, Json(Started { run_id: run })).into_response();
    // A run id has only characters that a header can have.
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The run id for a key: always the same for the same sender and purpose.
fn run_of_key(subject: Option<&str>, purpose: &str, key: &str) -> RunId {
    let mut hash = Sha256::new();
    for part in [subject.unwrap_or_default(), purpose, key] {
        // The length keeps the parts apart.
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    RunId::from_uuid(uuid::Builder::from_custom_bytes(bytes).into_uuid())
}

/// The key of a request. A key in quotes is the same key as without them.
fn key_of(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get(&IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = value.to_str().ok().map(str::trim);
    let key =
        key.map(|key| key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key));
    let is_valid = |key: &&str| {
        (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
    };
    key.filter(is_valid).map(Some).ok_or_else(|| {
        let detail = format!("`Idempotency-Key` must be 1 to {MAX_KEY} visible ASCII characters");
        Problem::bad_request(detail).with_code("bad-idempotency-key")
    })
}

/// The run id of a start: the given one, one derived from the key, or a new one.
struct ChosenRun {
    run: RunId,
    /// Whether an earlier request can have started the run.
    is_repeatable: bool,
}

impl ChosenRun {
    fn of(
        given: Option<RunId>,
        headers: &HeaderMap,
        subject: Option<&str>,
        purpose: &str,
    ) -> Result<Self, Problem> {
        match (given, key_of(headers)?) {
            (Some(_), Some(_)) => {
                let detail = "`run-id` and `Idempotency-Key` exclude each other: leave one out";
                Err(Problem::bad_request(detail).with_code("bad-idempotency-key"))
            }
            (Some(run), None) => Ok(Self { run, is_repeatable: true }),
            (None, Some(key)) => {
                Ok(Self { run: run_of_key(subject, purpose, key), is_repeatable: true })
            }
            (None, None) => Ok(Self { run: Client::new_run_id(), is_repeatable: false }),
        }
    }

    /// Whether the run is known already, so that the start need not be sent again. A worker ignores
    /// a repeated start in any case.
    fn is_known(&self, api: &Api) -> bool {
        self.is_repeatable && matches!(api.projection.run(&self.run), Ok(Some(_)))
    }
}

pub(super) async fn start(
    State(api): State<Api>,
    Subject(subject): Subject,
    headers: HeaderMap,
    JsonBytes(body): JsonBytes,
) -> Result<Response, Problem> {
    let Start { run_id, target, vars, params, logger, partition, parent } = decode(&body)?;
    let given = match run_id {
        RunIdSource::Given(run) => Some(run),
        RunIdSource::Missing => None,
    };
    let chosen = ChosenRun::of(given, &headers, subject.as_deref(), "start")?;
    if chosen.is_known(&api) {
        return Ok(started(chosen.run));
    }
    let what = match target {
        Target::Stored(id) => {
            check_stored(&api, &id).await?;
            StartOf::Stored(id)
        }
        Target::Inline(pipeline) => {
            check_pipeline(&api, &pipeline, "pipeline.")?;
            StartOf::Inline(pipeline)
        }
    };
    let start = StartRequest { what, run: chosen.run, vars, params, logger, partition, parent };
    api.client.start(&start).await?;
    Ok(started(start.run))
}

/// Decodes the body by the rules of the command `pipeline/start`.
fn decode(body: &[u8]) -> Result<Start, Problem> {
    let malformed = |fault: Malformed| {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let detail = fault.to_string();
        let fault = Fault { field: fault.field, detail: fault.what };
        Problem::new(status, detail).with_code("bad-start").with_errors(vec![fault])
    };
    let keys: BTreeMap<String, IgnoredAny> = serde_json::from_slice(body).map_err(|cause| {
        Problem::bad_request(format!("the body must be a JSON object: {cause}"))
            .with_code("bad-body")
    })?;
    let unknown = keys.keys().filter(|key| !START_KEYS.contains(&key.as_str()));
    let unknown: Vec<Fault> =
        unknown.map(|key| Fault::of(key.as_str(), format!("field `{key}` is not known"))).collect();
    if !unknown.is_empty() {
        let problem = faults(StatusCode::UNPROCESSABLE_ENTITY, "the start is not valid", unknown);
        return Err(problem.with_code("bad-start"));
    }
    match command::decode(Some(command::START), None, body).map_err(malformed)? {
        Command::Start(start) => Ok(*start),
        Command::Stop(_) | Command::Pause(_) | Command::Unpause(_) => {
            Err(Problem::bad_request("the body is not a start").with_code("bad-start"))
        }
    }
}

/// Checks that a stored pipeline exists and accepts runs. If the store does not answer, the workers
/// decide.
async fn check_stored(api: &Api, id: &PipelineId) -> Result<(), Problem> {
    match api.client.pipeline(id).await {
        Ok(Some(stored)) if stored.paused => {
            let detail = format!("pipeline {id} is paused and accepts no runs; unpause it first");
            Err(Problem::new(StatusCode::CONFLICT, detail).with_code("paused"))
        }
        Ok(None) => Err(crate::client::Error::UnknownPipeline(id.clone()).into()),
        Ok(Some(_)) | Err(_) => Ok(()),
    }
}

/// Checks what every worker would reject, to report it at once.
pub(super) fn check_pipeline(api: &Api, pipeline: &Pipeline, place: &str) -> Result<(), Problem> {
    let unsupported = pipeline.unsupported().into_iter();
    let mut found: Vec<Fault> =
        unsupported.map(|part| Fault::of(format!("{place}{}", part.path), part.what)).collect();
    if !api.literal_secrets {
        found.extend(pipeline.literal_secrets().into_iter().map(|path| {
            let instead = if can_name_secret(&path) {
                "write {secret-name: NAME} in its place, or set BOB_LITERAL_SECRETS=allow here and \
                 on the workers"
            } else {
                "{secret-name: NAME} is not possible there, so send the secret in a header"
            };
            let detail = format!("{path} is a secret in clear text: {instead}");
            Fault::of(format!("{place}{path}"), detail)
        }));
    }
    if found.is_empty() {
        return Ok(());
    }
    let status = StatusCode::UNPROCESSABLE_ENTITY;
    Err(faults(status, "the pipeline cannot be run", found).with_code("bad-pipeline"))
}

/// How to rerun a run.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RerunBody {
    /// The step to begin with. Default: the first step that the run did not commit.
    from: Option<StepName>,
    /// The id of the new run. Default: a new one.
    run_id: Option<RunId>,
}

pub(super) async fn rerun(
    State(api): State<Api>,
    Subject(subject): Subject,
    PathOf(of): PathOf<RunId>,
    headers: HeaderMap,
    JsonBody(RerunBody { from, run_id }): JsonBody<RerunBody>,
) -> Result<Response, Problem> {
    let purpose = format!("rerun {of}");
    let chosen = ChosenRun::of(run_id, &headers, subject.as_deref(), &purpose)?;
    if chosen.is_known(&api) {
        return Ok(started(chosen.run));
    }
    let start = api.client.rerun(&of, from, chosen.run).await?;
    api.client.start(&start).await?;
    Ok(started(start.run))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(key: &str) -> HeaderMap {
        HeaderMap::from_iter([(IDEMPOTENCY_KEY, HeaderValue::from_str(key).unwrap())])
    }

    #[test]
    fn a_key_gives_each_sender_one_run_for_each_purpose() {
        let run = run_of_key(Some("ann"), "start", "k");
        assert_eq!(run, run_of_key(Some("ann"), "start", "k"));
        for other in [
            run_of_key(Some("bob"), "start", "k"),
            run_of_key(None, "start", "k"),
            run_of_key(Some("ann"), "rerun r-1", "k"),
            run_of_key(Some("ann"), "start", "l"),
            run_of_key(Some("annst"), "art", "k"),
        ] {
            assert_ne!(run, other);
        }
    }

    #[test]
    fn a_key_is_visible_ascii_with_or_without_quotes() {
        assert_eq!(key_of(&headers("\"a-1\"")).unwrap(), Some("a-1"));
        assert_eq!(key_of(&headers("a-1")).unwrap(), Some("a-1"));
        assert_eq!(key_of(&HeaderMap::new()).unwrap(), None);
        for bad in ["", "\"\"", "a b", &"x".repeat(256)] {
            assert!(key_of(&headers(bad)).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_unknown_key_of_a_start_is_a_fault() {
        let problem = decode(br#"{"group":"d","name":"x","var":{}}"#).unwrap_err();
        assert!(problem.detail().contains("`var` is not known"), "{problem}");
        let problem = decode(br#"{"group":"d","name":"x","vars":[]}"#).unwrap_err();
        assert!(problem.detail().contains("vars"), "{problem}");
        assert_eq!(decode(b"[]").unwrap_err().status(), StatusCode::BAD_REQUEST);
        assert!(decode(br#"{"group":"d","name":"x"}"#).is_ok());
    }
}
