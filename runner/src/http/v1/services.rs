//! Registered services: resource providers, artifact stores and loggers.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use protocol::id::RegisteredName;
use protocol::run::Registered;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pipelines::SHOWN_WITHIN;
use crate::client::{Applied, Registry, check_service_url, without_credentials};
use crate::http::access::Scope;
use crate::http::api::Api;
use crate::http::extract::{JsonBody, PathOf, faults};
use crate::http::problem::{Fault, Problem};
use crate::http::route::{Form, Route};

/// The registered services of a kind, sorted by name. URLs are shown without credentials.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ServiceList {
    /// The services.
    services: Vec<Registered>,
}

/// A service to register.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceBody {
    /// The base URL of the service: `http://` or `https://`.
    url: String,
    /// The name. It can be left out, and must be that of the path.
    name: Option<String>,
}

/// The result of registering a service.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct AppliedService {
    /// The name.
    name: RegisteredName,
    /// `created`, `changed` or `unchanged`.
    result: &'static str,
}

async fn list(api: Api, registry: Registry) -> Result<Json<ServiceList>, Problem> {
    let shown = |service: &Registered| Registered {
        name: service.name.clone(),
        url: without_credentials(&service.url),
    };
    let services = api.projection.registered(registry)?;
    Ok(Json(ServiceList { services: services.iter().map(|service| shown(service)).collect() }))
}

async fn put(
    api: Api,
    registry: Registry,
    name: RegisteredName,
    ServiceBody { url, name: given }: ServiceBody,
) -> Result<Response, Problem> {
    let mut found = Vec::new();
    if let Some(given) = given.filter(|given| *given != name.as_str()) {
        found.push(Fault::of("name", format!("name {given:?} must be {name:?}, as in the path")));
    }
    if let Err(bad) = check_service_url(&url) {
        found.push(Fault::of("url", bad));
    }
    if !found.is_empty() {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        return Err(faults(status, "the service is not valid", found).with_code("bad-service"));
    }
    let service = Registered { name, url: url.trim_end_matches('/').to_owned() };
    let applied = api.client.register(registry, &service).await?;
    let is_shown = |all: &[&Registered]| all.contains(&&service);
    let shown = api.projection.registered_until(registry, is_shown);
    tokio::time::timeout(SHOWN_WITHIN, shown).await.ok();
    let status = match applied {
        Applied::Created => StatusCode::CREATED,
        Applied::Changed | Applied::Unchanged => StatusCode::OK,
    };
    let applied = AppliedService { name: service.name, result: applied.as_str() };
    Ok((status, Json(applied)).into_response())
}

async fn delete(api: Api, registry: Registry, name: RegisteredName) -> Result<StatusCode, Problem> {
    if !api.client.unregister(registry, &name).await? {
        let detail = format!("there is no {} {name}", registry.noun());
        return Err(Problem::not_found(detail).with_code("unknown-service"));
    }
    let is_absent = |all: &[&Registered]| all.iter().all(|service| service.name != name);
    let shown = api.projection.registered_until(registry, is_absent);
    tokio::time::timeout(SHOWN_WITHIN, shown).await.ok();
    Ok(StatusCode::NO_CONTENT)
}

/// The names of the routes of one kind of service.
struct Names {
    all: &'static str,
    one: &'static str,
    list: (&'static str, &'static str),
    put: (&'static str, &'static str),
    delete: (&'static str, &'static str),
}

/// The routes of registered services.
pub(super) fn routes() -> Vec<Route> {
    let providers = Names {
        all: "/api/v1/providers",
        one: "/api/v1/providers/{service}",
        list: ("listProviders", "Lists the resource providers"),
        put: ("putProvider", "Registers a resource provider"),
        delete: ("deleteProvider", "Removes a resource provider"),
    };
    let stores = Names {
        all: "/api/v1/stores",
        one: "/api/v1/stores/{service}",
        list: ("listStores", "Lists the artifact stores"),
        put: ("putStore", "Registers an artifact store"),
        delete: ("deleteStore", "Removes an artifact store"),
    };
    let loggers = Names {
        all: "/api/v1/loggers",
        one: "/api/v1/loggers/{service}",
        list: ("listLoggers", "Lists the loggers"),
        put: ("putLogger", "Registers a logger"),
        delete: ("deleteLogger", "Removes a logger"),
    };
    let all = [
        (Registry::Providers, providers),
        (Registry::Stores, stores),
        (Registry::Loggers, loggers),
    ];
    all.into_iter().flat_map(|(registry, names)| routes_of(registry, &names)).collect()
}

fn routes_of(registry: Registry, names: &Names) -> [Route; 3] {
    let lists = move |State(api): State<Api>| list(api, registry);
    let puts =
        move |State(api): State<Api>,
              PathOf(name): PathOf<RegisteredName>,
              JsonBody(body): JsonBody<ServiceBody>| put(api, registry, name, body);
    let deletes = move |State(api): State<Api>, PathOf(name): PathOf<RegisteredName>| {
        delete(api, registry, name)
    };
    [
        Route::get(names.all, Scope::Read, lists).named(names.list.0, names.list.1).answer(
            StatusCode::OK,
            "The services, sorted by name",
            Form::json::<ServiceList>(),
        ),
        Route::put(names.one, Scope::Admin, puts)
            .named(names.put.0, names.put.1)
            .body(Form::json::<ServiceBody>())
            .answer(StatusCode::CREATED, "Registered", Form::json::<AppliedService>())
            .answer(StatusCode::OK, "Changed, or unchanged", Form::json::<AppliedService>())
            .problems(&[400, 409, 413, 415, 422]),
        Route::delete(names.one, Scope::Admin, deletes)
            .named(names.delete.0, names.delete.1)
            .empty(StatusCode::NO_CONTENT, "Removed")
            .problems(&[400, 404]),
    ]
}
