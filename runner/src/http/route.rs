//! One row of the table of routes. The table mounts the handlers, says which scope each needs, and
//! is what the `OpenAPI` document is generated from.

use axum::handler::Handler;
use axum::http::{Method, StatusCode};
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::access::Scope;
use super::api::Api;

/// Generates the schema of a type.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// The form of a body.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    /// JSON of a type.
    Json(SchemaOf),
    /// A pipeline as people write it, as JSON or YAML.
    Pipeline,
    /// The body of the command `pipeline/start`, as JSON.
    Start,
    /// Server-sent events, whose data is JSON of a type.
    Events(SchemaOf),
    /// Text of another media type.
    Text(&'static str),
    /// Bytes.
    Bytes,
}

/// An answer of a route, other than problems.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// When it is given.
    pub about: &'static str,
    /// The body. `None` for an empty one.
    pub form: Option<Form>,
}

/// A header that a request can have.
#[derive(Debug, Clone, Copy)]
pub struct RequestHeader {
    /// The name.
    pub name: &'static str,
    /// What it means.
    pub about: &'static str,
}

/// One row of the table of routes.
#[derive(Clone)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, with `{name}` for a parameter.
    pub path: &'static str,
    /// The scope that a sender needs. `None`: everyone can use the route.
    pub scope: Option<Scope>,
    /// The name of the operation, unique in the table.
    pub operation: &'static str,
    /// What the route does, in a few words.
    pub summary: &'static str,
    /// The parameters of the query.
    pub query: Option<SchemaOf>,
    /// Headers with a meaning of their own.
    pub headers: &'static [RequestHeader],
    /// The body of the request.
    pub body: Option<Form>,
    /// The answers, other than problems.
    pub answers: Vec<Answer>,
    /// The statuses of problems, other than those that every route can have.
    pub problems: &'static [u16],
    /// The handler.
    pub handler: MethodRouter<Api>,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Route")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

impl Form {
    /// JSON of this type.
    #[must_use]
    pub fn json<T: JsonSchema>() -> Self {
        Self::Json(schema_of::<T>)
    }

    /// Server-sent events with JSON of this type.
    #[must_use]
    pub fn events<T: JsonSchema>() -> Self {
        Self::Events(schema_of::<T>)
    }
}

impl Route {
    fn new<H, T>(
        (method, filter): (Method, MethodFilter),
        path: &'static str,
        scope: Scope,
        handler: H,
    ) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        Self {
            method,
            path,
            scope: Some(scope),
            operation: "",
            summary: "",
            query: None,
            headers: &[],
            body: None,
            answers: Vec::new(),
            problems: &[],
            handler: on(filter, handler),
        }
    }

    /// A route that reads. It also answers `HEAD`.
    #[must_use]
    pub fn get<H, T>(path: &'static str, scope: Scope, handler: H) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        Self::new((Method::GET, MethodFilter::GET), path, scope, handler)
    }

    /// A route that does something.
    #[must_use]
    pub fn post<H, T>(path: &'static str, scope: Scope, handler: H) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        Self::new((Method::POST, MethodFilter::POST), path, scope, handler)
    }

    /// A route that creates or replaces something.
    #[must_use]
    pub fn put<H, T>(path: &'static str, scope: Scope, handler: H) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        Self::new((Method::PUT, MethodFilter::PUT), path, scope, handler)
    }

    /// A route that deletes something.
    #[must_use]
    pub fn delete<H, T>(path: &'static str, scope: Scope, handler: H) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        Self::new((Method::DELETE, MethodFilter::DELETE), path, scope, handler)
    }

    /// Names the operation and says what it does.
    #[must_use]
    pub fn named(self, operation: &'static str, summary: &'static str) -> Self {
        Self { operation, summary, ..self }
    }

    /// Opens the route to everyone, without a token.
    #[must_use]
    pub fn open(self) -> Self {
        Self { scope: None, ..self }
    }

    /// The query has the fields of this type.
    #[must_use]
    pub fn query<T: JsonSchema>(self) -> Self {
        Self { query: Some(schema_of::<T>), ..self }
    }

    /// The request can have these headers.
    #[must_use]
    pub fn headers(self, headers: &'static [RequestHeader]) -> Self {
        Self { headers, ..self }
    }

    /// The request has a body.
    #[must_use]
    pub fn body(self, form: Form) -> Self {
        Self { body: Some(form), ..self }
    }

    /// Adds an answer with a body.
    #[must_use]
    pub fn answer(mut self, status: StatusCode, about: &'static str, form: Form) -> Self {
        self.answers.push(Answer { status, about, form: Some(form) });
        self
    }

    /// Adds an answer without a body.
    #[must_use]
    pub fn empty(mut self, status: StatusCode, about: &'static str) -> Self {
        self.answers.push(Answer { status, about, form: None });
        self
    }

    /// Problems beyond 401, 403, 429 and 503, which every route can answer with.
    #[must_use]
    pub fn problems(self, problems: &'static [u16]) -> Self {
        Self { problems, ..self }
    }
}
